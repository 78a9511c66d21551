//! A process without a file descriptor left, in each phase that takes one: a typed error or patience, never a hang, a
//! busy loop or a slower path in silence; and all is well once there is room.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "the child process is asked and answers")]

mod support;
#[path = "support/child.rs"]
mod two;

use std::process::Command;
use std::time::{Duration, Instant};

use support::{WAIT, bytes_of, config, pattern, until};
use transfer_core::{Agent, Desc, DescList, Path, PathSet};
use two::Process;

const LEN: usize = 4096;

#[test]
fn child() {
    two::main();
}

/// A process that may have few descriptors.
fn short() -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 120 && exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    Process::start_by(command, "all", LEN, None)
}

fn patient(name: &str) -> Agent {
    let mut config = config(name, PathSet::ALL);
    config.connect_timeout = WAIT;
    Agent::new(config).unwrap()
}

#[test]
fn whatever_takes_a_descriptor_is_refused_without_one_and_works_with_it() {
    let here = patient("here");
    let target = here.alloc(LEN, "target").unwrap();
    target.write_at(0, &pattern(7, LEN)).unwrap();
    let told = short().ask(&format!("short {}", here.address().unwrap()));
    let refused: Vec<usize> = told.split(' ').map(|count| count.parse().unwrap()).collect();
    // An agent has listeners, epolls and events, a peer has connections and a ledger; the others are one each.
    assert!(refused[0] > 5 && refused[1] > 3, "{told}");
    assert_eq!(refused[2..], [1, 1, 1], "{told}");
    until("the other one is gone", || here.peers().is_empty());
}

#[test]
fn who_connects_to_a_full_process_waits_and_costs_it_nothing() {
    let mut process = short();
    let address = process.address();
    let met = patient("early");
    let before = met.connect(&address).unwrap();
    process.ask("fill");
    let late = std::thread::spawn(move || {
        let late = patient("late");
        let peer = late.connect(&address).unwrap();
        assert!(peer.is_up());
        (late, peer)
    });
    // It has nothing to accept it with, and does not turn in circles about that.
    let (before_waiting, from) = (process.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    let (used, passed) = (process.cpu() - before_waiting, from.elapsed());
    assert!(used < passed / 10, "{used:?} of CPU time in {passed:?} of waiting");
    // Those that it knows go on.
    before.sync().unwrap();
    assert!(!late.is_finished());
    process.ask("empty");
    let (_late, peer) = late.join().unwrap();
    peer.sync().unwrap();
}

#[test]
fn a_full_owner_still_hands_out_its_memory() {
    let mut process = short();
    let here = patient("here");
    let peer = here.connect(&process.address()).unwrap();
    let mine = here.alloc(LEN, "mine").unwrap();
    let whole = |id| DescList::from(Desc::contiguous(id, 0, LEN as u64));
    process.ask("fill");
    let remote = peer.prepare(&whole(peer.region("allocated").unwrap().id)).unwrap();
    assert_eq!(remote.path(), Path::SharedMemory);
    let local = here.prepare(&whole(mine.id())).unwrap();
    peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&mine) == pattern(100, LEN));
}
