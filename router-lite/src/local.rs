//! The endpoints that the router answers itself.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::clock;
use crate::fault::Fault;
use crate::health::State as Up;
use crate::select::Role;
use crate::server::State;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    /// Whether whole requests can be served by plain workers.
    worker: bool,
    /// Whether split requests can be served.
    prefill_decode: bool,
    up: Counts,
}

#[derive(Serialize)]
struct Counts {
    worker: usize,
    prefill: usize,
    decode: usize,
}

/// 200 when a request could be served: by a plain worker, or by a prefill and a decode worker, that is up.
pub(crate) fn health(state: &State) -> Response<Full<Bytes>> {
    let snapshot = state.fleet.snapshot();
    let count = |role| snapshot.candidates.iter().filter(|c| c.role == role && c.state == Up::Up).count();
    let up =
        Counts { worker: count(Role::Worker), prefill: count(Role::Prefill), decode: count(Role::Decode) };
    let (worker, prefill_decode) = (up.worker > 0, up.prefill > 0 && up.decode > 0);
    let (code, status) = if worker || prefill_decode {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no_worker")
    };
    json(code, &Health { status, worker, prefill_decode, up })
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<&'a RawValue>,
}

/// The models of all workers that are up, each once, as its first worker describes it.
pub(crate) fn models(state: &State) -> Response<Full<Bytes>> {
    let reports = state.fleet.reports();
    let up: Vec<_> = reports.iter().filter(|r| r.state == Up::Up).collect();
    if up.is_empty() {
        let message = "no worker is up, so no model can be named; see /workers";
        return Fault::new(StatusCode::SERVICE_UNAVAILABLE, "no_worker", message).into_response();
    }
    let mut seen = std::collections::HashSet::new();
    let data = up
        .iter()
        .filter_map(|r| r.models.as_deref())
        .flatten()
        .filter(|model| seen.insert(model.id.as_str()))
        .map(|model| &*model.raw)
        .collect();
    json(StatusCode::OK, &ModelList { object: "list", data })
}

#[derive(Serialize)]
struct WorkerReport<'a> {
    url: &'a str,
    role: &'static str,
    state: &'static str,
    seconds_in_state: f64,
    models: Option<Vec<&'a str>>,
    in_flight: usize,
    dispatched: u64,
    last_error: Option<&'a str>,
}

/// The state of each worker.
pub(crate) fn workers(state: &State) -> Response<Full<Bytes>> {
    let now = clock::now();
    let reports = state.fleet.reports();
    let names: Vec<_> = reports.iter().map(|r| r.worker.name()).collect();
    let all: Vec<WorkerReport<'_>> = reports
        .iter()
        .zip(&names)
        .map(|(r, name)| WorkerReport {
            url: name,
            role: r.worker.role().as_str(),
            state: r.state.as_str(),
            seconds_in_state: now.saturating_duration_since(r.since).as_secs_f64(),
            models: r.models.as_deref().map(|models| models.iter().map(|m| m.id.as_str()).collect()),
            in_flight: r.worker.load().inflight(),
            dispatched: r.worker.load().dispatched(),
            last_error: r.last_error.as_deref(),
        })
        .collect();
    json(StatusCode::OK, &serde_json::json!({ "workers": all }))
}

/// The metrics, as Prometheus' text.
pub(crate) fn metrics(state: &State) -> Response<Full<Bytes>> {
    match state.metrics.render(&state.fleet) {
        Ok(text) => {
            with_type(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
        }
        Err(error) => internal(&error),
    }
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(text) => with_type(status, "application/json", text),
        Err(error) => internal(&error),
    }
}

fn internal(error: &dyn std::error::Error) -> Response<Full<Bytes>> {
    Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()).into_response()
}

fn with_type(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
