//! Transfers.

use std::time::Duration;

use transfer_core::{CounterId, Done, Error, LocalList, Peer, RemoteList, Request, Result, Xfer};

use crate::boundary::{Call, Outcome, call, value};
use crate::config::{hr_path_t, nanos};
use crate::error::hr_error_t;
use crate::list::{hr_list_t, hr_remote_list_t};
use crate::on_done::OnDone;
use crate::peer::hr_peer_t;
use crate::status::hr_status_t;
use crate::versioned::Versioned;

/// How a transfer is done. hr_xfer_options_init() fills in the defaults; every field but size is 0 or NULL then. What it
/// points to is copied while posting.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a C struct; it grows at its end")]
pub struct hr_xfer_options_t {
    /// sizeof(hr_xfer_options_t); set by hr_xfer_options_init().
    pub size: usize,
    /// Moves only these spans of the local list, by index, in this order. NULL: all. Both selections or none.
    pub local_indices: *const u32,
    /// How many.
    pub local_count: usize,
    /// Moves only these spans of the remote list. NULL: all.
    pub remote_indices: *const u32,
    /// How many.
    pub remote_count: usize,
    /// Sent to the peer's application once the data has landed (for a read: here), exactly once, whether this side still
    /// looks at the transfer or not. At most 64 KiB. NULL: none.
    pub notif: *const u8,
    /// How many bytes.
    pub notif_len: usize,
    /// How long it may take, in nanoseconds. 0: the agent's transfer_timeout_ns.
    pub timeout_ns: u64,
    /// Raises the peer's counter of this name, of hr_counter_id() there, once the data has landed, as notif is sent and
    /// in order with it. A counter that the peer has freed meanwhile is passed over.
    pub bump_counter: u64,
    /// By how much. 0: no counter is raised.
    pub bump_by: u64,
}

// SAFETY: C1. repr(C), `size` first, integers and pointers only; `tests::layout` finds padding.
unsafe impl Versioned for hr_xfer_options_t {
    fn defaults(size: usize) -> Self {
        Self {
            size,
            local_indices: std::ptr::null(),
            local_count: 0,
            remote_indices: std::ptr::null(),
            remote_count: 0,
            notif: std::ptr::null(),
            notif_len: 0,
            timeout_ns: 0,
            bump_counter: 0,
            bump_by: 0,
        }
    }
}

/// Fills in the defaults. Call it as hr_xfer_options_init(&options, sizeof options). HR_INVALID_ARGUMENT for NULL and
/// for a size that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_xfer_options_init(options: *mut hr_xfer_options_t, size: usize) -> hr_status_t {
    let no_error: *mut *mut hr_error_t = std::ptr::null_mut();
    // SAFETY: C1.
    unsafe { call(no_error, |c| c.init(options, size, "options")) }
}

/// A transfer that is done.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a C struct")]
pub struct hr_done_t {
    /// Bytes that were moved.
    pub bytes: u64,
    /// From posting to the last byte in place, in nanoseconds.
    pub elapsed_ns: u64,
    /// The path that they took.
    pub path: hr_path_t,
}

impl From<Done> for hr_done_t {
    fn from(done: Done) -> Self {
        Self { bytes: done.bytes, elapsed_ns: nanos(done.elapsed), path: done.path.into() }
    }
}

/// A posted transfer. It reaches one terminal state; from then on nothing touches its local memory.
#[derive(Debug)]
pub struct hr_xfer_t {
    pub(crate) xfer: Xfer,
    pub(crate) on_done: OnDone,
}

impl hr_xfer_t {
    /// Ends it, and returns when its callback, where it has one, has been called and has returned.
    fn settle(&self) {
        // Without one, dropping it ends it.
        if self.on_done.is_set() {
            self.xfer.cancel();
            self.on_done.call(self.xfer.wait(Duration::MAX));
            self.on_done.wait();
        }
    }
}

impl hr_xfer_options_t {
    /// Puts what they say into a request.
    fn apply(&self, c: &Call, mut request: Request) -> Outcome<Request> {
        if self.local_indices.is_null() != self.remote_indices.is_null() {
            let problem = "select on one side only; select on both or none";
            return Err(hr_error_t::argument("options", problem));
        }
        if !self.local_indices.is_null() {
            let local = c.slice(self.local_indices, self.local_count, "options.local_indices")?;
            let remote = c.slice(self.remote_indices, self.remote_count, "options.remote_indices")?;
            request = request.select(local, remote);
        }
        request = request.notify(c.slice(self.notif, self.notif_len, "options.notif")?);
        if self.bump_by != 0 {
            request = request.bump(CounterId::from_u64(self.bump_counter), self.bump_by);
        }
        if self.timeout_ns != 0 {
            request = request.timeout(Duration::from_nanos(self.timeout_ns));
        }
        Ok(request)
    }
}

/// What both ways of posting are handed.
struct Posting {
    peer: *const hr_peer_t,
    local: *const hr_list_t,
    remote: *const hr_remote_list_t,
    options: *const hr_xfer_options_t,
    xfer: *mut *mut hr_xfer_t,
}

