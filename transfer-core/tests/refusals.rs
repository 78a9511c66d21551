//! Memory of this host where the kernel says no: each time a typed error, or another path that is explained.
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

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::NonNull;

use support::{WAIT, agent, bytes_of, pair, pattern};
use transfer_core::{Agent, Desc, DescList, Error, Path, PathSet, Peer, Region, RegionId, RegionOptions};
use transfer_sys::memfd::{Mapping, Memfd, MemfdOptions};
use two::Process;

const SMALL: usize = 4096;
/// Several slices.
const LARGE: usize = 40 << 20;

#[test]
fn child() {
    two::main();
}

/// A region over memory that cannot be written, whatever its owner said when it registered it.
fn unwritable(agent: &Agent, len: usize) -> (Mapping, Region) {
    let memfd = Memfd::create(&MemfdOptions::new("unwritable", len)).unwrap();
    let mapping = Mapping::read_only(memfd.file(), len).unwrap();
    let addr = NonNull::new(mapping.range().addr()).unwrap();
    #[allow(unsafe_code, reason = "registers raw memory")]
    // SAFETY: the mapping is dropped after the agents. That it cannot be written is what the test is about: the kernel
    // is to find out, and nobody else writes it.
    let region = unsafe { agent.register(addr, len, "unwritable") }.unwrap();
    (mapping, region)
}

/// Three descriptors, the last of which lies in the other region.
fn list(good: RegionId, bad: RegionId, len: usize) -> DescList {
    let len = len as u64;
    let descs =
        [Desc::contiguous(good, len, len), Desc::contiguous(good, 0, len), Desc::contiguous(bad, 0, len)];
    descs.into_iter().collect()
}

fn failed(peer: &Peer, outcome: Result<transfer_core::Done, Error>) -> (u32, u64, String) {
    assert!(peer.is_up(), "the peer is not to blame");
    match outcome.expect_err("memory that cannot be written") {
        Error::TransferFailed { source, .. } => (source.desc, source.offset, source.to_string()),
        other => panic!("{other}"),
    }
}

