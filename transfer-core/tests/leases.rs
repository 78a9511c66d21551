//! Memory that is taken back while peers access it, between two real processes, on every path.
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

use std::time::{Duration, Instant};

use support::{WAIT, agent, bytes_of, config, pattern};
use transfer_core::{Access, Agent, Desc, DescList, Error, Path, PathSet, Region, RegionOptions};
use two::Process;
use two::owner::{BLOCK_BYTES, BLOCKS, Grant, contents, start};

#[test]
fn child() {
    two::main();
}

/// How long an owner and its peer work against each other.
const STRESS: Duration = Duration::from_secs(2);

struct Stress {
    process: Process,
    here: Agent,
    mine: Region,
    peer: transfer_core::Peer,
    path: Path,
}

impl Stress {
    fn start(paths: &str, kind: &str, path: Path) -> Self {
        let mut process = Process::start(paths, 4096);
        let here = two::agent("peer", paths);
        let peer = here.connect(&process.address()).unwrap();
        assert_eq!(process.ask(&format!("own {kind}")), "owned");
        peer.sync().unwrap();
        let mine = here.alloc(start(BLOCKS), "mine").unwrap();
        Self { process, here, mine, peer, path }
    }

    /// All blocks of the region, as of a grant.
    fn lists(&self, grant: &Grant) -> (transfer_core::LocalList, transfer_core::RemoteList) {
        let (len, pages) = (BLOCK_BYTES as u64, (0..BLOCKS).rev().collect::<Vec<_>>());
        let theirs = self.peer.region("paged").unwrap().id;
        let blocks = |id| Desc::paged(id, 0, len, len, pages.clone());
        let local = self.here.prepare(&DescList::from(blocks(self.mine.id()))).unwrap();
        let remote = DescList::from(blocks(theirs).at_generation(grant.generation));
        let remote = self.peer.prepare(&remote).unwrap();
        assert_eq!(remote.path(), self.path);
        (local, remote)
    }

    fn grant(&mut self) -> Grant {
        Grant::parse(&self.process.ask("grant"))
    }

    /// Blocks used anew, found written, and written after they were taken back.
    fn end(mut self) -> (u64, u64, u64) {
        let told = self.process.ask("disown");
        let mut counts = told.split(' ').map(|count| count.parse().unwrap());
        (counts.next().unwrap(), counts.next().unwrap(), counts.next().unwrap())
    }
}

/// A read is either right in every byte, or it is `Stale`.
fn read_under_reuse(paths: &str, kind: &str, path: Path) {
    let mut stress = Stress::start(paths, kind, path);
    let (mut done, mut stale) = (0, 0);
    let until = Instant::now() + STRESS;
    while Instant::now() < until || done == 0 || stale == 0 {
        let grant = stress.grant();
        let (local, remote) = stress.lists(&grant);
        for round in 0_u32.. {
            let picks = picks(round);
            let request = stress.peer.read(&local, &remote).select(&picks, &picks);
            match request.post().unwrap().wait(WAIT) {
                Ok(_) => done += check(&stress.mine, &grant, &picks),
                Err(Error::Stale { .. }) => stale += 1,
                Err(other) => panic!("{other}"),
            }
            if round == 16 {
                break;
            }
        }
    }
    let (reused, written, harmed) = stress.end();
    println!("{path}: {done} blocks read right, {stale} transfers stale, {reused} blocks reused");
    assert!(reused > 0 && written == 0 && harmed == 0);
}

/// From one block, which mostly works, to all, which mostly do not.
fn picks(round: u32) -> Vec<u32> {
    let count = [1, 1, 4, BLOCKS][(round % 4) as usize];
    (0..count).map(|i| (round * 13 + i) % BLOCKS).collect()
}

fn check(mine: &Region, grant: &Grant, picks: &[u32]) -> u64 {
    let mut seen = vec![0; BLOCK_BYTES];
    for &pick in picks {
        let block = BLOCKS - 1 - pick;
        mine.read_at(start(block), &mut seen).unwrap();
        assert!(
            seen == contents(block, grant.usage[block as usize]),
            "another owner's bytes were told as read"
        );
    }
    picks.len() as u64
}

