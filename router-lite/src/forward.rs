//! One request from its choice of worker to the first bytes of an answer: the attempts, their legs, and what a
//! failure at each point means.
//!
//! A worker that fails before the first byte of its answer costs the client nothing: the request goes out again,
//! to another worker if there is one, at most `retries_max` times. For a split request "again" means both legs,
//! because the parameters of the first are single use. Failures are: no connection, a connection that ends early, a
//! status of 500 or more, an event stream that begins with such an error, and a prefill answer without the facts.
//! A timeout is not repeated: it would double the wait and the load. Answers below 500 are the client's business
//! and are relayed as they are, also those of a prefill worker.
//!
//! Blocks that prefill kept and nobody fetched (decode failed, or the client left between the legs) are freed by
//! the prefill worker when their lease ends; HTTP has no call to free them sooner.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use hyper::http::response::Parts;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};

use crate::clock;
use crate::dance::{decode_body, params_of, prefill_body};
use crate::fault::Fault;
use crate::fleet::Worker;
use crate::headers::{REQUEST_ID, for_worker, strip_hop_by_hop};
use crate::health::News;
use crate::inspect::Wish;
use crate::metrics::Ticket;
use crate::relay::{Dues, Relay};
use crate::select::{Booking, Choice, NoChoice, Request, Role, Want};
use crate::server::State;
use crate::splice::Object;
use crate::sse::starts_with_server_error;
use crate::upstream::{Answer, CallError};

/// A body of the router's own, or one that a worker is still sending.
pub(crate) type Reply = Either<Full<Bytes>, Relay>;

/// A client's request, read and understood.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) route: &'static str,
    pub(crate) generates: bool,
    pub(crate) path_and_query: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) id: &'a HeaderValue,
    pub(crate) body: Bytes,
    pub(crate) object: &'a Object<'a>,
    pub(crate) wish: &'a Wish,
}

/// An answer that goes to the client.
#[derive(Debug)]
enum Outcome {
    /// A worker is sending it.
    Live(Answer, Booking, Arc<Worker>),
    /// It is complete: what a prefill worker refused.
    Whole(Parts, Bytes, Arc<Worker>),
}

/// One attempt that failed before the client saw anything.
#[derive(Debug)]
struct Failed {
    /// The worker to avoid in the next attempt.
    worker: Option<usize>,
    fault: Fault,
    /// The worker's own words, which are better than ours if this was the last attempt.
    answer: Option<Box<Outcome>>,
    again: bool,
}

/// Where a call goes and as which half of what.
#[derive(Clone, Copy, Debug)]
struct Leg<'a> {
    name: &'static str,
    index: usize,
    worker: &'a Arc<Worker>,
    attempt: u32,
}

/// Finds an answer for `call`, or the best explanation of why there is none.
pub(crate) async fn forward(state: &State, call: &Call<'_>, ticket: Ticket) -> Response<Reply> {
    match attempts(state, call).await {
        Ok(outcome) => respond(state, outcome, call.id, ticket),
        Err(Failed { answer: Some(outcome), .. }) => respond(state, *outcome, call.id, ticket),
        Err(Failed { fault, .. }) => refuse(fault, call.id, ticket),
    }
}

/// Answers with a fault and closes the request's entry.
pub(crate) fn refuse(fault: Fault, id: &HeaderValue, mut ticket: Ticket) -> Response<Reply> {
    tracing::info!(status = fault.status.as_u16(), code = fault.code, reason = fault.message, "refused");
    ticket.answer(fault.status.as_u16(), None);
    ticket.finish();
    let mut response = fault.into_response().map(Either::Left);
    response.headers_mut().insert(REQUEST_ID, id.clone());
    response
}

async fn attempts(state: &State, call: &Call<'_>) -> Result<Outcome, Failed> {
    let want = match (call.generates, call.wish.split) {
        (true, true) => Want::Split,
        (true, false) => Want::Whole,
        (false, _) => Want::Any,
    };
    let mut tried = Vec::new();
    let mut last: Option<Failed> = None;
    for attempt in 0..=state.config.retries_max {
        let result = match state.fleet.select(&Request::new(call.wish.model.as_deref(), want, &tried)) {
            Ok(Choice::Prefill(index)) => split(state, call, index, &tried, attempt).await,
            Ok(Choice::Whole(index)) => whole(state, call, index, attempt).await,
            // What made the last attempt fail says more than that nobody is left.
            Err(none) => return Err(last.unwrap_or_else(|| nobody(state, call, &none))),
        };
        match result {
            Err(failed) if failed.again && attempt < state.config.retries_max => {
                tracing::warn!(attempt, reason = failed.fault.message, "trying again");
                state.metrics.retried(call.route);
                tried.extend(failed.worker);
                last = Some(failed);
            }
            end => return end,
        }
    }
    // Not reached: the last round returns. Kept as an answer so that no path panics.
    Err(last.unwrap_or_else(|| nobody(state, call, &NoChoice::NoWorker)))
}

