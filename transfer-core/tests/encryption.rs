//! What somebody on the way sees of data connections, and what he can do to them: with a key alone, everything; where
//! they are encrypted, nothing but to end them.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{WAIT, bytes_of, config, keyed, pattern, until};
use transfer_core::{
    Address, Agent, Config, Desc, DescList, Error, Explanation, Key, Path, PathSet, Peer, Region,
};

const LEN: usize = 1 << 20;
/// What is said before the first record, in each direction: preambles, hello, challenge, proofs.
const HANDSHAKE: [usize; 2] = [8 + 32 + 48, 8 + 16 + 48];
/// The preamble's byte that says what a connection is for, and its value for data.
const KIND: (usize, u8) = (5, 3);

/// What is done to a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// This bit of byte number `.1` behind the handshake is flipped.
    Flip(usize, usize, u8),
    /// This record comes twice.
    Repeat(usize, usize),
    /// This record does not come.
    LeaveOut(usize, usize),
    /// This record changes places with the next one.
    Swap(usize, usize),
    /// Half of this record comes.
    CutShort(usize, usize),
    /// None.
    Nothing,
}

/// Somebody on the way, who listens, and does harm to the first data connection. Once he has, nobody else gets through.
struct Tap {
    address: Address,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    harm: Harm,
    harmed: AtomicUsize,
    opened: AtomicUsize,
    /// Whether the first data connection has ended.
    ended: AtomicBool,
    seen: Mutex<Vec<u8>>,
}

impl Tap {
    fn before(agent: &Agent, harm: Harm) -> Self {
        let Some(Address::Tcp { port, .. }) = agent.address() else { panic!("it listens") };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().into();
        let (to, seen) = (([127, 0, 0, 1], port).into(), Mutex::default());
        let (harmed, opened) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let ended = AtomicBool::new(false);
        let shared = Arc::new(Shared { to, harm, harmed, opened, ended, seen });
        let way = Arc::clone(&shared);
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let way = Arc::clone(&way);
                std::thread::spawn(move || way.carry(from));
            }
        });
        Self { address, shared }
    }

    fn harmed(&self) -> usize {
        self.shared.harmed.load(Ordering::SeqCst)
    }

    /// Whether these bytes went over a data connection as they are.
    fn saw(&self, bytes: &[u8]) -> bool {
        self.shared.seen.lock().unwrap().windows(bytes.len()).any(|window| window == bytes)
    }
}

