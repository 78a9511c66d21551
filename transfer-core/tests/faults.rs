//! Peers that die, freeze, leave, lie, or are not agents at all: each ends in a typed error, nothing hangs.
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
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use support::{WAIT, agent, bytes_of, config, pair, pattern};
use transfer_core::{
    Address, Agent, Desc, DescList, Error, Event, LocalList, Peer, ProtocolError, Region, RemoteList,
    Versions,
};
use two::Process;

const LEN: usize = 32 << 20;

#[test]
fn child() {
    two::main();
}

struct Setup {
    process: Process,
    here: Agent,
    peer: Peer,
    local: LocalList,
    remote: RemoteList,
    _mine: Region,
}

fn whole(id: transfer_core::RegionId, len: usize) -> DescList {
    DescList::from(Desc::contiguous(id, 0, len as u64))
}

fn setup(paths: &str, label: &str, peer_timeout: Duration) -> Setup {
    let mut process = Process::start(paths, LEN);
    let mut config = config("parent", two::path_set(paths));
    config.peer_timeout = peer_timeout;
    let here = Agent::new(config).unwrap();
    let peer = here.connect(&process.address()).unwrap();
    let mine = here.alloc(LEN, "mine").unwrap();
    let local = here.prepare(&whole(mine.id(), LEN)).unwrap();
    let remote = peer.prepare(&whole(peer.region(label).unwrap().id, LEN)).unwrap();
    Setup { process, here, peer, local, remote, _mine: mine }
}

fn lost(agent: &Agent) -> Error {
    loop {
        match agent.wait_event(WAIT).expect("the loss in time") {
            Event::PeerLost { reason, .. } => return reason,
            _ => continue,
        }
    }
}

/// One of the errors that a peer's end may be told as.
fn is_loss(error: &Error) -> bool {
    matches!(error, Error::PeerLost { .. } | Error::TransferFailed { .. } | Error::RegionClosed { .. })
}

#[test]
fn a_target_killed_before_a_transfer() {
    for (paths, label) in [("all", "allocated"), ("all", "foreign"), ("tcp", "allocated")] {
        let mut s = setup(paths, label, Duration::from_secs(5));
        s.process.kill();
        let outcome = s.peer.read(&s.local, &s.remote).post().and_then(|xfer| xfer.wait(WAIT));
        // Memory that is mapped here outlives its owner, so a read that is faster than the news is right.
        if label != "allocated" || paths == "tcp" {
            let error = outcome.expect_err("nobody is there");
            assert!(is_loss(&error) && error.is_retryable(), "{error}");
        }
        let error = lost(&s.here);
        assert!(error.to_string().contains("lost child") && error.is_retryable(), "{error}");
        let error = s.peer.read(&s.local, &s.remote).post().unwrap_err();
        assert!(matches!(error, Error::PeerLost { .. }), "{error}");
        assert!(matches!(s.peer.prepare(&DescList::new()), Err(Error::PeerLost { .. })));
        assert!(!s.peer.is_up());
    }
}

#[test]
fn a_target_killed_while_it_is_read() {
    for (paths, label) in [("all", "allocated"), ("all", "foreign"), ("tcp", "allocated"), ("tcp", "foreign")]
    {
        let mut s = setup(paths, label, Duration::from_secs(5));
        let seed = if label == "foreign" { 101 } else { 100 };
        let xfers: Vec<_> = (0..16).map(|_| s.peer.read(&s.local, &s.remote).post().unwrap()).collect();
        s.process.kill();
        let outcomes: Vec<_> = xfers.iter().map(|xfer| xfer.wait(WAIT)).collect();
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert!(is_loss(error), "{error}");
        }
        assert!(is_loss(&lost(&s.here)));
        // Nothing writes any more once they have ended; and what was told as done was the whole truth.
        let after = bytes_of(&s._mine);
        if outcomes.last().unwrap().is_ok() {
            assert!(after == pattern(seed, LEN));
        }
        std::thread::yield_now();
        assert!(after == bytes_of(&s._mine));
    }
}

#[test]
fn an_initiator_killed_while_it_reads() {
    for paths in ["all", "tcp"] {
        let here = agent("parent", two::path_set(paths));
        let region = here.alloc(LEN, "target").unwrap();
        let mut process = Process::start(paths, LEN);
        let address = here.address().unwrap();
        assert_eq!(process.ask(&format!("hammer {address}")), "hammering");
        while !matches!(here.wait_event(WAIT).expect("a read in time"), Event::Notif { .. }) {}
        process.kill();
        assert!(is_loss(&lost(&here)));
        // Nobody holds the region any more.
        region.close().unwrap();
        assert_eq!(here.peers().len(), 0);
    }
}

