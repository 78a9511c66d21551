//! A second process: the test binary runs itself again as one, and talks to it over its standard streams.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use transfer_core::{Address, Agent, Desc, DescList, Event, PathSet, Region};

use crate::support::{WAIT, bytes_of, config, keyed, pattern};

#[path = "owner.rs"]
pub mod owner;

#[path = "actor.rs"]
pub mod actor;

#[path = "ballast.rs"]
pub mod ballast;

use self::actor::Actor;
use self::ballast::Ballast;
use self::owner::Owner;

static ACTOR: Mutex<Option<Actor>> = Mutex::new(None);
static BALLAST: Mutex<Option<Ballast>> = Mutex::new(None);
static OWNER: Mutex<Option<Arc<Owner>>> = Mutex::new(None);
static HAMMERED: Mutex<Option<JoinHandle<String>>> = Mutex::new(None);

const ROLE: &str = "HEADRACE_TEST_CHILD";

/// The other process, seen from the test. It is killed when this is dropped.
pub struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it by the name of its paths, or as `encrypted`, over sockets, with an agent that has regions `allocated` and `foreign` of `len` bytes, filled with the patterns
    /// of 100 and 101.
    pub fn start(paths: &str, len: usize) -> Self {
        Self::start_by(Command::new(std::env::current_exe().unwrap()), paths, len, None)
    }

    /// The same, with a key.
    pub fn start_with_key(paths: &str, len: usize, key: [u8; 32]) -> Self {
        Self::start_by(Command::new(std::env::current_exe().unwrap()), paths, len, Some(key))
    }

    /// The same by a command that runs this binary, in some condition.
    pub fn start_by(mut command: Command, paths: &str, len: usize, key: Option<[u8; 32]>) -> Self {
        let key: String = key.iter().flatten().map(|byte| format!("{byte:02x}")).collect();
        let mut child = command
            .args(["--exact", "child", "--nocapture"])
            .env(ROLE, format!("{paths} {len} {key}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    /// Says a line and returns the answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        loop {
            let mut answer = String::new();
            assert!(self.stdout.read_line(&mut answer).unwrap() > 0, "the child ended");
            // The test harness prints on the same stream.
            if let Some(answer) = answer.strip_prefix("> ") {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Says a line to which no answer is waited for.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
        self.stdin.flush().unwrap();
    }

    pub fn address(&mut self) -> Address {
        self.ask("address").parse().unwrap()
    }

    /// All bytes of one of its regions, as it sees them itself.
    pub fn dump(&mut self, label: &str) -> Vec<u8> {
        let hex = self.ask(&format!("dump {label}"));
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    /// Sends a signal, which takes effect in its own time.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Stops it, and returns when it has stopped.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        self.has_stopped();
    }

    /// Returns when a signal has stopped it.
    pub fn has_stopped(&self) {
        let stat = format!("/proc/{}/task", self.child.id());
        // A thread that has ended meanwhile does nothing either.
        let stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
            stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().trim_start().starts_with(['T', 'Z']))
        };
        while !std::fs::read_dir(&stat).unwrap().all(stopped) {
            std::thread::yield_now();
        }
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// CPU time of its threads.
    pub fn cpu(&self) -> Duration {
        let of = |task: std::io::Result<std::fs::DirEntry>| -> u64 {
            let stat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
            stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
        };
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        Duration::from_nanos(tasks.map(of).sum())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have been killed already.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

pub fn path_set(name: &str) -> PathSet {
    match name {
        "shm" => PathSet::SHM,
        "tcp" | "encrypted" => PathSet::TCP,
        _ => PathSet::ALL,
    }
}

/// An agent that meets such a process. One that encrypts does so though this one does not ask for it.
pub fn agent(name: &str, paths: &str) -> Agent {
    let config = if paths == "encrypted" { keyed(name, false) } else { config(name, path_set(paths)) };
    Agent::new(config).unwrap()
}

/// The whole life of the other process; nothing in a process that was not started as one.
pub fn main() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let [paths, len, key] = role.split(' ').collect::<Vec<_>>()[..] else { panic!("{role:?}") };
    let len = len.parse().unwrap();
    let encrypts = paths == "encrypted";
    let mut config = if encrypts { keyed("child", true) } else { config("child", path_set(paths)) };
    config.key = if key.is_empty() { config.key } else { Some(key.parse().unwrap()) };
    let agent = Agent::new(config).unwrap();
    let allocated = agent.alloc(len, "allocated").unwrap();
    allocated.write_at(0, &pattern(100, len)).unwrap();
    let foreign = agent.adopt(pattern(101, len), "foreign").unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        if line == "leave" {
            break;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let answer = answer(&agent, [&allocated, &foreign], &words);
        println!("> {answer}");
    }
}

fn answer(agent: &Agent, [allocated, foreign]: [&Region; 2], words: &[&str]) -> String {
    let region = |label: &str| if label == "foreign" { foreign } else { allocated };
    match words {
        ["address"] => agent.address().unwrap().to_string(),
        ["dump", label] => bytes_of(region(label)).iter().map(|byte| format!("{byte:02x}")).collect(),
        ["notif"] => loop {
            match agent.wait_event(WAIT).expect("a notification in time") {
                Event::Notif { bytes, .. } => break String::from_utf8(bytes).unwrap(),
                _ => continue,
            }
        },
        ["fetch", address] => fetch(agent, allocated, address),
        ["exhaust", address] => exhaust(agent, address),
        ["hammer", address] => hammer(agent, allocated, address),
        ["hammer-writes", address] => hammer_writes(agent, allocated, address),
        ["own", kind] => {
            *OWNER.lock().unwrap() = Some(Owner::start(agent, kind));
            "owned".to_owned()
        }
        ["grant"] => OWNER.lock().unwrap().as_ref().unwrap().grant(),
        ["disown"] => OWNER.lock().unwrap().take().unwrap().end(),
        ["act", what, address] => {
            *ACTOR.lock().unwrap() = Some(Actor::start(agent, allocated, what, address));
            "acting".to_owned()
        }
        ["short", address] => ballast::live_short_of_descriptors(&address.parse().unwrap()),
        ["fill"] => {
            let _before = BALLAST.lock().unwrap().take();
            *BALLAST.lock().unwrap() = Some(Ballast::leave(0));
            "full".to_owned()
        }
        ["empty"] => {
            BALLAST.lock().unwrap().take();
            "empty".to_owned()
        }
        ["acted"] => ACTOR.lock().unwrap().take().unwrap().end(),
        ["stopped"] => HAMMERED.lock().unwrap().take().unwrap().join().unwrap(),
        _ => panic!("unknown command {words:?}"),
    }
}

/// Writes the region `target` of the agent at `address` over and over, until that fails.
fn hammer_writes(agent: &Agent, region: &Region, address: &str) -> String {
    let peer = agent.connect(&address.parse().unwrap()).unwrap();
    let theirs = peer.region("target").unwrap();
    let whole = |id| DescList::from(Desc::contiguous(id, 0, theirs.len));
    let (l, r) = (agent.prepare(&whole(region.id())).unwrap(), peer.prepare(&whole(theirs.id)).unwrap());
    let hammering = std::thread::spawn(move || {
        loop {
            if let Err(error) = peer.write(&l, &r).post().and_then(|xfer| xfer.wait(WAIT)) {
                return format!("{error:?}");
            }
        }
    });
    *HAMMERED.lock().unwrap() = Some(hammering);
    "hammering".to_owned()
}

/// Reads the region `target` of the agent at `address`, which holds the pattern of 7, and tells by which path.
fn fetch(agent: &Agent, region: &Region, address: &str) -> String {
    let peer = agent.connect(&address.parse().unwrap()).unwrap();
    let theirs = peer.region("target").unwrap();
    assert_eq!(theirs.len, region.len() as u64);
    let whole = |id| DescList::from(Desc::contiguous(id, 0, theirs.len));
    let (l, r) = (agent.prepare(&whole(region.id())).unwrap(), peer.prepare(&whole(theirs.id)).unwrap());
    peer.read(&l, &r).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(region) == pattern(7, region.len()));
    peer.explain(&l, &r).unwrap().to_string()
}

/// Asks for more memory than this process may have, of its own and of the agent at `address`; tells how that went.
fn exhaust(agent: &Agent, address: &str) -> String {
    let peer = agent.connect(&address.parse().unwrap()).unwrap();
    let theirs = peer.region("large").unwrap();
    let whole = |len| DescList::from(Desc::contiguous(theirs.id, 0, len));
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let mut told = String::new();
    for _ in 0..10 {
        let own = agent.alloc(1 << 40, "own").unwrap_err();
        let mapped = peer.prepare(&whole(theirs.len)).unwrap_err();
        told = format!("{own}; {mapped}");
    }
    assert_eq!(descriptors(), before, "descriptors were left behind");
    // And it goes on with what there is.
    let small = agent.alloc(4096, "small").unwrap();
    let near = peer.region("target").unwrap();
    let one = |id| DescList::from(Desc::contiguous(id, 0, 4096));
    let (l, r) = (agent.prepare(&one(small.id())).unwrap(), peer.prepare(&one(near.id)).unwrap());
    peer.read(&l, &r).post().unwrap().wait(WAIT).unwrap();
    told
}

/// Reads the region `target` of the agent at `address` over and over, until this process is killed.
fn hammer(agent: &Agent, region: &Region, address: &str) -> String {
    let peer = agent.connect(&address.parse().unwrap()).unwrap();
    let theirs = peer.region("target").unwrap();
    let len = theirs.len.min(region.len() as u64);
    let whole = |id| DescList::from(Desc::contiguous(id, 0, len));
    let (l, r) = (agent.prepare(&whole(region.id())).unwrap(), peer.prepare(&whole(theirs.id)).unwrap());
    println!("> hammering");
    loop {
        peer.read(&l, &r).notify(b"read").post().unwrap().wait(WAIT).unwrap();
    }
}
