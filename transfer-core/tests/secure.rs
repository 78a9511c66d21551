//! Keys: who is let in, who is not, and what somebody on the way can do, which is nothing but to cut the connection.
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

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use support::{WAIT, bytes_of, config, pattern};
use transfer_core::{
    Address, Agent, Desc, DescList, Error, Event, Farewell, Key, KeyMissing, LinkError, PathSet, Peer, Region,
};
use two::Process;

const LEN: usize = 1 << 20;

#[test]
fn child() {
    two::main();
}

fn key(byte: u8) -> Option<Key> {
    Some(Key::from_bytes([byte; 32]))
}

fn agent(name: &str, paths: PathSet, key: Option<Key>) -> Agent {
    let mut config = config(name, paths);
    config.key = key;
    Agent::new(config).unwrap()
}

fn port(agent: &Agent) -> u16 {
    let Some(Address::Tcp { port, .. }) = agent.address() else { panic!("it listens") };
    port
}

fn whole(region: transfer_core::RegionId) -> DescList {
    DescList::from(Desc::contiguous(region, 0, LEN as u64))
}

/// Reads the peer's region `theirs` into one of ours, writes it back, and compares.
fn transfer(here: &Agent, peer: &Peer) {
    let mine = here.alloc(LEN, "mine").unwrap();
    let local = here.prepare(&whole(mine.id())).unwrap();
    let remote = peer.prepare(&whole(peer.region("theirs").unwrap().id)).unwrap();
    peer.read(&local, &remote).notify(b"read").post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&mine) == pattern(3, LEN));
    peer.write(&local, &remote).post().unwrap().wait(WAIT).unwrap();
    mine.close().unwrap();
}

fn target(agent: &Agent) -> Region {
    let region = agent.alloc(LEN, "theirs").unwrap();
    region.write_at(0, &pattern(3, LEN)).unwrap();
    region
}

fn lost(agent: &Agent) -> Error {
    loop {
        if let Event::PeerLost { reason, .. } = agent.wait_event(WAIT).expect("the loss in time") {
            return reason;
        }
    }
}

#[test]
fn agents_with_one_key_meet_and_transfer_on_every_path() {
    for paths in [PathSet::ALL, PathSet::SHM, PathSet::TCP] {
        let (here, there) = (agent("here", paths, key(1)), agent("there", paths, key(1)));
        let region = target(&there);
        let peer = here.connect(&there.address().unwrap()).unwrap();
        assert_eq!((peer.name(), peer.incarnation()), ("there", there.incarnation()));
        transfer(&here, &peer);
        // Both ways, long frames too: each takes several records.
        let back = there.peers().pop().unwrap();
        let long = pattern(9, 60_000);
        back.notify(&long).unwrap();
        loop {
            match here.wait_event(WAIT).expect("the notification in time") {
                Event::Notif { bytes, .. } => break assert!(bytes == long),
                _ => continue,
            }
        }
        region.close().unwrap();
    }
}

#[test]
fn an_agent_of_many_regions_is_met_with_a_key() {
    let (here, there) = (agent("here", PathSet::TCP, key(1)), agent("there", PathSet::TCP, key(1)));
    let regions: Vec<_> =
        (0..3000).map(|n| there.adopt(vec![0; 8], &format!("region {n}")).unwrap()).collect();
    let peer = here.connect(&there.address().unwrap()).unwrap();
    assert_eq!(peer.regions().len(), regions.len());
}

#[test]
fn an_agent_with_a_key_is_its_own_peer() {
    let here = agent("here", PathSet::ALL, key(1));
    let region = target(&here);
    let peer = here.connect(&here.address().unwrap()).unwrap();
    transfer(&here, &peer);
    region.close().unwrap();
}