impl Shared {
    fn carry(&self, mut from: TcpStream) {
        let mut preamble = [0; 8];
        let Ok(mut to) = TcpStream::connect(self.to) else { return };
        if from.read_exact(&mut preamble).is_err() || to.write_all(&preamble).is_err() {
            return;
        }
        let data = preamble[KIND.0] == KIND.1;
        let first = data && self.opened.fetch_add(1, Ordering::SeqCst) == 0;
        if data && !first && self.harmed.load(Ordering::SeqCst) > 0 {
            return;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| self.pump((&from, &to), 0, data, first));
            self.pump((&to, &from), 1, data, first);
        });
        if first {
            self.ended.store(true, Ordering::SeqCst);
        }
    }

    fn pump(&self, (mut from, mut to): (&TcpStream, &TcpStream), direction: usize, data: bool, first: bool) {
        let (mut part, mut behind) = (vec![0; 16 << 10], Vec::new());
        let mut left = HANDSHAKE[direction] - if direction == 0 { 8 } else { 0 };
        let mut records = 0;
        while let Ok(came @ 1..) = from.read(&mut part) {
            let mut bytes = part[..came].to_vec();
            if data {
                self.seen.lock().unwrap().extend_from_slice(&bytes);
            }
            let here = first && self.direction() == Some(direction);
            if here {
                let said = left.min(bytes.len());
                left -= said;
                behind.extend(bytes.split_off(said));
                bytes.extend(self.records(&mut behind, &mut records));
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
            if here && self.ends(records) {
                break;
            }
        }
        let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    fn direction(&self) -> Option<usize> {
        match self.harm {
            Harm::Flip(d, ..) | Harm::Repeat(d, _) | Harm::LeaveOut(d, _) => Some(d),
            Harm::Swap(d, _) | Harm::CutShort(d, _) => Some(d),
            Harm::Nothing => None,
        }
    }

    fn ends(&self, records: usize) -> bool {
        matches!(self.harm, Harm::CutShort(_, at) if records > at)
    }

    /// Takes the whole records off `behind`, and says what goes on instead. What is flipped counts in bytes, so that it
    /// works on what has no records, too.
    fn records(&self, behind: &mut Vec<u8>, records: &mut usize) -> Vec<u8> {
        let mut out = Vec::new();
        if let Harm::Flip(_, at, bit) = self.harm {
            let from = *records;
            *records += behind.len();
            if (from..*records).contains(&at) {
                behind[at - from] ^= 1 << bit;
                self.harmed.fetch_add(1, Ordering::SeqCst);
            }
            out.append(behind);
            return out;
        }
        let whole = |bytes: &[u8]| {
            let len = 2 + usize::from(u16::from_le_bytes([*bytes.first()?, *bytes.get(1)?]));
            (bytes.len() >= len).then_some(len)
        };
        while let Some(len) = whole(behind) {
            let needs_two = matches!(self.harm, Harm::Swap(_, at) if at == *records);
            let second = whole(&behind[len..]);
            if needs_two && second.is_none() {
                break;
            }
            let record: Vec<u8> = behind.drain(..len).collect();
            let now = |at: usize| at == *records;
            let harms = match self.harm {
                Harm::Repeat(_, at) if now(at) => [&record[..], &record].concat(),
                Harm::LeaveOut(_, at) if now(at) => Vec::new(),
                Harm::CutShort(_, at) if now(at) => record[..len / 2].to_vec(),
                Harm::Swap(_, at) if now(at) => {
                    let next: Vec<u8> = behind.drain(..second.unwrap_or(0)).collect();
                    [next, record].concat()
                }
                _ => {
                    out.extend_from_slice(&record);
                    *records += 1;
                    continue;
                }
            };
            self.harmed.fetch_add(1, Ordering::SeqCst);
            out.extend(harms);
            *records += 1;
        }
        out
    }
}

struct Setup {
    _here: Agent,
    _there: Agent,
    tap: Tap,
    peer: Peer,
    mine: Region,
    theirs: Region,
    explanation: Explanation,
    local: transfer_core::LocalList,
    remote: transfer_core::RemoteList,
}

/// Two agents with one data connection between them, and somebody on the way.
fn setup(ours: Config, theirs: Config, harm: Harm) -> Setup {
    let agent = |mut config: Config| {
        config.tcp_streams = 1;
        config.peer_timeout = Duration::from_secs(2);
        Agent::new(config).unwrap()
    };
    let (here, there) = (agent(ours), agent(theirs));
    let tap = Tap::before(&there, harm);
    let (mine, theirs) = (here.alloc(LEN, "mine").unwrap(), there.alloc(LEN, "theirs").unwrap());
    let peer = here.connect(&tap.address).unwrap();
    let whole = |id| DescList::from(Desc::contiguous(id, 0, LEN as u64));
    let local = here.prepare(&whole(mine.id())).unwrap();
    let remote = peer.prepare(&whole(theirs.id())).unwrap();
    let explanation = peer.explain(&local, &remote).unwrap();
    Setup { _here: here, _there: there, tap, peer, mine, theirs, explanation, local, remote }
}

impl Setup {
    fn write(&self) -> Result<(), Error> {
        self.peer.write(&self.local, &self.remote).post().unwrap().wait(WAIT).map(drop)
    }

    fn read(&self) -> Result<(), Error> {
        self.peer.read(&self.local, &self.remote).post().unwrap().wait(WAIT).map(drop)
    }
}

#[test]
fn what_is_moved_is_seen_on_the_way_unless_either_side_asks_for_encryption() {
    for (ours, theirs) in [(false, false), (false, true), (true, false), (true, true)] {
        let s = setup(keyed("here", ours), keyed("there", theirs), Harm::Nothing);
        let (forth, back) = (pattern(1, LEN), pattern(2, LEN));
        s.mine.write_at(0, &forth).unwrap();
        s.write().unwrap();
        assert!(bytes_of(&s.theirs) == forth);
        s.theirs.write_at(0, &back).unwrap();
        s.read().unwrap();
        assert!(bytes_of(&s.mine) == back);
        let encrypted = ours || theirs;
        for (what, bytes) in [("written", &forth), ("read", &back)] {
            for at in [0, LEN / 2, LEN - 16] {
                assert_eq!(s.tap.saw(&bytes[at..at + 16]), !encrypted, "{ours}, {theirs}: {what} at {at}");
            }
        }
        assert_eq!((s.explanation.path, s.explanation.encrypted), (Some(Path::Tcp), encrypted));
        assert_eq!(s.explanation.to_string().starts_with("path: tcp, encrypted"), encrypted);
        let told = s.peer.explain(&s.local, &s.remote).unwrap();
        assert!(told.expected_rate.is_some(), "as seen: {told}");
        // The other side knows it as well, and goes the same way back.
        let from_there = s._there.peers().pop().unwrap();
        let local = s._there.prepare(&Desc::contiguous(s.theirs.id(), 0, 64).into()).unwrap();
        let remote = from_there.prepare(&Desc::contiguous(s.mine.id(), 0, 64).into()).unwrap();
        assert_eq!(from_there.explain(&local, &remote).unwrap().encrypted, encrypted);
    }
}

#[test]
fn keys_and_wishes_of_the_two_sides_meet() {
    let plain = |name| config(name, PathSet::TCP);
    for wish in [false, true] {
        for (ours, theirs) in [(plain("here"), keyed("there", wish)), (keyed("here", wish), plain("there"))] {
            let there = Agent::new(theirs).unwrap();
            let error = Agent::new(ours).unwrap().connect(&there.address().unwrap()).unwrap_err();
            assert!(matches!(error, Error::AuthRequired { .. }), "{error}");
        }
        let there = Agent::new(keyed("there", wish)).unwrap();
        let mut other = keyed("here", !wish);
        other.key = Some(Key::from_bytes([1; 32]));
        let error = Agent::new(other).unwrap().connect(&there.address().unwrap()).unwrap_err();
        assert!(matches!(error, Error::AuthFailed { .. }), "{error}");
    }
    let mut keyless = plain("keyless");
    keyless.encrypt_data = true;
    let error = Agent::new(keyless).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { field: "encrypt_data", .. }), "{error}");
}

