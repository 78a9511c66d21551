//! Requests to engines and router.

#![expect(clippy::disallowed_methods, reason = "the time to the first token is measured here")]

use anyhow::{Context as _, bail};
use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long one answer may take in all.
const ANSWER_MAX: Duration = Duration::from_secs(300);
/// How long a server may take until it is healthy.
const HEALTHY_MAX: Duration = Duration::from_secs(60);
/// The longest line of a stream: a chunk with the token ids of a long prompt stays far below.
const LINE_MAX: usize = 4 << 20;

/// One answer.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Answer {
    /// The text.
    pub(crate) text: String,
    /// The prompt as the engine saw it.
    pub(crate) prompt_tokens: Vec<u32>,
    /// The tokens of the text.
    pub(crate) tokens: Vec<u32>,
    /// Why it ended.
    pub(crate) finish_reason: Option<String>,
    /// From sending the request to the first token; known of streams only.
    pub(crate) first_token: Option<Duration>,
}

/// How a decode engine got the KV blocks of a request.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
pub(crate) struct Pull {
    /// Leading blocks that it had.
    pub(crate) local_blocks: usize,
    /// Blocks that it pulled.
    pub(crate) blocks: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The time of the transfer.
    pub(crate) seconds: f64,
    /// The path of the transfer; empty when nothing was lacking.
    pub(crate) path: String,
    /// Why it failed, if so.
    pub(crate) error: Option<String>,
}

/// How an engine got its weights.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct WeightsPull {
    /// Bytes of the model.
    pub(crate) bytes: u64,
    /// Bytes that came.
    pub(crate) bytes_fetched: u64,
    /// The time in which they came.
    pub(crate) transfer_seconds: f64,
    /// The time of everything, from connecting to a complete directory.
    pub(crate) seconds: f64,
    /// The path they took; empty if nothing had to move.
    pub(crate) path: String,
}

/// What an engine tells of itself.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct Info {
    /// Where others get its weights.
    pub(crate) weights_address: Option<String>,
    /// How it got its own.
    pub(crate) weights_pull: Option<WeightsPull>,
    /// KV hand-offs.
    pub(crate) pulls: Vec<Pull>,
}

/// A choice, whole or a chunk of one, of a completion or of a chat.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Choice {
    text: Option<String>,
    message: Option<Message>,
    delta: Option<Message>,
    token_ids: Option<Vec<u32>>,
    prompt_token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Reply {
    choices: Option<Vec<Choice>>,
    prompt_token_ids: Option<Vec<u32>>,
    error: Option<Value>,
}

/// Sends requests, all over the same connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
}

impl Client {
    /// A client for servers of this machine.
    ///
    /// # Errors
    /// There is no HTTP client to be had.
    pub(crate) fn new() -> anyhow::Result<Self> {
        // A proxy for the web has no business between two processes of one machine.
        Ok(Self { http: reqwest::Client::builder().no_proxy().timeout(ANSWER_MAX).build()? })
    }

