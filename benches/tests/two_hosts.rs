//! Target and initiator as two commands, as on two hosts; and a target that is spoken to by hand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use transfer_core::{Address, Agent, Config, Event, Peer};

const BINARY: &str = env!("CARGO_BIN_EXE_transfer-bench");
const DEADLINE: Duration = Duration::from_secs(30);

/// A target, and what it says line by line.
struct Target {
    child: Child,
    lines: Receiver<Value>,
    address: String,
}

impl Target {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["target", "--json"]).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let hello = lines.recv_timeout(DEADLINE).unwrap();
        assert_eq!(hello["event"], "listening");
        let address = hello["address"].as_str().unwrap().to_owned();
        Self { child, lines, address }
    }

    /// Waits for an event of that kind.
    fn event(&self, kind: &str) -> Value {
        loop {
            let event = self.lines.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("no event {kind}"));
            if event["event"] == kind {
                return event;
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn lines_of(stdout: ChildStdout) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.map(|line| serde_json::from_str(&line).unwrap()).try_for_each(|line| sender.send(line).ok())
    });
    receiver
}

fn initiator(address: &str, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["initiator", "--json", "--connect", address]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_initiator_measures_every_path_and_a_target_that_serves_once_ends_with_it() {
    let mut target = Target::start(&["--once"]);
    let args = ["--seconds", "0.02", "--len", "4KiB", "--path", "tcp"];
    let output = initiator(&target.address, &args).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let rows = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["verified"] == true && row["path"] == "tcp"), "{rows:?}");
    assert_eq!(target.event("connected")["initiator"], "bench-initiator");
    target.event("gone");
    assert!(target.child.wait().unwrap().success());
}

#[test]
fn the_target_prints_the_command_for_the_other_end() {
    let mut command = Command::new(BINARY);
    command.args(["target", "--once"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut target = command.spawn().unwrap();
    let mut lines = BufReader::new(target.stdout.take().unwrap()).lines().map(Result::unwrap);
    let shown = lines.find(|line| line.contains("--connect")).unwrap();
    let words: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(words[..3], ["transfer-bench", "initiator", "--connect"]);
    let args = ["--seconds", "0.01", "--len", "64", "--path", "shm", "--op", "read"];
    let output = Command::new(BINARY).args(&words[1..]).args(args).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    lines.for_each(drop);
    assert!(target.wait().unwrap().success());
}

#[test]
fn a_killed_target_ends_the_initiator_with_its_own_exit_code() {
    let mut target = Target::start(&[]);
    let args = ["--seconds", "0.2", "--len", "1,2,3,4,5,6,7,8", "--path", "tcp", "--repeats", "1"];
    let mut initiator = initiator(&target.address, &args).spawn().unwrap();
    let lines = lines_of(initiator.stdout.take().unwrap());
    assert_eq!(lines.recv_timeout(DEADLINE).unwrap()["verified"], true);
    target.child.kill().unwrap();
    let rows: Vec<Value> = lines.iter().collect();
    let output = initiator.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("the target is gone"), "{}", said(&output));
    assert!(rows.len() < 15, "{rows:?}");
    // It may also go between two rows.
    if let Some(last) = rows.last().filter(|row| row["verified"] == false) {
        assert!(last["error"].as_str().unwrap().contains("lost bench-target"), "{last}");
    }
}

#[test]
fn a_killed_or_interrupted_initiator_is_told_and_the_next_one_is_served() {
    let target = Target::start(&[]);
    for how in ["-KILL", "-INT"] {
        let args = ["--seconds", "60", "--len", "4KiB", "--path", "tcp"];
        let mut initiator = initiator(&target.address, &args).spawn().unwrap();
        target.event("connected");
        signal(&initiator, how);
        let gone = target.event("gone");
        assert!(gone["why"].as_str().unwrap().contains("lost bench-initiator"), "{gone}");
        let code = initiator.wait().unwrap().code();
        // The signal may come before it is caught.
        assert!(how == "-KILL" || code.is_none_or(|code| code == 130), "{code:?}");
    }
    let args = ["--seconds", "0.01", "--len", "4KiB", "--path", "shm", "--op", "write"];
    let output = initiator(&target.address, &args).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn an_interrupted_target_ends_well_and_says_goodbye() {
    let mut target = Target::start(&[]);
    let peer = Hand::connect(&target.address);
    target.event("connected");
    signal(&target.child, "-INT");
    assert!(target.child.wait().unwrap().success());
    while !matches!(peer.agent.wait_event(DEADLINE).expect("a goodbye"), Event::PeerLost { .. }) {}
}

#[test]
fn whoever_else_listens_there_is_told_from_a_target() {
    let args = ["--len", "1"];
    let agent = Agent::new(Config::new("something-else")).unwrap();
    let output = initiator(&agent.address().unwrap().to_string(), &args).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("no target of this version of transfer-bench"), "{}", said(&output));

    // An agent of another version of the protocol.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let newer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut preamble = [0; 8];
        stream.read_exact(&mut preamble).unwrap();
        (preamble[4], preamble[6]) = (250, 250);
        stream.write_all(&preamble).unwrap();
        let _until_closed = stream.read_to_end(&mut Vec::new());
    });
    let output = initiator(&address, &args).output().unwrap();
    newer.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("version 250"), "{}", said(&output));

    let output = initiator("tcp://127.0.0.1:1", &args).output().unwrap();
    assert!(said(&output).contains("cannot reach"), "{}", said(&output));
}

