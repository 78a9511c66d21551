//! vLLM's prefill/decode hand-off over HTTP (the pull order of its NIXL connector), as pure functions on bodies.
//!
//! 1. Prefill gets the request with one token to make and `kv_transfer_params` that ask it to keep its blocks.
//! 2. Its answer carries `kv_transfer_params` that say where the blocks are. They are **single use**: the blocks
//!    are freed when read, and a second read would find another prompt's. So the router never sends them twice;
//!    if decode fails, prefill runs again.
//! 3. Decode gets the original request with those parameters, byte for byte as prefill wrote them.
//!
//! Prefill answers `null` parameters when it keeps nothing (it stopped at once, or the prompt fills no block).
//! Then there is nothing to carry: decode gets the original request and computes it alone, with the same tokens.

use serde::Deserialize;

use crate::splice::{Edit, JsonError, Object};

/// The one key of the hand-off, in requests and in answers.
const PARAMS: &str = "kv_transfer_params";

/// What prefill is told: keep the blocks, some decode worker will come for them.
const KEEP: &[u8] = br#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;

/// The body for prefill.
#[must_use]
pub fn prefill_body(original: &Object<'_>) -> Vec<u8> {
    original.splice(&[
        Edit::Set("stream", b"false"),
        Edit::Remove("stream_options"),
        Edit::Set("max_tokens", b"1"),
        Edit::Replace("max_completion_tokens", b"1"),
        Edit::Remove("min_tokens"),
        Edit::Remove("min_completion_tokens"),
        Edit::Set(PARAMS, KEEP),
    ])
}

/// The body for decode: the original with `params` as raw JSON. Without any, a client's own are taken out:
/// they would name blocks that this router knows nothing about.
#[must_use]
pub fn decode_body(original: &Object<'_>, params: Option<&str>) -> Vec<u8> {
    original.splice(&[match params {
        Some(raw) => Edit::Set(PARAMS, raw.as_bytes()),
        None => Edit::Remove(PARAMS),
    }])
}

/// Why an answer of prefill is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// It is no JSON object.
    #[error("its answer is not a JSON object: {0}")]
    NotJson(#[from] JsonError),
    /// The parameters are neither an object nor null.
    #[error("its answer has kv_transfer_params that are not an object")]
    BadParams,
    /// No parameters, and the request did not finish either.
    #[error("its answer has no kv_transfer_params and is not finished (finish_reason {0})")]
    Unfinished(String),
}

#[derive(Deserialize)]
struct Finish {
    finish_reason: Option<String>,
}

/// Takes the parameters out of prefill's answer, as raw JSON; `None` if prefill finished and kept no blocks.
///
/// # Errors
/// [`AnswerError`] if the answer says neither where the blocks are nor that the request is finished.
pub fn params_of(answer: &[u8]) -> Result<Option<&str>, AnswerError> {
    let answer = Object::parse(answer)?;
    match answer.get(PARAMS) {
        Some(raw) if raw.starts_with('{') => return Ok(Some(raw)),
        Some("null") | None => {}
        Some(_) => return Err(AnswerError::BadParams),
    }
    let choices: Vec<Finish> =
        answer.get("choices").and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
    match choices.first().and_then(|choice| choice.finish_reason.as_deref()) {
        Some("abort" | "error") => Err(AnswerError::Unfinished("abort or error".to_owned())),
        Some(_) => Ok(None),
        None => Err(AnswerError::Unfinished("null".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefill_makes_one_token_and_keeps_its_blocks() {
        let body = br#"{"prompt": "x", "stream":true, "stream_options":{"include_usage":true}, "min_tokens":4, "max_tokens":90, "kv_transfer_params":null}"#;
        let leg = String::from_utf8(prefill_body(&Object::parse(body).unwrap())).unwrap();
        let keep = std::str::from_utf8(KEEP).unwrap();
        assert_eq!(
            leg,
            format!(r#"{{"prompt": "x", "stream":false, "max_tokens":1, "kv_transfer_params":{keep}}}"#)
        );
    }

    #[test]
    fn decode_gets_the_original_and_the_parameters_verbatim() {
        let original = Object::parse(br#"{"prompt":"x" , "n":1.0}"#).unwrap();
        let params =
            params_of(br#"{"id":"1","kv_transfer_params": {"b" : [ 1.50 ],"a":"\u0061"} }"#).unwrap();
        let leg = String::from_utf8(decode_body(&original, params)).unwrap();
        assert_eq!(leg, r#"{"prompt":"x" , "n":1.0,"kv_transfer_params":{"b" : [ 1.50 ],"a":"\u0061"}}"#);
        let own = Object::parse(br#"{"kv_transfer_params":{"remote_host":"h"},"a":1}"#).unwrap();
        assert_eq!(decode_body(&own, None), br#"{"a":1}"#);
    }

    #[test]
    fn tells_nothing_kept_from_nothing_done() {
        for finished in ["stop", "length"] {
            let answer =
                format!(r#"{{"choices":[{{"finish_reason":"{finished}"}}],"kv_transfer_params":null}}"#);
            assert_eq!(params_of(answer.as_bytes()), Ok(None));
        }
        for bad in [
            r#"{"choices":[{"finish_reason":null}]}"#,
            r#"{"choices":[{"finish_reason":"abort"}]}"#,
            r#"{"choices":[]}"#,
            r#"{"kv_transfer_params":[1]}"#,
            "Internal Server Error",
        ] {
            assert!(params_of(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
