//! The main job in one command: prompt, router, prefill, KV hand-off, decode, tokens.
//!
//! This program plays all parts. Started by a user it is the director: it makes a model, starts itself again as
//! engines and router, sends prompts, and compares every answer with that of one undivided engine.
//!
//! - [`scenario`], [`compare`]: which prompts, and what it means that two answers are identical; pure;
//! - [`child`], [`process`], [`fleet`]: the processes, from both ends, and how none of them is ever left behind;
//! - [`client`]: requests to engines and router;
//! - [`director`]: the run; [`memcpy`]: the roof that it measures the hand-offs against;
//! - [`screen`], [`wrap`], [`report`]: what a human or a program reads.

mod child;
mod cli;
mod client;
mod compare;
mod director;
mod fleet;
mod memcpy;
mod process;
mod report;
mod scenario;
mod screen;
mod wrap;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|word| word == child::WORD) { child::main(args) } else { cli::main() }
}
