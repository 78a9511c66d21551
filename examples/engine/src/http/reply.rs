//! The JSON that clients get, with the fields of OpenAI and vLLM.

use crate::kv::params::Outgoing;
use crate::worker::{Finish, Finished};
use serde_json::{Map, Value, json};

/// What all chunks of an answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) chat: bool,
    pub(crate) id: String,
    /// Unix time in seconds.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) return_token_ids: bool,
}

/// Counts for `usage`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
    pub(crate) cached: usize,
}

/// One answer, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) finished: Option<Finished>,
}

impl Usage {
    /// The usage in the middle of an answer, when it is not told yet how much of the prompt was in the cache.
    pub(crate) fn so_far(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }

    /// The usage at the end.
    pub(crate) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

impl Envelope {
    fn object(&self, streamed: bool) -> Map<String, Value> {
        let object = match (self.chat, streamed) {
            (true, true) => "chat.completion.chunk",
            (true, false) => "chat.completion",
            (false, _) => "text_completion",
        };
        let mut map = Map::new();
        map.insert("id".into(), json!(self.id));
        map.insert("object".into(), json!(object));
        map.insert("created".into(), json!(self.created));
        map.insert("model".into(), json!(self.model));
        map
    }

    /// The whole answer at once.
    pub(crate) fn complete(&self, choices: &[Choice], prompts: &[Vec<u32>], usage: Usage) -> Value {
        let mut map = self.object(false);
        let listed = choices.iter().zip(prompts).enumerate().map(|(index, (choice, prompt))| {
            let message = || ("message", json!({"role": "assistant", "content": choice.text}));
            self.choice(index, choice, message, (!self.chat).then_some(prompt.as_slice()))
        });
        let listed: Vec<Value> = listed.collect();
        map.insert("choices".into(), Value::Array(listed));
        map.insert("usage".into(), usage.to_json());
        if self.chat && self.return_token_ids {
            map.insert("prompt_token_ids".into(), json!(prompts.first()));
        }
        let finished = choices.first().and_then(|choice| choice.finished.as_ref());
        map.insert("kv_transfer_params".into(), kv_params(finished));
        Value::Object(map)
    }

    /// The first chunk of a streamed chat: who speaks, and to which prompt.
    pub(crate) fn role_chunk(&self, index: usize, prompt: &[u32]) -> Value {
        let mut map = self.object(true);
        let delta = json!({"role": "assistant", "content": ""});
        map.insert(
            "choices".into(),
            json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}]),
        );
        if self.return_token_ids {
            map.insert("prompt_token_ids".into(), json!(prompt));
        }
        Value::Object(map)
    }

    /// One chunk of a streamed answer: some text, and with the last of it the end. `prompt` goes with the first chunk
    /// of a completion. A stream never carries `kv_transfer_params`: who wants to hand over asks for a whole answer.
    pub(crate) fn chunk(&self, index: usize, choice: &Choice, prompt: Option<&[u32]>) -> Value {
        let mut map = self.object(true);
        let delta = || ("delta", json!({"content": choice.text}));
        map.insert("choices".into(), json!([self.choice(index, choice, delta, prompt)]));
        Value::Object(map)
    }

    /// One entry of `choices`. `chat` is how a chat carries the text; `prompt` goes with it where ids are asked for.
    fn choice(
        &self,
        index: usize,
        choice: &Choice,
        chat: impl FnOnce() -> (&'static str, Value),
        prompt: Option<&[u32]>,
    ) -> Value {
        let (reason, stop_reason) = finish_fields(choice.finished.as_ref());
        let (name, text) = if self.chat { chat() } else { ("text", json!(choice.text)) };
        let mut fields = Map::new();
        fields.insert("index".into(), json!(index));
        fields.insert(name.into(), text);
        fields.insert("logprobs".into(), Value::Null);
        fields.insert("finish_reason".into(), reason);
        fields.insert("stop_reason".into(), stop_reason);
        if self.return_token_ids {
            fields.insert("token_ids".into(), json!(choice.token_ids));
            if let Some(prompt) = prompt {
                fields.insert("prompt_token_ids".into(), json!(prompt));
            }
        }
        Value::Object(fields)
    }

    /// The last chunk of a stream whose client asked for the usage.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Value {
        let mut map = self.object(true);
        map.insert("choices".into(), json!([]));
        map.insert("usage".into(), usage.to_json());
        Value::Object(map)
    }
}

fn finish_fields(finished: Option<&Finished>) -> (Value, Value) {
    match finished.map(|finished| &finished.finish) {
        None => (Value::Null, Value::Null),
        Some(Finish::End) => (json!("stop"), Value::Null),
        Some(Finish::StopToken(token)) => (json!("stop"), json!(token)),
        Some(Finish::StopString(stop)) => (json!("stop"), json!(stop)),
        Some(Finish::Length) => (json!("length"), Value::Null),
    }
}

fn kv_params(finished: Option<&Finished>) -> Value {
    json!(finished.and_then(|finished: &Finished| finished.kv_transfer_params.as_ref()) as Option<&Outgoing>)
}
