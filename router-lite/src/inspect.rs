//! The few things the router wants to know about a request body. It asks; it never checks: a field of the wrong
//! type is the worker's to refuse, in the worker's own words.

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::splice::Object;

/// What a body asks for, as far as routing cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wish {
    /// The model's name; `None` leaves the choice to the worker.
    pub model: Option<String>,
    /// Whether the answer shall stream.
    pub stream: bool,
    /// Whether prefill and decode may run on different workers.
    pub split: bool,
}

impl Wish {
    /// Reads `body`, which goes to an endpoint that generates tokens or to one that does not.
    #[must_use]
    pub fn of(body: &Object<'_>, generates: bool) -> Self {
        let model = field::<String>(body, "model").filter(|name| !name.is_empty());
        let stream = field::<bool>(body, "stream").unwrap_or(false);
        Self { model, stream, split: generates && may_split(body) }
    }
}

/// The hand-off carries the blocks of one prompt to one decode request, once. So these stay whole:
/// several prompts or samples (each would need parameters of its own), prompts without token ids (embeddings),
/// log-probabilities of the prompt (decode never computes the prompt), and requests that generate nothing.
fn may_split(body: &Object<'_>) -> bool {
    let more_than_one = |name| field::<serde_json::Number>(body, name).is_some_and(|n| n.as_u64() != Some(1));
    let is_true = |name| field::<bool>(body, name).unwrap_or(false);
    let is_set = |name| body.get(name).is_some_and(|raw| raw != "null");
    let zero = |name| field::<u64>(body, name) == Some(0);
    !(more_than_one("n")
        || more_than_one("best_of")
        || is_true("use_beam_search")
        || is_set("prompt_logprobs")
        || (is_true("echo") && is_set("logprobs"))
        || is_set("prompt_embeds")
        || zero("max_tokens")
        || zero("max_completion_tokens")
        || body.get("prompt").is_some_and(is_batch))
}

/// Whether a completion's `prompt` is not exactly one prompt. A string is one, an array of token ids is one, an
/// array with one of either is one.
fn is_batch(prompt: &str) -> bool {
    let Some(inner) = prompt.strip_prefix('[') else {
        return !prompt.starts_with('"');
    };
    match inner.trim_start().as_bytes().first() {
        // Nothing is stored for the elements: the vector of a zero-sized type only counts.
        Some(b'"' | b'[') => {
            serde_json::from_str::<Vec<IgnoredAny>>(prompt).map_or(true, |all| all.len() != 1)
        }
        Some(b'0'..=b'9') => false,
        _ => true,
    }
}

fn field<T: DeserializeOwned>(body: &Object<'_>, name: &str) -> Option<T> {
    serde_json::from_str(body.get(name)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(body: &str) -> Wish {
        Wish::of(&Object::parse(body.as_bytes()).unwrap(), true)
    }

    #[test]
    fn reads_model_and_stream_with_the_last_key_winning() {
        let w = wish(r#"{"model":"a","stream":false,"model":"b\u0062","stream":true}"#);
        assert_eq!((w.model.as_deref(), w.stream), (Some("bb"), true));
        let odd = wish(r#"{"model":5,"stream":"yes"}"#);
        assert_eq!((odd.model, odd.stream), (None, false));
        assert_eq!(wish(r#"{"model":""}"#).model, None);
    }

    #[test]
    fn splits_single_prompts_only() {
        for one in [
            r#"{"prompt":"x"}"#,
            r#"{"prompt":[1,2]}"#,
            r#"{"prompt":["x"]}"#,
            r#"{"prompt":[[1,2]],"n":1,"best_of":null,"logprobs":3,"echo":true,"echo":false}"#,
            r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":1}"#,
        ] {
            assert!(wish(one).split, "{one}");
        }
        for whole in [
            r#"{"prompt":["x","y"]}"#,
            r#"{"prompt":[[1],[2]]}"#,
            r#"{"prompt":[]}"#,
            r#"{"prompt":null}"#,
            r#"{"prompt":{"x":1}}"#,
            r#"{"prompt":"x","n":2}"#,
            r#"{"prompt":"x","n":1.5}"#,
            r#"{"prompt":"x","best_of":2}"#,
            r#"{"prompt":"x","use_beam_search":true}"#,
            r#"{"prompt":"x","echo":true,"logprobs":1}"#,
            r#"{"prompt":"x","prompt_logprobs":0}"#,
            r#"{"prompt_embeds":"AAAA"}"#,
            r#"{"prompt":"x","max_tokens":0}"#,
        ] {
            assert!(!wish(whole).split, "{whole}");
        }
        assert!(!Wish::of(&Object::parse(br#"{"prompt":"x"}"#).unwrap(), false).split);
    }
}
