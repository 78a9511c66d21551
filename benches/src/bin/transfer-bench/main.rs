//! `transfer-bench`: what the paths of this machine give, each row verified first and beside its roof.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod child;
mod cli;
mod doctor;
mod key;
mod machine;
mod measure;
mod roof;
mod session;
mod stop;
mod sweep;
mod talk;
mod target;

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, Command};
use sweep::Outcome;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => sweep::run(&args),
        Command::Initiator(args) => sweep::initiate(&args),
        Command::Doctor(args) => {
            doctor::run(&args).map(|good| if good { Outcome::Verified } else { Outcome::Failed })
        }
        Command::Target(args) => target::serve(&args).map(|()| Outcome::Verified),
    };
    match result {
        Ok(Outcome::Verified) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Ok(Outcome::TargetLost) => {
            eprintln!("transfer-bench: the target is gone; the rows before stand");
            ExitCode::from(3)
        }
        Ok(Outcome::Interrupted) => {
            eprintln!("transfer-bench: interrupted; the rows before stand");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("transfer-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
