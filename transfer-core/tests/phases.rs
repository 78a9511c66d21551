//! A peer that is killed, or stopped for a while or for good, in each phase of its life with another one, as the one that
//! connects and posts and as the one that is connected to, on each path. Whoever is left is told so, in time and typed;
//! its memory is its own again, nothing is left behind, and the next life of the peer is met.
//!
//! Where a phase is a place in a stream of bytes, a brake between the two stops there until the blow has fallen;
//! elsewhere a seed says how long to wait. Every phase must have been hit.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "the child process is asked and answers")]

#[path = "support/brake.rs"]
mod brake;
#[path = "support/guarded.rs"]
mod guarded;
mod support;
#[path = "support/child.rs"]
mod two;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use brake::{Brake, CONTROL, DATA, Stop};
use guarded::{Holdings, alone};
use nix::sys::signal::Signal;
use support::{WAIT, bytes_of, config, pattern, until};
use transfer_core::{
    Agent, Desc, DescList, Done, Error, Event, LocalList, Path, Peer, Region, RemoteList, Xfer,
};
use two::Process;
use two::actor::{MARGIN, ROUNDS, middle};
use two::owner::{BLOCK_BYTES, BLOCKS, Grant, contents, start};

/// Bytes of a region; a transfer goes over most of it again and again.
const LEN: usize = 1 << 20;
/// After so much silence a peer is lost.
const SILENCE: Duration = Duration::from_millis(400);
/// Tried so often, with other delays, before a phase counts as missed.
const TRIES: u64 = 12;

#[test]
fn child() {
    two::main();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Phase {
    /// Nothing has been said.
    Connecting = 1,
    /// The greeting is on its way.
    Handshaking,
    /// Half an introduction has come.
    Metadata,
    /// The peers have met, and their data connections have not.
    Opening,
    Idle,
    Posting,
    Moving,
    /// All is sent, and nothing has been answered.
    Waiting,
    Cancelling,
    Revoking,
    Closing,
}

const PHASES: [Phase; 11] = [
    Phase::Connecting,
    Phase::Handshaking,
    Phase::Metadata,
    Phase::Opening,
    Phase::Idle,
    Phase::Posting,
    Phase::Moving,
    Phase::Waiting,
    Phase::Cancelling,
    Phase::Revoking,
    Phase::Closing,
];

/// What befalls the other process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    Kill,
    /// Stopped, and not a word more.
    Stop,
    /// Stopped, and it goes on before anybody has noticed.
    Pause,
    /// Stopped, and it goes on after it was given up.
    Thaw,
}

/// Which of the two it befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Target,
    Initiator,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    path: Path,
    victim: Victim,
    phase: Phase,
    blow: Blow,
    seed: u64,
}

impl Case {
    fn paths(&self) -> &'static str {
        if self.path == Path::Tcp { "tcp" } else { "all" }
    }

    fn label(&self) -> &'static str {
        if self.path == Path::ProcessMemory { "foreign" } else { "allocated" }
    }

    fn number(&self, salt: u64, below: u64) -> u64 {
        let bytes = pattern(self.seed << 8 | salt, 8);
        bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)) % below
    }

    fn writes(&self) -> bool {
        self.phase == Phase::Waiting || self.number(1, 2) == 0
    }

    /// Where the brake stops it, as far as the phase is a place.
    fn stop(&self) -> Option<Stop> {
        let tcp = self.path == Path::Tcp;
        let stop = |kind, forth, bytes: u64| Some(Stop { kind, forth, bytes: bytes.try_into().unwrap() });
        match self.phase {
            Phase::Connecting => stop(CONTROL, true, 0),
            Phase::Handshaking => stop(CONTROL, false, 0),
            // The one that connects introduces itself first.
            Phase::Metadata => stop(CONTROL, self.number(2, 2) == 0, 9 + self.number(3, 60)),
            Phase::Opening if tcp => stop(DATA, true, 8 + self.number(4, 32)),
            Phase::Moving | Phase::Cancelling if tcp => {
                stop(DATA, self.writes(), 1000 + self.number(5, 300_000))
            }
            Phase::Waiting if tcp => stop(DATA, false, 8),
            _ => None,
        }
    }

    /// Within a host nobody opens data connections or waits for an answer.
    fn exists(&self) -> bool {
        self.path == Path::Tcp || !matches!(self.phase, Phase::Opening | Phase::Waiting)
    }

    /// Whether the other one says goodbye, instead of the survivor.
    fn leaves(&self) -> bool {
        self.phase == Phase::Closing && self.victim == Victim::Target && self.number(7, 2) == 0
    }

    fn loses(&self) -> bool {
        self.blow != Blow::Pause
    }
}

