//! The JSON that clients send. Unknown fields are ignored; `null` is the same as nothing.

use super::error::ApiError;
use super::parse::{RequestBody, parse_inner};
use crate::kv::HandOff;
use crate::kv::params::Incoming;
use crate::worker::Limits;
use engine_model::{Message, SamplingParams};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::sync::Arc;

/// Stop strings per request, and bytes of each.
const STOPS_MAX: usize = 16;
const STOP_LEN_MAX: usize = 1024;
/// Bytes of a cache salt: it goes out with every event about a first block.
const SALT_LEN_MAX: usize = 1024;
/// Prompts per request.
const PROMPTS_MAX: usize = 64;

/// A request to `/v1/completions`, `/v1/chat/completions` or `/tokenize`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GenerateBody {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Option<Prompts>,
    pub(crate) messages: Option<Vec<ChatMessage>>,
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) add_special_tokens: Option<bool>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) return_token_ids: Option<bool>,
    pub(crate) return_token_strs: Option<bool>,
    kv_transfer_params: Option<Map<String, Value>>,
    cache_salt: Option<String>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    pub(crate) min_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    n: Option<u64>,
    best_of: Option<u64>,
    echo: Option<bool>,
    logprobs: Option<Value>,
    prompt_logprobs: Option<Value>,
}

const FLAG: &str = "true or false";
const TEXT: &str = "text";
const NUMBER: &str = "a number";
const COUNT: &str = "a whole number that is not negative";
const WHOLE: &str = "a whole number";

impl RequestBody for GenerateBody {
    const FIELDS: &'static [(&'static str, &'static str)] = &[
        ("model", TEXT),
        ("prompt", "text, a list of token ids, or a list of either"),
        ("messages", "a list of objects with a role and, as content, text or a list of typed parts"),
        ("add_generation_prompt", FLAG),
        ("add_special_tokens", FLAG),
        ("stream", FLAG),
        ("stream_options", "an object whose include_usage and continuous_usage_stats are true or false"),
        ("return_token_ids", FLAG),
        ("return_token_strs", FLAG),
        ("kv_transfer_params", "an object: pass it on as the prefill engine returned it"),
        ("cache_salt", TEXT),
        ("max_tokens", COUNT),
        ("max_completion_tokens", COUNT),
        ("min_tokens", COUNT),
        ("temperature", NUMBER),
        ("top_p", NUMBER),
        ("top_k", WHOLE),
        ("seed", WHOLE),
        ("stop", "text or a list of texts"),
        ("stop_token_ids", "a list of token ids"),
        ("ignore_eos", FLAG),
        ("n", COUNT),
        ("best_of", COUNT),
        ("echo", FLAG),
    ];
}

impl RequestBody for Incoming {
    const FIELDS: &'static [(&'static str, &'static str)] = &[
        ("do_remote_decode", FLAG),
        ("do_remote_prefill", FLAG),
        ("remote_block_ids", "a list of block numbers, or a list of such lists"),
        ("remote_engine_id", TEXT),
        ("remote_request_id", TEXT),
        ("remote_host", TEXT),
        ("remote_port", "a number from 0 to 65535"),
        ("remote_num_tokens", COUNT),
        ("tp_size", COUNT),
    ];
}

/// One prompt or several, as text or as token ids.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// One turn of a conversation.
#[derive(Debug, Deserialize)]
pub(crate) struct ChatMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Debug, Deserialize)]
struct ContentPart {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: Option<bool>,
    pub(crate) continuous_usage_stats: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Prompts {
    /// The prompts, at least one.
    pub(crate) fn split(self) -> Result<Vec<Prompt>, ApiError> {
        let prompts: Vec<Prompt> = match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        };
        if prompts.len() > PROMPTS_MAX {
            let message =
                format!("{} prompts in one request; at most {PROMPTS_MAX} are accepted", prompts.len());
            return Err(ApiError::invalid("prompt", message));
        }
        Ok(prompts)
    }
}

