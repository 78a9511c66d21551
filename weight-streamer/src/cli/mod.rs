//! The command line: flags in, library calls, text out.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to its user")]

mod show;

use crate::error::Error;
use crate::library::Library;
use crate::manifest::{DEFAULT_CHUNK_BYTES, Hash};
use crate::pull::{PullOptions, PullReport, pull};
use crate::serve::{ServeOptions, Server};
use crate::verify::verify;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use transfer_core::{Address, Key, PathSet};

/// Exit status when trying again may help (a source was lost, the disk was full): what is verified is kept.
const EXIT_RETRY: u8 = 75;

/// Warms a new replica: copies a model directory from its peers, verified chunk by chunk.
#[derive(Debug, Parser)]
#[command(name = "weight-streamer", version, after_help = EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLE: &str = "\
Example, two terminals of one machine:
  weight-streamer serve ./model
      prints   weight-streamer serving ROOT at tcp://127.0.0.1:PORT
  weight-streamer pull tcp://127.0.0.1:PORT --to ./copy
      ./copy appears when it is complete and verified, not before; kill the pull at any time and run it again to resume

Exit status: 0 done, 1 an error, 2 wrong usage, 75 an error where trying again may help.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model directory to any number of receivers.
    Serve(ServeArgs),
    /// Pull a model from one or several sources into a directory.
    Pull(PullArgs),
    /// Show what a directory would be served as: files, tensors, hashes.
    Manifest(ManifestArgs),
    /// Check a pulled directory against the manifest that was kept with it.
    Verify(VerifyArgs),
}

/// Which paths of the transfer engine may be used.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Paths {
    /// Shared memory only: both sides on one host.
    Shm,
    /// TCP only.
    Tcp,
    /// Whatever is fastest.
    All,
}

impl From<Paths> for PathSet {
    fn from(paths: Paths) -> Self {
        match paths {
            Paths::Shm => Self::SHM,
            Paths::Tcp => Self::TCP,
            Paths::All => Self::ALL,
        }
    }
}

/// Who is talked to.
#[derive(Debug, Args)]
struct Trust {
    /// A file with the key that all sides must have: 64 hexadecimal digits, base64 or 32 bytes, readable by its owner
    /// only. Without it only this host is talked to.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Talk to other hosts without a key: whoever reaches the port can read the model.
    #[arg(long, conflicts_with = "key_file")]
    insecure_remote_without_key: bool,
}

impl Trust {
    fn key(&self) -> Result<Option<Key>, Error> {
        Ok(self.key_file.as_ref().map(Key::from_file).transpose()?)
    }
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The model directory. It must not change while it is served; a change is refused, never served.
    dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    listen: SocketAddr,
    #[command(flatten)]
    trust: Trust,
    /// Chunk size, a multiple of 4 KiB up to 64 MiB.
    #[arg(long, default_value_t = DEFAULT_CHUNK_BYTES >> 10, value_name = "KIB")]
    chunk_kib: u32,
    /// Memory for chunks; a model that fits is read from disk once.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    cache_mb: u64,
    /// Never send more than this, in megabytes (10^6) a second, all receivers together.
    #[arg(long, value_name = "MB")]
    limit_mb_per_s: Option<u64>,
    /// Paths that may be used.
    #[arg(long, value_enum, default_value = "all")]
    paths: Paths,
    /// Threads that read, check and send.
    #[arg(long, default_value_t = 4)]
    workers: usize,
}

#[derive(Debug, Args)]
struct PullArgs {
    /// Sources, as `serve` prints them; chunks come from all of them.
    #[arg(required = true, value_name = "ADDRESS")]
    sources: Vec<Address>,
    #[command(flatten)]
    trust: Trust,
    /// The directory that the model shall be in. It appears at once when everything is verified.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Accept only the model with this root hash.
    #[arg(long, value_name = "ROOT")]
    expect: Option<Hash>,
    /// Replace a directory that holds something else.
    #[arg(long)]
    force: bool,
    /// Paths that may be used.
    #[arg(long, value_enum, default_value = "all")]
    paths: Paths,
    /// Memory that chunks arrive in, for each source.
    #[arg(long, default_value_t = 32, value_name = "MIB")]
    staging_mb: u64,
    /// Threads that verify and write.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Leave a source that is silent for so long.
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    stall_timeout: u64,
    /// Print one JSON object on stdout instead of the summary, also for an error.
    #[arg(long)]
    json: bool,
    /// Show no progress.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct ManifestArgs {
    /// The model directory.
    dir: PathBuf,
    /// Chunk size, a multiple of 4 KiB up to 64 MiB; part of what the root hash covers.
    #[arg(long, default_value_t = DEFAULT_CHUNK_BYTES >> 10, value_name = "KIB")]
    chunk_kib: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// A directory that `pull` made.
    dir: PathBuf,
    /// The root hash that it should have.
    #[arg(long, value_name = "ROOT")]
    expect: Option<Hash>,
}

