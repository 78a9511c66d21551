//! What the two sides say to each other: JSON in notifications of the engine itself.
//!
//! So there is no second protocol to secure: whoever may connect to the target's agent may ask, and nobody else, and a
//! side that is lost, or speaks another version, shows as the engine shows it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use transfer_bench::path::Op;
use transfer_bench::pattern::{Mismatch, Pattern, Patterns};
use transfer_bench::report::Wait;
use transfer_bench::shape::Shape;
use transfer_core::{Address, Agent, Config, Event, Peer};

/// What the target's agent says of itself, so that another one is not taken for it. The number changes with this file.
pub(crate) const IDENTITY: &[u8] = b"transfer-bench 1";
/// How long an answer may take. Filling and comparing go at more than 100 MB/s anywhere.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// What the target is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Have a region, of the agent's memory or (foreign) of the application's own, in place of any earlier one.
    Region { bytes: u64, foreign: bool },
    /// Fill the region.
    Fill(Pattern),
    /// Compare every byte with what it must be after such a transfer.
    Check { shape: Shape, op: Op, patterns: Patterns },
    /// Say how much CPU time the process has used.
    Cpu,
    /// Have as much plain memory as the region is long, for the roof of process-vm.
    Memory,
    /// Accept so many plain sockets.
    Sockets { streams: usize, wait: Wait },
    /// Start an iperf3 server for one test.
    Iperf3,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Done, and all is as it must be.
    Good,
    /// A byte is wrong.
    Wrong(Mismatch),
    /// The region.
    Region { id: u64, label: String },
    /// The CPU time.
    Cpu { nanos: u64 },
    /// Where the memory is, and what stands at its beginning.
    Memory { pid: i32, address: u64, secret: [u8; SECRET_BYTES] },
    /// Where to connect, and what to say first.
    Sockets { port: u16, secret: [u8; SECRET_BYTES] },
    /// Where the iperf3 server is.
    Iperf3 { port: u16 },
    /// It could not be done.
    Failed(String),
}

/// Proves that it is the right process or connection.
pub(crate) const SECRET_BYTES: usize = 16;

/// A question or an answer, with the number that brings them together.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Numbered<T> {
    pub(crate) number: u64,
    pub(crate) what: T,
}

/// An initiator's hold on a target.
pub(crate) struct Talk {
    agent: Agent,
    peer: Peer,
    asked: Cell<u64>,
}

/// An answer that is still to come.
#[must_use]
pub(crate) struct Pending<'a> {
    talk: &'a Talk,
    number: u64,
}

impl Talk {
    /// Connects to a target.
    pub(crate) fn connect(config: Config, address: &Address) -> Result<Self> {
        let agent = Agent::new(config)?;
        let peer = agent.connect(address)?;
        let identity = peer.app_metadata();
        ensure!(
            *identity == *IDENTITY,
            "{address} is agent {:?}, which is no target of this version of transfer-bench (it says {:?}, not {:?}); \
             start `transfer-bench target` of the same version there",
            peer.name(),
            String::from_utf8_lossy(&identity),
            String::from_utf8_lossy(IDENTITY),
        );
        Ok(Self { agent, peer, asked: Cell::new(0) })
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Asks; this side can do something else before it waits for the answer.
    pub(crate) fn ask(&self, what: Ask) -> Result<Pending<'_>> {
        let number = self.asked.get() + 1;
        self.asked.set(number);
        self.peer.notify(&serde_json::to_vec(&Numbered { number, what })?)?;
        Ok(Pending { talk: self, number })
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.peer.disconnect();
    }
}

impl Pending<'_> {
    /// Waits for it.
    #[expect(clippy::disallowed_methods, reason = "the binary's own clock, for a deadline")]
    pub(crate) fn wait(self) -> Result<Answer> {
        let end = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.talk.agent.wait_event(left) {
                Some(Event::Notif { bytes, .. }) => {
                    let answer: Numbered<Answer> =
                        serde_json::from_slice(&bytes).context("the target's answer is not understood")?;
                    match answer.what {
                        // Of a question whose answer nobody waited for.
                        _ if answer.number != self.number => {}
                        Answer::Failed(error) => bail!("the target says: {error}"),
                        answer => return Ok(answer),
                    }
                }
                Some(Event::PeerLost { reason, .. }) => return Err(reason.into()),
                Some(_) => {}
                None => bail!("the target has not answered for {} s", ANSWER_TIMEOUT.as_secs()),
            }
        }
    }

    /// Waits for a mere yes.
    pub(crate) fn done(self) -> Result<()> {
        match self.wait()? {
            Answer::Good => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for the result of a comparison.
    pub(crate) fn compared(self) -> Result<Option<Mismatch>> {
        match self.wait()? {
            Answer::Good => Ok(None),
            Answer::Wrong(mismatch) => Ok(Some(mismatch)),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for the CPU time.
    pub(crate) fn cpu(self) -> Result<Duration> {
        match self.wait()? {
            Answer::Cpu { nanos } => Ok(Duration::from_nanos(nanos)),
            other => Err(unexpected(&other)),
        }
    }
}

/// The target answered something else than it was asked.
pub(crate) fn unexpected(answer: &Answer) -> anyhow::Error {
    anyhow::anyhow!("the target's answer does not fit the question: {answer:?}")
}