#[test]
fn within_a_host_the_best_path_is_taken_and_is_not_encrypted() {
    let agent = |name| {
        let mut config = keyed(name, true);
        config.paths = PathSet::ALL;
        Agent::new(config).unwrap()
    };
    let (here, there) = (agent("here"), agent("there"));
    let theirs = there.alloc(64, "theirs").unwrap();
    let mine = here.alloc(64, "mine").unwrap();
    let peer = here.connect(&there.address().unwrap()).unwrap();
    let local = here.prepare(&Desc::contiguous(mine.id(), 0, 64).into()).unwrap();
    let remote = peer.prepare(&Desc::contiguous(theirs.id(), 0, 64).into()).unwrap();
    let told = peer.explain(&local, &remote).unwrap();
    assert_eq!((told.path, told.encrypted), (Some(Path::SharedMemory), false));
}

/// This is what a key alone does not help against.
#[test]
fn without_encryption_a_flipped_bit_lands_and_nobody_is_told() {
    let s = setup(keyed("here", false), keyed("there", false), Harm::Flip(0, 5000, 3));
    s.mine.write_at(0, &pattern(1, LEN)).unwrap();
    s.write().unwrap();
    assert_eq!(s.tap.harmed(), 1);
    let differs = bytes_of(&s.theirs).iter().zip(pattern(1, LEN)).filter(|(a, b)| *a != b).count();
    assert_eq!(differs, 1);
}

#[test]
fn with_encryption_nothing_of_a_harmed_record_lands_and_its_connection_ends() {
    let record = 2 + 65535;
    let mut harms = Vec::new();
    for direction in [0, 1] {
        // In the first record, and in a later one: its length, its text, its tag.
        for (n, at) in [0, 1, 2, 40].into_iter().enumerate() {
            harms.push(Harm::Flip(direction, at, u8::try_from(n).unwrap()));
        }
        for at in [3 * record, 3 * record + 1, 3 * record + 2, 4 * record - 1, 5 * record + 30_000] {
            harms.push(Harm::Flip(direction, at, 6));
        }
        for at in [1, 4] {
            harms.push(Harm::Repeat(direction, at));
            harms.push(Harm::LeaveOut(direction, at));
            harms.push(Harm::Swap(direction, at));
            harms.push(Harm::CutShort(direction, at));
        }
    }
    for harm in harms {
        let s = setup(keyed("here", true), keyed("there", false), harm);
        let bytes = pattern(9, LEN);
        let write = matches!(s.tap.shared.direction(), Some(0));
        let (source, target) = if write { (&s.mine, &s.theirs) } else { (&s.theirs, &s.mine) };
        source.write_at(0, &bytes).unwrap();
        target.write_at(0, &vec![0; LEN]).unwrap();
        let request =
            if write { s.peer.write(&s.local, &s.remote) } else { s.peer.read(&s.local, &s.remote) };
        let xfer = request.post().unwrap();
        until("the end of the connection", || s.tap.shared.ended.load(Ordering::SeqCst));
        // Without a way it does not come to its end, and after this nothing of it lands.
        assert!(xfer.poll().is_none(), "{harm:?}");
        drop(xfer);
        assert_eq!(s.tap.harmed(), 1, "{harm:?}");
        let landed = bytes_of(target);
        let from = landed.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
        // What came before it may be there, as it was sent; of what came later, nothing.
        let good = match harm {
            Harm::Flip(_, at, _) => at / record,
            Harm::Repeat(_, at) => at + 1,
            Harm::LeaveOut(_, at) | Harm::Swap(_, at) | Harm::CutShort(_, at) => at,
            Harm::Nothing => usize::MAX,
        };
        assert!(from <= good * 65_519 + 8, "{harm:?}: {from} bytes landed");
        let rest = landed[from..].iter().filter(|byte| **byte != 0).count();
        assert_eq!(rest, 0, "{harm:?}: something else than what was sent landed");
    }
}

#[test]
fn a_harmed_connection_is_replaced_and_the_transfer_comes_to_its_end() {
    let s = setup(keyed("here", true), keyed("there", true), Harm::CutShort(0, 6));
    let bytes = pattern(4, LEN);
    s.mine.write_at(0, &bytes).unwrap();
    // From the second connection on nothing is harmed.
    let lets = Arc::clone(&s.tap.shared);
    let letting = std::thread::spawn(move || {
        until("harm", || lets.harmed.load(Ordering::SeqCst) == 1);
        lets.harmed.store(0, Ordering::SeqCst);
    });
    s.write().unwrap();
    letting.join().unwrap();
    assert!(bytes_of(&s.theirs) == bytes && s.peer.is_up());
    assert!(s.tap.shared.opened.load(Ordering::SeqCst) >= 2, "it was opened again");
}