/// What the thread that acts and the one that strikes know of each other.
#[derive(Default)]
struct Stage {
    at: AtomicU8,
    /// It has come to the phase, which may be over again.
    entered: AtomicBool,
    /// The blow is about to fall.
    raised: AtomicBool,
    struck: AtomicBool,
    over: AtomicBool,
}

impl Stage {
    fn enter(&self, phase: Phase) {
        self.at.store(phase as u8, Ordering::SeqCst);
        self.entered.store(true, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.at.store(0, Ordering::SeqCst);
    }

    fn is_at(&self, phase: Phase) -> bool {
        self.at.load(Ordering::SeqCst) == phase as u8
    }

    fn is_struck(&self) -> bool {
        self.struck.load(Ordering::SeqCst)
    }
}

/// How whatever was under way may end for the one that is left.
fn is_typed(error: &Error) -> bool {
    matches!(
        error,
        Error::PeerLost { .. }
            | Error::TransferFailed { .. }
            | Error::RegionClosed { .. }
            | Error::Stale { .. }
            | Error::Cancelled
            | Error::Unreachable { .. }
            | Error::Protocol { .. }
            | Error::WaitTimedOut(_)
    )
}

fn spin(micros: u64) {
    let from = Instant::now();
    while from.elapsed() < Duration::from_micros(micros) {
        std::hint::spin_loop();
    }
}

/// Strikes when the phase has come; whether it was still that phase when the blow fell.
fn strike(case: &Case, process: &mut Process, brake: &Brake, stage: &Stage) -> bool {
    let brakes = case.stop().is_some();
    assert!(!brakes || brake.reached(), "{case:?}: the brake was not reached");
    let from = Instant::now();
    while !stage.entered.load(Ordering::SeqCst) && !stage.over.load(Ordering::SeqCst) {
        assert!(from.elapsed() < WAIT, "{case:?}: the phase in time");
        std::thread::yield_now();
    }
    if case.leaves() {
        process.tell("leave");
    }
    stage.raised.store(true, Ordering::SeqCst);
    if !brakes {
        spin(case.number(6, if case.phase == Phase::Closing { 200 } else { 3000 }));
    }
    process.signal(if case.blow == Blow::Kill { Signal::SIGKILL } else { Signal::SIGSTOP });
    let hit = stage.is_at(case.phase) && (!brakes || brake.holds());
    match case.blow {
        Blow::Kill => process.kill(),
        Blow::Stop | Blow::Pause | Blow::Thaw => process.has_stopped(),
    }
    stage.struck.store(true, Ordering::SeqCst);
    brake.release();
    if case.blow == Blow::Pause {
        process.thaw();
    }
    hit
}

/// Runs what the one that is left does, in a thread: who hangs does not come back.
fn in_time<T: Send + 'static>(
    case: Case,
    stage: &Arc<Stage>,
    act: impl FnOnce(&Stage) -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let (tell, told) = mpsc::channel();
    let stage = Arc::clone(stage);
    std::thread::Builder::new()
        .name(format!("{case:?}"))
        .spawn(move || {
            let result = act(&stage);
            stage.over.store(true, Ordering::SeqCst);
            tell.send(result).unwrap();
        })
        .unwrap();
    told
}

fn came<T>(case: &Case, told: &mpsc::Receiver<T>) -> T {
    told.recv_timeout(3 * WAIT).unwrap_or_else(|error| panic!("{case:?}: {error}"))
}

/// Waits for the loss of this peer.
fn lost(here: &Agent, peer: &Peer) -> Error {
    loop {
        match here.wait_event(WAIT).expect("the loss in time") {
            Event::PeerLost { peer: lost, reason } if lost.incarnation() == peer.incarnation() => {
                return reason;
            }
            _ => {}
        }
    }
}

