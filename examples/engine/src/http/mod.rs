//! The HTTP face: OpenAI's endpoints, vLLM's probes, and what only this engine tells.

mod body;
mod error;
mod generate;
mod misc;
mod parse;
mod reply;

use crate::events::EventEndpoints;
use crate::kv::KvService;
use crate::metrics::Metrics;
use crate::worker::EngineHandle;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::Uri;
use axum::routing::{get, post};
use engine_model::Tokenizer;
use error::ApiError;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The longest request body in bytes.
const BODY_MAX: usize = 16 << 20;

/// Which part of the work an engine does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Everything.
    #[default]
    Both,
    /// Prompts, whose blocks it hands over; it takes none.
    Prefill,
    /// Answers, for whose prompts it takes blocks; it hands none over.
    Decode,
}

/// The engine as it is set up, for `/headrace/info`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Info {
    pub(crate) version: &'static str,
    pub(crate) model: String,
    pub(crate) role: Role,
    /// Names the engine in hand-offs; another after every start.
    pub(crate) engine_id: String,
    /// Where other engines reach it.
    pub(crate) agent_address: Option<String>,
    /// Where others get its model directory.
    pub(crate) weights_address: Option<String>,
    /// How the model directory came here, if it was pulled.
    pub(crate) weights_pull: Option<WeightsPull>,
    pub(crate) max_model_len: usize,
    pub(crate) block_size: usize,
    pub(crate) kv_blocks: usize,
    pub(crate) kv_dtype: &'static str,
    pub(crate) kv_block_bytes: usize,
    pub(crate) kv_events: Option<EventEndpoints>,
}

/// The numbers of a warm-up.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WeightsPull {
    /// The path that they took; several where sources differ, none where nothing had to move.
    pub(crate) path: String,
    /// Bytes of the model directory.
    pub(crate) bytes: u64,
    /// Bytes that were not here already.
    pub(crate) bytes_fetched: u64,
    /// Time in which they came.
    pub(crate) transfer_seconds: f64,
    /// Time of everything: connecting, moving, checking, syncing.
    pub(crate) seconds: f64,
}

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) engine: EngineHandle,
    /// False once the engine thread has ended.
    pub(crate) alive: Arc<AtomicBool>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) vocab_size: usize,
    /// The model's own end tokens.
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) kv: KvService,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) info: Info,
    /// Unix time of the start in seconds.
    pub(crate) started: u64,
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(generate::completions))
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/models", get(misc::models))
        .route("/health", get(misc::health))
        .route("/ping", get(misc::health).post(misc::health))
        .route("/metrics", get(misc::metrics))
        .route("/version", get(misc::version))
        .route("/tokenize", post(misc::tokenize))
        .route("/detokenize", post(misc::detokenize))
        .route("/headrace/info", get(misc::info))
        .fallback(|uri: Uri| async move { ApiError::path(uri.path()) })
        .method_not_allowed_fallback(|| async { ApiError::method() })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(app)
}