/// Prefill on one worker, then decode on another.
async fn split(
    state: &State,
    call: &Call<'_>,
    index: usize,
    tried: &[usize],
    attempt: u32,
) -> Result<Outcome, Failed> {
    let worker = &state.fleet.workers()[index];
    let leg = Leg { name: "prefill", index, worker, attempt };
    let (parts, bytes) = prefill(state, call, leg).await?;
    if !parts.status.is_success() {
        state.metrics.leg(leg.name, "client_error", worker.name());
        return Ok(Outcome::Whole(parts, bytes, Arc::clone(worker)));
    }
    let params = match params_of(&bytes) {
        Ok(params) => params,
        Err(error) => {
            state.metrics.leg(leg.name, "bad_answer", worker.name());
            let message = format!("prefill worker {} cannot be used: {error}", worker.name());
            return Err(again(leg, Fault::new(StatusCode::BAD_GATEWAY, "prefill_failed", message)));
        }
    };
    if params.is_none() {
        // Right for a prompt that ended at once; if it is the rule, the engine runs without its connector.
        tracing::info!(worker = &*worker.name(), "prefill kept no blocks, decode computes the prompt");
    }
    state.metrics.leg(leg.name, if params.is_some() { "ok" } else { "no_params" }, worker.name());
    let request = Request::new(call.wish.model.as_deref(), Want::Decode, tried);
    let index = match state.fleet.select(&request) {
        Ok(Choice::Whole(index) | Choice::Prefill(index)) => index,
        // All decode workers went down meanwhile; the next attempt may find a plain worker.
        Err(none) => return Err(Failed { again: true, ..nobody(state, call, &none) }),
    };
    let leg = Leg { name: "decode", index, worker: &state.fleet.workers()[index], attempt };
    let body = Bytes::from(decode_body(call.object, params));
    open(state, call, leg, body).await
}

/// The request as it is, on one worker.
async fn whole(state: &State, call: &Call<'_>, index: usize, attempt: u32) -> Result<Outcome, Failed> {
    let worker = &state.fleet.workers()[index];
    let leg = Leg { name: "whole", index, worker, attempt };
    let body = match worker.role() {
        Role::Decode if call.generates => Bytes::from(decode_body(call.object, None)),
        _ => call.body.clone(),
    };
    open(state, call, leg, body).await
}

/// The first leg: the whole answer of a prefill worker, if it is below 500.
async fn prefill(state: &State, call: &Call<'_>, leg: Leg<'_>) -> Result<(Parts, Bytes), Failed> {
    let config = &state.config;
    let booking = leg.worker.book();
    let mut request = request(call, leg, Bytes::from(prefill_body(call.object)))?;
    // This answer is for the router to read.
    request.headers_mut().remove(ACCEPT_ENCODING);
    let answer = state.upstream.fetch(request, config.prefill_timeout, config.prefill_answer_bytes_max).await;
    drop(booking);
    let (parts, bytes) = answer.map_err(|error| call_failed(state, leg, error))?;
    if parts.status.is_server_error() {
        state.metrics.leg(leg.name, "server_error", leg.worker.name());
        let said = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
        let message = format!("prefill worker {} answered {}: {said}", leg.worker.name(), parts.status);
        return Err(again(leg, Fault::new(StatusCode::BAD_GATEWAY, "prefill_failed", message)));
    }
    Ok((parts, bytes))
}

/// The leg whose answer goes to the client.
async fn open(state: &State, call: &Call<'_>, leg: Leg<'_>, body: Bytes) -> Result<Outcome, Failed> {
    let booking = leg.worker.book();
    let request = request(call, leg, body)?;
    let answer = state.upstream.open(request, state.config.first_byte_timeout).await;
    let answer = answer.map_err(|error| call_failed(state, leg, error))?;
    let status = answer.parts.status;
    let first = answer.first.as_ref().and_then(|frame| frame.data_ref());
    let failed = status.is_server_error() || first.is_some_and(|data| starts_with_server_error(data));
    let outcome = match (failed, status.is_success()) {
        (true, _) => "server_error",
        (false, true) => "ok",
        (false, false) => "client_error",
    };
    state.metrics.leg(leg.name, outcome, leg.worker.name());
    let live = Outcome::Live(answer, booking, Arc::clone(leg.worker));
    if failed {
        let message =
            format!("{} worker {} answered {status}", leg.worker.role().as_str(), leg.worker.name());
        let fault = Fault::new(StatusCode::BAD_GATEWAY, "worker_failed", message);
        return Err(Failed { answer: Some(Box::new(live)), ..again(leg, fault) });
    }
    Ok(live)
}

