//! The command line of `engine-lite`.

#![expect(clippy::print_stdout, reason = "the readiness line is what a parent process waits for")]

use crate::http::Role;
use crate::serve::{ServeOptions, serve};
use crate::worker::LoadFailurePolicy;
use clap::{Args, Parser, Subcommand, ValueEnum};
use engine_model::{Dtype, ModelSpec, make_model};
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use transfer_core::{Address, PathSet};

/// A small Llama-class engine on CPU with KV hand-off between processes.
#[derive(Debug, Parser)]
#[command(name = "engine-lite", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over HTTP.
    Serve(Box<ServeArgs>),
    /// Write a small model with seeded random weights and its tokenizer.
    MakeModel(MakeModelArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Directory of the model in Hugging Face's form.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Name of the model in requests [default: the directory's name]
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Get the model directory from this weight-streamer address first; repeat it for several sources.
    #[arg(long, value_name = "ADDRESS")]
    weights: Vec<Address>,
    /// Serve the model directory to others at this address.
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:0")]
    serve_weights: Option<SocketAddr>,
    /// Which part of the work this engine does.
    #[arg(long, value_enum, default_value_t)]
    role: Role,
    /// Address to listen on for HTTP.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on for HTTP; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Where other engines reach this one to pull KV blocks.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    transfer_listen: SocketAddr,
    /// A file with the key that all engines, and sources of weights, must have: 64 hexadecimal digits, base64 or 32 bytes, readable by its
    /// owner only. Without it only engines of this host are talked to.
    #[arg(long, value_name = "FILE")]
    transfer_key_file: Option<PathBuf>,
    /// Talk to engines of other hosts without a key: whoever reaches the port can read and write all KV blocks.
    #[arg(long, conflicts_with = "transfer_key_file")]
    transfer_insecure_remote_without_key: bool,
    /// Paths that KV blocks, and weights from and to peers, may take.
    #[arg(long, value_enum, default_value_t)]
    paths: Paths,
    /// Tokens in a KV block.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_size: usize,
    /// Blocks in the KV cache [default: as many as fit into --kv-cache-mb]
    #[arg(long, value_name = "COUNT", conflicts_with = "kv_cache_mb")]
    kv_blocks: Option<u32>,
    /// Size of the KV cache in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    kv_cache_mb: usize,
    /// Type of the weights [default: as the model says]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// Type of the KV cache [default: the type of the weights]
    #[arg(long, value_enum)]
    kv_dtype: Option<DtypeArg>,
    /// Sequences that run at the same time.
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    max_num_seqs: usize,
    /// Tokens of all sequences in one step; longer prompts are computed in chunks.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    max_num_batched_tokens: usize,
    /// Requests that the engine holds at the same time, waiting ones included.
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    max_num_requests: usize,
    /// Longest prompt and answer together [default: what the model and the KV cache allow]
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// How long the blocks of a prefill are kept for a decode engine.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    kv_lease_seconds: f64,
    /// How long a pull of KV blocks may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    kv_pull_seconds: f64,
    /// What to do when KV blocks cannot be pulled.
    #[arg(long, value_enum, default_value_t)]
    kv_load_failure_policy: LoadFailurePolicy,
    /// Publish KV events on this ZMQ endpoint, such as tcp://*:5557.
    #[arg(long, value_name = "ENDPOINT")]
    kv_events_endpoint: Option<String>,
    /// Replay missed KV events on this ZMQ endpoint.
    #[arg(long, value_name = "ENDPOINT", requires = "kv_events_endpoint")]
    kv_events_replay_endpoint: Option<String>,
    /// Topic of the KV events.
    #[arg(long, value_name = "TOPIC", default_value = "")]
    kv_events_topic: String,
}

#[derive(Debug, Args)]
struct MakeModelArgs {
    /// Directory to write; made if missing.
    dir: PathBuf,
    /// Seed of the random weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Decoder layers.
    #[arg(long, value_name = "COUNT")]
    layers: Option<usize>,
    /// Width of the model.
    #[arg(long, value_name = "ELEMENTS")]
    hidden_size: Option<usize>,
    /// Longest context.
    #[arg(long, value_name = "TOKENS")]
    max_position_embeddings: Option<usize>,
    /// Number of weights files.
    #[arg(long, value_name = "COUNT")]
    shards: Option<usize>,
    /// Added to the odds of an answer's end: -100 makes answers that never end by themselves.
    #[arg(long, value_name = "LOGIT", allow_negative_numbers = true)]
    eos_bias: Option<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Paths {
    /// Shared memory only.
    Shm,
    /// TCP only.
    Tcp,
    /// The best there is.
    #[default]
    All,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum DtypeArg {
    #[value(alias = "bfloat16")]
    Bf16,
    #[value(alias = "float32")]
    F32,
}

impl From<DtypeArg> for Dtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::Bf16 => Self::Bf16,
            DtypeArg::F32 => Self::F32,
        }
    }
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