/// After a block was taken back, nobody who held it writes into it.
fn write_under_reuse(paths: &str, kind: &str, path: Path) {
    let mut stress = Stress::start(paths, kind, path);
    stress.mine.write_at(0, &pattern(5, start(BLOCKS))).unwrap();
    let (mut done, mut stale) = (0, 0);
    let until = Instant::now() + STRESS;
    while Instant::now() < until || done == 0 || stale == 0 {
        let grant = stress.grant();
        let (local, remote) = stress.lists(&grant);
        for round in 0..16_u32 {
            let picks = picks(round);
            match stress.peer.write(&local, &remote).select(&picks, &picks).post().unwrap().wait(WAIT) {
                Ok(_) => done += 1,
                Err(Error::Stale { .. }) => stale += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    let (reused, written, harmed) = stress.end();
    println!("{path}: {done} writes done, {stale} stale; {reused} blocks reused, {written} of them written");
    assert!(reused > 0 && written > 0);
    assert_eq!(harmed, 0, "somebody wrote into a block that was taken back");
}

#[test]
fn no_read_over_shared_memory_shows_another_owners_bytes() {
    read_under_reuse("all", "allocated", Path::SharedMemory);
}

#[test]
fn no_read_of_foreign_memory_shows_another_owners_bytes() {
    read_under_reuse("all", "foreign", Path::ProcessMemory);
}

#[test]
fn no_write_over_shared_memory_hits_a_block_that_was_taken_back() {
    write_under_reuse("all", "allocated", Path::SharedMemory);
}

#[test]
fn no_write_to_foreign_memory_hits_a_block_that_was_taken_back() {
    write_under_reuse("all", "foreign", Path::ProcessMemory);
}

#[test]
fn no_read_over_tcp_shows_another_owners_bytes() {
    read_under_reuse("tcp", "allocated", Path::Tcp);
}

#[test]
fn no_write_over_tcp_hits_a_block_that_was_taken_back() {
    write_under_reuse("tcp", "allocated", Path::Tcp);
}

#[test]
fn no_read_over_encrypted_tcp_shows_another_owners_bytes() {
    read_under_reuse("encrypted", "allocated", Path::Tcp);
}

#[test]
fn no_write_over_encrypted_tcp_hits_a_block_that_was_taken_back() {
    write_under_reuse("encrypted", "allocated", Path::Tcp);
}

fn one(region: transfer_core::RegionId, len: u64) -> Desc {
    Desc::contiguous(region, 0, len)
}

#[test]
fn what_is_for_reading_only_is_not_written() {
    for (paths, path) in [(PathSet::ALL, Path::SharedMemory), (PathSet::TCP, Path::Tcp)] {
        let (here, there) = (agent("here", paths), agent("there", paths));
        let theirs = there.alloc_with(4096, &RegionOptions::new("kv").access(Access::ReadOnly)).unwrap();
        theirs.write_at(0, &pattern(1, 4096)).unwrap();
        let mine = here.alloc(4096, "mine").unwrap();
        let peer = here.connect(&there.address().unwrap()).unwrap();
        let local = here.prepare(&one(mine.id(), 4096).into()).unwrap();
        let remote = peer.prepare(&one(theirs.id(), 4096).into()).unwrap();
        assert_eq!(remote.path(), path);
        peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
        assert!(bytes_of(&mine) == pattern(1, 4096));
        let refused = peer.write(&local, &remote).post().unwrap_err();
        assert!(matches!(&refused, Error::ReadOnly { region, .. } if *region == theirs.id()), "{refused}");
    }
}

#[test]
fn only_what_was_revoked_is_stale_and_the_new_generation_holds() {
    for (paths, path) in [(PathSet::ALL, Path::SharedMemory), (PathSet::TCP, Path::Tcp)] {
        let (here, there) = (agent("here", paths), agent("there", paths));
        let theirs = there.alloc_with(8192, &RegionOptions::new("kv").block_bytes(4096)).unwrap();
        let mine = here.alloc(8192, "mine").unwrap();
        let peer = here.connect(&there.address().unwrap()).unwrap();
        let local = here.prepare(&Desc::strided(mine.id(), 0, 4096, 4096, 2).into()).unwrap();
        let at = |generation| {
            let both = Desc::strided(theirs.id(), 0, 4096, 4096, 2).at_generation(generation);
            peer.prepare(&both.into()).unwrap()
        };
        let (first, old) = (at(0), at(theirs.generation()));
        let read =
            |remote, index| peer.read(&local, remote).select(&[index], &[index]).post().unwrap().wait(WAIT);
        read(&first, 1).unwrap();
        let new = at(theirs.revoke(5000, 1).unwrap());
        for remote in [&first, &old] {
            read(remote, 0).unwrap();
            let stale = read(remote, 1).unwrap_err();
            assert!(
                matches!(&stale, Error::Stale { source, .. } if source.offset == 4096),
                "{path}: {stale}"
            );
            assert!(!stale.is_retryable());
        }
        read(&new, 0).unwrap();
        read(&new, 1).unwrap();
        assert!(matches!(theirs.revoke(8000, 193), Err(Error::OutOfBounds { .. })));
    }
}

#[test]
fn a_region_that_was_closed_is_not_touched_by_a_peer_that_thaws() {
    let mut process = Process::start("all", 1 << 20);
    let mut config = config("owner", PathSet::ALL);
    config.peer_timeout = Duration::from_millis(300);
    let here = Agent::new(config).unwrap();
    let target = here.adopt(pattern(7, 1 << 20), "target").unwrap();
    let address = here.address().unwrap();
    assert_eq!(process.ask(&format!("hammer-writes {address}")), "hammering");
    // In whatever it is doing.
    process.freeze();
    // It may have been stopped in mid-copy: then the memory must be kept until it has left.
    match target.close() {
        Ok(()) => {}
        Err(Error::RegionBusy { peer, .. }) => {
            assert!(peer.contains("child"), "{peer}");
            process.thaw();
            let until = Instant::now() + WAIT;
            while target.close().is_err() {
                assert!(Instant::now() < until, "a writer that goes on leaves");
            }
        }
        Err(other) => panic!("{other}"),
    }
    // From here on the bytes are the owner's alone.
    target.write_at(0, &pattern(8, 1 << 20)).unwrap();
    process.thaw();
    assert!(!process.ask("stopped").is_empty());
    assert!(bytes_of(&target) == pattern(8, 1 << 20), "a peer wrote into memory that was closed");
}

#[test]
fn a_writer_that_dies_does_not_hold_up_its_owner() {
    for _ in 0..5 {
        let mut process = Process::start("all", 1 << 20);
        let here = agent("owner", PathSet::ALL);
        let target = here.alloc(1 << 20, "target").unwrap();
        let address = here.address().unwrap();
        assert_eq!(process.ask(&format!("hammer-writes {address}")), "hammering");
        process.kill();
        target.revoke(0, 1 << 20).unwrap();
        target.close().unwrap();
    }
}
