//! `/v1/completions` and `/v1/chat/completions`: from the body to requests of the engine, and from its outputs to an
//! answer or a stream of chunks.

#![expect(clippy::disallowed_methods, reason = "latencies are measured here, at the edge")]

use super::body::{ChatMessage, GenerateBody, Prompt, StreamOptions};
use super::error::ApiError;
use super::parse::{ReceivedBody, parse};
use super::reply::{Choice, Envelope, Usage};
use super::{App, Role};
use crate::kv::HandOff;
use crate::worker::{Follower, Output, Request};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use engine_model::Sampler;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use uuid::Uuid;

/// The answer's length if a completion request does not say; chats go on to the end of the context.
const COMPLETION_TOKENS_DEFAULT: usize = 16;
/// The longest client-chosen request id, in bytes.
const REQUEST_ID_LEN_MAX: usize = 256;

/// `POST /v1/completions`
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: ReceivedBody,
) -> Result<Response, ApiError> {
    generate(app, &headers, parse(body)?, false).await
}

/// `POST /v1/chat/completions`
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: ReceivedBody,
) -> Result<Response, ApiError> {
    generate(app, &headers, parse(body)?, true).await
}

async fn generate(
    app: Arc<App>,
    headers: &HeaderMap,
    mut body: GenerateBody,
    chat: bool,
) -> Result<Response, ApiError> {
    let start = Instant::now();
    body.check_model(&app.info.model)?;
    body.check_supported()?;
    let prompts = prompt_tokens(&app, &mut body, chat).await?;
    let request_id = request_id(headers)?;
    let envelope = Envelope {
        chat,
        id: answer_id(chat, request_id.as_deref()),
        created: unix_time(),
        model: app.info.model.clone(),
        return_token_ids: body.return_token_ids == Some(true),
    };
    let requests = requests(&app, &mut body, &prompts, &envelope, request_id.clone())?;
    let follower = app.engine.submit(requests)?;
    let mut run = Run { app, follower, start, usage: Usage::default() };
    run.usage.prompt = prompts.iter().map(Vec::len).sum();
    // The first output decides the status: what fails before it, such as a KV pull, is a plain error answer.
    let first = run.next().await?;
    let stream = body.stream == Some(true);
    let mut response = if stream {
        stream_response(run, first, envelope, prompts, &body.stream_options.unwrap_or_default())
    } else {
        complete_response(run, first, &envelope, &prompts).await?
    };
    if let Some(id) = request_id.and_then(|id| HeaderValue::from_str(&id).ok()) {
        response.headers_mut().insert("x-request-id", id);
    }
    Ok(response)
}

/// The token ids of all prompts of a request, each not empty and within the vocabulary.
pub(super) async fn prompt_tokens(
    app: &Arc<App>,
    body: &mut GenerateBody,
    chat: bool,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let prompts = if chat { vec![chat_prompt(app, body)?] } else { text_prompts(body)? };
    // A chat template writes the special tokens out itself.
    let special = body.add_special_tokens.unwrap_or(!chat);
    let tokenizer = app.tokenizer.clone();
    let encoding = tokio::task::spawn_blocking(move || {
        let encode = |prompt| match prompt {
            Prompt::Text(text) => tokenizer.encode(&text, special),
            Prompt::Tokens(tokens) => Ok(tokens),
        };
        prompts.into_iter().map(encode).collect::<Result<Vec<_>, _>>()
    });
    let failed =
        |error: tokio::task::JoinError| ApiError::invalid("prompt", format!("cannot be encoded: {error}"));
    let prompts = encoding.await.map_err(failed)??;
    for prompt in &prompts {
        if prompt.is_empty() {
            return Err(ApiError::invalid("prompt", "the prompt is empty; it needs at least one token"));
        }
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= app.vocab_size) {
            let size = app.vocab_size;
            let message = format!("token {token} of the prompt is outside the vocabulary of {size} tokens");
            return Err(ApiError::invalid("prompt", message));
        }
    }
    Ok(prompts)
}

fn chat_prompt(app: &App, body: &mut GenerateBody) -> Result<Prompt, ApiError> {
    let messages = body.messages.take().unwrap_or_default();
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages is empty; a chat needs at least one message"));
    }
    let messages = messages.into_iter().map(ChatMessage::into_message).collect::<Result<Vec<_>, _>>()?;
    let text = app.tokenizer.apply_chat(&messages, body.add_generation_prompt.unwrap_or(true))?;
    Ok(Prompt::Text(text))
}

