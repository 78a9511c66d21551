//! What it takes from nothing to the first byte of a peer: an agent is created, connects, proves a key, learns the peer's
//! regions, prepares lists and reads. What counts besides the median is the 99th percentile, which criterion does not
//! tell, so this has a loop of its own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench"
)]

use std::time::{Duration, Instant};

use transfer_bench::stats::Histogram;
use transfer_core::{Agent, Config, Desc, DescList, Key, PathSet};

const ROUNDS: u32 = 500;
/// Where nothing is measured, as part of `cargo test`.
const TEST_ROUNDS: u32 = 2;
/// What it should take at most.
const WANTED_MS: f64 = 5.0;

#[derive(Clone, Copy)]
struct Row {
    what: &'static str,
    paths: PathSet,
    key: bool,
    encrypt: bool,
}

impl Row {
    fn config(self, name: &str) -> Config {
        let mut config = Config::new(name);
        config.paths = self.paths;
        config.key = self.key.then(|| Key::from_bytes([7; 32]));
        config.encrypt_data = self.encrypt;
        config
    }

    /// From nothing to the first byte.
    fn once(self, there: &Agent) -> Duration {
        let byte = |id| DescList::from(Desc::contiguous(id, 0, 1));
        let (config, address) = (self.config("here"), there.address().unwrap());
        let begin = Instant::now();
        let here = Agent::new(config).unwrap();
        let peer = here.connect(&address).unwrap();
        let mine = here.alloc(4096, "mine").unwrap();
        let local = here.prepare(&byte(mine.id())).unwrap();
        let remote = peer.prepare(&byte(peer.region("theirs").unwrap().id)).unwrap();
        peer.read(&local, &remote).post().unwrap().wait(Duration::MAX).unwrap();
        begin.elapsed()
    }
}

fn main() {
    let rounds = if std::env::args().any(|arg| arg == "--bench") { ROUNDS } else { TEST_ROUNDS };
    let row = |what, paths, key, encrypt| Row { what, paths, key, encrypt };
    let rows = [
        row("tcp, no key", PathSet::TCP, false, false),
        row("tcp, key", PathSet::TCP, true, false),
        row("tcp, key, encrypted", PathSet::TCP, true, true),
        row("every path, no key", PathSet::ALL, false, false),
        row("every path, key, encrypted", PathSet::ALL, true, true),
    ];
    println!(
        "{:28} {:>8} {:>8} {:>8}  of {WANTED_MS} ms",
        "agent to first byte, ms", "median", "p99", "worst"
    );
    for row in rows {
        let there = Agent::new(row.config("there")).unwrap();
        let _theirs = there.alloc(4096, "theirs").unwrap();
        row.once(&there);
        let mut times = Histogram::default();
        for _ in 0..rounds {
            times.record(u64::try_from(row.once(&there).as_nanos()).unwrap());
        }
        let [median, p99, worst] = [500, 990, 1000].map(|permille| times.quantile(permille) / 1e6);
        println!("{:28} {median:8.2} {p99:8.2} {worst:8.2}  {:.2}", row.what, median / WANTED_MS);
    }
}
