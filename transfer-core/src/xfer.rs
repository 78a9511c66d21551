//! Transfers, as the application sees them.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use transfer_proto::desc::Selection;
use transfer_proto::id::CounterId;
use transfer_proto::plan::{Path, Side};
use transfer_proto::proto::control::NOTIF_MAX;
use transfer_proto::proto::link::NotifError;

use crate::backend::shm::{Job, Work};
use crate::clock;
use crate::error::{Error, Result};
use crate::list::{LocalList, RemoteList};
use crate::peer::Peer;
use crate::shared::{Command, Shared, Stock, Word};
use crate::sync::{Ending, Held, Reuse, Signal};

/// Which way the bytes go, seen from the agent that posts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// From the peer.
    Read,
    /// To the peer.
    Write,
}

/// A transfer that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// Bytes that were moved.
    pub bytes: u64,
    /// The path that they took.
    pub path: Path,
    /// From posting to the last byte in place.
    pub elapsed: Duration,
}

/// A transfer about to be posted: see [`Peer::read`] and [`Peer::write`].
#[derive(Clone, Debug)]
#[must_use = "nothing moves before it is posted"]
pub struct Request {
    peer: Peer,
    op: Op,
    local: LocalList,
    remote: RemoteList,
    local_selection: Selection,
    remote_selection: Selection,
    word: Word,
    timeout: Duration,
}

impl Request {
    pub(crate) fn new(peer: Peer, op: Op, local: LocalList, remote: RemoteList) -> Self {
        let timeout = peer.agent.config.transfer_timeout;
        let (local_selection, remote_selection) = (Selection::All, Selection::All);
        Self { peer, op, local, remote, local_selection, remote_selection, word: Word::default(), timeout }
    }

    /// Moves only these spans of the lists, by index, in this order. Cost: one copy of the indices, into memory that
    /// the agent keeps for it.
    pub fn select(mut self, local: &[u32], remote: &[u32]) -> Self {
        let stock = &self.peer.agent.stock;
        self.local_selection = Selection::Indices(stock.copy_of(local));
        self.remote_selection = Selection::Indices(stock.copy_of(remote));
        self
    }

    /// Sends `bytes` to the peer's application once the data has landed (for a read: here), exactly once, whether
    /// this side still looks at the transfer or not. At most 64 KiB.
    pub fn notify(mut self, bytes: &[u8]) -> Self {
        self.word.notif = (!bytes.is_empty()).then(|| bytes.to_vec());
        self
    }

    /// Raises a counter of the peer by `by` once the data has landed (for a read: here), exactly once, whether this side
    /// still looks at the transfer or not. A counter that the peer has dropped meanwhile is passed over.
    pub fn bump(mut self, counter: CounterId, by: u64) -> Self {
        self.word.bump = Some((counter, by));
        self
    }

    /// How long it may take, instead of the agent's `transfer_timeout`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts it. Safe from any thread. Within one host, up to `inline_bytes_max` bytes are copied inside the call;
    /// everything else is left to the agent's threads, and the call returns at once.
    ///
    /// Cost: no allocation once as many transfers have been under way at a time as ever will be, and no lock that
    /// transfers share. Over sockets, up to `inline_bytes_max` bytes are sent by the call where nobody else is driving
    /// the agent; otherwise a syscall, where its driver sleeps.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::BadList`], [`Error::WrongAgent`], [`Error::RegionClosed`],
    /// [`Error::PeerLost`], [`Error::TooLarge`] for the notification, [`Error::AgentClosed`]. Nothing was moved
    /// then. What fails later is told by the [`Xfer`].
    pub fn post(self) -> Result<Xfer> {
        let bytes = self.check()?;
        let agent = Arc::clone(&self.peer.agent);
        let word = self.word;
        let setup = Setup {
            op: self.op,
            local: self.local,
            remote: self.remote,
            local_selection: self.local_selection,
            remote_selection: self.remote_selection,
            bytes,
            timeout: self.timeout,
            started: agent.clock.elapsed(),
            signal: Arc::clone(&agent.signal),
        };
        let core = agent.stock.cores.hold(|core| core.begin(setup, &agent.stock));
        agent.post(core.clone(), word)?;
        Ok(Xfer { core, agent })
    }