#[test]
fn a_target_beyond_loopback_has_to_be_asked_for_loudly() {
    let output = Command::new(BINARY).args(["target", "--listen", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("insecure_remote_without_key"), "{}", said(&output));
}

#[test]
fn a_target_with_a_key_serves_only_who_has_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, digit: &str| {
        let path = dir.path().join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(digit.repeat(64).as_bytes()).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let (key, other) = (file("key", "a"), file("other", "b"));
    let target = Target::start(&["--key-file", &key]);
    let args = ["--seconds", "0.01", "--len", "4KiB", "--op", "read"];
    let with = |more: &[&str]| initiator(&target.address, &[&args[..], more].concat()).output().unwrap();
    for stranger in [with(&[]), with(&["--key-file", &other])] {
        assert_eq!(stranger.status.code(), Some(1));
        assert!(stranger.stdout.is_empty() && said(&stranger).contains("key"), "{}", said(&stranger));
    }
    let friend = with(&["--key-file", &key]);
    assert!(friend.status.success(), "{}", said(&friend));
}

/// Speaks to a target by hand.
struct Hand {
    agent: Agent,
    peer: Peer,
}

impl Hand {
    fn connect(address: &str) -> Self {
        let agent = Agent::new(Config::new("hand")).unwrap();
        let peer = agent.connect(&address.parse::<Address>().unwrap()).unwrap();
        Self { agent, peer }
    }

    fn ask(&self, what: &Value) -> Value {
        self.peer.notify(json!({ "number": 7, "what": what }).to_string().as_bytes()).unwrap();
        loop {
            match self.agent.wait_event(DEADLINE).expect("an answer") {
                Event::Notif { bytes, .. } => {
                    let answer: Value = serde_json::from_slice(&bytes).unwrap();
                    return answer["what"].clone();
                }
                Event::PeerLost { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
    }

    fn check(&self, op: &str, remote: u64) -> Value {
        let patterns = json!({ "local": 1, "remote": remote });
        self.ask(&json!({ "check": { "shape": [1, 4096], "op": op, "patterns": patterns } }))
    }
}

#[test]
fn the_target_sees_a_write_that_never_came_and_bytes_that_are_not_its_own() {
    let target = Target::start(&[]);
    let hand = Hand::connect(&target.address);
    let region = hand.ask(&json!({ "region": { "bytes": 1 << 20, "foreign": false } }));
    assert!(region["region"]["id"].is_u64(), "{region}");
    assert_eq!(hand.ask(&json!({ "fill": 2 })), "good");
    assert_eq!(hand.check("read", 2), "good");
    let missing = hand.check("write", 2);
    assert_eq!((&missing["wrong"]["offset"], &missing["wrong"]["moved"]), (&json!(65536), &json!(true)));
    assert_eq!(hand.check("read", 3)["wrong"]["moved"], false);
}

#[test]
fn questions_that_cannot_be_answered_are_refused_in_words_and_cost_nobody_else() {
    let target = Target::start(&[]);
    let hand = Hand::connect(&target.address);
    let failed = |answer: Value| answer["failed"].as_str().unwrap_or_default().to_owned();
    let refusals = [
        (json!("nonsense"), "not understood"),
        (json!({ "fill": 1 }), "no region"),
        (json!({ "region": { "bytes": 1_u64 << 60, "foreign": false } }), "available"),
        (json!({ "sockets": { "streams": 1, "wait": "block" } }), "no region"),
    ];
    for (ask, part) in refusals {
        let answer = failed(hand.ask(&ask));
        assert!(answer.contains(part), "{ask}: {answer}");
    }
    hand.ask(&json!({ "region": { "bytes": 1 << 18, "foreign": true } }));
    let greedy = json!({ "sockets": { "streams": 1000, "wait": "poll" } });
    assert!(failed(hand.ask(&greedy)).contains("1 to 64"));
    let patterns = json!({ "local": 1, "remote": 2 });
    let long = json!({ "check": { "shape": [1, 1 << 30], "op": "read", "patterns": patterns } });
    assert!(failed(hand.ask(&long)).contains("more than the region"));
    assert!(hand.ask(&json!("cpu"))["cpu"]["nanos"].is_u64());
    let args = ["--seconds", "0.01", "--len", "4KiB", "--path", "shm", "--op", "write"];
    assert!(initiator(&target.address, &args).output().unwrap().status.success());
}