/// A region of the survivor, of which everything but the margins is transferred.
fn region(here: &Agent, path: Path, label: &str) -> Region {
    let bytes = pattern(7, LEN);
    if path == Path::ProcessMemory {
        return here.adopt(bytes, label).unwrap();
    }
    let region = here.alloc(LEN, label).unwrap();
    region.write_at(0, &bytes).unwrap();
    region
}

const MARKER: u8 = 0xA5;

/// From here on the memory is its owner's alone.
fn mark(region: &Region) {
    region.write_at(MARGIN, &vec![MARKER; LEN - 2 * MARGIN]).unwrap();
}

fn check(case: &Case, region: &Region, marked: bool) {
    let (bytes, before) = (bytes_of(region), pattern(7, LEN));
    let end = LEN - MARGIN;
    assert!(bytes[..MARGIN] == before[..MARGIN] && bytes[end..] == before[end..], "{case:?}: outside");
    let kept = !marked || bytes[MARGIN..end].iter().all(|&byte| byte == MARKER);
    assert!(kept, "{case:?}: something came after the end");
}

// ---- the survivor connects and posts

/// What is left to the survivor of the one that was struck.
struct Left {
    peer: Option<Peer>,
    mine: Region,
}

struct Ends {
    peer: Peer,
    mine: Region,
    local: LocalList,
    remote: RemoteList,
    wanted: Vec<u8>,
}

impl Ends {
    fn new(here: &Agent, case: &Case, peer: Peer, mine: Region, rounds: u32) -> Result<Self, Error> {
        let theirs = peer.region(case.label()).expect("known since they met");
        let local = here.prepare(&middle(mine.id(), LEN, rounds)).unwrap();
        let remote = peer.prepare(&middle(theirs.id, LEN, rounds))?;
        assert_eq!(remote.path(), case.path);
        let wanted = pattern(if case.path == Path::ProcessMemory { 101 } else { 100 }, LEN);
        Ok(Self { peer, mine, local, remote, wanted })
    }

    fn post(&self, writes: bool) -> Result<Xfer, Error> {
        let (local, remote) = (&self.local, &self.remote);
        let request = if writes { self.peer.write(local, remote) } else { self.peer.read(local, remote) };
        request.notify(b"round").post()
    }

    /// Whether it went on.
    fn ended(&self, case: &Case, writes: bool, outcome: Result<Done, Error>) -> bool {
        match outcome {
            Ok(_) if writes => {}
            Ok(_) => {
                let (got, inner) = (bytes_of(&self.mine), MARGIN..LEN - MARGIN);
                assert!(got[inner.clone()] == self.wanted[inner], "{case:?}: told as done");
            }
            Err(Error::Cancelled) => {}
            Err(error) => {
                assert!(is_typed(&error), "{case:?}: {error}");
                return false;
            }
        }
        true
    }
}

/// Transfers until one fails, or a few after the blow has fallen: it may have been a short one.
fn go_on(stage: &Stage, mut round: impl FnMut() -> bool) {
    let mut after = 0;
    while after < 3 && round() {
        after += u32::from(stage.is_struck());
    }
}

fn initiate(here: &Agent, case: &Case, stage: &Stage, brake: &Brake, grant: Option<&Grant>) -> Left {
    let mine = region(here, Path::SharedMemory, "mine");
    if case.phase <= Phase::Opening {
        stage.enter(case.phase);
    }
    let met = here.connect(&brake.address);
    stage.leave();
    let peer = match met {
        Ok(peer) => peer,
        Err(error) => {
            assert!(case.phase <= Phase::Opening && is_typed(&error), "{case:?}: {error}");
            return Left { peer: None, mine };
        }
    };
    let rounds = if case.phase == Phase::Posting { 1 } else { ROUNDS };
    // A list that cannot be prepared any more has told of the loss.
    if let Ok(ends) = Ends::new(here, case, peer.clone(), mine.clone(), rounds) {
        act(here, case, stage, brake, &ends, grant);
    }
    stage.leave();
    if case.loses() {
        let reason = lost(here, &peer);
        assert!(reason.is_retryable(), "{case:?}: {reason}");
        assert!(!peer.is_up());
        assert!(matches!(peer.prepare(&DescList::new()), Err(Error::PeerLost { .. })));
    }
    Left { peer: Some(peer), mine }
}

