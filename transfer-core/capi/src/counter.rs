//! Counters that peers raise.

use std::time::Duration;

use transfer_core::{Counter, Error};

use crate::agent::hr_agent_t;
use crate::boundary::{Call, call, value};
use crate::error::hr_error_t;
use crate::status::hr_status_t;

/// A number of this agent that peers raise with their transfers: see hr_xfer_options_t.bump_by. It only grows, and is
/// raised exactly once by each transfer that is done, after its last byte is in place, on every path and over any
/// retry. So a counter that each layer of a request raises by one says that the first n layers are here, if the layers
/// are sent one after the other, or that n of them are, if they are sent at once.
#[derive(Debug)]
pub struct hr_counter_t {
    counter: Counter,
}

/// A counter at zero. An agent has room for 65536. Free it with hr_counter_free().
/// Errors: HR_TOO_LARGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_counter(
    agent: *mut hr_agent_t,
    counter: *mut *mut hr_counter_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let counter = c.out(counter, "counter")?.none();
        counter.give(hr_counter_t { counter: c.handle(agent, "agent")?.agent.counter()? });
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Its name, for the peer that is to raise it; the application tells it. Any number is a name, so 0, which is returned
/// for NULL, says nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_counter_id(counter: *const hr_counter_t) -> u64 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(counter, "counter")?.counter.id().to_u64())) }
}

/// How far it is. All data of the transfers that raised it is in place. Costs one lock of its own. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_counter_get(counter: *const hr_counter_t) -> u64 {
    // SAFETY: C1.
    unsafe { value(0, |c| Ok(c.handle(counter, "counter")?.counter.get())) }
}

/// Waits up to `timeout_ns` nanoseconds until it is at least at `at_least`, and writes how far it is then to `reached`,
/// which may be NULL. HR_PENDING where that took longer. Several threads may wait. A peer that is lost raises it no more
/// and does not end the wait; HR_EVENT_PEER_LOST tells.
/// Errors: HR_AGENT_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_counter_wait(
    counter: *const hr_counter_t,
    at_least: u64,
    timeout_ns: u64,
    reached: *mut u64,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let place = c.out_or_none(reached, "reached")?;
        let counter = &c.handle(counter, "counter")?.counter;
        let reached = match counter.wait(at_least, Duration::from_nanos(timeout_ns)) {
            Err(Error::WaitTimedOut(_)) => return Ok(hr_status_t::HR_PENDING),
            reached => reached?,
        };
        if let Some(place) = place {
            place.put(reached);
        }
        Ok(hr_status_t::HR_OK)
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Frees a counter. Transfers that would raise it pass it over from then on, and its name comes to mean nothing else.
/// NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_counter_free(counter: *mut hr_counter_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(counter)) }
}