#[test]
fn a_fault_in_mid_batch_is_told_with_its_place() {
    for len in [SMALL, LARGE] {
        let (here, there, peer) = pair(PathSet::SHM);
        let theirs = there.adopt(pattern(2, 2 * len), "good").unwrap();
        let (_their_mapping, bad) = unwritable(&there, len);
        let mine = here.adopt(pattern(1, 3 * len), "mine").unwrap();
        peer.sync().unwrap();
        let local = here.prepare(&DescList::from(Desc::contiguous(mine.id(), 0, 3 * len as u64))).unwrap();
        let remote = peer.prepare(&list(theirs.id(), bad.id(), len)).unwrap();
        assert_eq!(remote.path(), Path::ProcessMemory);

        let outcome = peer.write(&local, &remote).post().unwrap().wait(WAIT);
        let (desc, offset, told) = failed(&peer, outcome);
        assert_eq!(desc, 2, "{told}");
        // Slices end where they end: the large one's last slice begins within the bad descriptor or before it.
        assert!(offset < len as u64 && told.contains("errno 14, memory that was registered"), "{told}");
        let (written, wanted) = (bytes_of(&theirs), pattern(1, 3 * len));
        assert!(
            written[len..] == wanted[..len] && written[..len] == wanted[len..2 * len],
            "what came before it"
        );

        // The other way it can be read, and nothing has broken.
        peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
        assert!(bytes_of(&mine)[2 * len..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_fault_on_this_side_is_told_too() {
    let (here, there, peer) = pair(PathSet::SHM);
    let theirs = there.adopt(pattern(2, 3 * SMALL), "theirs").unwrap();
    let mine = here.adopt(pattern(1, 2 * SMALL), "mine").unwrap();
    let (_mapping, bad) = unwritable(&here, SMALL);
    peer.sync().unwrap();
    let local = here.prepare(&list(mine.id(), bad.id(), SMALL)).unwrap();
    let remote = DescList::from(Desc::paged(theirs.id(), 0, SMALL as u64, SMALL as u64, vec![2, 0, 1]));
    let remote = peer.prepare(&remote).unwrap();
    let outcome = peer.read(&local, &remote).post().unwrap().wait(WAIT);
    let (desc, offset, told) = failed(&peer, outcome);
    // The remote span that would have gone there is the third of the list, page 1.
    assert_eq!((desc, offset), (0, SMALL as u64), "{told}");
}

#[test]
fn another_user_is_served_over_sockets_and_told_why() {
    let here = agent("parent", PathSet::ALL);
    let target = here.adopt(pattern(7, LARGE), "target").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    // Who is not root cannot be another user; who stays root may look at everybody's memory.
    if !is_root() {
        println!("SKIPPED: only root can start a process of another user");
        return;
    }
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    let mut process = Process::start_by(command, "all", target.len(), None);
    let told = process.ask(&format!("fetch {}", here.address().unwrap()));
    assert!(told.starts_with("path: tcp"), "{told}");
    assert!(told.contains("not shm (process_vm): the kernel's ptrace rules forbid it"), "{told}");
}

/// Has the kernel refuse pidfd_open(2) to the process that `command` starts, as the sandboxes of some containers do.
fn forbid_pidfd(command: &mut Command) {
    let op =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code.try_into().unwrap(), jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
    let mut filter = [
        // The number of the call is what the kernel shows first.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_pidfd_open.try_into().unwrap()),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog {
            len: filter.len().try_into().unwrap_or_default(),
            filter: filter.as_mut_ptr(),
        };
        #[allow(unsafe_code, reason = "prctl(2)")]
        // SAFETY: S1. It takes numbers only.
        let bound = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        #[allow(unsafe_code, reason = "prctl(2)")]
        // SAFETY: S1. The program lives until the call returns, and is as long as it says.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if bound == 0 && set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    #[allow(unsafe_code, reason = "pre_exec")]
    // SAFETY: S1. Between fork and exec only two system calls are made; nothing is allocated.
    unsafe {
        command.pre_exec(install)
    };
}

#[test]
fn a_peer_that_cannot_be_held_on_to_is_served_over_sockets_and_told_why() {
    let here = agent("parent", PathSet::ALL);
    let target = here.adopt(pattern(7, LARGE), "target").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    forbid_pidfd(&mut command);
    let mut process = Process::start_by(command, "all", target.len(), None);
    // It connects, and cannot; then we connect, and it cannot.
    let told = process.ask(&format!("fetch {}", here.address().unwrap()));
    assert!(told.starts_with("path: tcp"), "{told}");
    assert!(told.contains("not shm: this process cannot hold on to the peer's: pidfd_open"), "{told}");

    let there = agent("another", PathSet::ALL);
    let peer = there.connect(&process.address()).unwrap();
    let local = there.adopt(vec![0; SMALL], "mine").unwrap();
    let ours = there.prepare(&DescList::from(Desc::contiguous(local.id(), 0, SMALL as u64))).unwrap();
    let region = peer.region("allocated").unwrap();
    let theirs = peer.prepare(&DescList::from(Desc::contiguous(region.id, 0, SMALL as u64))).unwrap();
    assert_eq!(theirs.path(), Path::Tcp);
    let told = peer.explain(&ours, &theirs).unwrap().to_string();
    assert!(told.contains("not shm: the peer did not let this agent in"), "{told}");
    peer.read(&ours, &theirs).post().unwrap().wait(WAIT).unwrap();
    assert!(bytes_of(&local) == pattern(7, target.len())[..SMALL], "what it has read itself");
}

#[test]
fn pages_and_nodes_are_given_as_asked_or_refused_with_the_remedy() {
    let (here, there, peer) = pair(PathSet::SHM);
    let options = RegionOptions::new("asked").huge_pages(true);
    match there.alloc_with(LARGE - 1, &options) {
        Ok(theirs) => {
            theirs.write_at(0, &pattern(5, LARGE - 1)).unwrap();
            peer.sync().unwrap();
            let mine = here.alloc(LARGE - 1, "mine").unwrap();
            let whole = |id| DescList::from(Desc::contiguous(id, 0, LARGE as u64 - 1));
            let remote = peer.prepare(&whole(theirs.id())).unwrap();
            assert_eq!(remote.path(), Path::SharedMemory);
            let local = here.prepare(&whole(mine.id())).unwrap();
            peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
            assert!(bytes_of(&mine) == pattern(5, LARGE - 1));
        }
        Err(error) => {
            println!("SKIPPED in part: {error}");
            assert!(error.to_string().contains("raise vm.nr_hugepages"), "{error}");
        }
    }
    let error = there.alloc_with(SMALL, &RegionOptions::new("far").numa_node(Some(1000))).unwrap_err();
    assert!(matches!(&error, Error::Os(os) if os.op == "mbind"), "{error}");
    for options in [options, RegionOptions::new("near").numa_node(Some(0))] {
        let error = there.adopt_with(vec![0; SMALL], &options).unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    }
}

const NOBODY: u32 = 65534;

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t0"))
}

#[test]
fn a_shortage_of_address_space_is_an_error_and_leaves_nothing_behind() {
    let here = agent("parent", PathSet::ALL);
    let _large = here.alloc(512 << 20, "large").unwrap();
    let _target = here.alloc(SMALL, "target").unwrap();
    let mut command = Command::new("sh");
    // KiB of address space: enough for the process and its threads, not for the large region.
    command.args(["-c", "ulimit -v 500000 && exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    let mut process = Process::start_by(command, "shm", SMALL, None);
    let told = process.ask(&format!("exhaust {}", here.address().unwrap()));
    let lines: Vec<&str> = told.split("; ").collect();
    assert!(lines[0].starts_with("mmap(") && lines[0].contains("Cannot allocate memory"), "{told}");
    assert!(
        lines[1].starts_with("mmap(536870912 shared bytes") && lines[1].contains("Cannot allocate"),
        "{told}"
    );
}