fn text_prompts(body: &mut GenerateBody) -> Result<Vec<Prompt>, ApiError> {
    let missing =
        || ApiError::invalid("prompt", "prompt is missing; send text, token ids, or a list of either");
    let prompts = body.prompt.take().ok_or_else(missing)?.split()?;
    let empty = |prompt: &Prompt| matches!(prompt, Prompt::Text(text) if text.is_empty());
    if prompts.is_empty() || prompts.iter().any(empty) {
        return Err(ApiError::invalid("prompt", "the prompt is empty; it needs at least one token"));
    }
    Ok(prompts)
}

/// Checks everything else and makes one engine request per prompt.
fn requests(
    app: &App,
    body: &mut GenerateBody,
    prompts: &[Vec<u32>],
    envelope: &Envelope,
    request_id: Option<String>,
) -> Result<Vec<Request>, ApiError> {
    let mut hand_off = body.hand_off()?;
    check_role(app.info.role, &hand_off, prompts.len())?;
    // A prefill ends after its first token, whatever the answer as a whole is to be.
    let max_tokens = if hand_off == HandOff::Give { Some(1) } else { body.max_tokens()? };
    if hand_off == HandOff::Give {
        body.min_tokens = None;
        if body.stream == Some(true) {
            // A stream does not carry the params, so nobody could take the blocks.
            hand_off = HandOff::None;
        }
    }
    let params = body.sampling()?;
    let salt = body.salt()?;
    let context = app.info.max_model_len;
    if let Some(tokens) = max_tokens.filter(|&tokens| tokens > context) {
        return Err(ApiError::context("max_tokens", tokens, context));
    }
    let make = |(index, prompt): (usize, &Vec<u32>)| {
        // An answer that is to be longer than the context has room for ends there; what could never be is refused.
        let room = context.saturating_sub(prompt.len());
        if room == 0 {
            return Err(ApiError::context("prompt", prompt.len(), context));
        }
        let default = if envelope.chat { room } else { COMPLETION_TOKENS_DEFAULT };
        let max_tokens = max_tokens.unwrap_or(default);
        let id = if prompts.len() == 1 { envelope.id.clone() } else { format!("{}-{index}", envelope.id) };
        let fallback_seed = Uuid::new_v4().as_u64_pair().0;
        Ok(Request {
            id,
            request_id: request_id.clone(),
            prompt: prompt.clone(),
            salt: salt.clone(),
            sampler: Sampler::new(params, fallback_seed)?,
            limits: body.limits(max_tokens, room, &app.end_tokens)?,
            stops: body.stops()?,
            hand_off: hand_off.clone(),
        })
    };
    prompts.iter().enumerate().map(make).collect()
}

fn check_role(role: Role, hand_off: &HandOff, prompts: usize) -> Result<(), ApiError> {
    let refuse = |message: &str| Err(ApiError::unsupported("kv_transfer_params", message));
    match (role, hand_off) {
        (_, HandOff::None) => Ok(()),
        _ if prompts != 1 => {
            refuse("kv_transfer_params go with exactly one prompt; send the prompts one by one")
        }
        (Role::Prefill, HandOff::Take(_)) => {
            refuse("this is a prefill engine (--role prefill): send do_remote_prefill to a decode engine")
        }
        (Role::Decode, HandOff::Give) => {
            refuse("this is a decode engine (--role decode): send do_remote_decode to a prefill engine")
        }
        _ => Ok(()),
    }
}

fn request_id(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("x-request-id") else { return Ok(None) };
    match value.to_str() {
        Ok(id) if id.len() <= REQUEST_ID_LEN_MAX => Ok(Some(id.to_owned())),
        _ => {
            let message =
                format!("X-Request-Id must be at most {REQUEST_ID_LEN_MAX} visible ASCII characters");
            Err(ApiError::invalid("X-Request-Id", message))
        }
    }
}

