//! Active health checks: one task per worker asks `/health`, and `/v1/models` for what it serves.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clock;
use crate::fleet::{Fleet, Model, Worker};
use crate::health::News;
use crate::upstream::{CallError, Upstream};

/// Longest `/health` or `/v1/models` answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Models kept per worker.
const MODELS_MAX: usize = 1024;

/// Checks one worker until the task is aborted.
pub(crate) async fn watch(fleet: Arc<Fleet>, upstream: Upstream, index: usize, within: std::time::Duration) {
    let Some(worker) = fleet.workers().get(index).cloned() else {
        return;
    };
    loop {
        let (news, models) = match check(&upstream, &worker, within).await {
            Ok(models) => (News::Passed, models),
            Err(reason) => (News::Failed(reason), None),
        };
        let now = clock::now();
        let next = fleet.tell(index, now, news, models);
        tokio::time::sleep(next.saturating_duration_since(now)).await;
    }
}

async fn check(
    upstream: &Upstream,
    worker: &Worker,
    within: std::time::Duration,
) -> Result<Option<Vec<Model>>, String> {
    let (status, _) = get(upstream, worker, "/health", within).await?;
    if !status.is_success() {
        return Err(format!("GET /health answered {status}"));
    }
    // A worker that keeps its models to itself (an API key, no such route) is healthy and may serve any.
    let models = match get(upstream, worker, "/v1/models", within).await {
        Ok((StatusCode::OK, body)) => models_of(&body),
        Ok((status, _)) => Err(format!("GET /v1/models answered {status}")),
        Err(reason) => Err(reason),
    };
    match models {
        Ok(models) => Ok(Some(models)),
        Err(reason) => {
            tracing::debug!(worker = &*worker.name(), reason, "models stay unknown");
            Ok(None)
        }
    }
}

async fn get(
    upstream: &Upstream,
    worker: &Worker,
    path: &str,
    within: std::time::Duration,
) -> Result<(StatusCode, Bytes), String> {
    let uri = worker.uri(path).map_err(|e| e.to_string())?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(uri)
        .body(Full::<Bytes>::default())
        .map_err(|e| e.to_string())?;
    match upstream.fetch(request, within, ANSWER_BYTES_MAX).await {
        Ok((parts, body)) => Ok((parts.status, body)),
        Err(CallError::Connect(reason) | CallError::Lost(reason)) => Err(format!("GET {path}: {reason}")),
        Err(CallError::Timeout(within)) => Err(format!("GET {path}: no answer within {within:?}")),
        Err(CallError::TooLong(max)) => Err(format!("GET {path}: the answer is longer than {max} bytes")),
    }
}

#[derive(Deserialize)]
struct List {
    data: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Id {
    id: String,
}

fn models_of(body: &[u8]) -> Result<Vec<Model>, String> {
    let list: List = serde_json::from_slice(body).map_err(|e| format!("GET /v1/models: {e}"))?;
    list.data
        .into_iter()
        .take(MODELS_MAX)
        .map(|raw| {
            let Id { id } = serde_json::from_str(raw.get()).map_err(|e| format!("GET /v1/models: {e}"))?;
            Ok(Model { id, raw })
        })
        .collect()
}
