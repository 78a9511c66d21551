//! The engine thread: takes requests, runs step after step, and hands out what was generated.
//!
//! One thread owns the scheduler and drives the model, so neither needs a lock. Whatever waits for something else (a
//! client, a peer, a socket) does so elsewhere and sends a [`Command`] when there is news.

mod answer;
mod handle;

pub(crate) use answer::{Finish, Limits};
pub(crate) use handle::{EngineHandle, Finished, Follower, Output, Request};

use crate::events::EventSink;
use crate::kv::claim::Ticket;
use crate::kv::params::Outgoing;
use crate::kv::{HandOff, KvService, PullError, PullJob};
use crate::metrics::{End, Metrics};
use crate::sched::{BlockId, Fetch, Scheduler, SeqId, Step, Work};
use answer::Answer;
use engine_model::{Chunk, KvCache, Model, ModelError, Tokenizer};
use handle::Outputs;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Why a request has no (complete) answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the engine has as many requests as it takes; try again later")]
    Busy,
    #[error("the engine is stopping")]
    Stopping,
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("the model failed: {0}")]
    Model(Arc<ModelError>),
}

/// News for the engine thread.
#[derive(Debug)]
pub(crate) enum Command {
    Submit(Box<Submission>),
    /// The client has left.
    Abort(SeqId),
    /// A pull has ended, and nothing writes into its blocks any more.
    Fetched(SeqId, Result<(), PullError>),
    /// A hand-off has ended.
    Release(Vec<BlockId>),
    Stop,
}

/// A request with its way back.
#[derive(Debug)]
pub(crate) struct Submission {
    seq: SeqId,
    request: Request,
    outputs: Outputs,
    permit: OwnedSemaphorePermit,
}

/// What to do when blocks cannot be pulled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum LoadFailurePolicy {
    /// Fail the request: the router repeats the prefill.
    #[default]
    Fail,
    /// Compute the prompt here.
    Recompute,
}

/// A request that is under way.
struct Live {
    request: Request,
    prompt: Arc<[u32]>,
    answer: Answer,
    outputs: Outputs,
    /// While blocks are being pulled; dropping it gives up the pull.
    pull: Option<oneshot::Sender<()>>,
    /// The client has left while blocks were being pulled.
    aborted: bool,
    _permit: OwnedSemaphorePermit,
}

/// What the engine thread works with.
pub(crate) struct Parts {
    pub(crate) scheduler: Scheduler,
    pub(crate) model: Model,
    pub(crate) cache: KvCache,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) kv: KvService,
    pub(crate) events: Option<EventSink>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) policy: LoadFailurePolicy,
    pub(crate) commands: Receiver<Command>,
    /// The other end of `commands`, for what the engine thread starts itself.
    pub(crate) sender: Sender<Command>,
}

/// The engine thread.
pub(crate) struct Worker {
    parts: Parts,
    live: HashMap<SeqId, Live>,
    pulls: usize,
}