/// Unique also if a client repeats its id: hand-offs are kept under this name.
fn answer_id(chat: bool, request_id: Option<&str>) -> String {
    let prefix = if chat { "chatcmpl" } else { "cmpl" };
    let unique = Uuid::new_v4().simple().to_string();
    match request_id {
        Some(id) => format!("{prefix}-{id}-{}", &unique[..8]),
        None => format!("{prefix}-{unique}"),
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A request that is under way.
struct Run {
    app: Arc<App>,
    follower: Follower,
    start: Instant,
    usage: Usage,
}

impl Run {
    /// The next piece of any of the answers.
    async fn next(&mut self) -> Result<Option<(usize, Choice)>, ApiError> {
        let Some((index, output)) = self.follower.next().await else {
            self.app.metrics.observe_request(self.start.elapsed().as_secs_f64());
            return Ok(None);
        };
        match output {
            Output::Token { id, text, finished } => {
                if self.usage.completion == 0 {
                    self.app.metrics.observe_first_token(self.start.elapsed().as_secs_f64());
                }
                self.usage.completion += 1;
                self.usage.cached += finished.as_ref().map_or(0, |finished| finished.cached_tokens);
                let finished = finished.map(|finished| *finished);
                Ok(Some((index, Choice { text, token_ids: vec![id], finished })))
            }
            Output::Failed(failure) => Err(failure.into()),
        }
    }
}

async fn complete_response(
    mut run: Run,
    first: Option<(usize, Choice)>,
    envelope: &Envelope,
    prompts: &[Vec<u32>],
) -> Result<Response, ApiError> {
    let mut choices: Vec<Choice> = prompts.iter().map(|_| Choice::default()).collect();
    let mut next = first;
    while let Some((index, piece)) = next {
        let choice = &mut choices[index];
        choice.text.push_str(&piece.text);
        choice.token_ids.extend(piece.token_ids);
        choice.finished = piece.finished;
        next = run.next().await?;
    }
    let body = envelope.complete(&choices, prompts, run.usage).to_string();
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// A streamed answer on its way to the client.
struct Stream {
    run: Run,
    envelope: Envelope,
    /// Prompts whose first chunk has not gone out.
    prompts: Vec<Option<Vec<u32>>>,
    /// The usage of each answer so far.
    usages: Vec<Usage>,
    /// Whether the usage of everything goes out at the end.
    include_usage: bool,
    /// Whether every chunk carries the usage of its answer so far.
    continuous_usage: bool,
    /// Chunks that are ready.
    ready: VecDeque<Bytes>,
    ended: bool,
}

fn stream_response(
    run: Run,
    first: Option<(usize, Choice)>,
    envelope: Envelope,
    prompts: Vec<Vec<u32>>,
    options: &StreamOptions,
) -> Response {
    let include_usage = options.include_usage == Some(true);
    let mut stream = Stream {
        run,
        envelope,
        usages: prompts.iter().map(|prompt| Usage { prompt: prompt.len(), ..Usage::default() }).collect(),
        prompts: prompts.into_iter().map(Some).collect(),
        include_usage,
        continuous_usage: include_usage && options.continuous_usage_stats == Some(true),
        ready: VecDeque::new(),
        ended: false,
    };
    stream.take(Ok(first));
    let chunks = futures_util::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<_, Infallible>(chunk), stream))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(chunks)).into_response()
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            let next = self.run.next().await;
            self.take(next);
        }
    }

    fn take(&mut self, next: Result<Option<(usize, Choice)>, ApiError>) {
        match next {
            Ok(Some((index, piece))) => self.take_piece(index, &piece),
            Ok(None) => {
                if self.include_usage {
                    self.ready.push_back(event(&self.envelope.usage_chunk(self.run.usage)));
                }
                self.end();
            }
            Err(error) => {
                self.ready.push_back(event(&error.to_json()));
                self.end();
            }
        }
    }

    fn take_piece(&mut self, index: usize, piece: &Choice) {
        let mut prompt = self.prompts[index].take();
        if let Some(prompt) = prompt.take_if(|_| self.envelope.chat) {
            let role = self.envelope.role_chunk(index, &prompt);
            self.push_chunk(index, role);
        }
        self.usages[index].completion += piece.token_ids.len();
        let silent = piece.text.is_empty() && !self.envelope.return_token_ids;
        if piece.finished.is_some() || prompt.is_some() || !silent {
            let chunk = self.envelope.chunk(index, piece, prompt.as_deref());
            self.push_chunk(index, chunk);
        }
    }

    fn push_chunk(&mut self, index: usize, mut chunk: Value) {
        if self.continuous_usage {
            chunk["usage"] = self.usages[index].so_far();
        }
        self.ready.push_back(event(&chunk));
    }

    fn end(&mut self) {
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.ended = true;
    }
}

fn event(json: &Value) -> Bytes {
    Bytes::from(format!("data: {json}\n\n"))
}
