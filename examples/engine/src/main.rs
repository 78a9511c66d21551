//! The binary `engine-lite`.

use std::process::ExitCode;

fn main() -> ExitCode {
    engine_lite::cli::main_from(std::env::args_os())
}
