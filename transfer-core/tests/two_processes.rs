//! Every shape of list, both ways, over every path, between two real processes. After each transfer each byte of
//! both regions is compared, the peer's as the peer sees them.
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

use support::{REGION_BYTES, WAIT, agent, bytes_of, expected, pattern, shapes};
use transfer_core::{DescList, Path, PathSet};
use two::Process;

#[test]
fn child() {
    two::main();
}

fn all_shapes(paths: &str, label: &str, path: Path) {
    let mut process = Process::start(paths, REGION_BYTES);
    let here = two::agent("parent", paths);
    let peer = here.connect(&process.address()).unwrap();
    let mine = here.alloc(REGION_BYTES, "mine").unwrap();
    // The spans of the peer's region are made from a stand-in of the same name and length.
    let info = peer.region(label).unwrap();
    let mut theirs = process.dump(label);
    assert!(theirs == pattern(if label == "foreign" { 101 } else { 100 }, REGION_BYTES));
    for (local_name, local, local_spans) in shapes(&mine) {
        for (remote_name, remote, remote_spans) in shapes(&mine) {
            let what = format!("{local_name} and {remote_name} of {label} over {path}");
            let remote: DescList =
                remote.descs().iter().map(|desc| desc.clone().in_region(info.id)).collect();
            let (l, r) = (here.prepare(&local).unwrap(), peer.prepare(&remote).unwrap());
            assert_eq!(r.path(), path, "{what}");
            assert_eq!(peer.explain(&l, &r).unwrap().encrypted, paths == "encrypted", "{what}");

            let before = bytes_of(&mine);
            peer.read(&l, &r).notify(b"read").post().unwrap().wait(WAIT).unwrap();
            assert_eq!(process.ask("notif"), "read");
            assert!(
                bytes_of(&mine) == expected(&theirs, &remote_spans, &before, &local_spans),
                "read of {what}"
            );

            mine.write_at(0, &pattern(remote_spans.len() as u64, REGION_BYTES)).unwrap();
            let before = bytes_of(&mine);
            peer.write(&l, &r).notify(b"written").post().unwrap().wait(WAIT).unwrap();
            // The notification comes when the data is there, so the peer looks only now.
            assert_eq!(process.ask("notif"), "written");
            let after = process.dump(label);
            assert!(after == expected(&before, &local_spans, &theirs, &remote_spans), "write of {what}");
            assert!(bytes_of(&mine) == before, "write of {what} changed its source");
            theirs = after;
        }
    }
}

#[test]
fn every_shape_over_shared_memory() {
    all_shapes("all", "allocated", Path::SharedMemory);
}

#[test]
fn every_shape_over_process_memory() {
    all_shapes("all", "foreign", Path::ProcessMemory);
}

#[test]
fn every_shape_over_tcp() {
    all_shapes("tcp", "allocated", Path::Tcp);
}

#[test]
fn every_shape_over_encrypted_tcp() {
    all_shapes("encrypted", "allocated", Path::Tcp);
}

#[test]
fn every_shape_of_foreign_memory_over_tcp() {
    all_shapes("tcp", "foreign", Path::Tcp);
}

#[test]
fn a_large_transfer_both_ways_over_every_path() {
    const LEN: usize = (20 << 20) + 4321;
    for (paths, label) in
        [("all", "allocated"), ("all", "foreign"), ("tcp", "allocated"), ("encrypted", "allocated")]
    {
        let mut process = Process::start(paths, LEN);
        let here = two::agent("parent", paths);
        let peer = here.connect(&process.address()).unwrap();
        let mine = here.alloc(LEN, "mine").unwrap();
        let whole = |id| DescList::from(transfer_core::Desc::contiguous(id, 0, LEN as u64));
        let l = here.prepare(&whole(mine.id())).unwrap();
        let r = peer.prepare(&whole(peer.region(label).unwrap().id)).unwrap();
        peer.read(&l, &r).post().unwrap().wait(WAIT).unwrap();
        let seed = if label == "foreign" { 101 } else { 100 };
        assert!(bytes_of(&mine) == pattern(seed, LEN), "read of {label} over {paths}");
        mine.write_at(0, &pattern(7, LEN)).unwrap();
        peer.write(&l, &r).notify(b"written").post().unwrap().wait(WAIT).unwrap();
        assert_eq!(process.ask("notif"), "written");
        assert!(process.dump(label) == pattern(7, LEN), "write of {label} over {paths}");
    }
}

#[test]
fn path_sets_of_the_two_sides_meet() {
    let mut process = Process::start("tcp", 4096);
    let here = agent("parent", PathSet::ALL);
    let peer = here.connect(&process.address()).unwrap();
    let mine = here.alloc(4096, "mine").unwrap();
    let whole = |id| DescList::from(transfer_core::Desc::contiguous(id, 0, 4096));
    let l = here.prepare(&whole(mine.id())).unwrap();
    let r = peer.prepare(&whole(peer.region("allocated").unwrap().id)).unwrap();
    assert_eq!(r.path(), Path::Tcp);
    let told = peer.explain(&l, &r).unwrap().to_string();
    assert!(told.contains("not shm: the peer"), "{told}");
}
