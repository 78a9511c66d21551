//! The command line of the director.

use crate::director;
use crate::scenario::Group;
use clap::{Parser, ValueEnum};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
Examples:
  cargo run --release -p demo
  cargo run --release -p demo -- --keep            leave it running, with a curl line to try
  cargo run --release -p demo -- --paths tcp       hand the KV blocks over by TCP
  cargo run --release -p demo -- --model DIR       a Llama-class model of yours, as Hugging Face stores it

Exit status: 0 every answer is identical to the undivided engine's, 1 one is not or something failed,
2 wrong usage, 130 ended by a signal.";

/// Starts a prefill engine, a decode engine, the router and one undivided engine, sends prompts through the router,
/// and compares every answer with the undivided engine's
#[derive(Debug, Parser)]
#[command(name = "demo", version, after_help = HELP)]
pub(crate) struct Options {
    /// Leave everything running after the table, until Ctrl-C
    #[arg(long)]
    pub(crate) keep: bool,
    /// Paths that KV blocks may take
    #[arg(long, value_enum, default_value_t)]
    pub(crate) paths: Paths,
    /// Tokens in a KV block
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub(crate) block_size: usize,
    /// Prompts to send [default: all of them]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "GROUP")]
    pub(crate) prompts: Vec<Group>,
    /// Longest answer
    #[arg(long, value_name = "TOKENS", default_value_t = 40)]
    pub(crate) max_tokens: usize,
    /// Directory of a Llama-class model [default: a small random one, made when missing]
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Directory of the undivided engine's model [default: the same]. With another one the answers have to differ
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) undivided_model: Option<PathBuf>,
    /// Print one JSON object instead of answers and table
    #[arg(long)]
    pub(crate) json: bool,
}

/// The paths of `engine-lite serve --paths`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Paths {
    /// Shared memory only
    Shm,
    /// TCP only
    Tcp,
    /// The best there is
    #[default]
    All,
}

impl Paths {
    /// As the engine's command line has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::All => "all",
        }
    }
}

/// Runs the director.
pub(crate) fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(director::direct(&options)));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to do if stderr is closed.
            writeln!(std::io::stderr(), "\ndemo: {error:#}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
        let options = Options::try_parse_from(["demo", "--prompts", "short,chat"]).unwrap();
        assert_eq!(options.prompts, [Group::Short, Group::Chat]);
        assert!(Options::try_parse_from(["demo", "--paths", "pigeon"]).is_err());
    }
}