/// A positive number of seconds, at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("use a number of seconds over 0 and at most 86400".to_owned()),
    }
}

/// Runs the command line `args`, whose first one is the name of the program.
///
/// A process that is several programs in one calls this with the arguments of this one.
#[must_use]
pub fn main_from(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Without a terminal to complain to there is nothing left to do about it.
            drop(error.print());
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A host process may have set up its own log already.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    drop(log.with_ansi(std::io::stderr().is_terminal()).try_init());
    let result = match cli.command {
        Command::Serve(args) => run_serve(*args),
        Command::MakeModel(args) => run_make_model(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            tracing::error!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run_serve(args: ServeArgs) -> Result<(), String> {
    let directory_name = || args.model.file_name().map(|name| name.to_string_lossy().into_owned());
    let options = ServeOptions {
        served_model_name: args
            .served_model_name
            .clone()
            .or_else(directory_name)
            .unwrap_or_else(|| "model".into()),
        model: args.model,
        weights: args.weights,
        serve_weights: args.serve_weights,
        role: args.role,
        host: args.host,
        port: args.port,
        transfer_listen: args.transfer_listen,
        transfer_key_file: args.transfer_key_file,
        transfer_insecure_remote_without_key: args.transfer_insecure_remote_without_key,
        paths: args.paths.into(),
        block_size: args.block_size,
        kv_blocks: args.kv_blocks,
        kv_cache_bytes: args.kv_cache_mb.saturating_mul(1 << 20),
        dtype: args.dtype.map(Dtype::from),
        kv_dtype: args.kv_dtype.map(Dtype::from),
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        max_num_requests: args.max_num_requests,
        max_model_len: args.max_model_len,
        kv_lease: Duration::from_secs_f64(args.kv_lease_seconds),
        kv_pull_timeout: Duration::from_secs_f64(args.kv_pull_seconds),
        kv_load_failure_policy: args.kv_load_failure_policy,
        kv_events_endpoint: args.kv_events_endpoint,
        kv_events_replay_endpoint: args.kv_events_replay_endpoint,
        kv_events_topic: args.kv_events_topic,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the async runtime: {error}"))?;
    let ready = |address: SocketAddr| println!("engine-lite listening on http://{address}");
    let result = runtime.block_on(serve(options, ready)).map_err(|error| error.to_string());
    // Work that is still under way, such as a connection attempt, must not delay the end of the process.
    runtime.shutdown_background();
    result
}

fn run_make_model(args: &MakeModelArgs) -> Result<(), String> {
    let mut spec = ModelSpec { seed: args.seed, ..ModelSpec::default() };
    spec.layers = args.layers.unwrap_or(spec.layers);
    spec.hidden_size = args.hidden_size.unwrap_or(spec.hidden_size);
    spec.max_position_embeddings = args.max_position_embeddings.unwrap_or(spec.max_position_embeddings);
    spec.shards = args.shards.unwrap_or(spec.shards);
    spec.eos_bias = args.eos_bias.unwrap_or(spec.eos_bias);
    make_model(&args.dir, &spec).map_err(|error| error.to_string())?;
    println!("wrote a model to {}", args.dir.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let parse =
            |args: &[&str]| Cli::try_parse_from([&["engine-lite", "serve", "--model", "x"], args].concat());
        let Command::Serve(args) = parse(&["--serve-weights", "--role", "decode"]).unwrap().command else {
            panic!("serve was asked for");
        };
        assert_eq!(args.serve_weights, Some(SocketAddr::from(([127, 0, 0, 1], 0))));
        assert_eq!(args.role, Role::Decode);
        assert!(parse(&["--kv-blocks", "1", "--kv-cache-mb", "1"]).is_err());
        assert!(parse(&["--kv-lease-seconds", "-1"]).is_err());
        assert!(parse(&["--kv-events-replay-endpoint", "tcp://*:1"]).is_err());
    }
}