    fn check(&self) -> Result<u64> {
        let (local, remote) = (&self.local.core, &self.remote.core);
        if !std::ptr::eq(local.agent, Arc::as_ptr(&self.peer.agent)) {
            return Err(Error::WrongAgent { side: "local" });
        }
        if !Arc::ptr_eq(&remote.peer, &self.peer.core) {
            return Err(Error::WrongAgent { side: "remote" });
        }
        if self.op == Op::Write
            && let Some(region) = remote.read_only_region()
        {
            return Err(Error::ReadOnly { peer: self.peer.core.name.clone(), region: region.info.id });
        }
        let check = |list: &transfer_proto::desc::DescList, selection: &Selection, side| match selection {
            Selection::Indices(indices) => {
                list.check_selection(indices).map_err(|source| Error::BadList { side, source })
            }
            _ => Ok(()),
        };
        check(&local.list, &self.local_selection, "local")?;
        check(&remote.list, &self.remote_selection, "remote")?;
        let ours = self.local_selection.bytes(&local.list);
        let theirs = self.remote_selection.bytes(&remote.list);
        if ours != theirs {
            return Err(Error::LengthMismatch { local: ours, remote: theirs });
        }
        if let Some(len) = self.word.notif.as_ref().map(Vec::len).filter(|&len| len > NOTIF_MAX) {
            let (peer, source) = (self.peer.core.name.clone(), NotifError::TooLong { len });
            return Err(Error::NotNotified { peer, source });
        }
        Ok(ours)
    }
}

/// What a transfer is to do.
pub(crate) struct Setup {
    pub(crate) op: Op,
    pub(crate) local: LocalList,
    pub(crate) remote: RemoteList,
    local_selection: Selection,
    remote_selection: Selection,
    pub(crate) bytes: u64,
    pub(crate) timeout: Duration,
    pub(crate) started: Duration,
    signal: Arc<Signal>,
}

/// A transfer, for everybody inside the agent.
pub(crate) type XferRef = Held<XferCore>;

/// The same, which lies in the agent's stock before and after.
#[derive(Default)]
pub(crate) struct XferCore {
    /// There while anybody holds the transfer.
    setup: Option<Setup>,
    /// Indices of the last transfer, for their memory.
    spares: [Vec<u32>; 2],
    /// Whoever moves bytes for it should leave off at the next slice.
    pub(crate) stop: AtomicBool,
    /// Its name in the driver, once it is there.
    pub(crate) id: AtomicU64,
    /// What is left to do of it, where it goes within this host.
    pub(crate) job: Job<Work>,
    ending: Ending<Result<Done>>,
}

impl Deref for XferCore {
    type Target = Setup;

    #[expect(clippy::expect_used, reason = "set before anybody holds it, and cleared after")]
    fn deref(&self) -> &Setup {
        self.setup.as_ref().expect("a transfer that is held")
    }
}

impl Reuse for XferCore {
    fn clear(&mut self) {
        // The lists go, and with them the memory that they keep.
        if let Some(setup) = self.setup.take() {
            let indices = |selection| match selection {
                Selection::Indices(indices) => indices,
                _ => Vec::new(),
            };
            self.spares = [indices(setup.local_selection), indices(setup.remote_selection)];
        }
        self.stop = AtomicBool::new(false);
        self.id = AtomicU64::new(0);
        self.ending.reset();
    }
}

impl XferCore {
    fn begin(&mut self, setup: Setup, stock: &Stock) {
        for spare in &mut self.spares {
            stock.give_back(std::mem::take(spare));
        }
        self.setup = Some(setup);
    }

    /// Both sides, for the plan.
    pub(crate) fn sides(&self) -> (Side<'_>, Side<'_>) {
        let local = Side::new(&self.local.core.list, &self.local_selection);
        (local, Side::new(&self.remote.core.list, &self.remote_selection))
    }

    /// The one terminal event, the first that is told; whether it was this one. From here on nothing touches the
    /// buffers (I1).
    pub(crate) fn finish_unless_told(&self, outcome: Result<Done>) -> bool {
        let told = self.ending.tell(outcome);
        if told {
            self.signal.set();
        }
        told
    }

    /// Whether [`XferCore::call_back`] is due.
    pub(crate) fn has_callback(&self) -> bool {
        self.ending.has_callback()
    }

    /// Does what the application wants done at the end, once; without the lead, so that it may do anything.
    pub(crate) fn call_back(&self) {
        self.ending.call_back();
    }

    /// Whether its outcome is there. Cost: one load.
    pub(crate) fn has_ended(&self) -> bool {
        self.ending.has_come()
    }