#[test]
fn two_processes_with_one_key_meet_and_one_without_it_is_refused() {
    let mut process = Process::start_with_key("all", LEN, [7; 32]);
    let address = process.address();
    let here = agent("here", PathSet::ALL, key(7));
    let peer = here.connect(&address).unwrap();
    let mine = here.alloc(LEN, "mine").unwrap();
    let local = here.prepare(&whole(mine.id())).unwrap();
    let remote = peer.prepare(&whole(peer.region("allocated").unwrap().id)).unwrap();
    peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&mine) == pattern(100, LEN));
    let error = agent("keyless", PathSet::ALL, None).connect(&address).unwrap_err();
    assert!(matches!(error, Error::AuthRequired { missing: KeyMissing::Here, .. }), "{error}");
    let error = agent("other", PathSet::ALL, key(8)).connect(&address).unwrap_err();
    assert!(matches!(error, Error::AuthFailed { .. }), "{error}");
    assert!(peer.is_up());
    process.kill();
    assert!(matches!(lost(&here), Error::PeerLost { .. }));
}

#[test]
fn keys_that_differ_or_are_missing_are_told_whoever_connects() {
    let keys = [None, key(1), key(2)];
    for (i, ours) in keys.iter().enumerate() {
        for (j, theirs) in keys.iter().enumerate() {
            let (here, there) =
                (agent("here", PathSet::ALL, ours.clone()), agent("there", PathSet::ALL, theirs.clone()));
            let there_local = there.metadata();
            for met in [here.connect(&there.address().unwrap()), here.add_peer(&there_local)] {
                match (i, j, met) {
                    (0, 0, Ok(_)) => {}
                    (i, j, Ok(_)) if i == j => {}
                    (0, _, Err(Error::AuthRequired { missing: KeyMissing::Here, .. })) => {}
                    (_, 0, Err(Error::AuthRequired { missing: KeyMissing::There, .. })) => {}
                    (1, 2, Err(error @ Error::AuthFailed { .. }))
                    | (2, 1, Err(error @ Error::AuthFailed { .. })) => assert!(!error.is_retryable()),
                    (i, j, met) => panic!("keys {i} and {j}: {met:?}"),
                }
            }
            let count = usize::from(i == j);
            assert_eq!((here.peers().len(), there.peers().len()), (count, count));
        }
    }
}