fn act(here: &Agent, case: &Case, stage: &Stage, brake: &Brake, ends: &Ends, grant: Option<&Grant>) {
    let writes = case.writes();
    let round = || ends.ended(case, writes, ends.post(writes).and_then(|xfer| xfer.wait(WAIT)));
    match case.phase {
        Phase::Cancelling if case.path == Path::Tcp => {
            let xfer = ends.post(writes).unwrap();
            assert!(brake.reached(), "{case:?}: the brake was not reached");
            xfer.cancel();
            stage.enter(case.phase);
            let _over = ends.ended(case, writes, xfer.wait(WAIT));
        }
        Phase::Cancelling => {
            stage.enter(case.phase);
            go_on(stage, || {
                let posted = ends.post(writes).inspect(|xfer| xfer.cancel());
                ends.ended(case, writes, posted.and_then(|xfer| xfer.wait(WAIT)))
            });
        }
        Phase::Revoking => {
            stage.enter(case.phase);
            read_granted(here, case, stage, &ends.peer, grant.unwrap());
        }
        Phase::Closing => {
            let xfers: Vec<_> = (0..2).map(|_| ends.post(writes)).collect();
            stage.enter(case.phase);
            // A goodbye is a short moment: both begin at once.
            while !stage.raised.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            if !case.leaves() {
                ends.peer.disconnect();
            }
            for xfer in xfers {
                let _over = ends.ended(case, writes, xfer.and_then(|xfer| xfer.wait(WAIT)));
            }
        }
        Phase::Idle => {
            stage.enter(case.phase);
            until("the blow", || stage.is_struck());
            go_on(stage, round);
        }
        _ => {
            stage.enter(case.phase);
            go_on(stage, round);
        }
    }
}

/// Reads blocks that their owner takes back all the time.
fn read_granted(here: &Agent, case: &Case, stage: &Stage, peer: &Peer, grant: &Grant) {
    let mine = here.alloc(start(BLOCKS), "blocks").unwrap();
    let len = BLOCK_BYTES as u64;
    let blocks = |id| Desc::paged(id, 0, len, len, (0..BLOCKS).collect());
    let theirs = peer.region("paged").unwrap().id;
    let local = here.prepare(&blocks(mine.id()).into()).unwrap();
    let remote = match peer.prepare(&blocks(theirs).at_generation(grant.generation).into()) {
        Ok(remote) => remote,
        Err(error) => return assert!(is_typed(&error), "{case:?}: {error}"),
    };
    let mut picked = 0;
    go_on(stage, || {
        let (block, mut seen) = (picked % BLOCKS, vec![0; BLOCK_BYTES]);
        picked += 1;
        match peer.read(&local, &remote).select(&[block], &[block]).post().and_then(|xfer| xfer.wait(WAIT)) {
            Ok(_) => {
                mine.read_at(start(block), &mut seen).unwrap();
                assert!(
                    seen == contents(block, grant.usage[block as usize]),
                    "{case:?}: another use's bytes"
                );
                true
            }
            Err(Error::Stale { .. }) => true,
            Err(error) => {
                assert!(is_typed(&error), "{case:?}: {error}");
                false
            }
        }
    });
    mine.close().unwrap();
}

