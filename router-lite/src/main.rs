//! `router-lite`: see the library, which is all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    router_lite::cli::main_from(std::env::args_os())
}
