//! The command line, as a function, so that other binaries can be a router too.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::server::{Router, ServeError};
use crate::settings::Settings;

/// Exit status for a command line or configuration that cannot work.
const USAGE: u8 = 2;

const SERVE_HELP: &str = "\
Examples:
  One OpenAI endpoint in front of two whole engines:
    router-lite serve --worker http://127.0.0.1:8101 --worker http://127.0.0.1:8102
  Prefill on one engine, decode on another (vLLM with kv_role kv_both and the NIXL connector):
    router-lite serve --prefill http://127.0.0.1:8101 --decode http://127.0.0.1:8102
  The same from a file; what the command line says goes before what the file says:
    router-lite serve --config router.toml --port 9000

  router.toml has the options' names as keys:
    prefill = [\"http://127.0.0.1:8101\"]
    decode = [\"http://127.0.0.1:8102\"]
    idle_timeout_ms = 60000

Try it:
  curl http://127.0.0.1:8000/v1/completions -d '{\"prompt\":\"Hello\",\"max_tokens\":16,\"stream\":true}'
  curl http://127.0.0.1:8000/workers     what the router knows of each worker
  curl http://127.0.0.1:8000/metrics     for Prometheus
  curl http://127.0.0.1:8000/health      200 when requests can be served

When all listens, one line goes to stdout: router-lite listening on http://HOST:PORT
Logs go to stderr. SIGTERM and SIGINT end it after running streams have ended, or after --drain-timeout-ms.
Exit status: 0 ended as asked, 1 cannot run, 2 wrong command line or configuration.";

/// The light router: OpenAI requests to inference engines, byte for byte
#[derive(Debug, Parser)]
#[command(name = "router-lite", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Listen and route
    #[command(after_long_help = SERVE_HELP, after_help = "More, with examples: --help")]
    Serve(Box<Serve>),
}

#[derive(Args, Debug)]
struct Serve {
    /// A TOML file with the options below as keys (underscores for dashes)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter such as router_lite=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    #[command(flatten)]
    settings: Settings,
}

/// What is wrong with a command line that clap accepted.
#[derive(Debug, thiserror::Error)]
enum UsageError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a configuration: {source}", path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("--log {filter:?} is not a filter: {reason}")]
    Log { filter: String, reason: String },
}

/// Runs the command line `args`, the program's name first. Blocks until the router has ended.
pub fn main_from(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            return error.print().map_or(ExitCode::FAILURE, |()| code);
        }
    };
    let Command::Serve(serve) = cli.command;
    let config = match prepare(*serve) {
        Ok(config) => config,
        Err(error) => return fail(&error, USAGE),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Router(error @ ServeError::Config(_))) => fail(&error, USAGE),
        Err(error) => fail(&error, 1),
    }
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Router(#[from] ServeError),
    #[error("cannot listen for signals or write to stdout: {0}")]
    Io(#[from] std::io::Error),
}

async fn run(config: Config) -> Result<(), RunError> {
    // Before the ready line: whoever waits for it may send the signal at once.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let router = Router::bind(config).await?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "router-lite listening on http://{}", router.local_addr())?;
    stdout.flush()?;
    drop(stdout);
    let shutdown = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    Ok(router.run(shutdown).await?)
}

fn prepare(serve: Serve) -> Result<Config, UsageError> {
    let filter = EnvFilter::try_new(&serve.log)
        .map_err(|e| UsageError::Log { filter: serve.log.clone(), reason: e.to_string() })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("the process has a log already; --log has no effect");
    }
    let mut config = Config::default();
    if let Some(path) = serve.config {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| UsageError::Read { path: path.clone(), source })?;
        let settings = Settings::from_toml(&text)
            .map_err(|source| UsageError::Toml { path: path.clone(), source: Box::new(source) })?;
        settings.apply(&mut config);
    }
    serve.settings.apply(&mut config);
    Ok(config)
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    // Nothing is left to do if stderr is closed.
    writeln!(std::io::stderr(), "router-lite: {error}").unwrap_or_default();
    ExitCode::from(code)
}
