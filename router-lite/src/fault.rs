//! What the router itself answers when it cannot relay a worker's answer, in the shape of OpenAI's errors:
//! `{"error":{"message","type","code","param"}}`. A worker's own errors are relayed as they are and never come here.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// An answer of the router's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) param: Option<&'static str>,
    pub(crate) message: String,
    /// For `Allow`.
    pub(crate) allow: Option<&'static str>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
    r#type: &'a str,
    code: &'a str,
    param: Option<&'a str>,
}

impl Fault {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), allow: None }
    }

    pub(crate) fn bad_json(error: &crate::splice::JsonError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", error.to_string())
    }

    pub(crate) fn too_large(bytes_max: usize) -> Self {
        let message = format!(
            "the request body is longer than {bytes_max} bytes; the operator can raise body_bytes_max"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    pub(crate) fn busy(what: &str, max: usize) -> Self {
        let message = format!("the router is at its limit of {max} {what}; try again shortly");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
    }

    pub(crate) fn unknown_route(path: &str) -> Self {
        // The path is the client's; quoting it whole would make the answer as long as the request.
        let shown: String = path.chars().take(100).collect();
        let message = format!("there is no route {shown:?}; see /health, /v1/models and /workers");
        Self::new(StatusCode::NOT_FOUND, "unknown_route", message)
    }

    pub(crate) fn method(method: &str, allow: &'static str) -> Self {
        let message = format!("{method} is not allowed here; use {allow}");
        let fault = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        Self { allow: Some(allow), ..fault }
    }

    pub(crate) fn unknown_model(model: &str, known: &[String]) -> Self {
        let shown: String = model.chars().take(100).collect();
        let message = format!("the model {shown:?} does not exist; there is: {}", known.join(", "));
        let fault = Self::new(StatusCode::NOT_FOUND, "model_not_found", message);
        Self { param: Some("model"), ..fault }
    }

    /// OpenAI's word for the class of error.
    fn class(&self) -> &'static str {
        match self.status {
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::TOO_MANY_REQUESTS => "RateLimitError",
            status if status.is_client_error() => "BadRequestError",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
            StatusCode::GATEWAY_TIMEOUT => "TimeoutError",
            _ => "BadGatewayError",
        }
    }

    pub(crate) fn json(&self) -> String {
        let error = Body { message: &self.message, r#type: self.class(), code: self.code, param: self.param };
        serde_json::json!(Envelope { error }).to_string()
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.json())));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