#[test]
fn a_frozen_peer_is_lost_within_the_bound() {
    for paths in ["all", "tcp"] {
        let s = setup(paths, "allocated", Duration::from_secs(2));
        s.process.freeze();
        let from = Instant::now();
        let xfer = s.peer.read(&s.local, &s.remote).post();
        let error = lost(&s.here);
        assert!(error.to_string().contains("silent for 2000 ms"), "{error}");
        assert!(from.elapsed() < WAIT, "{:?}", from.elapsed());
        if paths == "tcp" {
            assert!(is_loss(&xfer.unwrap().wait(WAIT).unwrap_err()));
        }
        s.process.thaw();
    }
}

#[test]
fn a_deadline_ends_a_transfer_with_a_peer_that_does_not_answer() {
    let s = setup("tcp", "allocated", Duration::from_secs(3));
    s.process.freeze();
    let end = |request: transfer_core::Request| {
        request.timeout(Duration::from_millis(200)).post().unwrap().wait(WAIT).unwrap_err()
    };
    let error = end(s.peer.read(&s.local, &s.remote));
    assert!(matches!(error, Error::Deadline { .. }) && error.is_retryable(), "{error}");
    // What was written may land until the frozen peer counts as lost: it has to say that it does not, or go.
    let error = end(s.peer.write(&s.local, &s.remote));
    assert!(matches!(error, Error::PeerLost { .. }) && error.is_retryable(), "{error}");
    s.process.thaw();
}

#[test]
fn a_cancelled_or_dropped_transfer_ends_and_its_peer_goes_on() {
    for paths in ["all", "tcp"] {
        let mut s = setup(paths, "allocated", Duration::from_secs(5));
        for round in 0..10 {
            let xfer = s.peer.read(&s.local, &s.remote).post().unwrap();
            if round % 2 == 0 {
                xfer.cancel();
                match xfer.wait(WAIT) {
                    Err(Error::Cancelled) | Ok(_) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            drop(xfer);
            // Nothing touches the buffer after the drop.
            s._mine.write_at(0, &[7; 4096]).unwrap();
            let mut out = [0; 4096];
            s._mine.read_at(0, &mut out).unwrap();
            assert_eq!(out, [7; 4096]);
        }
        s.peer.read(&s.local, &s.remote).post().unwrap().wait(WAIT).unwrap();
        assert!(bytes_of(&s._mine) == s.process.dump("allocated"));
    }
}

#[test]
fn a_region_closed_in_mid_transfer_is_let_go_of() {
    let (here, there, peer) = pair(transfer_core::PathSet::TCP);
    for _ in 0..5 {
        let (mine, theirs) = (here.alloc(LEN, "mine").unwrap(), there.alloc(LEN, "theirs").unwrap());
        let local = here.prepare(&whole(mine.id(), LEN)).unwrap();
        let remote = peer.prepare(&whole(theirs.id(), LEN)).unwrap();
        let xfers: Vec<_> = (0..4).map(|_| peer.read(&local, &remote).post().unwrap()).collect();
        theirs.close().unwrap();
        for xfer in xfers {
            match xfer.wait(WAIT) {
                Ok(_) => {}
                Err(Error::Stale { .. }) => {}
                Err(error) => assert!(is_loss(&error), "{error}"),
            }
        }
        // Closing does not wait until peers have heard of it; until then the target refuses.
        peer.sync().unwrap();
        let posted = peer.read(&local, &remote).post();
        assert!(matches!(posted, Err(Error::RegionClosed { .. })), "{posted:?}");
        mine.close().unwrap();
    }
    assert!(peer.is_up());
}

#[test]
fn an_agent_dropped_with_transfers_under_way_ends_them() {
    for paths in ["all", "tcp"] {
        let Setup { process: _process, here, peer, local, remote, _mine } =
            setup(paths, "allocated", Duration::from_secs(5));
        let xfers: Vec<_> = (0..8).map(|_| peer.read(&local, &remote).post().unwrap()).collect();
        drop(here);
        for xfer in xfers {
            match xfer.wait(WAIT) {
                Ok(_) => {}
                Err(error) => assert!(is_loss(&error) || matches!(error, Error::AgentClosed), "{error}"),
            }
        }
        assert!(peer.read(&local, &remote).post().is_err());
    }
}

// ---- what is at the other end may be anything

#[test]
fn a_peer_of_another_version_is_told_so_on_both_sides() {
    let here = agent("here", transfer_core::PathSet::ALL);
    let Some(Address::Tcp { port, .. }) = here.address() else { panic!("it listens") };
    // They connect to us.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(b"HDRC\x63\x01\x63\0").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"HDRC\x02\x01\x02\0", "our version, and the end");
    // We connect to them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().into();
    let theirs = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HDRC\x63\x01\x63\0").unwrap();
        let mut all = Vec::new();
        let _ended = stream.read_to_end(&mut all);
    });
    let error = here.connect(&address).unwrap_err();
    let spoken = Versions::new(99, 99);
    assert!(matches!(&error, Error::VersionMismatch { theirs, .. } if *theirs == spoken), "{error}");
    assert!(error.to_string().ends_with("update this agent"), "{error}");
    assert!(!error.is_retryable());
    theirs.join().unwrap();
}

