//! One process of the demo, from the parent's end.
//!
//! A part must never outlive the director, not even `kill -9`. So each part holds the reading end of a pipe as its
//! stdin and ends when that closes, which the kernel does for whatever reason the director is gone. Parts are in
//! process groups of their own: Ctrl-C reaches the director alone, and it decides.

use anyhow::{Context as _, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::child;

/// How long a part may take until it is ready.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a part may take to end before it is killed; longer than it may take to end by itself.
const END_MAX: Duration = Duration::from_secs(12);
/// How many lines of a log are shown.
const LOG_LINES: usize = 12;

/// A running part.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    log: PathBuf,
    child: Child,
    /// Its end is the part's end. Not left in `child`, which closes it when it is waited for.
    lifeline: Option<ChildStdin>,
    /// Kept open, so that the part can write to it at any time.
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts this program with the command line `args` of a part; what it logs goes to `NAME.log` in `dir`.
    ///
    /// # Errors
    /// The log cannot be written, or the process cannot be started.
    pub(crate) fn start(name: &'static str, args: &[String], dir: &Path) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let stderr = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .arg(child::WORD)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("a piped stdout is missing")?;
        let lifeline = child.stdin.take();
        Ok(Self { name, log, child, lifeline, stdout: BufReader::new(stdout).lines() })
    }

    /// Its process id, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the line that says where the part listens, and returns the URL at its end.
    ///
    /// # Errors
    /// The part ended, or did not get ready in time.
    pub(crate) async fn url(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(START_MAX, self.stdout.next_line()).await;
        match line.with_context(|| {
            format!("{} is not ready after {START_MAX:?}\n{}", self.name, self.last_words())
        })?? {
            Some(line) => match line.rsplit_once(" listening on ") {
                Some((_, url)) => Ok(url.to_owned()),
                None => bail!("{} says {line:?} instead of where it listens", self.name),
            },
            None => {
                let status = self.child.wait().await?;
                bail!("{} ended with {status} before it was ready\n{}", self.name, self.last_words())
            }
        }
    }

    /// Waits until a part that does one thing has done it.
    ///
    /// # Errors
    /// It failed.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        let status = self.child.wait().await?;
        if !status.success() {
            bail!("{} ended with {status}\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Why the part is no longer there, if so.
    pub(crate) fn obituary(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("{} ended with {status}\n{}", self.name, self.last_words())),
            Err(error) => Some(format!("{} cannot be watched: {error}", self.name)),
        }
    }

    /// Resolves when the part has ended.
    pub(crate) async fn ended(&mut self) -> String {
        drop(self.child.wait().await);
        self.obituary().unwrap_or_default()
    }

    /// Asks the part to end, which its closed stdin does.
    pub(crate) fn ask_to_end(&mut self) {
        drop(self.lifeline.take());
    }

    /// Waits for the end that was asked for, and kills the part if it takes too long.
    pub(crate) async fn end(mut self) {
        self.ask_to_end();
        if tokio::time::timeout(END_MAX, self.child.wait()).await.is_err() {
            // It has been asked for long enough; if this fails it is because it has ended by now.
            drop(self.child.kill().await);
        }
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("  the end of {}:\n    {}", self.log.display(), last.join("\n    "))
    }
}
