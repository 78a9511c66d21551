//! iperf3 as the roof of tcp: what many measure a network by. It has to be installed on both sides.

use std::net::{IpAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use transfer_bench::path::Op;

use crate::talk::{Answer, Ask, Talk, unexpected};

/// How a server that nobody comes to ends, in seconds.
const IDLE_SECONDS: &str = "10";
/// How often the server is tried, which takes a moment to start.
const TRIES: u32 = 50;
const TRY_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a write: it is faster with them than with its own 128 KiB.
const BLOCK: &str = "1M";
const MISSING: &str = "cannot run iperf3; install it on both sides (apt-get install iperf3)";

/// Its tests against one target.
#[derive(Debug)]
pub(crate) struct Iperf3 {
    ip: IpAddr,
    streams: usize,
}

/// Starts a server for one test, at the target's side; its port.
pub(crate) fn serve(ip: IpAddr) -> Result<u16> {
    // It cannot choose a free port itself.
    let port = TcpListener::bind((ip, 0))?.local_addr()?.port();
    let mut command = Command::new("iperf3");
    command.args([
        "-s",
        "-1",
        "--idle-timeout",
        IDLE_SECONDS,
        "-B",
        &ip.to_string(),
        "-p",
        &port.to_string(),
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = command.spawn().context(MISSING)?;
    std::thread::spawn(move || {
        // It ends by itself, after its test or for want of one.
        let _reaped = server.wait();
    });
    Ok(port)
}

impl Iperf3 {
    pub(crate) fn new(ip: IpAddr, streams: usize) -> Self {
        Self { ip, streams }
    }

    /// One test of about `slot`, which it rounds up to whole seconds; GB/s that arrived.
    pub(crate) fn burst(&self, talk: &Talk, op: Op, slot: Duration) -> Result<f64> {
        let port = match talk.ask(Ask::Iperf3)?.wait()? {
            Answer::Iperf3 { port } => port,
            other => return Err(unexpected(&other)),
        };
        let seconds = slot.as_secs_f64().ceil().max(1.0);
        let mut command = Command::new("iperf3");
        command.args(["-J", "-c", &self.ip.to_string(), "-p", &port.to_string()]);
        command.args(["-P", &self.streams.to_string(), "-t", &seconds.to_string(), "-l", BLOCK]);
        if op == Op::Read {
            command.arg("-R");
        }
        for _ in 0..TRIES {
            let output = command.stdin(Stdio::null()).output().context(MISSING)?;
            let told: Value = serde_json::from_slice(&output.stdout).context("iperf3's answer is no JSON")?;
            let rate = told["end"]["sum_received"]["bits_per_second"].as_f64();
            match (rate, told["error"].as_str()) {
                (Some(bits), None) => return Ok(bits / 8e9),
                (_, Some(error)) if error.contains("refused") => std::thread::sleep(TRY_PAUSE),
                (_, error) => bail!("iperf3 says: {}", error.unwrap_or("nothing that can be understood")),
            }
        }
        bail!("the target's iperf3 does not accept connections on port {port}")
    }
}
