//! A transfer within this host: its slices are taken and completed by several threads, each for itself.
//!
//! The state machine is the one of all transfers, [`transfer_proto::proto::xfer::Xfer`], under a lock that only those
//! share who copy for this transfer. It is looked at between two slices, which are a fraction of a millisecond apart:
//! that is where a cancelled transfer, a lost peer or a deadline shows.

use std::sync::{MutexGuard, PoisonError};

use transfer_proto::plan::Path;
use transfer_proto::proto::xfer::{Outcome, SliceError, SliceLimits, SlicePost, Xfer};
use transfer_sys::process::RANGES_MAX;

use super::moves::Batch;
use crate::error::Error;
use crate::shared::{Passes, Shared, Word};
use crate::xfer::XferCore;

/// Bytes that the kernel copies in one call where its ranges do not run out first.
const FOREIGN_BYTES_MAX: u64 = 16 << 20;

/// The state of a transfer here. It stays when the transfer has ended, for its memory.
#[derive(Debug)]
pub(crate) struct Work {
    state: Xfer,
    open: Option<Open>,
}

/// What a transfer that is under way holds: the right to touch its memory, and what to say at its end.
#[derive(Debug)]
struct Open {
    passes: Passes,
    word: Word,
}

impl Work {
    pub(crate) fn begin(agent: &Shared, core: &XferCore, passes: Passes, word: Word) {
        let limits = match core.remote.path() {
            // A call into the kernel costs as much as some pages, so it gets as many ranges as it takes.
            Path::ProcessMemory => agent.config.slice_bytes_max.max(FOREIGN_BYTES_MAX),
            _ => agent.config.slice_bytes_max,
        };
        // Whoever takes a slice copies it at once, so there are never more in flight than threads at it.
        let limits = SliceLimits::new(limits, RANGES_MAX, u32::MAX);
        let deadline = agent.clock.now() + core.timeout;
        let mut guard = lock(core);
        let work = guard.get_or_insert_with(|| Self { state: Xfer::new(limits, deadline), open: None });
        work.state.restart(limits, deadline);
        work.open = Some(Open { passes, word });
    }

    /// Makes it stop where there is a reason to.
    fn look_around(&mut self, agent: &Shared, core: &XferCore, closing: bool) {
        if core.is_stopped() || closing {
            self.state.cancel();
        } else if !core.remote.core.peer.is_up() {
            self.state.peer_lost();
        } else {
            self.state.handle_timeout(agent.clock.now());
        }
    }
}

fn lock(core: &XferCore) -> MutexGuard<'_, Option<Work>> {
    core.work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next slice that nobody has taken, its pieces in `batch`. Where there is none, the transfer may have ended here.
pub(super) fn take_slice(
    agent: &Shared,
    core: &XferCore,
    closing: bool,
    batch: &mut Batch,
) -> Option<SlicePost> {
    let mut guard = lock(core);
    let work = guard.as_mut().filter(|work| work.open.is_some())?;
    work.look_around(agent, core, closing);
    let post = work.state.poll_slice(core.sides(), batch.pieces());
    if post.is_none() {
        end_if_over(agent, core, guard);
    }
    post
}

/// A slice that was taken is copied, or failed; nothing touches its bytes any more.
pub(super) fn complete(agent: &Shared, core: &XferCore, post: SlicePost, result: Result<u64, SliceError>) {
    let mut guard = lock(core);
    if let Some(work) = guard.as_mut() {
        work.state.handle_completion(post.id, None, result);
        end_if_over(agent, core, guard);
    }
}

fn end_if_over(agent: &Shared, core: &XferCore, mut guard: MutexGuard<'_, Option<Work>>) {
    let Some(work) = guard.as_mut().filter(|work| work.open.is_some()) else { return };
    let Some(outcome) = work.state.poll_outcome(core.sides()) else { return };
    let Some(Open { passes, word }) = work.open.take() else { return };
    drop(guard);
    let result = match outcome {
        // Nobody asked for it, so it was the agent's end.
        Outcome::Cancelled if !core.is_stopped() => Err(Error::AgentClosed),
        outcome => agent.result_of(core, outcome),
    };
    agent.end_local(core, passes, word, result);
}
