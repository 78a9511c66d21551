//! The small endpoints: what is served, how it is doing, and text to tokens and back.

use super::App;
use super::body::GenerateBody;
use super::error::ApiError;
use super::generate::prompt_tokens;
use super::parse::{ReceivedBody, RequestBody, parse};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// `GET /v1/models`
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let model = &app.info.model;
    Json(json!({"object": "list", "data": [{
        "id": model,
        "object": "model",
        "created": app.started,
        "owned_by": "headrace",
        "root": model,
        "parent": null,
        "max_model_len": app.info.max_model_len,
    }]}))
}

/// `GET /health`, `GET` and `POST /ping`: 200 while the engine thread works.
pub(super) async fn health(State(app): State<Arc<App>>) -> StatusCode {
    if app.alive.load(Relaxed) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, app.metrics.render(&app.info.model)).into_response()
}

/// `GET /version`
pub(super) async fn version(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"version": app.info.version}))
}

/// `POST /tokenize`: of a prompt or of messages.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    body: ReceivedBody,
) -> Result<Json<Value>, ApiError> {
    let mut body: GenerateBody = parse(body)?;
    body.check_model(&app.info.model)?;
    let chat = body.messages.is_some();
    let prompts = prompt_tokens(&app, &mut body, chat).await?;
    let [tokens] = &prompts[..] else {
        return Err(ApiError::invalid("prompt", "one prompt at a time can be tokenized"));
    };
    let strings = || tokens.iter().map(|&id| app.tokenizer.token(id)).collect::<Vec<_>>();
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": app.info.max_model_len,
        "tokens": tokens,
        "token_strs": (body.return_token_strs == Some(true)).then(strings),
    })))
}

#[derive(Debug, Deserialize)]
pub(super) struct DetokenizeBody {
    model: Option<String>,
    tokens: Option<Vec<u32>>,
}

impl RequestBody for DetokenizeBody {
    const FIELDS: &'static [(&'static str, &'static str)] =
        &[("model", "text"), ("tokens", "a list of token ids")];
}

/// `POST /detokenize`
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    body: ReceivedBody,
) -> Result<Json<Value>, ApiError> {
    let body: DetokenizeBody = parse(body)?;
    GenerateBody::of_model(body.model).check_model(&app.info.model)?;
    let missing = || ApiError::invalid("tokens", "tokens is missing; send a list of token ids");
    Ok(Json(json!({"prompt": app.tokenizer.decode(&body.tokens.ok_or_else(missing)?)?})))
}

/// `GET /headrace/info[?request_id=ID]`: the engine's set-up, and the numbers of its last pulls or of one request's.
pub(super) async fn info(State(app): State<Arc<App>>, uri: Uri) -> Json<Value> {
    let parameter = |pair: &str| pair.strip_prefix("request_id=").map(percent_decode);
    let request_id = uri.query().unwrap_or_default().split('&').find_map(parameter);
    let pulls = app.kv.log().find(request_id.as_deref());
    let mut info = json!(app.info);
    info["pulls"] = json!(pulls);
    Json(info)
}

/// Decodes `%XX`; what is not a valid escape stays as it is.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = tail.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_anything_else_is_left() {
        assert_eq!(percent_decode("a%2Fb-%C3%BC"), "a/b-ü");
        assert_eq!(percent_decode("100%"), "100%");
        assert_eq!(percent_decode("%zz%4"), "%zz%4");
    }
}