#[test]
fn without_a_key_no_other_host_is_connected_to() {
    let here = agent("here", PathSet::ALL, None);
    // An address for documentation (RFC 5737), at which nobody is: without the rule this would take its time.
    let error = here.connect(&"tcp://192.0.2.1:9".parse().unwrap()).unwrap_err();
    assert!(matches!(error, Error::AuthRequired { missing: KeyMissing::Beyond, .. }), "{error}");
    assert!(error.to_string().contains("insecure_remote_without_key"), "{error}");
    let mut open = config("open", PathSet::ALL);
    open.insecure_remote_without_key = true;
    open.connect_timeout = Duration::from_millis(20);
    let error = Agent::new(open).unwrap().connect(&"tcp://192.0.2.1:9".parse().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

// ---- somebody on the way

/// Carries bytes between those who connect to it and `to`, and flips a bit where it is told to.
struct Meddler {
    address: SocketAddr,
    /// Which byte of a connection's first direction (0: from who connects) is changed, once.
    flip: Arc<Flip>,
}

#[derive(Default)]
struct Flip {
    direction: AtomicUsize,
    armed: AtomicBool,
    /// In the first control connection: bytes that passed in each direction.
    passed: [AtomicUsize; 2],
}

impl Meddler {
    fn before(agent: &Agent) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, to) = (listener.local_addr().unwrap(), port(agent));
        let flip = Arc::new(Flip::default());
        let shared = Arc::clone(&flip);
        std::thread::spawn(move || {
            for (n, from) in listener.incoming().enumerate() {
                let Ok(from) = from else { return };
                let Ok(to) = TcpStream::connect(("127.0.0.1", to)) else { return };
                for direction in [0, 1] {
                    let (a, b) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (a, b) = if direction == 0 { (a, b) } else { (b, a) };
                    // The first one is the control connection.
                    let flip = (n == 0).then(|| Arc::clone(&shared));
                    std::thread::spawn(move || carry(a, b, direction, flip.as_deref()));
                }
            }
        });
        Self { address, flip }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, direction: usize, flip: Option<&Flip>) {
    let mut part = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut part) {
        if let Some(flip) = flip {
            flip.passed[direction].fetch_add(count, Ordering::AcqRel);
            if flip.direction.load(Ordering::Acquire) == direction && flip.armed.swap(false, Ordering::AcqRel)
            {
                part[count / 2] ^= 4;
            }
        }
        if to.write_all(&part[..count]).is_err() {
            break;
        }
    }
    // The other end may have gone already.
    let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_bit_flipped_on_the_control_connection_ends_the_peer_with_that_cause() {
    for direction in [0, 1] {
        let (here, there) = (agent("here", PathSet::TCP, key(1)), agent("there", PathSet::TCP, key(1)));
        let meddler = Meddler::before(&there);
        let peer = here.connect(&meddler.address.into()).unwrap();
        let back = there.peers().pop().unwrap();
        meddler.flip.direction.store(direction, Ordering::Release);
        meddler.flip.armed.store(true, Ordering::Release);
        // More than a record, so that the bit is in what was sealed and not in its length.
        let (teller, victim) = if direction == 0 { (&peer, &there) } else { (&back, &here) };
        teller.notify(&pattern(1, 8000)).unwrap();
        let error = lost(victim);
        assert!(matches!(error, Error::PeerLost { cause: LinkError::Tampered, .. }), "{error}");
        while let Some(event) = victim.poll_event() {
            assert!(!matches!(event, Event::Notif { .. }), "nothing of it was told");
        }
        // The other side learns that it is over; what it heard last is that this side went.
        let teller = if direction == 0 { &here } else { &there };
        assert!(matches!(
            lost(teller),
            Error::PeerLost { cause: LinkError::Disconnected | LinkError::Farewell { .. }, .. }
        ));
    }
}

#[test]
fn what_goes_over_the_control_connection_is_not_to_be_read_on_the_way() {
    for key in [None, key(1)] {
        let sealed = key.is_some();
        let there = agent("a-telling-name", PathSet::TCP, key.clone());
        let _region = there.adopt(vec![0; 8], "a-telling-label").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: Address = listener.local_addr().unwrap().into();
        let to = port(&there);
        let mut here = config("here", PathSet::TCP);
        (here.key, here.connect_timeout) = (key, Duration::from_millis(500));
        let here = Agent::new(here).unwrap();
        let spy = std::thread::spawn(move || {
            let (mut a, _) = listener.accept().unwrap();
            let mut b = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let (mut a2, mut b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut a2, &mut b2));
            let (mut all, mut part) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = b.read(&mut part) {
                all.extend_from_slice(&part[..count]);
                if a.write_all(&part[..count]).is_err() {
                    break;
                }
            }
            all
        });
        // Data connections are not carried on, so this does not come to its end.
        let _ended = here.connect(&address).unwrap_err();
        drop(here);
        let seen = spy.join().unwrap();
        let told = |what: &[u8]| seen.windows(what.len()).any(|window| window == what);
        assert_eq!(told(b"a-telling-name") && told(b"a-telling-label"), !sealed);
    }
}

// ---- strangers

/// The first bytes of control, local and data connections; of agents with a key and without, whole and cut.
fn openings() -> Vec<Vec<u8>> {
    let mut out = vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), Vec::new()];
    for kind in 1..=4 {
        for flags in [0, 1, 2, 255] {
            let opening = [b"HDRC\x02", &[kind, 2, flags][..], &pattern(u64::from(flags), 120)].concat();
            out.push(opening[..8].to_vec());
            out.push(opening[..30].to_vec());
            out.push(opening);
        }
    }
    out
}

#[test]
fn a_flood_of_bad_handshakes_does_not_keep_a_good_peer_out() {
    for key in [None, key(1)] {
        let there = agent("there", PathSet::TCP, key.clone());
        let region = target(&there);
        let (stop, to) = (Arc::new(AtomicBool::new(false)), port(&there));
        let sent = Arc::new(AtomicUsize::new(0));
        let floods: Vec<_> = (0..2)
            .map(|_| {
                let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
                std::thread::spawn(move || {
                    let mut held = std::collections::VecDeque::new();
                    let openings = openings();
                    for opening in openings.iter().cycle() {
                        if stop.load(Ordering::Acquire) {
                            return;
                        }
                        // Descriptors are short in a test process: both ends of all connections are in it.
                        if held.len() >= 150 {
                            held.pop_front();
                        }
                        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                        let _sent = stream.write_all(opening);
                        held.push_back(stream);
                        sent.fetch_add(1, Ordering::AcqRel);
                    }
                })
            })
            .collect();
        while sent.load(Ordering::Acquire) < 500 {
            std::thread::yield_now();
        }
        for _ in 0..3 {
            let here = agent("here", PathSet::TCP, key.clone());
            let peer = here.connect(&there.address().unwrap()).unwrap();
            transfer(&here, &peer);
        }
        stop.store(true, Ordering::Release);
        floods.into_iter().for_each(|flood| flood.join().unwrap());
        region.close().unwrap();
    }
}

