//! What happens to a device without anybody having asked.
#![allow(unsafe_code, reason = "calls into libibverbs")]

use std::mem::MaybeUninit;

use super::context::Context;
use super::sys;
use crate::{OsError, OsResult};

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// All of the device.
    Device,
    /// A port, from 1.
    Port(u8),
    /// The queue pair of that number.
    QueuePair(u32),
    /// The completion queue of that token.
    CompletionQueue(u64),
    /// The shared receive queue of that token.
    SharedReceiveQueue(u64),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The device is gone, or does not work any more: nothing on it will complete.
    DeviceFatal,
    /// The port can be used (again).
    PortActive,
    /// The port lost its link.
    PortError,
    /// The port's LID changed.
    LidChange,
    /// The port's table of GIDs changed.
    GidChange,
    /// Another change to the port's surroundings (partition keys, subnet manager).
    PortChange,
    /// The completion queue overran: completions are lost.
    CompletionQueueError,
    /// The queue pair failed by itself and is in the error state.
    QueuePairFatal,
    /// The peer sent something that it must not; the queue pair is in the error state.
    QueuePairRequestError,
    /// The peer touched memory that it must not; the queue pair is in the error state.
    QueuePairAccessError,
    /// The first message came before the queue pair was told to send.
    Established,
    /// Every send queued before draining was asked for is done.
    SendQueueDrained,
    /// A queue pair in the error state takes no more from its shared receive queue.
    LastReceiveReached,
    /// Fewer work requests than its limit are left in the shared receive queue.
    ReceiveQueueLimit,
    /// The shared receive queue failed.
    ReceiveQueueError,
    /// Something that this library does not know.
    Other(u32),
}

/// An event: what, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AsyncEvent {
    /// What happened.
    pub kind: EventKind,
    /// To whom.
    pub subject: Subject,
}

impl Context {
    /// The next event, if one waits. It is acknowledged here, so that it never holds up a destruction.
    ///
    /// Cost: a system call.
    ///
    /// # Errors
    /// [`OsError`] of ibv_get_async_event: EIO once the device is gone.
    pub fn poll_event(&self) -> OsResult<Option<AsyncEvent>> {
        let mut raw = MaybeUninit::<sys::ibv_async_event>::zeroed();
        // SAFETY: V1, V2. Room for one event.
        let result = unsafe { (self.library.api.get_async_event)(self.raw.as_ptr(), raw.as_mut_ptr()) };
        if result != 0 {
            let error = OsError::last("ibv_get_async_event", self.name().to_owned());
            return if error.would_block() { Ok(None) } else { Err(error) };
        }
        // SAFETY: V1. Filled in, and zeroed before.
        let mut raw = unsafe { raw.assume_init() };
        let event = decode(&raw);
        // SAFETY: V1. Acknowledged once, and not looked at any more.
        unsafe { (self.library.api.ack_async_event)(&raw mut raw) };
        Ok(Some(event))
    }
}

/// What the event says. It was not acknowledged yet, so the object that it names cannot be destroyed meanwhile.
fn decode(raw: &sys::ibv_async_event) -> AsyncEvent {
    let (kind, of): (_, fn(&sys::ibv_async_event) -> Subject) = match raw.event_type {
        sys::IBV_EVENT_DEVICE_FATAL => (EventKind::DeviceFatal, |_| Subject::Device),
        sys::IBV_EVENT_PORT_ACTIVE => (EventKind::PortActive, port),
        sys::IBV_EVENT_PORT_ERR => (EventKind::PortError, port),
        sys::IBV_EVENT_LID_CHANGE => (EventKind::LidChange, port),
        sys::IBV_EVENT_GID_CHANGE => (EventKind::GidChange, port),
        sys::IBV_EVENT_PKEY_CHANGE | sys::IBV_EVENT_SM_CHANGE | sys::IBV_EVENT_CLIENT_REREGISTER => {
            (EventKind::PortChange, port)
        }
        sys::IBV_EVENT_CQ_ERR => (EventKind::CompletionQueueError, completion_queue),
        sys::IBV_EVENT_QP_FATAL => (EventKind::QueuePairFatal, queue_pair),
        sys::IBV_EVENT_QP_REQ_ERR => (EventKind::QueuePairRequestError, queue_pair),
        sys::IBV_EVENT_QP_ACCESS_ERR => (EventKind::QueuePairAccessError, queue_pair),
        sys::IBV_EVENT_COMM_EST => (EventKind::Established, queue_pair),
        sys::IBV_EVENT_SQ_DRAINED => (EventKind::SendQueueDrained, queue_pair),
        sys::IBV_EVENT_QP_LAST_WQE_REACHED => (EventKind::LastReceiveReached, queue_pair),
        sys::IBV_EVENT_SRQ_LIMIT_REACHED => (EventKind::ReceiveQueueLimit, receive_queue),
        sys::IBV_EVENT_SRQ_ERR => (EventKind::ReceiveQueueError, receive_queue),
        other => (EventKind::Other(other), |_| Subject::Device),
    };
    AsyncEvent { kind, subject: of(raw) }
}

fn port(raw: &sys::ibv_async_event) -> Subject {
    // SAFETY: V1. An event of a port has this variant.
    let number = unsafe { raw.element.port_num };
    Subject::Port(u8::try_from(number).unwrap_or(0))
}

fn queue_pair(raw: &sys::ibv_async_event) -> Subject {
    // SAFETY: V1. An event of a queue pair has this variant.
    let object = unsafe { raw.element.qp };
    // SAFETY: V2. Not destroyed before the event is acknowledged.
    Subject::QueuePair(unsafe { (*object).qp_num })
}

fn completion_queue(raw: &sys::ibv_async_event) -> Subject {
    // SAFETY: V1. An event of a completion queue has this variant.
    let object = unsafe { raw.element.cq };
    // SAFETY: V2. Not destroyed before the event is acknowledged.
    Subject::CompletionQueue(unsafe { (*object).cq_context }.addr() as u64)
}

fn receive_queue(raw: &sys::ibv_async_event) -> Subject {
    // SAFETY: V1. An event of a shared receive queue has this variant.
    let object = unsafe { raw.element.srq };
    // SAFETY: V2. Not destroyed before the event is acknowledged.
    Subject::SharedReceiveQueue(unsafe { (*object).srq_context }.addr() as u64)
}
