//! A transfer that several threads do together: who takes which slice, and who ends it.

use std::sync::PoisonError;

use transfer_proto::plan::{Piece, Side};
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::{Outcome, SliceError, SliceLimits, SlicePost, Xfer};

use crate::sync::prim::{Mutex, MutexGuard};

/// The state machine of all transfers, [`transfer_proto::proto::xfer::Xfer`], under a lock that only those share who copy
/// for this transfer, with what the transfer holds while it is under way.
///
/// Whoever takes a slice copies it and completes it. The end comes once, to one of them: what is held is handed to that
/// thread when no slice is with anybody, and is its alone from there on.
#[derive(Debug)]
pub(crate) struct Job<H> {
    inner: Mutex<Inner<H>>,
}

#[derive(Debug)]
struct Inner<H> {
    /// It stays when the transfer has ended, for its memory.
    state: Option<Xfer>,
    /// `None` when no transfer is under way.
    held: Option<H>,
}

impl<H> Default for Job<H> {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { state: None, held: None }) }
    }
}

/// What is there for a thread that wants to copy.
#[derive(Debug)]
#[must_use]
pub(super) enum Next<H> {
    /// A slice, which it has to complete.
    Slice(SlicePost),
    /// The end of the transfer, which it has to tell.
    End(End<H>),
    /// Nothing: others are at it, or it has ended.
    Nothing,
}

/// How a transfer ended, and what it held.
#[derive(Debug)]
#[must_use]
pub(super) struct End<H> {
    pub(super) outcome: Outcome,
    pub(super) held: H,
}

/// Both lists of a transfer.
type Sides<'a> = (Side<'a>, Side<'a>);

impl<H> Job<H> {
    fn lock(&self) -> MutexGuard<'_, Inner<H>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transfer begins: from here on there are slices to take.
    pub(super) fn begin(&self, limits: SliceLimits, deadline: Time, held: H) {
        let mut inner = self.lock();
        inner.state.get_or_insert_with(|| Xfer::new(limits, deadline)).restart(limits, deadline);
        inner.held = Some(held);
    }

    /// The next slice that nobody has taken, its pieces in `pieces`. Before that `look` stops the transfer where there is
    /// a reason to.
    pub(super) fn take(
        &self,
        sides: Sides<'_>,
        pieces: &mut Vec<Piece>,
        look: impl FnOnce(&mut Xfer),
    ) -> Next<H> {
        let mut inner = self.lock();
        let Some(state) = inner.under_way() else { return Next::Nothing };
        look(state);
        match state.poll_slice(sides, pieces) {
            Some(post) => Next::Slice(post),
            None => inner.end(sides).map_or(Next::Nothing, Next::End),
        }
    }

    /// A slice that was taken is copied, or failed; nothing touches its bytes any more. The end, where it was the last.
    pub(super) fn complete(
        &self,
        sides: Sides<'_>,
        post: SlicePost,
        result: Result<u64, SliceError>,
    ) -> Option<End<H>> {
        let mut inner = self.lock();
        inner.under_way()?.handle_completion(post.id, None, result);
        inner.end(sides)
    }
}

impl<H> Inner<H> {
    fn under_way(&mut self) -> Option<&mut Xfer> {
        self.state.as_mut().filter(|_| self.held.is_some())
    }

    fn end(&mut self, sides: Sides<'_>) -> Option<End<H>> {
        let outcome = self.under_way()?.poll_outcome(sides)?;
        self.held.take().map(|held| End { outcome, held })
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::sync::Arc;
    use std::time::Duration;

    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicBool, Ordering};
    use loom::thread;
    use transfer_proto::desc::{Desc, DescList, Selection};
    use transfer_proto::id::RegionId;

    use super::*;
    use crate::sync::Ending;

    const SLICES: usize = 2;

    /// A transfer of one byte for each slice: its job, its end, and its memory.
    struct Transfer {
        list: DescList,
        job: Job<()>,
        ending: Ending<Outcome>,
        stop: AtomicBool,
        memory: [UnsafeCell<()>; SLICES],
    }

    impl Transfer {
        fn begun() -> Arc<Self> {
            let list = DescList::from(Desc::contiguous(RegionId::new(1, 0), 0, SLICES as u64));
            let memory = std::array::from_fn(|_| UnsafeCell::new(()));
            let (job, ending, stop) = (Job::default(), Ending::default(), AtomicBool::new(false));
            job.begin(SliceLimits::new(1, 1, u32::MAX), Time::at(Duration::MAX), ());
            Arc::new(Self { list, job, ending, stop, memory })
        }

        fn sides(&self) -> Sides<'_> {
            let side = || Side::new(&self.list, &Selection::All);
            (side(), side())
        }

        fn tell(&self, end: End<()>) {
            assert!(self.ending.tell(end.outcome), "it ended before");
        }

        /// As a copying thread, or a caller that waits: copies what nobody has taken.
        fn help(&self) {
            let look = |state: &mut Xfer| {
                if self.stop.load(Ordering::Acquire) {
                    state.cancel();
                }
            };
            let mut pieces = Vec::new();
            loop {
                pieces.clear();
                match self.job.take(self.sides(), &mut pieces, look) {
                    Next::Nothing => return,
                    Next::End(end) => return self.tell(end),
                    Next::Slice(post) => {
                        let at = usize::try_from(pieces[0].local.1).unwrap();
                        self.memory[at].with_mut(|_| ());
                        if let Some(end) = self.job.complete(self.sides(), post, Ok(post.bytes)) {
                            self.tell(end);
                        }
                    }
                }
            }
        }

        fn helper(self: &Arc<Self>) -> thread::JoinHandle<()> {
            let transfer = Arc::clone(self);
            thread::spawn(move || transfer.help())
        }

        /// As [`crate::Xfer::wait`], after which the memory is the caller's.
        fn wait(&self) -> Outcome {
            let outcome = loop {
                if let Some(outcome) = self.ending.outcome() {
                    break outcome;
                }
                self.help();
                self.ending.follow(Duration::MAX);
            };
            self.memory.iter().for_each(|byte| byte.with_mut(|_| ()));
            outcome
        }
    }

    const DONE: Outcome = Outcome::Done { bytes: SLICES as u64 };

    #[test]
    fn each_slice_is_copied_once_and_the_last_one_ends_it() {
        loom::model(|| {
            let transfer = Transfer::begun();
            let helpers = [transfer.helper(), transfer.helper()];
            assert_eq!(transfer.wait(), DONE);
            helpers.into_iter().for_each(|helper| helper.join().unwrap());
        });
    }

    /// As the drop of an [`crate::Xfer`]: it is asked to stop in mid-slice, and the memory goes after that.
    #[test]
    fn nothing_is_touched_after_a_cancelled_transfer_has_ended() {
        loom::model(|| {
            let transfer = Transfer::begun();
            let helper = transfer.helper();
            transfer.stop.store(true, Ordering::Release);
            let outcome = transfer.wait();
            assert!(matches!(outcome, DONE | Outcome::Cancelled), "{outcome:?}");
            helper.join().unwrap();
        });
    }
}