impl Posting {
    fn post(&self, c: &Call, way: impl Fn(&Peer, &LocalList, &RemoteList) -> Request) -> Outcome<()> {
        let place = c.out(self.xfer, "xfer")?.none();
        let peer = &c.handle(self.peer, "peer")?.peer;
        let local = &c.handle(self.local, "local")?.list;
        let remote = &c.handle(self.remote, "remote")?.list;
        let mut request = way(peer, local, remote);
        if !self.options.is_null() {
            request = c.versioned(self.options, "options")?.apply(c, request)?;
        }
        place.give_shared(hr_xfer_t { xfer: request.post()?, on_done: OnDone::default() });
        Ok(())
    }
}

/// Starts a transfer from the peer's spans into local ones. Within one host, up to inline_bytes_max bytes are copied
/// inside the call; everything else is handed to the agent's threads, and the call returns at once. `options` may be
/// NULL. Lists and peer may be freed at once; the transfer keeps what it needs. Free it with hr_xfer_free().
/// Costs an allocation for the handle and one for a notification, and takes no lock that transfers share. Neighbours on
/// both sides move as one, so a list of many small spans in order costs little more than one large span.
/// Errors: HR_LENGTH_MISMATCH, HR_BAD_LIST, HR_WRONG_AGENT, HR_REGION_CLOSED, HR_READ_ONLY, HR_PEER_LOST, HR_NOT_NOTIFIED
/// for a notification that is too long, HR_AGENT_CLOSED. Nothing was moved then. What fails later is told by the
/// transfer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_read(
    peer: *mut hr_peer_t,
    local: *const hr_list_t,
    remote: *const hr_remote_list_t,
    options: *const hr_xfer_options_t,
    xfer: *mut *mut hr_xfer_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let posting = Posting { peer, local, remote, options, xfer };
    // SAFETY: C1.
    unsafe { call(error, |c| posting.post(c, Peer::read)) }
}

/// Starts a transfer from local spans into the peer's. All else is as for hr_peer_read().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_peer_write(
    peer: *mut hr_peer_t,
    local: *const hr_list_t,
    remote: *const hr_remote_list_t,
    options: *const hr_xfer_options_t,
    xfer: *mut *mut hr_xfer_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let posting = Posting { peer, local, remote, options, xfer };
    // SAFETY: C1.
    unsafe { call(error, |c| posting.post(c, Peer::write)) }
}

fn ended(c: &Call, done: *mut hr_done_t, outcome: Option<Result<Done>>) -> Outcome<hr_status_t> {
    let done = c.out_or_none(done, "done")?;
    match outcome {
        None | Some(Err(Error::WaitTimedOut(_))) => Ok(hr_status_t::HR_PENDING),
        Some(Err(error)) => Err(error.into()),
        Some(Ok(told)) => {
            if let Some(done) = done {
                done.put(told.into());
            }
            Ok(hr_status_t::HR_OK)
        }
    }
}

/// How it ended, or HR_PENDING while it goes on. Tells the same each time. `done`, which may be NULL, is written for
/// HR_OK only. Costs a load while it goes on; with busy_poll_ns also a look at the agent's sockets.
/// Errors: HR_PEER_LOST, HR_TRANSFER_FAILED, HR_STALE, HR_DEADLINE, HR_CANCELLED, HR_AGENT_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_xfer_poll(
    xfer: *const hr_xfer_t,
    done: *mut hr_done_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    // SAFETY: C1.
    unsafe { call(error, |c| ended(c, done, c.handle(xfer, "xfer")?.xfer.poll())) }
}

/// The same, after waiting up to `timeout_ns` nanoseconds for its end. Meanwhile the calling thread does what there is to
/// do, so that nobody has to wake it: within one host it copies for the transfer, so that the timeout may be exceeded by
/// one slice; over sockets it does the agent's work for all transfers and peers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_xfer_wait(
    xfer: *const hr_xfer_t,
    timeout_ns: u64,
    done: *mut hr_done_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let timeout = Duration::from_nanos(timeout_ns);
    // SAFETY: C1.
    unsafe { call(error, |c| ended(c, done, Some(c.handle(xfer, "xfer")?.xfer.wait(timeout)))) }
}

/// Asks for its end; blocks for no more than a slice that is just being moved. The end is reached when nothing touches
/// the memory any more, and is told as HR_CANCELLED, unless every byte was in place already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_xfer_cancel(xfer: *mut hr_xfer_t, error: *mut *mut hr_error_t) -> hr_status_t {
    let body = |c: &Call| {
        c.handle(xfer, "xfer")?.xfer.cancel();
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// The path it takes. HR_PATH_OTHER for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_xfer_path(xfer: *const hr_xfer_t) -> hr_path_t {
    // SAFETY: C1.
    unsafe { value(hr_path_t::HR_PATH_OTHER, |c| Ok(c.handle(xfer, "xfer")?.xfer.path().into())) }
}

/// Frees a transfer. One that goes on is cancelled, and the call blocks until nothing touches its memory any more: at
/// once, unless a slice is just being moved; over sockets for a round trip, and up to peer_timeout_ns for a peer that
/// froze. Its callback has been called and has returned then; see hr_xfer_on_done(). NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_xfer_free(xfer: *mut hr_xfer_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.take_shared(xfer).map(|xfer| xfer.iter().for_each(|xfer| xfer.settle()))) }
}
