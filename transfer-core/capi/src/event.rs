//! What happens to an agent without being asked for.

use std::ffi::c_int;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use transfer_core::Event;

use crate::agent::hr_agent_t;
use crate::boundary::{Call, Out, Outcome, call, value};
use crate::error::hr_error_t;
use crate::peer::hr_peer_t;
use crate::status::hr_status_t;

/// What happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a C enum; values are only ever added")]
pub enum hr_event_kind_t {
    /// Something that this header does not know.
    HR_EVENT_OTHER = 0,
    /// A peer's notification arrived. Data that it speaks of has landed.
    HR_EVENT_NOTIF = 1,
    /// A peer can be used.
    HR_EVENT_PEER_UP = 2,
    /// A peer is gone; all transfers with it have ended or are about to.
    HR_EVENT_PEER_LOST = 3,
}

/// Something that happened. Made by the library only, so that it may grow at its end; freed with hr_event_free(), and
/// with it everything that it points to.
#[repr(C)]
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "a C struct; it grows at its end")]
pub struct hr_event_t {
    /// What.
    pub kind: hr_event_kind_t,
    /// Which peer. Belongs to the event; hr_peer_clone() makes a handle of your own. NULL for HR_EVENT_OTHER.
    pub peer: *mut hr_peer_t,
    /// HR_EVENT_NOTIF: what it says.
    pub data: *const u8,
    /// How many bytes.
    pub data_len: usize,
    /// HR_EVENT_PEER_LOST: how it was noticed. Belongs to the event. Else NULL.
    pub reason: *const hr_error_t,
}

/// An event, as C sees it, with what it points to.
#[repr(C)]
#[derive(Debug)]
struct Owned {
    event: hr_event_t,
    peer: Option<Arc<hr_peer_t>>,
    data: Vec<u8>,
    reason: Option<Arc<hr_error_t>>,
}

impl Owned {
    fn new(
        kind: hr_event_kind_t,
        peer: Option<hr_peer_t>,
        data: Vec<u8>,
        reason: Option<hr_error_t>,
    ) -> Self {
        let (peer, reason) = (peer.map(Arc::new), reason.map(Arc::new));
        let event = hr_event_t {
            kind,
            peer: peer.as_ref().map_or(std::ptr::null_mut(), |peer| Arc::as_ptr(peer).cast_mut()),
            data: if data.is_empty() { std::ptr::null() } else { data.as_ptr() },
            data_len: data.len(),
            reason: reason.as_ref().map_or(std::ptr::null(), Arc::as_ptr),
        };
        Self { event, peer, data, reason }
    }
}

impl From<Event> for Owned {
    fn from(event: Event) -> Self {
        use hr_event_kind_t::{HR_EVENT_NOTIF, HR_EVENT_OTHER, HR_EVENT_PEER_LOST, HR_EVENT_PEER_UP};
        match event {
            Event::Notif { peer, bytes } => Self::new(HR_EVENT_NOTIF, Some(peer.into()), bytes, None),
            Event::PeerUp { peer } => Self::new(HR_EVENT_PEER_UP, Some(peer.into()), Vec::new(), None),
            Event::PeerLost { peer, reason } => {
                Self::new(HR_EVENT_PEER_LOST, Some(peer.into()), Vec::new(), Some(reason.into()))
            }
            _ => Self::new(HR_EVENT_OTHER, None, Vec::new(), None),
        }
    }
}

fn given(place: &Out<'_, *mut hr_event_t>, event: Option<Event>) -> Outcome<hr_status_t> {
    let Some(event) = event else { return Ok(hr_status_t::HR_PENDING) };
    place.put(Box::into_raw(Box::new(Owned::from(event))).cast());
    Ok(hr_status_t::HR_OK)
}

/// The next event; HR_PENDING, and NULL in `event`, where there is none. Several threads may ask; each event goes to one
/// of them. Free it with hr_event_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_poll_event(
    agent: *mut hr_agent_t,
    event: *mut *mut hr_event_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let place = c.out(event, "event")?.none();
        given(&place, c.handle(agent, "agent")?.agent.poll_event())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// The same, after waiting up to `timeout_ns` nanoseconds for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_wait_event(
    agent: *mut hr_agent_t,
    timeout_ns: u64,
    event: *mut *mut hr_event_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let place = c.out(event, "event")?.none();
        given(&place, c.handle(agent, "agent")?.agent.wait_event(Duration::from_nanos(timeout_ns)))
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// A descriptor for an epoll(7) or poll(2) loop: readable once an event has come, a transfer of this agent has ended, or
/// one of its counters was raised. When it is, read(2) its 8 bytes (eventfd(2)), which clears it; then take events with
/// hr_agent_poll_event() until there are none, hr_xfer_poll() the transfers and hr_counter_get() the counters; in that
/// order nothing is missed. It starts out readable, and does not block. Every call gives the same one. It belongs to the
/// agent: watch and read it, do not close it, and take it out of the loop before hr_agent_destroy().
/// Costs, from the first call on, a system call for each event, transfer and raise.
/// Errors: HR_OS where no descriptor is left; `fd` is -1 then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_event_fd(
    agent: *mut hr_agent_t,
    fd: *mut c_int,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let place = c.out(fd, "fd")?;
        place.put(-1);
        place.put(c.handle(agent, "agent")?.agent.event_fd()?.as_raw_fd());
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Frees an event and what it points to. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_event_free(event: *mut hr_event_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(event.cast::<Owned>())) }
}
