//! The same between two processes: the target does nothing while its memory is read and written.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod verbs;

use std::io::{BufRead, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout};

use fake_verbs::Counts;
use transfer_sys::verbs::{SendOp, WcOpcode, WcStatus};
use verbs::{Bed, End, child, from_line, is_real, pattern, to_line};

/// The other process: an end on the second device, told by lines what to do.
#[test]
#[ignore = "the other process of the tests here"]
fn target() {
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let Some(first) = lines.next() else { return };
    let Some((library, device)) = first.split_once(' ') else { return };
    let library = verbs::library(library);
    let end = End::new(&verbs::open(&library, device), |_| {});
    println!("> {}", to_line(&end.address()));
    let peer = from_line(&lines.next().unwrap());
    end.connect(&peer);
    end.receive(1, &[]);
    end.receive(2, &[end.sge(500_000, 4096)]);
    println!("> ready");
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["imm"] => {
                let done = end.poll_one();
                println!("> {:?} {:?}", done.opcode().unwrap(), done.imm());
            }
            ["sum", at, len] => {
                let bytes = end.bytes.get(at.parse().unwrap(), len.parse().unwrap());
                let sum = bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
                println!("> {sum}");
            }
            ["fill", seed] => {
                end.bytes.fill(0, &pattern(seed.parse().unwrap(), 100_000));
                println!("> filled");
            }
            ["write"] => {
                println!("> writing");
                loop {
                    end.post(1, &SendOp::Write(peer.memory), &[end.sge(0, 4096)]);
                    assert!(end.poll_one().is_ok());
                }
            }
            ["flushed"] => {
                let done = end.poll_one();
                println!("> {:?}", done.status());
            }
            _ => break,
        }
    }
    drop(end);
    assert_eq!(library.destroy_failures(), 0);
    println!("> bye");
}

fn sum(bytes: &[u8]) -> String {
    bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte)).to_string()
}

struct Target {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Target {
    fn start(bed: &Bed) -> Self {
        let mut process = child("target", &format!("{} {}", bed.path().display(), bed.names[1]));
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, input, output }
    }

    fn answer(&mut self) -> String {
        loop {
            let line = self.output.next().expect("the other process has ended").unwrap();
            if let Some((_, answer)) = line.split_once("> ") {
                return answer.to_owned();
            }
        }
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.answer()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _ended = self.process.wait();
    }
}

/// A target in another process, an end here, and where its memory is.
fn connected(bed: &Bed) -> (Target, End, transfer_sys::verbs::RemoteMemory) {
    let mut target = Target::start(bed);
    let address = from_line(&target.answer());
    let end = End::new(&bed.open(0), |_| {});
    end.connect(&address);
    assert_eq!(target.ask(&to_line(&end.address())), "ready");
    (target, end, address.memory)
}

#[test]
fn bytes_and_numbers_cross_to_another_process() {
    let bed = Bed::new();
    let (mut target, end, to) = connected(&bed);
    end.bytes.fill(0, &pattern(1, 300_000));
    end.post(1, &SendOp::Write(to), &[end.sge(0, 100_000), end.sge(150_000, 50_000)]);
    end.post(2, &SendOp::WriteImm(to, 1234), &[]);
    end.post(3, &SendOp::SendImm(7), &[end.sge(10, 4096)]);
    assert!(end.poll(3).iter().all(|done| done.is_ok()));
    assert_eq!(target.ask("imm"), "ReceiveWriteImm Some(1234)");
    assert_eq!(target.ask("imm"), "Receive Some(7)");
    let expected = [end.bytes.get(0, 100_000), end.bytes.get(150_000, 50_000)].concat();
    assert_eq!(target.ask("sum 0 150000"), sum(&expected));
    assert_eq!(target.ask("sum 500000 4096"), sum(&end.bytes.get(10, 4096)));

    assert_eq!(target.ask("fill 8"), "filled");
    end.post(4, &SendOp::Read(to), &[end.sge(0, 60_000), end.sge(200_000, 40_000)]);
    assert_eq!(end.poll_one().opcode(), Some(WcOpcode::Read));
    assert!([end.bytes.get(0, 60_000), end.bytes.get(200_000, 40_000)].concat() == pattern(8, 100_000));
    assert_eq!(target.ask("end"), "bye");
    let pid = target.process.id();
    drop((target, end));
    bed.assert_empty();
    if let Some(world) = &bed.world {
        assert_eq!(world.counts(pid), Counts::default());
    }
}

#[test]
fn a_stopped_process_is_written_to_all_the_same() {
    let bed = Bed::new();
    let (mut target, end, to) = connected(&bed);
    let pid = i32::try_from(target.process.id()).unwrap();
    // SAFETY: plain call, on a process that this test started.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    end.bytes.fill(0, &pattern(2, 5000));
    end.post(1, &SendOp::Write(to), &[end.sge(0, 5000)]);
    assert!(end.poll_one().is_ok());
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
    assert_eq!(target.ask("sum 0 5000"), sum(&pattern(2, 5000)));
}

#[test]
fn a_killed_process_does_not_answer() {
    let bed = Bed::new();
    let (mut target, end, to) = connected(&bed);
    target.process.kill().unwrap();
    target.process.wait().unwrap();
    end.post(1, &SendOp::Write(to), &[end.sge(0, 5000)]);
    end.post(2, &SendOp::WriteImm(to, 1), &[]);
    let done = end.poll(2);
    assert_eq!((done[0].wr_id(), done[0].status()), (1, WcStatus::RetryExceeded));
    assert_eq!((done[1].wr_id(), done[1].status()), (2, WcStatus::Flushed));
    drop(end);
    bed.assert_empty();
}

#[test]
fn a_process_that_is_killed_while_it_writes_harms_nobody_else() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    for round in 0..8_u64 {
        let (mut target, end, _) = connected(&bed);
        assert_eq!(target.ask("write"), "writing");
        for id in 0..round * 20 {
            a.post(id, &SendOp::Write(b.address().memory), &[a.sge(0, 64)]);
            assert!(a.poll_one().is_ok());
        }
        target.process.kill().unwrap();
        target.process.wait().unwrap();
        a.post(99, &SendOp::Write(b.address().memory), &[a.sge(0, 64)]);
        assert!(a.poll_one().is_ok());
        drop(end);
    }
    drop((a, b));
    bed.assert_empty();
}

#[test]
fn a_refused_access_fails_the_target_as_well() {
    let bed = Bed::new();
    if is_real() {
        println!("SKIPPED: what becomes of the target's end differs between devices");
        return;
    }
    let (mut target, end, mut to) = connected(&bed);
    to.addr += verbs::BYTES as u64;
    end.post(1, &SendOp::Write(to), &[end.sge(0, 8)]);
    assert_eq!(end.poll_one().status(), WcStatus::RemoteAccess);
    assert_eq!(target.ask("flushed"), "Flushed");
    assert_eq!(target.ask("flushed"), "Flushed");
}