/// Runs the command line with these arguments (the first is the program's name).
pub fn main_from<I, T>(args: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" that go to stdout; nothing is left to do when printing fails.
            let failed = error.use_stderr();
            drop(error.print());
            return ExitCode::from(if failed { 2 } else { 0 });
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // Another part of the process may have set up logging before.
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    drop(log.try_init());
    let result = match cli.command {
        Command::Serve(args) => serve(&args),
        Command::Pull(args) => run_pull(args),
        Command::Manifest(args) => manifest(&args),
        Command::Verify(args) => run_verify(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weight-streamer: {error}");
            if error.is_retryable() { ExitCode::from(EXIT_RETRY) } else { ExitCode::FAILURE }
        }
    }
}

/// Threads for work that only hashes.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().min(8))
}

fn kib(size: u32) -> u32 {
    size.saturating_mul(1 << 10)
}

fn serve(args: &ServeArgs) -> Result<(), Error> {
    let mut options = ServeOptions::new(&args.dir);
    options.listen = args.listen;
    options.key = args.trust.key()?;
    options.insecure_remote_without_key = args.trust.insecure_remote_without_key;
    options.chunk_bytes = kib(args.chunk_kib);
    options.cache_bytes = args.cache_mb.saturating_mul(1 << 20);
    options.limit_bytes_per_second = args.limit_mb_per_s.map(|limit| limit.saturating_mul(1_000_000));
    options.paths = args.paths.into();
    options.workers = args.workers;
    eprintln!("hashing {} ...", args.dir.display());
    let server = Server::start(&options)?;
    println!("weight-streamer serving {} at {}", server.root(), server.address());
    let manifest = server.manifest();
    eprintln!(
        "{} files, {} tensors, {} in {} chunks; on the other side: weight-streamer pull {} --to DIR",
        manifest.files().len(),
        manifest.tensors().len(),
        indicatif::HumanBytes(manifest.total_bytes()),
        manifest.chunk_count(),
        server.address()
    );
    // Whoever started it waits for the line above.
    drop(std::io::stdout().flush());
    loop {
        std::thread::park();
    }
}

fn run_pull(args: PullArgs) -> Result<(), Error> {
    let key = args.trust.key()?;
    let mut options = PullOptions::new(args.sources, args.to);
    options.key = key;
    options.insecure_remote_without_key = args.trust.insecure_remote_without_key;
    options.expect = args.expect;
    options.force = args.force;
    options.paths = args.paths.into();
    options.staging_bytes = args.staging_mb.saturating_mul(1 << 20);
    options.threads = args.threads;
    options.stall_timeout = Duration::from_secs(args.stall_timeout);
    let mut progress = show::progress(args.quiet);
    let result = pull(&options, &mut *progress);
    drop(progress);
    match &result {
        Ok(report) if args.json => println!("{}", json_of(report)),
        Ok(report) => print!("{}", show::summary(report)),
        Err(error) if args.json => {
            println!(
                "{}",
                serde_json::json!({ "error": error.to_string(), "retryable": error.is_retryable() })
            );
        }
        Err(_) => {}
    }
    result.map(drop)
}

fn json_of(report: &PullReport) -> serde_json::Value {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    value["gigabytes_per_second"] = report.gigabytes_per_second().into();
    value
}

fn manifest(args: &ManifestArgs) -> Result<(), Error> {
    let library = Library::scan(&args.dir, kib(args.chunk_kib), threads())?;
    if args.json {
        println!("{}", show::manifest_json(library.manifest()));
    } else {
        print!("{}", show::manifest_table(library.manifest()));
    }
    Ok(())
}

fn run_verify(args: &VerifyArgs) -> Result<(), Error> {
    let manifest = verify(&args.dir, args.expect, threads())?;
    println!(
        "{} is complete: {} files, {}, root {}",
        args.dir.display(),
        manifest.files().len(),
        indicatif::HumanBytes(manifest.total_bytes()),
        manifest.root()
    );
    Ok(())
}