impl ChatMessage {
    /// The turn as text.
    pub(crate) fn into_message(self) -> Result<Message, ApiError> {
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let mut content = String::new();
                for part in parts {
                    match (part.kind.as_str(), part.text) {
                        ("text", Some(text)) => content.push_str(&text),
                        (kind, _) => {
                            let message =
                                format!("a message part of type {kind:?}; this model reads text only");
                            return Err(ApiError::unsupported("messages", message));
                        }
                    }
                }
                content
            }
        };
        Ok(Message { role: self.role, content })
    }
}

impl GenerateBody {
    /// Refuses what this engine does not do.
    pub(crate) fn check_supported(&self) -> Result<(), ApiError> {
        let asked = |value: &Option<Value>| !matches!(value, None | Some(Value::Null | Value::Bool(false)));
        if self.n.is_some_and(|n| n != 1) {
            return Err(ApiError::unsupported(
                "n",
                "only n = 1 is supported: send the request several times",
            ));
        }
        if self.best_of.is_some_and(|best_of| best_of != 1) {
            return Err(ApiError::unsupported("best_of", "only best_of = 1 is supported"));
        }
        if self.echo == Some(true) {
            return Err(ApiError::unsupported(
                "echo",
                "echo is not supported: the client has the prompt already",
            ));
        }
        if asked(&self.logprobs) || asked(&self.prompt_logprobs) {
            return Err(ApiError::unsupported("logprobs", "log probabilities are not supported"));
        }
        Ok(())
    }