    /// Waits until it has ended, or the thread is asked to lead, at most for `left`.
    pub(crate) fn follow(&self, left: Duration) {
        self.ending.follow(left);
    }

    /// Asks a thread that follows to lead.
    pub(crate) fn promote(&self) {
        self.ending.promote();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// A posted transfer.
///
/// Wait for it by [`Xfer::poll`], by [`Xfer::wait`], as a future on any executor, by [`Xfer::on_done`], or by a
/// descriptor, [`Agent::event_fd`](crate::Agent::event_fd). Dropping it cancels it and
/// returns when nothing touches its buffers any more; that is at once, unless a slice is just being moved.
#[must_use = "dropping a transfer cancels it"]
pub struct Xfer {
    core: XferRef,
    agent: Arc<Shared>,
}

impl Xfer {
    /// How it ended, or `None` while it goes on. With [`Config::busy_poll`](crate::Config::busy_poll) the call also
    /// does what the agent has to do and can do without waiting. Cost: a load while it goes on, and then a lock that
    /// only its waiters share; with `busy_poll` a look at the agent's sockets as well.
    #[must_use]
    pub fn poll(&self) -> Option<Result<Done>> {
        let drives = self.path() == Path::Tcp && !self.agent.config.busy_poll.is_zero();
        if drives && !self.core.has_ended() {
            self.agent.drive_once();
        }
        self.core.ending.outcome()
    }

    /// Waits for its end. Meanwhile the thread does what there is to do for it, so that nobody has to wake it: within
    /// one host it copies for this transfer, and `timeout` may be exceeded by one slice; over sockets it does what
    /// the agent has to do for all transfers and peers.
    ///
    /// # Errors
    /// [`Error::WaitTimedOut`] while it goes on; otherwise how it failed: [`Error::PeerLost`],
    /// [`Error::TransferFailed`], [`Error::Deadline`], [`Error::Cancelled`], [`Error::AgentClosed`].
    pub fn wait(&self, timeout: Duration) -> Result<Done> {
        let end = clock::end_of_wait(timeout);
        loop {
            if let Some(outcome) = self.core.ending.outcome() {
                return outcome;
            }
            clock::left(end).ok_or(Error::WaitTimedOut(timeout))?;
            self.drive(|| clock::left(end).unwrap_or_default());
        }
    }

    /// Does what can be done for it in this thread, and waits for what others do, while there is time `left`.
    fn drive(&self, left: impl Fn() -> Duration) {
        if self.path() == Path::Tcp {
            return self.agent.drive(&self.core, left());
        }
        self.help(|| left().is_zero());
        self.core.follow(left());
    }

    /// Has `callback` called with its outcome, once: now if it has ended, else by the thread that brings the end, which
    /// is one of the agent's or one that waits for a transfer. What takes long in it delays others; a panic in it is
    /// caught and logged. It takes the place of an earlier one. Cost: one allocation.
    pub fn on_done(&self, callback: impl FnOnce(Result<Done>) + Send + 'static) {
        self.core.ending.on_end(Box::new(callback));
    }

    /// Asks for its end. It is reached when nothing touches the buffers any more, and is told as
    /// [`Error::Cancelled`], unless every byte was in place already.
    pub fn cancel(&self) {
        self.core.stop.store(true, Ordering::Release);
        if self.path() == Path::Tcp {
            self.agent.send(Command::Cancel(self.core.clone()));
        } else {
            // Whoever looks first sees it: this thread, unless others are in mid-slice.
            self.help(|| false);
        }
    }

    /// Does what can be done for it in this thread.
    fn help(&self, enough: impl FnMut() -> bool) {
        if self.path() != Path::Tcp {
            self.agent.copies.help(&self.agent, &self.core, enough);
        }
    }

    /// The path it takes.
    #[must_use]
    pub fn path(&self) -> Path {
        self.core.remote.path()
    }
}

impl Future for Xfer {
    type Output = Result<Done>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.core.ending.poll(context.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Xfer {
    fn drop(&mut self) {
        if self.core.has_ended() {
            return;
        }
        self.cancel();
        // The driver ends every transfer: at the latest at its deadline, or when the agent is dropped.
        while !self.core.has_ended() {
            self.drive(|| Duration::MAX);
        }
    }
}

impl fmt::Debug for Xfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.core;
        f.debug_struct("Xfer")
            .field("op", &core.op)
            .field("bytes", &core.bytes)
            .field("path", &core.remote.path())
            .field("outcome", &self.core.ending.outcome())
            .finish_non_exhaustive()
    }
}
