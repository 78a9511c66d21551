//! The asynchronous side of the engine thread: submitting requests and following their answers.

use super::answer::{Finish, Limits};
use super::{Command, Failure, Submission};
use crate::kv::HandOff;
use crate::kv::params::Outgoing;
use crate::sched::SeqId;
use engine_model::Sampler;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use tokio::sync::{Semaphore, mpsc};

/// Everything the engine has to know about a request.
#[derive(Debug)]
pub(crate) struct Request {
    /// The id of the answer.
    pub(crate) id: String,
    /// The client's `X-Request-Id`.
    pub(crate) request_id: Option<String>,
    /// At least one token, all of them in the vocabulary, and fewer than the context has.
    pub(crate) prompt: Vec<u32>,
    /// Shares cached blocks only with requests of the same salt.
    pub(crate) salt: Option<Arc<str>>,
    pub(crate) sampler: Sampler,
    pub(crate) limits: Limits,
    pub(crate) stops: Vec<String>,
    pub(crate) hand_off: HandOff,
}

/// A piece of an answer.
#[derive(Debug)]
pub(crate) enum Output {
    /// The next token and the text that became certain with it; with the last one, how the answer ended.
    Token { id: u32, text: String, finished: Option<Box<Finished>> },
    /// There will be no (further) answer.
    Failed(Failure),
}

/// What is known at the end of an answer.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) finish: Finish,
    pub(crate) cached_tokens: usize,
    /// How another engine finds the keys and values of the prompt.
    pub(crate) kv_transfer_params: Option<Outgoing>,
}

/// A handle of the engine thread.
#[derive(Clone, Debug)]
pub(crate) struct EngineHandle {
    commands: Sender<Command>,
    permits: Arc<Semaphore>,
    next: Arc<AtomicU64>,
}

/// The answers to the prompts of one HTTP request; dropping it aborts those that are not complete.
#[derive(Debug)]
pub(crate) struct Follower {
    /// The sequences by index of their prompt, `None` once they have ended.
    sequences: Vec<Option<SeqId>>,
    outputs: mpsc::UnboundedReceiver<(usize, Output)>,
    commands: Sender<Command>,
}

impl EngineHandle {
    /// A handle that admits `requests_max` requests at a time.
    pub(crate) fn new(commands: Sender<Command>, requests_max: usize) -> Self {
        Self { commands, permits: Arc::new(Semaphore::new(requests_max)), next: Arc::default() }
    }

    /// Passes requests to the engine thread, all or none of them.
    pub(crate) fn submit(&self, requests: Vec<Request>) -> Result<Follower, Failure> {
        let (sender, outputs) = mpsc::unbounded_channel();
        let mut follower = Follower { sequences: Vec::new(), outputs, commands: self.commands.clone() };
        for (index, request) in requests.into_iter().enumerate() {
            let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| Failure::Busy)?;
            let seq = SeqId(self.next.fetch_add(1, Relaxed));
            let outputs = Outputs { index, sender: sender.clone() };
            let command = Command::Submit(Box::new(Submission { seq, request, outputs, permit }));
            self.commands.send(command).map_err(|_| Failure::Stopping)?;
            follower.sequences.push(Some(seq));
        }
        Ok(follower)
    }

    /// Ends the engine thread; requests that are under way fail.
    pub(crate) fn stop(&self) {
        // A thread that has ended needs no telling.
        drop(self.commands.send(Command::Stop));
    }
}

impl Follower {
    /// The next piece and the index of its prompt; `None` when all answers have ended.
    pub(crate) async fn next(&mut self) -> Option<(usize, Output)> {
        self.sequences.iter().find(|seq| seq.is_some())?;
        let (index, output) = self.outputs.recv().await.unwrap_or((0, Output::Failed(Failure::Stopping)));
        // One failure fails the whole HTTP request; dropping the follower aborts the rest.
        if matches!(output, Output::Token { finished: Some(_), .. }) {
            self.sequences[index] = None;
        }
        Some((index, output))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        for seq in self.sequences.iter().flatten() {
            // An engine thread that has ended has dropped its requests already.
            drop(self.commands.send(Command::Abort(*seq)));
        }
    }
}

/// The engine thread's end of one answer.
#[derive(Debug)]
pub(super) struct Outputs {
    index: usize,
    sender: mpsc::UnboundedSender<(usize, Output)>,
}

impl Outputs {
    /// Whether the client has left.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// `false`: the client has left.
    pub(super) fn send(&self, output: Output) -> bool {
        self.sender.send((self.index, output)).is_ok()
    }
}