    /// How tokens are chosen.
    pub(crate) fn sampling(&self) -> Result<SamplingParams, ApiError> {
        let top_k = match self.top_k {
            None | Some(-1 | 0) => 0,
            Some(top_k) => usize::try_from(top_k).map_err(|_| {
                ApiError::invalid("top_k", format!("top_k is {top_k}; use 1 or more, or -1 for all"))
            })?,
        };
        let defaults = SamplingParams::default();
        Ok(SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k,
            seed: self.seed.map(i64::cast_unsigned),
        })
    }

    /// The answer's length as the client wants it.
    pub(crate) fn max_tokens(&self) -> Result<Option<usize>, ApiError> {
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        if max_tokens == Some(0) {
            return Err(ApiError::invalid("max_tokens", "max_tokens is 0; it must be at least 1"));
        }
        Ok(max_tokens)
    }

    /// What ends an answer of at most `max_tokens` for which the context has `room`, with the end tokens of the model.
    pub(crate) fn limits(
        &self,
        max_tokens: usize,
        room: usize,
        model_end: &[u32],
    ) -> Result<Limits, ApiError> {
        let min_tokens = self.min_tokens.unwrap_or(0);
        if min_tokens > max_tokens {
            let message = format!("min_tokens is {min_tokens}, which is more than max_tokens, {max_tokens}");
            return Err(ApiError::invalid("min_tokens", message));
        }
        let end_tokens = if self.ignore_eos == Some(true) { &[] } else { model_end };
        let stop_tokens: HashSet<u32> = self.stop_token_ids.iter().flatten().copied().collect();
        let end_tokens = end_tokens.iter().copied().collect();
        Ok(Limits { max_tokens: max_tokens.min(room), min_tokens, end_tokens, stop_tokens })
    }

    /// The stop strings.
    pub(crate) fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop.clone()],
            Some(OneOrMany::Many(stops)) => stops.clone(),
        };
        if stops.len() > STOPS_MAX || stops.iter().any(|stop| stop.len() > STOP_LEN_MAX) {
            let message =
                format!("at most {STOPS_MAX} stop strings of at most {STOP_LEN_MAX} bytes are accepted");
            return Err(ApiError::invalid("stop", message));
        }
        Ok(stops)
    }

    /// What the request wants of the KV hand-off.
    pub(crate) fn hand_off(&mut self) -> Result<HandOff, ApiError> {
        let params = self.kv_transfer_params.take().unwrap_or_default();
        let params: Incoming = parse_inner("kv_transfer_params", params)
            .map_err(|error| ApiError { kind: "kv_params_invalid", ..error })?;
        Ok(params.check()?)
    }

    /// What keeps the cached blocks of this request apart from others'.
    pub(crate) fn salt(&self) -> Result<Option<Arc<str>>, ApiError> {
        match self.cache_salt.as_deref() {
            None => Ok(None),
            Some(salt) if (1..=SALT_LEN_MAX).contains(&salt.len()) => Ok(Some(salt.into())),
            Some(salt) => {
                let message =
                    format!("cache_salt has {} bytes; it needs 1 to {SALT_LEN_MAX} of them", salt.len());
                Err(ApiError::invalid("cache_salt", message))
            }
        }
    }

    /// A body that names nothing but a model.
    pub(crate) fn of_model(model: Option<String>) -> Self {
        Self { model, ..Self::default() }
    }

    /// Refuses a model that is not `served`; no model means the one there is.
    pub(crate) fn check_model(&self, served: &str) -> Result<(), ApiError> {
        match &self.model {
            Some(asked) if asked != served => Err(ApiError::model(asked, served)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(json: &str) -> GenerateBody {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let prompts = |json: &str| body(json).prompt.unwrap().split().unwrap();
        assert_eq!(prompts(r#"{"prompt":"a"}"#), [Prompt::Text("a".into())]);
        assert_eq!(prompts(r#"{"prompt":[1,2]}"#), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(r#"{"prompt":["a","b"]}"#).len(), 2);
        assert_eq!(prompts(r#"{"prompt":[[1],[2]]}"#)[1], Prompt::Tokens(vec![2]));
        let many = format!("{{\"prompt\":[{}]}}", vec!["\"a\""; PROMPTS_MAX + 1].join(","));
        assert_eq!(body(&many).prompt.unwrap().split().unwrap_err().param, Some("prompt"));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (json, param) in [
            (r#"{"n":2}"#, "n"),
            (r#"{"best_of":2}"#, "best_of"),
            (r#"{"echo":true}"#, "echo"),
            (r#"{"logprobs":0}"#, "logprobs"),
            (r#"{"logprobs":true}"#, "logprobs"),
        ] {
            assert_eq!(body(json).check_supported().unwrap_err().param, Some(param), "{json}");
        }
        body(r#"{"n":1,"logprobs":false,"echo":false,"unknown":{"x":1}}"#).check_supported().unwrap();
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert_eq!(body(r#"{"top_k":-7}"#).sampling().unwrap_err().param, Some("top_k"));
        assert_eq!(body(r#"{"max_tokens":0}"#).max_tokens().unwrap_err().param, Some("max_tokens"));
        assert_eq!(body(r#"{"min_tokens":9}"#).limits(8, 8, &[]).unwrap_err().param, Some("min_tokens"));
        assert_eq!(body(r#"{"cache_salt":""}"#).salt().unwrap_err().param, Some("cache_salt"));
        let stop = format!("{{\"stop\":\"{}\"}}", "x".repeat(STOP_LEN_MAX + 1));
        assert_eq!(body(&stop).stops().unwrap_err().param, Some("stop"));
        assert_eq!(body(r#"{"model":"x"}"#).check_model("y").unwrap_err().status.as_u16(), 404);
    }

    #[test]
    fn message_parts_of_text_are_joined_and_others_refused() {
        let text = r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
        let message: ChatMessage = serde_json::from_str(text).unwrap();
        assert_eq!(message.into_message().unwrap().content, "ab");
        let image = r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}"#;
        let message: ChatMessage = serde_json::from_str(image).unwrap();
        assert_eq!(message.into_message().unwrap_err().kind, "unsupported");
    }
}