fn target_is_struck(here: &Agent, case: Case) -> bool {
    let mut process = Process::start(case.paths(), LEN);
    let grant = (case.phase == Phase::Revoking).then(|| {
        assert_eq!(process.ask(&format!("own {}", case.label())), "owned");
        Grant::parse(&process.ask("grant"))
    });
    let brake = Arc::new(Brake::start(&process.address(), case.stop()));
    let stage = Arc::new(Stage::default());
    let told = in_time(case, &stage, {
        let (here, brake) = (here.clone(), Arc::clone(&brake));
        move |stage| initiate(&here, &case, stage, &brake, grant.as_ref())
    });
    let hit = strike(&case, &mut process, &brake, &stage);
    let Left { peer, mine } = came(&case, &told);
    check(&case, &mine, false);
    mark(&mine);
    if case.blow == Blow::Thaw && !case.leaves() {
        process.thaw();
        // It lives, and has let go too.
        process.address();
    }
    process.kill();
    until("nobody is left", || here.peers().is_empty());
    check(&case, &mine, true);
    mine.close().unwrap();
    drop(brake);
    let before = peer.map(|peer| peer.incarnation());

    // Its next life.
    let mut process = Process::start(case.paths(), LEN);
    let peer = here.connect(&process.address()).unwrap();
    assert!(before != Some(peer.incarnation()) && peer.name() == "child");
    let mine = region(here, Path::SharedMemory, "mine");
    let ends = Ends::new(here, &case, peer, mine, 1).unwrap();
    assert!(ends.ended(&case, false, ends.post(false).unwrap().wait(WAIT)), "{case:?}: the next life");
    ends.peer.disconnect();
    until("nobody is left", || here.peers().is_empty());
    hit
}

// ---- the survivor is connected to

fn serve(here: &Agent, case: &Case, stage: &Stage, mut target: Region) -> Region {
    let met = || -> Vec<Peer> { here.peers() };
    if case.phase > Phase::Opening {
        until(&format!("{case:?}: the peer"), || !met().is_empty());
    }
    let waits = !matches!(case.phase, Phase::Idle | Phase::Moving | Phase::Waiting | Phase::Cancelling);
    if case.phase > Phase::Opening && waits {
        while !matches!(here.wait_event(WAIT).expect("a round in time"), Event::Notif { .. }) {}
    }
    stage.enter(case.phase);
    match case.phase {
        Phase::Revoking => go_on(stage, || {
            freely(case, target.revoke(0, LEN).map(drop));
            freely(case, target.close());
            target = region(here, case.path, "target");
            true
        }),
        Phase::Closing => {
            met().iter().for_each(Peer::disconnect);
            until("the blow", || stage.is_struck());
        }
        _ => until("the blow", || stage.is_struck()),
    }
    stage.leave();
    if case.loses() {
        until(&format!("{case:?}: the loss"), || met().is_empty());
    }
    target
}

/// Who is stopped in the middle of a write is named, and nobody waits for longer than the bound.
fn freely(case: &Case, taken: Result<(), Error>) {
    match taken {
        Ok(()) => {}
        Err(Error::RegionBusy { peer, .. }) => assert!(peer.contains("child"), "{case:?}: {peer}"),
        Err(error) => panic!("{case:?}: {error}"),
    }
}

/// How the other process may tell that it ended.
const ENDS: [&str; 8] = [
    "PeerLost",
    "TransferFailed",
    "RegionClosed",
    "Stale",
    "Unreachable",
    "Protocol",
    "WaitTimedOut",
    "stopped",
];

fn initiator_is_struck(here: &Agent, case: Case) -> bool {
    let target = region(here, case.path, "target");
    let brake = Arc::new(Brake::start(&here.address().unwrap(), case.stop()));
    let mut process = Process::start(case.paths(), LEN);
    let what = match case.phase {
        Phase::Idle => "idle",
        Phase::Posting => "posts",
        Phase::Cancelling if case.path != Path::Tcp => "cancels",
        _ if case.writes() || case.phase == Phase::Revoking => "writes",
        _ => "reads",
    };
    assert_eq!(process.ask(&format!("act {what} {}", brake.address)), "acting");
    let stage = Arc::new(Stage::default());
    let told = in_time(case, &stage, {
        let here = here.clone();
        move |stage| serve(&here, &case, stage, target)
    });
    let hit = strike(&case, &mut process, &brake, &stage);
    let target = came(&case, &told);
    // Who was stopped in mid-copy still stands in the memory.
    let taken = target.close();
    let closed = taken.is_ok();
    freely(&case, taken);
    if closed {
        mark(&target);
    }
    here.peers().iter().for_each(Peer::disconnect);
    if case.blow == Blow::Thaw {
        process.thaw();
    }
    if matches!(case.blow, Blow::Thaw | Blow::Pause) {
        let told = process.ask("acted");
        assert!(ENDS.iter().any(|name| told.starts_with(name)), "{case:?}: {told}");
        assert!(
            case.blow == Blow::Pause || case.phase <= Phase::Opening || told != "stopped",
            "{case:?}: it has not noticed"
        );
    }
    process.kill();
    until("nobody is left", || here.peers().is_empty());
    until("nobody is inside", || target.close().is_ok());
    check(&case, &target, closed);
    drop((target, brake));

    // Its next life.
    let _target = region(here, case.path, "target");
    let mut process = Process::start(case.paths(), LEN);
    let told = process.ask(&format!("fetch {}", here.address().unwrap()));
    assert!(told.starts_with("path: "), "{told}");
    process.kill();
    until("nobody is left", || here.peers().is_empty());
    hit
}

