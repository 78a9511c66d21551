//! Data connections that break in mid-transfer: every byte comes, notifications come once, and nothing lands late.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::ops::Range;
use std::time::Duration;

use proxy::{Fate, Proxy};
use support::{WAIT, bytes_of, config, keyed, pattern, until};
use transfer_core::{
    Agent, Config, Desc, DescList, Error, Event, LocalList, PathSet, Peer, Region, RemoteList,
};

const LEN: usize = 8 << 20;
const PAGE: usize = 4096;

struct Setup {
    _here: Agent,
    there: Agent,
    peer: Peer,
    mine: Region,
    theirs: Region,
    local: LocalList,
    remote: RemoteList,
    proxy: Proxy,
}

/// Two agents with two rails between them, and pages in another order on each side.
fn setup(fates: &[Fate]) -> Setup {
    setup_by(fates, |name| config(name, PathSet::TCP))
}

fn setup_by(fates: &[Fate], config: fn(&str) -> Config) -> Setup {
    let rails = |name| {
        let mut config = config(name);
        config.tcp_streams = 2;
        config.slice_bytes_max = 256 << 10;
        // A rail that does not move is given up after twice that.
        config.peer_timeout = Duration::from_secs(2);
        Agent::new(config).unwrap()
    };
    let (here, there) = (rails("here"), rails("there"));
    let proxy = Proxy::start(&there.address().unwrap(), fates);
    let (mine, theirs) = (here.alloc(LEN, "mine").unwrap(), there.alloc(LEN, "theirs").unwrap());
    let peer = here.connect(&proxy.address).unwrap();
    let page = PAGE as u64;
    let count = u32::try_from(LEN / PAGE).unwrap();
    let pages = |step: u32| (0..count).map(|i| i * step % count).collect();
    let list = |id, step| DescList::from(Desc::paged(id, 0, page, page, pages(step)));
    let local = here.prepare(&list(mine.id(), 1)).unwrap();
    let remote = peer.prepare(&list(theirs.id(), 77)).unwrap();
    Setup { _here: here, there, peer, mine, theirs, local, remote, proxy }
}

/// What the pages of `bytes` are on the other side.
fn shuffled(bytes: &[u8], write: bool) -> Vec<u8> {
    let count = LEN / PAGE;
    let mut out = vec![0; LEN];
    for i in 0..count {
        let (mine, theirs) = (i * PAGE, i * 77 % count * PAGE);
        let (from, to) = if write { (mine, theirs) } else { (theirs, mine) };
        out[to..to + PAGE].copy_from_slice(&bytes[from..from + PAGE]);
    }
    out
}

fn number(seed: u64, below: u64) -> u64 {
    let bytes = pattern(seed, 8);
    bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)) % below
}

/// The notifications up to the one that says that there are no more.
fn notifications(s: &Setup) -> Vec<Vec<u8>> {
    s.peer.notify(b"last").unwrap();
    let mut all = Vec::new();
    loop {
        match s.there.wait_event(WAIT).expect("the last one in time") {
            Event::Notif { bytes, .. } if bytes == b"last" => return all,
            Event::Notif { bytes, .. } => all.push(bytes),
            _ => {}
        }
    }
}

/// One of two rails breaks, somewhere; says how often that was.
fn breaks(seeds: Range<u64>, config: fn(&str) -> Config) -> usize {
    let mut cut = 0;
    for seed in seeds {
        let write = seed % 2 == 0;
        let at = 100 + number(seed, LEN as u64 / 3);
        let fates = if seed % 3 == 0 { [Fate::Cut(at), Fate::Stays] } else { [Fate::Stays, Fate::Cut(at)] };
        let s = setup_by(&fates, config);
        let bytes = pattern(seed, LEN);
        let source = if write { &s.mine } else { &s.theirs };
        source.write_at(0, &bytes).unwrap();
        let request =
            if write { s.peer.write(&s.local, &s.remote) } else { s.peer.read(&s.local, &s.remote) };
        let xfer = request.notify(b"done").post().unwrap();
        let done = xfer.wait(WAIT).unwrap_or_else(|error| panic!("seed {seed}, {fates:?}: {error}"));
        assert_eq!(done.bytes, LEN as u64, "seed {seed}");
        let target = if write { &s.theirs } else { &s.mine };
        assert!(bytes_of(target) == shuffled(&bytes, write), "seed {seed}, {fates:?}");
        assert_eq!(notifications(&s), [b"done"], "seed {seed}");
        assert!(s.peer.is_up());
        cut += s.proxy.cut();
    }
    cut
}

