//! A target as a process of its own on this machine: this binary again. It ends with its stdin, so it never outlives
//! the process that started it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use transfer_bench::report::Wait;
use transfer_core::Address;

use crate::cli::Trust;

/// How long it may take to end once its stdin is closed.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const END_POLL: Duration = Duration::from_millis(2);

/// A target process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct TargetProcess {
    child: Child,
    address: Address,
}

impl TargetProcess {
    /// Starts one that lets those in who have the same key.
    pub(crate) fn start(wait: Wait, cpu: Option<usize>, trust: &Trust) -> Result<Self> {
        let binary = std::env::current_exe().context("cannot find this binary")?;
        let mut command = Command::new(binary);
        command.args(["target", "--json", "--until-stdin-ends", "--wait", &wait.to_string()]);
        if let Some(cpu) = cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        if let Some(file) = &trust.key_file {
            command.arg("--key-file").arg(file);
        }
        // A group of its own: Ctrl-C is for the process that was started by hand, which then ends this one.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("cannot start the target process")?;
        let Some(stdout) = child.stdout.take() else { bail!("the target process has no stdout") };
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        lines.read_line(&mut line).context("the target process did not start")?;
        let told: serde_json::Value =
            serde_json::from_str(&line).context("the target process did not start")?;
        let address = told["address"].as_str().context("the target process has no address")?.parse()?;
        // What else it says is for people; it ends with the target.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Ok(Self { child, address })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for TargetProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
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
