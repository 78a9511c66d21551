//! `transfer-bench`: what the paths of this machine give, each row verified first and beside its roof.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod machine;
mod measure;
mod raw;
mod roof;
mod session;
mod sweep;
mod target;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use transfer_bench::path::{Op, PathName};
use transfer_bench::shape::parse_size;

const EXAMPLES: &str = "\
Examples:
  transfer-bench run                              the whole table, one to two minutes
  transfer-bench run --quick                      a few seconds: does everything work here?
  transfer-bench run --path tcp --op read         one path, one direction
  transfer-bench run --len 16KiB --count 8192     8192 scattered pages of 16 KiB, every path
  transfer-bench run --len 4KiB,64KiB,1MiB --path shm
  transfer-bench run --json | jq '{path, op, len, gbps, share}'

Columns:
  GB/s       10^9 bytes per second, one transfer at a time, post to done (median of the rounds)
  roof       what the bare path gives in the same run, and the share of it that is reached: for shm and
             process-vm one thread's memcpy of the same spans, for tcp plain blocking sockets
  p50, p99   post to done, in microseconds
  prep       preparing both lists, in nanoseconds for each span; once for any number of transfers
  post       inside the call that posts; small transfers within a host are copied inside it
  CPU        seconds of both processes for each GiB
  verified   every byte of both regions was compared, before and after

A run with a row that is not verified ends with exit code 1.";

/// Bandwidth and latency between two processes, verified first, beside what the machine could give.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure between two processes of this machine
    Run(Box<RunArgs>),
    /// The other process of a run
    #[command(hide = true)]
    Target(TargetArgs),
}

/// What to measure.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
struct RunArgs {
    /// Only this path; may be given several times [default: all; process-vm with scattered pages]
    #[arg(long)]
    path: Vec<PathName>,
    /// Only this direction; may be given several times [default: both]
    #[arg(long)]
    op: Vec<Op>,
    /// Bytes of a span, like 4096 or 16KiB; several with commas [default: 4 KiB to 256 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_size, value_delimiter = ',')]
    len: Vec<u64>,
    /// Spans of a transfer, scattered if more than one; several with commas [default: 1; without --len also 8192
    /// spans of 16 KiB]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    count: Vec<u32>,
    /// How long each row is measured, its roof as long again
    #[arg(long, value_name = "S", default_value = "1", value_parser = parse_seconds)]
    seconds: Duration,
    /// Small shapes and very short measurements: checks that everything works, not how fast
    #[arg(long, conflicts_with_all = ["seconds", "len", "count"])]
    quick: bool,
    /// One JSON object for each row instead of a table
    #[arg(long)]
    json: bool,
}

/// How the other process serves.
#[derive(Args)]
struct TargetArgs {
    /// Bytes of its region
    #[arg(long)]
    bytes: u64,
    /// The region is the application's own memory instead of the agent's
    #[arg(long)]
    foreign: bool,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write a number of seconds, 0.001 to 3600".to_owned())
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => sweep::run(&args),
        Command::Target(args) => target::serve(args.bytes, args.foreign).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("transfer-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
