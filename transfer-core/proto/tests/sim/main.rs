//! Whole agents in a simulated world: the real state machines, codecs and checks, over a network that delays,
//! breaks and falls silent, and memories that hold real bytes and know whose they are.
//!
//! After every schedule: each transfer has ended once; what is done has every byte right, and nothing outside its
//! spans was touched; nothing landed after the end of its transfer, nor in a block that its owner had taken back;
//! notifications came once, and after their data; nothing is left in flight; and it all works again.
//!
//! A seed that fails prints what happened, and how to run it again.
//!
//! | module | is |
//! |---|---|
//! | [`world`] | the schedule: applications, faults, time |
//! | [`agent`], [`wire`] | driver and tcp backend, over the machines of `transfer-proto` |
//! | [`net`] | connections that are slow, break, and break without a word |
//! | [`memory`] | the memories, and the judge of who may touch what |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test: what cannot be ends it"
)]

mod agent;
mod memory;
mod net;
mod rng;
mod wire;
mod world;

use crate::world::{Stats, run};

/// Schedules in a normal run of the tests.
const SEEDS: u64 = 3000;
/// Lines of a trace that are printed.
const TRACE_LINES: usize = 150;

#[expect(
    clippy::disallowed_methods,
    reason = "the seed to run again is given to the test, not to the library"
)]
fn chosen_seed() -> Option<u64> {
    std::env::var("SIM_SEED").ok().map(|seed| seed.parse().expect("SIM_SEED is a number"))
}

/// Runs a seed, and once more with a trace where it fails.
fn check(seed: u64) -> Stats {
    let problem = match run(seed, false).0 {
        Ok(stats) => return stats,
        Err(problem) => problem,
    };
    let trace = run(seed, true).1;
    let last = trace[trace.len().saturating_sub(TRACE_LINES)..].join("\n");
    panic!(
        "{last}\n\nseed {seed}: {problem}\nagain: SIM_SEED={seed} cargo test -p transfer-proto --test sim"
    );
}

#[test]
fn every_schedule_keeps_the_promises() {
    if let Some(seed) = chosen_seed() {
        let (result, trace) = run(seed, true);
        println!("{}", trace.join("\n"));
        return println!("seed {seed}: {:?}", result.unwrap());
    }
    let mut sum = Stats::default();
    (0..SEEDS).for_each(|seed| sum.add(&check(seed)));
    println!("{SEEDS} schedules: {sum:?}");
    // A simulator in which nothing happens finds nothing.
    assert!(sum.done > 10_000 && sum.notified > 5000 && sum.cuts > 1000, "{sum:?}");
    assert!(sum.failed > 100 && sum.stopped > 500 && sum.peer_lost > 500, "{sum:?}");
}

#[test]
fn a_seed_gives_the_same_schedule_each_time() {
    for seed in 0..3 {
        let (first, again) = (run(seed, true).1, run(seed, true).1);
        assert!(!first.is_empty() && first == again, "seed {seed}");
    }
}
