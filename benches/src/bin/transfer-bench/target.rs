//! The other process of a run, and this one's hold on it.
//!
//! It is this binary again. It says on stdout where it is, then answers each line on stdin with one on stdout, all of
//! them JSON. It ends with its stdin, so it never outlives the process that started it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use transfer_bench::path::Op;
use transfer_bench::pattern::{Expected, Mismatch, Pattern, Patterns};
use transfer_bench::shape::{Shape, Side};
use transfer_core::{Agent, Config, Region};

use crate::raw;

/// The label of the region that is moved from and to.
pub(crate) const LABEL: &str = "bench";
/// How long an answer may take. Filling and comparing go at more than 100 MB/s anywhere.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long an agent may be silent.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to end once its stdin is closed.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const END_POLL: Duration = Duration::from_millis(2);
/// Bytes filled at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Where the target is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Its agent.
    pub(crate) agent: String,
    /// Its plain sockets.
    pub(crate) raw: SocketAddr,
    /// The length of its region, whose label is [`LABEL`].
    pub(crate) region_bytes: u64,
}

/// What it is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    /// Fill the region.
    Fill(Pattern),
    /// Compare every byte with what it must be after such a transfer.
    Check { shape: Shape, op: Op, patterns: Patterns },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// Done, and all is as it must be.
    Good,
    /// A byte is wrong.
    Wrong(Mismatch),
    /// It could not be done.
    Failed(String),
}

// ---- the target's side

/// Serves until stdin ends.
pub(crate) fn serve(bytes: u64, foreign: bool) -> Result<()> {
    let agent = Agent::new(config("bench-target"))?;
    let region = region(&agent, bytes, foreign)?;
    let address = agent.address().context("the agent has no address")?.to_string();
    say(&Hello { agent: address, raw: raw::listen(bytes)?, region_bytes: bytes })?;
    for line in std::io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(ask) => answer(&region, ask).unwrap_or_else(|error| Answer::Failed(format!("{error:#}"))),
            Err(error) => Answer::Failed(format!("not understood: {error}")),
        };
        say(&answer)?;
    }
    Ok(())
}

fn say(what: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, what)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn answer(region: &Region, ask: Ask) -> Result<Answer> {
    match ask {
        Ask::Fill(pattern) => fill(region, pattern).map(|()| Answer::Good),
        Ask::Check { shape, op, patterns } => {
            let expected = Expected::after(shape, op, Side::Remote, patterns);
            Ok(check(region, &expected)?.map_or(Answer::Good, Answer::Wrong))
        }
    }
}

// ---- both sides

/// How both agents are set up: as by default, but a busy machine may hold either process up for seconds without
/// spoiling the run.
pub(crate) fn config(name: &str) -> Config {
    let mut config = Config::new(name);
    config.peer_timeout = PEER_TIMEOUT;
    config
}

/// A region of the kind that the path takes. Its pages are there once it was filled.
pub(crate) fn region(agent: &Agent, bytes: u64, foreign: bool) -> Result<Region> {
    let bytes = usize::try_from(bytes)?;
    let region = if foreign { agent.adopt(vec![0; bytes], LABEL) } else { agent.alloc(bytes, LABEL) };
    Ok(region?)
}

/// Fills a region with a pattern.
pub(crate) fn fill(region: &Region, pattern: Pattern) -> Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES.min(region.len())];
    for start in (0..region.len()).step_by(CHUNK_BYTES) {
        let len = chunk.len().min(region.len() - start);
        pattern.fill(start as u64, &mut chunk[..len]);
        region.write_at(start, &chunk[..len])?;
    }
    Ok(())
}

/// Compares every byte of a region.
pub(crate) fn check(region: &Region, expected: &Expected) -> Result<Option<Mismatch>> {
    expected.check(region.len() as u64, |offset, out| Ok(region.read_at(usize::try_from(offset)?, out)?))
}

// ---- the measuring side

/// A target process. Dropping it ends it.
pub(crate) struct Target {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<std::io::Result<String>>,
}

/// An answer that is still to come.
#[must_use]
pub(crate) struct Pending<'a>(&'a Target);

impl Target {
    /// Starts one.
    pub(crate) fn start(bytes: u64, foreign: bool) -> Result<(Self, Hello)> {
        let binary = std::env::current_exe().context("cannot find this binary")?;
        let mut command = Command::new(binary);
        command.args(["target", "--bytes", &bytes.to_string()]);
        if foreign {
            command.arg("--foreign");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the target process")?;
        let stdin = child.stdin.take();
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            // It ends with the target's stdout.
            std::thread::spawn(move || {
                BufReader::new(stdout).lines().try_for_each(|line| sender.send(line).ok());
            });
        }
        let target = Self { child, stdin, lines };
        let hello = target.receive().context("the target process did not start")?;
        Ok((target, hello))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it fill its region; this side can do something else meanwhile.
    pub(crate) fn fill(&mut self, pattern: Pattern) -> Result<Pending<'_>> {
        self.ask(&Ask::Fill(pattern))
    }

    /// Has it compare every byte of its region; this side can do something else meanwhile.
    pub(crate) fn check(&mut self, shape: Shape, op: Op, patterns: Patterns) -> Result<Pending<'_>> {
        self.ask(&Ask::Check { shape, op, patterns })
    }

    fn ask(&mut self, ask: &Ask) -> Result<Pending<'_>> {
        let stdin = self.stdin.as_mut().context("the target process is ending")?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        stdin.write_all(&line).context("the target process is gone")?;
        Ok(Pending(self))
    }

    fn receive<T: DeserializeOwned>(&self) -> Result<T> {
        match self.lines.recv_timeout(ANSWER_TIMEOUT) {
            Ok(line) => Ok(serde_json::from_str(&line?)?),
            Err(RecvTimeoutError::Disconnected) => bail!("the target process is gone"),
            Err(RecvTimeoutError::Timeout) => bail!("the target process does not answer"),
        }
    }
}

impl Pending<'_> {
    /// Waits for it.
    pub(crate) fn wait(self) -> Result<Option<Mismatch>> {
        match self.0.receive()? {
            Answer::Good => Ok(None),
            Answer::Wrong(mismatch) => Ok(Some(mismatch)),
            Answer::Failed(error) => bail!("the target process says: {error}"),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stdin = None;
        let polls = END_TIMEOUT.as_millis() / END_POLL.as_millis();
        for _ in 0..polls {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(END_POLL),
                _ => return,
            }
        }
        // It does not end by itself; a process that is gone already is no error.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}
