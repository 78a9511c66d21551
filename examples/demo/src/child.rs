//! The other end of [`process`](crate::process): this program as an engine or a router.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// The first argument that makes this program a part of the demo; the part's own command line follows.
pub(crate) const WORD: &str = "child";
/// How long a part may take to end in an orderly way once its parent is gone.
const GRACE: Duration = Duration::from_secs(10);

/// Runs the part whose command line is `args`, for as long as the parent lives.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let program = args.first().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    std::thread::spawn(end_with_the_parent);
    match program.as_str() {
        "engine-lite" => engine_lite::cli::main_from(args),
        "router-lite" => router_lite::cli::main_from(args),
        _ => ExitCode::from(2),
    }
}

/// Nothing is ever written to stdin: it ends when the parent has closed it or is gone, whatever killed it.
fn end_with_the_parent() {
    // An error is an end too.
    drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
    // The way out is the one that engine and router have anyway. If it cannot be taken, the one below is left.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    std::thread::sleep(GRACE);
    #[expect(
        clippy::exit,
        clippy::disallowed_methods,
        reason = "main does not return, and nobody is left to tell"
    )]
    std::process::exit(1);
}