fn request(call: &Call<'_>, leg: Leg<'_>, body: Bytes) -> Result<HttpRequest<Full<Bytes>>, Failed> {
    let uri = leg.worker.uri(call.path_and_query).map_err(|e| {
        let message = format!("the request's path cannot be sent to {}: {e}", leg.worker.name());
        Failed { again: false, ..again(leg, Fault::new(StatusCode::BAD_REQUEST, "bad_path", message)) }
    })?;
    let mut request = HttpRequest::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = for_worker(call.headers.clone(), &attempt_id(call.id, leg.attempt));
    Ok(request)
}

/// Both legs of an attempt share an id. A repeated attempt has its own: an engine may still know the first one.
fn attempt_id(id: &HeaderValue, attempt: u32) -> HeaderValue {
    if attempt == 0 {
        return id.clone();
    }
    let mut bytes = id.as_bytes().to_vec();
    bytes.extend_from_slice(format!("-r{attempt}").as_bytes());
    HeaderValue::from_bytes(&bytes).unwrap_or_else(|_| id.clone())
}

/// What the failure of a call means for the worker, the books and the request.
fn call_failed(state: &State, leg: Leg<'_>, error: CallError) -> Failed {
    let worker = leg.worker.name();
    let role = leg.worker.role().as_str();
    let late = |within: Duration| format!("{role} worker {worker} did not answer within {within:?}");
    let (outcome, status, code, message) = match error {
        CallError::Connect(reason) => {
            let message = format!("{role} worker {worker} cannot be reached: {reason}");
            state.fleet.tell(leg.index, clock::now(), News::Refused(reason), None);
            ("refused", StatusCode::BAD_GATEWAY, "worker_unreachable", message)
        }
        CallError::Lost(reason) => {
            let message =
                format!("{role} worker {worker} closed the connection before it answered: {reason}");
            ("lost", StatusCode::BAD_GATEWAY, "worker_lost", message)
        }
        CallError::Timeout(within) => {
            ("timeout", StatusCode::GATEWAY_TIMEOUT, "worker_timeout", late(within))
        }
        CallError::TooLong(max) => {
            let message = format!("{role} worker {worker} answered more than {max} bytes");
            ("bad_answer", StatusCode::BAD_GATEWAY, "prefill_failed", message)
        }
    };
    state.metrics.leg(leg.name, outcome, leg.worker.name());
    let again_allowed = matches!(outcome, "refused" | "lost");
    Failed { again: again_allowed, ..again(leg, Fault::new(status, code, message)) }
}

fn again(leg: Leg<'_>, fault: Fault) -> Failed {
    Failed { worker: Some(leg.index), fault, answer: None, again: true }
}

fn nobody(state: &State, call: &Call<'_>, none: &NoChoice) -> Failed {
    let fault = match (none, &call.wish.model) {
        (NoChoice::ModelUnknown { known }, Some(model)) => Fault::unknown_model(model, known),
        _ => no_worker(state),
    };
    Failed { worker: None, fault, answer: None, again: false }
}

/// Names the workers and what is wrong with each, as far as a message has room.
fn no_worker(state: &State) -> Fault {
    const SHOWN_MAX: usize = 8;
    let reports = state.fleet.reports();
    let mut words: Vec<String> = reports
        .iter()
        .take(SHOWN_MAX)
        .map(|r| {
            let why = r.last_error.as_deref().filter(|_| r.state == crate::health::State::Down);
            let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
            format!("{} {} is {}{why}", r.worker.role().as_str(), r.worker.name(), r.state.as_str())
        })
        .collect();
    if reports.len() > SHOWN_MAX {
        words.push(format!("and {} more", reports.len() - SHOWN_MAX));
    }
    let message = format!("no worker can take this request now: {}", words.join("; "));
    Fault::new(StatusCode::SERVICE_UNAVAILABLE, "no_worker", message)
}

fn respond(state: &State, outcome: Outcome, id: &HeaderValue, mut ticket: Ticket) -> Response<Reply> {
    let (status, mut headers, body) = match outcome {
        Outcome::Live(answer, booking, worker) => {
            let (status, headers) = (answer.parts.status, answer.parts.headers.clone());
            ticket.answer(status.as_u16(), Some(worker.name()));
            let metrics = Arc::clone(&state.metrics);
            let dues = Dues { _booking: booking, ticket, metrics, worker: worker.name() };
            (status, headers, Either::Right(Relay::new(answer, state.config.idle_timeout, dues)))
        }
        Outcome::Whole(parts, bytes, worker) => {
            ticket.answer(parts.status.as_u16(), Some(worker.name()));
            ticket.pass(bytes.len());
            ticket.finish();
            (parts.status, parts.headers, Either::Left(Full::new(bytes)))
        }
    };
    strip_hop_by_hop(&mut headers);
    headers.entry(REQUEST_ID).or_insert_with(|| id.clone());
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
