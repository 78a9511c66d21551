//! Faults at their moment.

use std::time::Duration;

use transfer_sys::verbs::sys;

use crate::engine::{Request, Step};
use crate::queues::{Wire, fail};
use crate::shared::{FaultKind, Shared};

/// The fault whose moment this work request is.
pub(crate) fn strike(shared: &mut Shared, wire: &Wire<'_>, slot: u32, request: &mut Request) -> Option<Step> {
    if shared.fault_count == 0 {
        return None;
    }
    let device = shared.qps[slot as usize].object.device;
    let mut struck = None;
    for entry in
        shared.faults.iter_mut().filter(|entry| entry.kind != FaultKind::None && entry.device == device)
    {
        if entry.skip > 0 {
            entry.skip -= 1;
        } else if struck.is_none() {
            struck = Some((entry.kind, entry.argument));
            entry.kind = FaultKind::None;
        }
    }
    let (kind, argument) = struck?;
    shared.fault_count -= 1;
    match kind {
        FaultKind::None => None,
        FaultKind::Lost => {
            request.state.lost = true;
            None
        }
        FaultKind::WrongKey => {
            request.state.wrong_key = true;
            None
        }
        FaultKind::Partial => {
            request.state.stop_at = Some(argument);
            None
        }
        FaultKind::Late => Some(Step::Later(Duration::from_millis(argument))),
        FaultKind::QpError => {
            fail(shared, wire, slot as usize, Some(sys::IBV_EVENT_QP_FATAL));
            Some(Step::More)
        }
    }
}
