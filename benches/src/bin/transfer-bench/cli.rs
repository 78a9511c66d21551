//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use transfer_bench::path::{Op, PathName};
use transfer_bench::report::Wait;
use transfer_bench::shape::parse_size;
use transfer_core::{Address, Config, Key};

use crate::roof::sockets::STREAMS_MAX;

const EXAMPLES: &str = "\
Examples:
  transfer-bench doctor                           what this machine can do, and what to mend
  transfer-bench run                              the whole table, one to two minutes
  transfer-bench run --quick                      a few seconds: does everything work here?
  transfer-bench target --listen 127.0.0.1:7700   on one host; it prints what to run on the other

`transfer-bench run --help` explains the columns.";

const RUN_HELP: &str = "\
Examples:
  transfer-bench run                              the whole table, one to two minutes
  transfer-bench run --quick                      a few seconds: does everything work here?
  transfer-bench run --path tcp --op read         one path, one direction
  transfer-bench run --count 8192 --len 16KiB     8192 scattered pages of 16 KiB, every path
  transfer-bench run --path shm --len 4KiB,64KiB,1MiB
  transfer-bench run --path tcp --len 4KiB --wait poll --cpus 0,1    latency without sleeping, each side on its core
  transfer-bench run --path tcp --len 64MiB --roof iperf3
  transfer-bench run --encrypt --len 64MiB        what encryption leaves of tcp
  transfer-bench run --svg bandwidth.svg          the table as a picture, too
  transfer-bench run --json | jq '{path, op, len, gbps, share}'

Columns:
  GB/s       10^9 bytes per second, one transfer at a time, post to done (median of the windows)
  roof       what the bare path gives in the same run, and the share of it that is reached (median, and the
             lowest and highest window): for shm one thread's memcpy of the same spans, for process-vm bare
             process_vm calls of 1024 spans, for tcp plain sockets or iperf3, with --encrypt one core's AES-GCM
  p50 ...    post to done, in microseconds
  prep       preparing both lists, in nanoseconds for each span; once for any number of transfers
  post       inside the call that posts; small transfers within a host are copied inside it
  CPU        seconds of both processes for each GiB
  verified   every byte of both regions was compared, before and after

JSON has one object for each row: path, op, count, len, gbps, p50_us, p99_us, p999_us, prep_ns_per_desc,
post_ns_per_desc, cpu_s_per_gib, roof, share, verified; and share_min, share_max, roof_kind, roof_p50_us (a bare
round trip), p50_of_roof (window by window), wait, windows, transfers, wire_bytes (the remote list on the wire). A row that failed has an error.

Exit code: 0 if every row was verified, 1 if not, 3 if the target was lost, 130 if interrupted.";

const TARGET_HELP: &str = "\
Examples:
  transfer-bench target                                both ends on this host, in two terminals
  openssl rand -hex 32 > key; chmod 600 key            a key, to be copied to the other host
  transfer-bench target --listen 10.0.0.5:7700 --key-file key
  transfer-bench target --once --json                  for scripts: one line for each event, ends with its initiator

It listens on one port; the bare sockets and iperf3 of the roof take further free ones.";

const INITIATOR_HELP: &str = "\
Examples:
  transfer-bench initiator --connect tcp://10.0.0.5:7700 --key-file key
  transfer-bench initiator --connect tcp://10.0.0.5:7700 --key-file key --path tcp --streams 4 --roof iperf3
  transfer-bench initiator --connect tcp://127.0.0.1:7700 --json > rows.json

`transfer-bench run --help` explains the columns, the JSON and the exit codes.";

const DOCTOR_HELP: &str = "\
Examples:
  transfer-bench doctor
  transfer-bench doctor --json | jq '.findings[] | {what, fix}'

It changes nothing. Each path is tried between two processes of which neither started the other, as engines are.
Exit code: 0 if shared memory and tcp work, 1 if not.";

/// Bandwidth and latency between two processes, verified first, beside what the machine could give.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measure between two processes of this machine
    Run(Box<RunArgs>),
    /// Serve the measurements of an initiator, on this host or another one
    Target(TargetArgs),
    /// Measure against a target
    Initiator(Box<InitiatorArgs>),
    /// Say what this machine has, what each path gives, and what to mend
    Doctor(DoctorArgs),
}