#[test]
fn whoever_holds_connections_open_makes_room_for_who_comes_later() {
    // More than there is room for; both ends of each are in this process, which is allowed more descriptors.
    let there = agent("there", PathSet::TCP, key(1));
    let region = target(&there);
    let mut held = Vec::new();
    for _ in 0..1100 {
        match TcpStream::connect(("127.0.0.1", port(&there))) {
            Ok(stream) => held.push(stream),
            // This process has no more descriptors, which is the case that is tested then.
            Err(_) => break,
        }
    }
    held.truncate(held.len() - 40);
    let here = agent("here", PathSet::TCP, key(1));
    let peer = here.connect(&there.address().unwrap()).unwrap();
    transfer(&here, &peer);
    region.close().unwrap();
}

#[test]
fn a_handshake_that_stalls_or_trickles_ends_in_time() {
    let mut hasty = config("hasty", PathSet::TCP);
    hasty.key = key(1);
    hasty.connect_timeout = Duration::from_millis(300);
    let hasty = Agent::new(hasty).unwrap();
    // As acceptor: whoever stalls is dropped.
    for len in [0, 3, 8, 20] {
        let mut stream = TcpStream::connect(("127.0.0.1", port(&hasty))).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(&[b"HDRC\x02\x01\x02\x01".as_slice(), &[0; 40]].concat()[..len]).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), if len < 8 { 0 } else { 24 }, "preamble and challenge, and the end");
    }
    // As opener: a byte now and then does not hold it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().into();
    let trickle = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for byte in [b"HDRC\x02\x01\x02\x01".as_slice(), &[0; 400]].concat() {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(40));
        }
    });
    let error = hasty.connect(&address).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error}");
    trickle.join().unwrap();
}

#[test]
fn a_recorded_conversation_opens_nothing_when_it_is_played_again() {
    let there = agent("there", PathSet::TCP, key(1));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().into();
    let to = port(&there);
    let recorder = std::thread::spawn(move || {
        let (mut a, _) = listener.accept().unwrap();
        let mut b = TcpStream::connect(("127.0.0.1", to)).unwrap();
        let (mut a2, mut b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut b2, &mut a2));
        let (mut all, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = a.read(&mut part) {
            all.extend_from_slice(&part[..count]);
            b.write_all(&part[..count]).unwrap();
        }
        all
    });
    let mut here = config("here", PathSet::TCP);
    (here.key, here.connect_timeout) = (key(1), Duration::from_millis(500));
    let here = Agent::new(here).unwrap();
    // Data connections are not carried on.
    let _ended = here.connect(&address).unwrap_err();
    drop(here);
    let recorded = recorder.join().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", to)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    // All at once, and so far as the proof: whatever follows it finds nobody.
    stream.write_all(&recorded[..8 + 48]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[..8], *b"HDRC\x02\x01\x02\x01");
    assert_eq!(answer[24..], [0; 48], "refused");
    assert_eq!(there.peers().len(), 0);
}

#[test]
fn a_peer_that_leaves_says_so_under_seal() {
    let (here, there) = (agent("here", PathSet::TCP, key(1)), agent("there", PathSet::TCP, key(1)));
    let peer = here.connect(&there.address().unwrap()).unwrap();
    drop(there);
    let Error::PeerLost { cause, .. } = lost(&here) else { panic!("lost") };
    assert!(matches!(cause, LinkError::Farewell { farewell: Farewell::Closing, .. }), "{cause}");
    assert!(!peer.is_up());
}
