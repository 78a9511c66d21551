//! The `weight-streamer` command.

fn main() -> std::process::ExitCode {
    weight_streamer::cli::main_from(std::env::args_os())
}