#[test]
fn one_of_two_rails_may_break_anywhere() {
    let cut = breaks(0..24, |name| config(name, PathSet::TCP));
    // A rail that was slow may have carried less than where it would have been cut.
    assert!(cut > 8, "{cut} were cut");
}

#[test]
fn one_of_two_encrypted_rails_may_break_anywhere() {
    let cut = breaks(24..40, |name| keyed(name, true));
    assert!(cut > 5, "{cut} were cut");
}

#[test]
fn a_rail_that_broke_comes_back_and_carries_again() {
    let s = setup(&[Fate::Cut(LEN as u64 / 4), Fate::Cut(LEN as u64)]);
    let bytes = pattern(1, LEN);
    s.mine.write_at(0, &bytes).unwrap();
    for round in 0..8 {
        s.theirs.write_at(0, &vec![0; LEN]).unwrap();
        s.peer.write(&s.local, &s.remote).post().unwrap().wait(WAIT).unwrap();
        assert!(bytes_of(&s.theirs) == shuffled(&bytes, true), "round {round}");
    }
    until("both rails again", || s.proxy.opened() >= 4);
    assert_eq!((s.proxy.cut(), s.peer.is_up()), (2, true));
}

#[test]
fn nothing_lands_behind_the_fence() {
    let s = setup(&[Fate::KeepsBack(100_000), Fate::Stays]);
    s.mine.write_at(0, &pattern(1, LEN)).unwrap();
    s.peer.write(&s.local, &s.remote).post().unwrap().wait(WAIT).unwrap();
    assert_eq!(s.proxy.cut(), 1);
    // From here on the memory is somebody else's.
    let others = pattern(2, LEN);
    s.theirs.write_at(0, &others).unwrap();
    s.proxy.deliver();
    // What comes late came before this.
    s.peer.read(&s.local, &s.remote).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&s.theirs) == others);
    assert!(bytes_of(&s.mine) == shuffled(&others, false));
}

#[test]
fn a_rail_that_is_blocked_without_a_word_is_given_up_and_its_slices_go_on() {
    for write in [true, false] {
        let s = setup(&[Fate::Stays, Fate::Stalls(100_000)]);
        let bytes = pattern(3, LEN);
        let (source, target) = if write { (&s.mine, &s.theirs) } else { (&s.theirs, &s.mine) };
        source.write_at(0, &bytes).unwrap();
        let request =
            if write { s.peer.write(&s.local, &s.remote) } else { s.peer.read(&s.local, &s.remote) };
        request.post().unwrap().wait(WAIT).unwrap();
        assert!(bytes_of(target) == shuffled(&bytes, write));
        assert_eq!((s.proxy.cut(), s.peer.is_up()), (1, true));
    }
}

#[test]
fn a_transfer_that_is_blocked_ends_with_its_deadline_and_touches_nothing_after_it() {
    let s = setup(&[Fate::Stalls(LEN as u64 / 8), Fate::Stalls(LEN as u64 / 8)]);
    let xfer = s.peer.write(&s.local, &s.remote).timeout(Duration::from_millis(300)).post().unwrap();
    let error = xfer.wait(WAIT).unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    let others = pattern(4, LEN);
    s.theirs.write_at(0, &others).unwrap();
    // The rails are opened again, past the block.
    s.mine.write_at(0, &vec![0; LEN]).unwrap();
    s.peer.read(&s.local, &s.remote).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&s.theirs) == others);
    assert!(bytes_of(&s.mine) == shuffled(&others, false));
}

#[test]
fn revoking_does_not_wait_for_a_writer_whose_way_is_blocked() {
    let s = setup(&[Fate::Stalls(LEN as u64 / 8), Fate::Stalls(LEN as u64 / 8)]);
    let xfer = s.peer.write(&s.local, &s.remote).post().unwrap();
    until("both blocked", || s.proxy.cut() == 2);
    s.theirs.revoke(0, LEN).unwrap();
    let others = pattern(5, LEN);
    s.theirs.write_at(0, &others).unwrap();
    // The rest comes over the rails that are opened again, and has no place any more.
    let error = xfer.wait(WAIT).unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    assert!(bytes_of(&s.theirs) == others);
    assert!(s.peer.is_up());
}