#[derive(Args)]
#[command(after_help = DOCTOR_HELP)]
pub(crate) struct DoctorArgs {
    /// One JSON object: machine, paths, agents, findings
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is measured, and what is told of it.
#[derive(Args, Clone)]
pub(crate) struct SweepArgs {
    /// Only these paths [default: all; process-vm with scattered pages]
    #[arg(long, value_delimiter = ',')]
    pub(crate) path: Vec<PathName>,
    /// Only this direction [default: both]
    #[arg(long, value_delimiter = ',')]
    pub(crate) op: Vec<Op>,
    /// Bytes of a span, like 4096 or 16KiB; several with commas [default: 4 KiB to 256 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_size, value_delimiter = ',')]
    pub(crate) len: Vec<u64>,
    /// Spans of a transfer, scattered if more than one; several with commas [default: 1; without --len also 8192
    /// spans of 16 KiB]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(crate) count: Vec<u32>,
    /// Small shapes and very short measurements: checks that everything works, not how fast
    #[arg(long, conflicts_with_all = ["seconds", "len", "count"])]
    pub(crate) quick: bool,
    #[command(flatten)]
    pub(crate) measure: Measure,
    /// One JSON object for each row instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Encrypt what goes over tcp, and measure only that, by what the cipher gives on one core; `run` makes a key for it
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// Draw the rows, too: bandwidth over length, a panel for each path, the roof above
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// How a row is measured.
#[derive(Args, Clone)]
pub(crate) struct Measure {
    /// How long each row is measured, its roof as long again
    #[arg(long, value_name = "S", default_value = "1", value_parser = parse_seconds)]
    pub(crate) seconds: Duration,
    /// In how many windows, in turns with the roof
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeats: u32,
    /// How to wait for a transfer; the bare sockets wait in the same way
    #[arg(long, default_value = "block")]
    pub(crate) wait: Wait,
    /// Data connections of the path tcp, and sockets of its roof [default: the engine's]
    #[arg(long, value_name = "N", value_parser = parse_streams)]
    pub(crate) streams: Option<usize>,
    /// What tcp is measured by
    #[arg(long, default_value = "sockets")]
    pub(crate) roof: RoofChoice,
}

/// What tcp is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoofChoice {
    /// Plain sockets, as many as the engine uses
    Sockets,
    /// iperf3 with as many streams, a second for each window; it has to be installed at both ends
    Iperf3,
}

#[derive(Args)]
#[command(after_help = RUN_HELP)]
pub(crate) struct RunArgs {
    /// Cores of the two processes, like 0,1: latency then does not depend on where they happen to run
    #[arg(long, value_name = "A,B", value_parser = parse_cpus)]
    pub(crate) cpus: Option<(usize, usize)>,
    #[command(flatten)]
    pub(crate) sweep: SweepArgs,
}

#[derive(Args)]
#[command(after_help = INITIATOR_HELP)]
pub(crate) struct InitiatorArgs {
    /// Where the target is
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub(crate) connect: Address,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) sweep: SweepArgs,
}

#[derive(Args)]
#[command(after_help = TARGET_HELP)]
pub(crate) struct TargetArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) trust: Trust,
    /// How its agent waits, as the initiator's --wait
    #[arg(long, default_value = "block")]
    pub(crate) wait: Wait,
    /// End when the first initiator has left
    #[arg(long)]
    pub(crate) once: bool,
    /// One JSON object for each event
    #[arg(long)]
    pub(crate) json: bool,
    /// The core to run on
    #[arg(long, hide = true)]
    pub(crate) cpu: Option<usize>,
    /// End when stdin does: for the process that started this one
    #[arg(long, hide = true)]
    pub(crate) until_stdin_ends: bool,
}

/// Who may connect.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Trust {
    /// A file with the key that both sides must have; without it only this host is talked to
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Talk to other hosts without a key, whoever they are: for networks where everybody is trusted
    #[arg(long, conflicts_with = "key_file")]
    pub(crate) insecure_remote_without_key: bool,
}

impl Trust {
    /// What the other side has to be given, too.
    pub(crate) fn shown(&self) -> String {
        match (&self.key_file, self.insecure_remote_without_key) {
            (Some(_), _) => " --key-file FILE".to_owned(),
            (None, true) => " --insecure-remote-without-key".to_owned(),
            (None, false) => String::new(),
        }
    }
}

/// Sets an agent up for those who may connect.
pub(crate) fn setup(config: &mut Config, trust: &Trust) -> Result<()> {
    config.key = trust.key_file.as_ref().map(Key::from_file).transpose()?;
    config.insecure_remote_without_key = trust.insecure_remote_without_key;
    Ok(())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write a number of seconds, 0.001 to 3600".to_owned())
}

fn parse_cpus(text: &str) -> Result<(usize, usize), String> {
    let both = text.split_once(',').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    both.ok_or_else(|| "write two numbers of cores, like 0,1".to_owned())
}

fn parse_streams(text: &str) -> Result<usize, String> {
    let streams = text.parse().ok().filter(|streams| (1..=STREAMS_MAX).contains(streams));
    streams.ok_or_else(|| format!("write a number of streams, 1 to {STREAMS_MAX}"))
}

fn parse_address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: transfer_core::Error| error.to_string())
}
