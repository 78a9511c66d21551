//! Errors as clients see them: vLLM's JSON, whose `code` is the HTTP status, with one field more: `kind`, a stable
//! word that a program can act on.

use crate::kv::PullError;
use crate::kv::claim::Refusal;
use crate::kv::params::ParamsError;
use crate::worker::Failure;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine_model::ModelError;
use serde_json::{Value, json};

/// An error answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) param: Option<&'static str>,
    pub(crate) message: String,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, param: None, message: message.into() }
    }

    /// A field of the request is not acceptable.
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        error.param = Some(param);
        error
    }

    /// A field asks for what this engine does not do.
    pub(crate) fn unsupported(param: &'static str, message: impl Into<String>) -> Self {
        Self { kind: "unsupported", ..Self::invalid(param, message) }
    }

    /// A field asks for more tokens than the context has; a prompt has to leave room for one token of the answer.
    pub(crate) fn context(param: &'static str, tokens: usize, max: usize) -> Self {
        let message = match param {
            "prompt" => format!("the prompt has {tokens} tokens, and the answer needs at least one"),
            _ => format!("{param} is {tokens}"),
        };
        let message = format!("this model's maximum context length is {max} tokens, but {message}");
        Self { kind: "context_length_exceeded", ..Self::invalid(param, message) }
    }

    /// The body is not JSON.
    pub(crate) fn malformed(error: &serde_json::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", format!("malformed JSON: {error}"))
    }

    /// The body is JSON, but not of the right form.
    pub(crate) fn form(message: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// The body is longer than accepted, or the client did not send all of it.
    pub(crate) fn unreadable(status: StatusCode, message: String) -> Self {
        Self::new(status, "unreadable_body", message)
    }

    /// Another model than the one that is served.
    pub(crate) fn model(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} does not exist here; this engine serves {served:?}");
        Self { param: Some("model"), ..Self::new(StatusCode::NOT_FOUND, "model_not_found", message) }
    }

    /// No such path.
    pub(crate) fn path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {path}"))
    }

    /// The path exists, but not with this method.
    pub(crate) fn method() -> Self {
        let message = "the path does not accept this method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// The error object, as it also ends a stream that has begun.
    pub(crate) fn to_json(&self) -> Value {
        let class = match self.status.as_u16() {
            404 => "NotFoundError",
            400..=499 => "BadRequestError",
            503 => "ServiceUnavailableError",
            _ => "InternalServerError",
        };
        let Self { status, kind, param, message } = self;
        let code = status.as_u16();
        json!({"error": {"message": message, "type": class, "param": param, "code": code, "kind": kind}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.to_json().to_string();
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<ParamsError> for ApiError {
    fn from(error: ParamsError) -> Self {
        Self { kind: "kv_params_invalid", ..Self::invalid("kv_transfer_params", error.to_string()) }
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        if let ModelError::Sampling { name, .. } = error {
            Self::invalid(name, error.to_string())
        } else if error.is_request_error() {
            Self::new(StatusCode::BAD_REQUEST, "invalid_value", error.to_string())
        } else {
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", error.to_string())
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        let (status, kind) = match &failure {
            Failure::Busy => (StatusCode::SERVICE_UNAVAILABLE, "engine_busy"),
            Failure::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "engine_stopping"),
            Failure::Model(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed"),
            Failure::Pull(error) => pull_kind(error),
        };
        Self::new(status, kind, message)
    }
}

/// 4xx: these params will never work. 5xx: the prefill side or the way to it has failed. Either way a new prefill
/// may help, and repeating the same call will not.
fn pull_kind(error: &PullError) -> (StatusCode, &'static str) {
    match error {
        PullError::Unreachable { .. } | PullError::PeerLost { .. } => {
            (StatusCode::BAD_GATEWAY, "kv_peer_lost")
        }
        PullError::Restarted { .. } => (StatusCode::GONE, "kv_engine_restarted"),
        PullError::Layout(_) => (StatusCode::CONFLICT, "kv_layout_mismatch"),
        PullError::OtherPrompt { .. } => (StatusCode::CONFLICT, "kv_params_mismatch"),
        PullError::Refused { refusal, .. } => match refusal {
            Refusal::Used => (StatusCode::CONFLICT, "kv_params_used"),
            Refusal::Expired => (StatusCode::GONE, "kv_lease_expired"),
            Refusal::Unknown => (StatusCode::GONE, "kv_unknown_request"),
            Refusal::Mismatch => (StatusCode::CONFLICT, "kv_params_mismatch"),
        },
        PullError::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "kv_pull_timeout"),
        PullError::Transfer { .. } => (StatusCode::BAD_GATEWAY, "kv_transfer_failed"),
        PullError::GivenUp => (StatusCode::SERVICE_UNAVAILABLE, "kv_pull_given_up"),
    }
}