impl Worker {
    /// An idle engine.
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts, live: HashMap::new(), pulls: 0 }
    }

    /// Works until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut idle = true;
        while self.take_commands(idle) {
            idle = !self.step();
            let events = self.parts.scheduler.take_events();
            if let Some(sink) = &mut self.parts.events {
                sink.publish(events);
            }
            self.parts.metrics.set_load(self.parts.scheduler.load());
        }
        for (_, live) in self.live.drain() {
            live.outputs.send(Output::Failed(Failure::Stopping));
        }
    }

    /// Takes what has come in; waits for something if there is nothing else to do. `false`: stop.
    fn take_commands(&mut self, idle: bool) -> bool {
        let mut next =
            if idle { self.parts.commands.recv().ok() } else { self.parts.commands.try_recv().ok() };
        while let Some(command) = next {
            match command {
                Command::Submit(submission) => self.submit(*submission),
                Command::Abort(seq) => self.abort(seq),
                Command::Fetched(seq, result) => self.fetched(seq, result),
                Command::Release(blocks) => self.parts.scheduler.release(&blocks),
                Command::Stop => return false,
            }
            next = self.parts.commands.try_recv().ok();
        }
        true
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { seq, mut request, outputs, permit } = submission;
        let prompt = std::mem::take(&mut request.prompt);
        let stops = std::mem::take(&mut request.stops);
        let answer = Answer::new(request.limits.clone(), stops, self.parts.tokenizer.decode_stream());
        let remote = matches!(request.hand_off, HandOff::Take(_));
        self.parts.metrics.count_prompt(prompt.len());
        self.parts.scheduler.add(seq, prompt.clone(), request.salt.clone(), remote);
        let live = Live {
            request,
            prompt: prompt.into(),
            answer,
            outputs,
            pull: None,
            aborted: false,
            _permit: permit,
        };
        self.live.insert(seq, live);
    }

    fn abort(&mut self, seq: SeqId) {
        let Some(live) = self.live.get_mut(&seq) else { return };
        if live.pull.take().is_some() {
            // Its blocks may still be written to: they are free when the pull has ended.
            live.aborted = true;
        } else {
            self.end(seq, End::Abort);
        }
    }

    /// Forgets a request and frees its blocks.
    fn end(&mut self, seq: SeqId, end: End) {
        self.parts.scheduler.finish(seq);
        self.live.remove(&seq);
        self.parts.metrics.count_end(end);
    }

    fn fail(&mut self, seq: SeqId, failure: Failure) {
        if let Some(live) = self.live.get(&seq) {
            live.outputs.send(Output::Failed(failure));
        }
        self.end(seq, End::Error);
    }

    /// One step of everything that can go on. `false`: nothing can.
    fn step(&mut self) -> bool {
        let Step { work, fetches } = self.parts.scheduler.schedule();
        let progress = !work.is_empty() || !fetches.is_empty();
        for fetch in fetches {
            self.fetch(fetch);
        }
        if !work.is_empty() {
            self.compute(&work);
        }
        progress
    }

    fn compute(&mut self, work: &[Work]) {
        let chunks: Vec<_> = work
            .iter()
            .map(|work| {
                let (tokens, blocks) = self.parts.scheduler.chunk(work);
                Chunk { tokens, start: work.start, blocks, want_logits: work.samples }
            })
            .collect();
        match self.parts.model.forward(&chunks, &self.parts.cache) {
            Ok(logits) => {
                for (work, logits) in work.iter().zip(logits) {
                    self.parts.scheduler.computed(work);
                    if let Some(logits) = logits {
                        self.advance(work.seq, logits);
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "a step has failed, and with it all of its requests");
                let failure = Failure::Model(Arc::new(error));
                work.iter().for_each(|work| self.fail(work.seq, failure.clone()));
            }
        }
    }

    /// Samples the next token of a request and hands it out.
    fn advance(&mut self, seq: SeqId, mut logits: Vec<f32>) {
        let Some(live) = self.live.get_mut(&seq) else { return };
        live.answer.mask(&mut logits);
        let token = match live.request.sampler.sample(live.answer.generated(), &logits) {
            Ok(token) => token,
            Err(error) => return self.fail(seq, Failure::Model(Arc::new(error))),
        };
        self.parts.metrics.count_token();
        let (text, finish) = live.answer.push(token);
        match finish {
            _ if live.outputs.is_closed() => self.end(seq, End::Abort),
            Some(finish) => self.finish(seq, token, text, finish),
            None => {
                // If the client leaves now, it is noticed with the next token.
                live.outputs.send(Output::Token { id: token, text, finished: None });
                self.parts.scheduler.push_token(seq, token);
            }
        }
    }

    fn finish(&mut self, seq: SeqId, token: u32, text: String, finish: Finish) {
        let cached_tokens = self.parts.scheduler.cached_tokens(seq);
        let kv_transfer_params = self.hand_over(seq, &finish, cached_tokens);
        let end = if finish == Finish::Length { End::Length } else { End::Stop };
        if let Some(live) = self.live.get(&seq) {
            let finished = Some(Box::new(Finished { finish, cached_tokens, kv_transfer_params }));
            // If the client has left, the lease ends unused.
            live.outputs.send(Output::Token { id: token, text, finished });
        }
        self.end(seq, end);
    }

    /// Keeps the blocks of a prefill for another engine. An answer that ended by itself is complete: there is
    /// nothing left to decode elsewhere.
    fn hand_over(&mut self, seq: SeqId, finish: &Finish, cached_tokens: usize) -> Option<Outgoing> {
        let live = self.live.get(&seq)?;
        if live.request.hand_off != HandOff::Give || *finish != Finish::Length {
            return None;
        }
        let blocks = self.parts.scheduler.detach(seq);
        self.parts.kv.keep(&live.request.id, &live.prompt, blocks, cached_tokens)
    }

    /// Gets the blocks of a request from another engine.
    fn fetch(&mut self, fetch: Fetch) {
        let Fetch { seq, have, blocks } = fetch;
        let Some(live) = self.live.get_mut(&seq) else { return };
        let HandOff::Take(source) = live.request.hand_off.clone() else { return };
        if blocks.is_empty() {
            let ticket = Ticket::new(&live.prompt, &source.blocks);
            let result = self.parts.kv.release_unused(source, ticket);
            return self.fetched(seq, result);
        }
        let job = PullJob {
            source,
            prompt: Arc::clone(&live.prompt),
            have,
            blocks,
            id: live.request.id.clone(),
            request_id: live.request.request_id.clone(),
        };
        let news = self.parts.sender.clone();
        // The engine thread ends last: there is always someone to tell, or nobody cares any more.
        let done = move |result| drop(news.send(Command::Fetched(seq, result)));
        live.pull = Some(self.parts.kv.spawn_pull(job, done));
        self.pulls += 1;
        self.parts.metrics.set_pulls_active(self.pulls);
    }

    fn fetched(&mut self, seq: SeqId, result: Result<(), PullError>) {
        let Some(live) = self.live.get_mut(&seq) else { return };
        if live.pull.take().is_some() || live.aborted {
            self.pulls -= 1;
            self.parts.metrics.set_pulls_active(self.pulls);
        }
        match result {
            _ if live.aborted => self.end(seq, End::Abort),
            Ok(()) => self.parts.scheduler.landed(seq),
            Err(error) if self.parts.policy == LoadFailurePolicy::Recompute => {
                tracing::warn!(%error, request = live.request.id, "the prompt is computed here instead");
                self.parts.scheduler.recompute(seq);
            }
            Err(error) => self.fail(seq, error.into()),
        }
    }
}