    /// Asks for an answer; `hear` gets its text as it comes.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or does not speak as it should; or `hear` fails.
    pub(crate) async fn ask(
        &self,
        url: &str,
        request_id: &str,
        body: &Value,
        mut hear: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Answer> {
        let start = Instant::now();
        let request = self.http.post(url).header("x-request-id", request_id).json(body);
        let response = request.send().await.with_context(|| format!("no answer from {url}"))?;
        let mut answer = Answer::default();
        if !response.status().is_success() {
            bail!("{url} answers {}: {}", response.status(), response.text().await?);
        } else if body["stream"] == true {
            let mut lines = ServerEvents::new(response);
            while let Some(data) = lines.next().await? {
                let text = answer.take(serde_json::from_str(&data)?)?;
                if !answer.tokens.is_empty() {
                    answer.first_token.get_or_insert_with(|| start.elapsed());
                }
                hear(&text)?;
            }
        } else {
            let text = answer.take(response.json().await?)?;
            hear(&text)?;
        }
        Ok(answer)
    }

    /// What the engine at `url` tells of itself, with the hand-off of one request.
    ///
    /// # Errors
    /// The engine cannot be reached or tells something else.
    pub(crate) async fn info(&self, url: &str, request_id: &str) -> anyhow::Result<Info> {
        let response = self.http.get(format!("{url}/headrace/info?request_id={request_id}")).send().await?;
        Ok(response.error_for_status()?.json().await?)
    }

    /// How many tokens `text` has.
    ///
    /// # Errors
    /// The engine cannot be reached or answers something else.
    pub(crate) async fn count_tokens(&self, url: &str, text: &str) -> anyhow::Result<usize> {
        let body = serde_json::json!({"prompt": text});
        let response = self.http.post(format!("{url}/tokenize")).json(&body).send().await?;
        let answer: Value = response.error_for_status()?.json().await?;
        let count = answer["count"].as_u64().context("the answer of /tokenize has no count")?;
        Ok(usize::try_from(count)?)
    }

    /// Waits until the server at `url` says that it is healthy.
    ///
    /// # Errors
    /// It takes too long.
    pub(crate) async fn healthy(&self, url: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < HEALTHY_MAX {
            let health = self.http.get(format!("{url}/health")).send().await;
            if health.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("{url} is not healthy after {HEALTHY_MAX:?}")
    }
}

impl Answer {
    /// Adds a reply or a chunk of one, and returns its text.
    fn take(&mut self, reply: Reply) -> anyhow::Result<String> {
        if let Some(error) = reply.error {
            bail!("the answer broke off: {error}");
        }
        let mut all = String::new();
        self.see_prompt(reply.prompt_token_ids);
        for choice in reply.choices.unwrap_or_default() {
            let said = choice.message.or(choice.delta).and_then(|message| message.content);
            let text = choice.text.or(said).unwrap_or_default();
            self.text.push_str(&text);
            self.tokens.extend(choice.token_ids.unwrap_or_default());
            self.see_prompt(choice.prompt_token_ids);
            self.finish_reason = choice.finish_reason.or_else(|| self.finish_reason.take());
            all.push_str(&text);
        }
        Ok(all)
    }

    /// A chat carries its prompt in one place or in both.
    fn see_prompt(&mut self, tokens: Option<Vec<u32>>) {
        if self.prompt_tokens.is_empty() {
            self.prompt_tokens = tokens.unwrap_or_default();
        }
    }
}

/// The data of server-sent events.
struct ServerEvents {
    response: Response,
    buffer: Vec<u8>,
}

impl ServerEvents {
    fn new(response: Response) -> Self {
        Self { response, buffer: Vec::new() }
    }

    /// The next event; `None` after the one that says that all is said.
    async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                match String::from_utf8(line)?.trim_end().strip_prefix("data: ") {
                    Some("[DONE]") => return Ok(None),
                    Some(data) => return Ok(Some(data.to_owned())),
                    None => continue,
                }
            }
            if self.buffer.len() > LINE_MAX {
                bail!("a line of the stream is longer than {LINE_MAX} bytes");
            }
            let chunk = self.response.chunk().await.context("the stream broke off")?;
            self.buffer.extend(chunk.context("the stream broke off before its end")?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(replies: &[&str]) -> anyhow::Result<Answer> {
        let mut answer = Answer::default();
        for reply in replies {
            answer.take(serde_json::from_str(reply)?)?;
        }
        Ok(answer)
    }

    #[test]
    fn chunks_add_up_to_the_whole_answer() {
        let whole = answer(&[r#"{"choices":[{"text":"ab","token_ids":[1,2],"prompt_token_ids":[9],
            "finish_reason":"length"}]}"#])
        .unwrap();
        let chunks = answer(&[
            r#"{"choices":[{"text":"a","token_ids":[1],"prompt_token_ids":[9],"finish_reason":null}]}"#,
            r#"{"choices":[{"text":"b","token_ids":[2],"finish_reason":null}]}"#,
            r#"{"choices":[{"text":"","token_ids":[],"finish_reason":"length"}]}"#,
            r#"{"choices":[],"usage":{}}"#,
        ])
        .unwrap();
        let chat = answer(&[
            r#"{"prompt_token_ids":[9],"choices":[{"delta":{"role":"assistant","content":"a"},"token_ids":[1],
                "prompt_token_ids":[9]}]}"#,
            r#"{"choices":[{"delta":{"content":"b"},"token_ids":[2]}]}"#,
            r#"{"choices":[{"delta":{},"token_ids":[],"finish_reason":"length"}]}"#,
        ])
        .unwrap();
        assert_eq!(
            (whole.text.as_str(), &whole.tokens[..], &whole.prompt_tokens[..]),
            ("ab", &[1, 2][..], &[9][..])
        );
        assert_eq!(whole, chunks);
        assert_eq!(whole, chat);
    }

    #[test]
    fn an_error_in_the_middle_is_no_answer() {
        assert!(answer(&[r#"{"error":{"message":"lost"}}"#]).unwrap_err().to_string().contains("lost"));
    }
}
