//! The body of a relayed answer: a worker's bytes, passed on as they come.
//!
//! Nothing is buffered: the next chunk is read when the client has taken the last. The body holds the request's
//! booking and its [`Ticket`], so both end with it, and dropping it (the client left) closes the worker's connection.
//!
//! When the worker dies or falls silent in mid-answer, the status line is long gone. A stream of server-sent events
//! that stands between two events gets one more, `data: {"error":{...}}` in OpenAI's shape, and ends **without**
//! `[DONE]`. Any other answer is cut: the connection to the client closes before the answer is complete, so no
//! client can take a part for the whole.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use tokio::time::{Instant, Sleep};

use crate::fault::Fault;
use crate::metrics::{Metrics, Ticket};
use crate::select::Booking;
use crate::sse::Boundary;
use crate::upstream::{Answer, chain};

/// The worker did not finish its answer; makes hyper close the client's connection.
#[derive(Debug, thiserror::Error)]
#[error("the worker did not finish its answer: {0}")]
pub(crate) struct Cut(String);

/// What the relay owes when the answer ends.
#[derive(Debug)]
pub(crate) struct Dues {
    /// Given back with the rest.
    pub(crate) _booking: Booking,
    pub(crate) ticket: Ticket,
    pub(crate) metrics: std::sync::Arc<Metrics>,
    pub(crate) worker: std::sync::Arc<str>,
}

/// The rest of an answer on its way to the client.
#[derive(Debug)]
pub(crate) struct Relay {
    first: Option<Frame<Bytes>>,
    /// `None` when the answer is at its end.
    rest: Option<Incoming>,
    idle: Pin<Box<Sleep>>,
    idle_timeout: Duration,
    /// Whether `idle` runs for the chunk that is awaited now.
    waiting: bool,
    /// Set for event streams to which an event may be added.
    events: Option<Boundary>,
    dues: Dues,
}

impl Relay {
    pub(crate) fn new(answer: Answer, idle_timeout: Duration, dues: Dues) -> Self {
        let events = may_add_events(&answer.parts.headers).then(Boundary::default);
        let mut relay = Self {
            first: answer.first,
            rest: Some(answer.rest),
            idle: Box::pin(tokio::time::sleep(idle_timeout)),
            idle_timeout,
            waiting: false,
            events,
            dues,
        };
        relay.settle();
        relay
    }

    /// hyper does not ask a body of known length for its end, so the end is noticed with the last byte.
    fn settle(&mut self) {
        if self.is_end_stream() {
            self.dues.ticket.finish();
        }
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.waiting = false;
        if let Some(data) = frame.data_ref() {
            self.dues.ticket.pass(data.len());
            if let Some(events) = &mut self.events {
                events.feed(data);
            }
        }
        self.settle();
        Poll::Ready(Some(Ok(frame)))
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.rest = None;
        self.dues.ticket.finish();
        Poll::Ready(None)
    }

    fn cut(&mut self, code: &'static str, message: String) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.rest = None;
        self.dues.ticket.finish();
        self.dues.metrics.cut(code, self.dues.worker.clone());
        tracing::warn!(worker = &*self.dues.worker, code, reason = message, "answer cut");
        if self.events.is_some_and(|events| events.between_events()) {
            let event = format!("data: {}\n\n", Fault::new(StatusCode::BAD_GATEWAY, code, message).json());
            return self.pass(Frame::data(Bytes::from(event)));
        }
        Poll::Ready(Some(Err(Cut(message))))
    }

    /// Ready when the idle timeout has passed without a chunk.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waiting {
            self.waiting = true;
            self.idle.as_mut().reset(Instant::now() + self.idle_timeout);
        }
        self.idle.as_mut().poll(cx)
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return this.pass(first);
        }
        let Some(rest) = &mut this.rest else {
            return Poll::Ready(None);
        };
        match Pin::new(rest).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => this.pass(frame),
            Poll::Ready(Some(Err(error))) => {
                let message = format!(
                    "worker {} closed the connection in mid-answer: {}",
                    this.dues.worker,
                    chain(&error)
                );
                this.cut("worker_lost", message)
            }
            Poll::Ready(None) => this.end(),
            Poll::Pending => {
                ready!(this.poll_idle(cx));
                let message = format!("worker {} sent nothing for {:?}", this.dues.worker, this.idle_timeout);
                this.cut("idle_timeout", message)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }
}

/// Only a plain event stream of open length can take one more event.
fn may_add_events(headers: &HeaderMap) -> bool {
    let is_events = headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"));
    is_events && !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(CONTENT_ENCODING)
}