// ---- all of it

fn run(here: &Agent, case: Case, held: Holdings) -> bool {
    let hit = match case.victim {
        Victim::Target => target_is_struck(here, case),
        Victim::Initiator => initiator_is_struck(here, case),
    };
    while here.poll_event().is_some() {}
    held.come_back();
    hit
}

/// Has the agent start what it starts with the first large transfer.
fn warm_up(here: &Agent, path: Path, threads: usize) {
    let _target = region(here, path, "target");
    let mut process = Process::start(if path == Path::Tcp { "tcp" } else { "all" }, LEN);
    let case = Case { path, victim: Victim::Target, phase: Phase::Moving, blow: Blow::Kill, seed: 0 };
    let peer = here.connect(&process.address()).unwrap();
    let ends = Ends::new(here, &case, peer, region(here, Path::SharedMemory, "mine"), ROUNDS).unwrap();
    until("its threads", || {
        ends.post(true).unwrap().wait(WAIT).unwrap();
        Holdings::now().threads == threads
    });
    process.kill();
    until("nobody is left", || here.peers().is_empty());
    drop(ends);
    while here.poll_event().is_some() {}
}

/// Each phase, with each blow to either side.
fn every_phase(path: Path) {
    let _alone = alone();
    let paths = if path == Path::Tcp { "tcp" } else { "all" };
    let mut config = config("survivor", two::path_set(paths));
    (config.peer_timeout, config.connect_timeout) = (SILENCE, 2 * SILENCE);
    (config.copy_threads, config.tcp_threads) = (Some(1), Some(2));
    let here = Agent::new(config).unwrap();
    // The driver, one that copies, and two that carry bulk over sockets.
    let threads = if path == Path::Tcp { 4 } else { 2 };
    warm_up(&here, path, threads);
    let held = Holdings::with_threads(threads);
    let mut hits = BTreeMap::new();
    let mut seed = 0;
    for phase in PHASES {
        for victim in [Victim::Target, Victim::Initiator] {
            // To the survivor the last two are one until it has noticed, which takes its time.
            let stop = if (path as u8 + phase as u8 + victim as u8).is_multiple_of(2) {
                Blow::Stop
            } else {
                Blow::Thaw
            };
            for blow in [Blow::Kill, Blow::Pause, stop] {
                let hit = |seed| {
                    let case = Case { path, victim, phase, blow, seed };
                    let here = here.clone();
                    came(&case, &in_time(case, &Arc::default(), move |_| run(&here, case, held)))
                };
                let case = Case { path, victim, phase, blow, seed };
                if !case.exists() {
                    continue;
                }
                let tries = (0..TRIES).find(|_| {
                    seed += 1;
                    hit(seed)
                });
                assert!(tries.is_some(), "{case:?} was missed {TRIES} times");
                *hits.entry((phase, victim)).or_insert(0) += 1;
            }
        }
    }
    println!("{path}: {hits:?}, {seed} seeds");
}

#[test]
fn in_any_phase_over_shared_memory() {
    every_phase(Path::SharedMemory);
}

#[test]
fn in_any_phase_over_process_memory() {
    every_phase(Path::ProcessMemory);
}

#[test]
fn in_any_phase_over_tcp() {
    every_phase(Path::Tcp);
}