#[test]
fn something_that_is_no_agent_is_refused() {
    let here = agent("here", transfer_core::PathSet::ALL);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().into();
    let theirs = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let mut all = Vec::new();
        let _ended = stream.read_to_end(&mut all);
    });
    let error = here.connect(&address).unwrap_err();
    let not_ours = matches!(error, Error::Protocol { source: ProtocolError::Preamble(_), .. });
    assert!(not_ours && error.to_string().contains("does not speak Headrace"), "{error}");
    theirs.join().unwrap();
    // Nobody at all, and somebody who never says a word.
    let error = here.connect(&address).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error}");
    let mut hasty = config("hasty", transfer_core::PathSet::ALL);
    hasty.connect_timeout = Duration::from_millis(200);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Agent::new(hasty).unwrap().connect(&silent.local_addr().unwrap().into()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[test]
fn garbage_costs_only_its_own_connection() {
    let here = agent("here", transfer_core::PathSet::ALL);
    let there = agent("there", transfer_core::PathSet::ALL);
    let peer = there.connect(&here.address().unwrap()).unwrap();
    let Some(Address::Tcp { port, .. }) = here.address() else { panic!("it listens") };
    let mut held = Vec::new();
    for seed in 0..200_u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let noise = pattern(seed, 500);
        let start: &[u8] = match seed % 5 {
            0 => b"",
            1 => b"HDRC\x02\x01\x02\0", // then garbage as control frames
            2 => b"HDRC\x02\x03\x02\0", // then a data greeting with a wrong word
            3 => b"HDRC\x02\x01\x02\0\xff\xff\xff\xff", // a frame of 4 GiB
            _ => b"HDRC",               // half a preamble, and silence
        };
        stream.write_all(start).unwrap();
        if seed % 5 != 4 {
            // The agent may have hung up already.
            let _sent = stream.write_all(&noise);
        }
        held.push(stream);
    }
    peer.notify(b"still here").unwrap();
    while !matches!(here.wait_event(WAIT).expect("in time"), Event::Notif { bytes, .. } if bytes == b"still here")
    {
    }
    assert_eq!((here.peers().len(), peer.is_up()), (1, true));
}

#[test]
fn an_address_that_others_reach_needs_the_users_word() {
    let mut open = config("open", transfer_core::PathSet::ALL);
    open.tcp_listen = "0.0.0.0:0".parse().ok();
    let error = Agent::new(open.clone()).unwrap_err();
    assert!(error.to_string().contains("set key (or insecure_remote_without_key"), "{error}");
    open.insecure_remote_without_key = true;
    Agent::new(open).unwrap();
}

#[test]
fn transfers_posted_while_their_agent_is_dropped_all_end() {
    for _ in 0..20 {
        let (here, there, peer) = pair(transfer_core::PathSet::TCP);
        let (mine, theirs) = (here.alloc(1 << 20, "mine").unwrap(), there.alloc(1 << 20, "theirs").unwrap());
        let local = here.prepare(&whole(mine.id(), 1 << 20)).unwrap();
        let remote = peer.prepare(&whole(theirs.id(), 1 << 20)).unwrap();
        let poster = std::thread::spawn(move || {
            while let Ok(xfer) = peer.read(&local, &remote).post() {
                match xfer.wait(WAIT) {
                    Ok(_) => {}
                    Err(error) => {
                        return assert!(is_loss(&error) || matches!(error, Error::AgentClosed), "{error}");
                    }
                }
            }
        });
        drop(here);
        poster.join().unwrap();
    }
}

#[test]
fn a_process_that_was_held_up_itself_does_not_blame_its_peers() {
    let mut s = setup("all", "allocated", Duration::from_secs(60));
    let mut hammer = Process::start("all", 4096);
    // The child has the default bound of 5 s; held up for longer, it finds its peer alive.
    let target = s.here.alloc(4096, "target").unwrap();
    assert_eq!(hammer.ask(&format!("hammer {}", s.here.address().unwrap())), "hammering");
    hammer.freeze();
    let until = Instant::now() + Duration::from_secs(6);
    while s.here.wait_event(until.saturating_duration_since(Instant::now())).is_some() {}
    hammer.thaw();
    for _ in 0..3 {
        while !matches!(s.here.wait_event(WAIT).expect("it reads on"), Event::Notif { .. }) {}
    }
    hammer.kill();
    s.process.kill();
    target.close().unwrap();
}
