use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::copy;

fn create(len: usize) -> Memfd {
    Memfd::create(&MemfdOptions::new("test", len)).unwrap()
}

#[test]
fn two_mappings_show_the_same_bytes() {
    let memfd = create(8192);
    let other = Mapping::of(memfd.file(), 8192).unwrap();
    let mut out = [0; 5];
    // SAFETY: both mappings live through the calls.
    unsafe { copy::copy_in(memfd.range().sub(4094, 5).unwrap(), b"hello") };
    // SAFETY: as above.
    unsafe { copy::copy_out(&mut out, other.range().sub(4094, 5).unwrap()) };
    assert_eq!(&out, b"hello");
}

#[test]
fn a_file_that_could_shrink_is_refused() {
    // SAFETY: a valid C string and plain flags.
    let raw = unsafe { libc::memfd_create(c"open".as_ptr(), libc::MFD_ALLOW_SEALING) };
    // SAFETY: just made, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    assert_eq!(Mapping::of(&fd, 0).unwrap_err().errno, libc::EPERM);
    assert_eq!(Mapping::read_only(&fd, 0).unwrap_err().errno, libc::EPERM);
}

#[test]
fn a_file_smaller_than_promised_is_refused() {
    let memfd = create(4096);
    assert_eq!(Mapping::of(memfd.file(), 4097).unwrap_err().errno, libc::EOVERFLOW);
    assert_eq!(Mapping::read_only(memfd.file(), 4097).unwrap_err().errno, libc::EOVERFLOW);
}

#[test]
fn a_sealed_file_cannot_change_its_size() {
    let memfd = create(4096);
    for len in [0, 8192] {
        // SAFETY: plain call on an owned descriptor.
        assert_eq!(unsafe { libc::ftruncate(memfd.file().as_raw_fd(), len) }, -1);
    }
}

/// What somebody else has of the file: a descriptor of its own, opened anew for reading and writing, which is all that
/// a process can make of one that it was given.
fn as_peer(memfd: &Memfd) -> File {
    let path = format!("/proc/self/fd/{}", memfd.file().as_raw_fd());
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn what_peers_may_not_write_they_can_only_read() {
    let memfd = Memfd::create(&MemfdOptions::new("mine", 8192).peers_may_write(false)).unwrap();
    let mut peer = as_peer(&memfd);
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(errno(peer.write_all(b"x")), Some(libc::EPERM));
    assert_eq!(errno(peer.write_all_at(b"x", 4096)), Some(libc::EPERM));
    assert_eq!(errno(peer.set_len(0)), Some(libc::EPERM));
    assert_eq!(errno(peer.set_len(1 << 20)), Some(libc::EPERM));
    for mode in [libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0] {
        // SAFETY: plain call on an owned descriptor.
        let rc = unsafe { libc::fallocate(peer.as_raw_fd(), mode, 0, 16384) };
        assert_eq!((rc, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)), "{mode}");
    }
    let peer = OwnedFd::from(peer);
    assert_eq!(Mapping::of(&peer, 8192).unwrap_err().errno, libc::EPERM);

    let seen = Mapping::read_only(&peer, 8192).unwrap();
    assert!(!seen.is_writable());
    seen.populate().unwrap();
    let (addr, prot) = (seen.range().addr().cast(), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the range is that mapping, and the call is refused.
    assert_eq!(unsafe { libc::mprotect(addr, 8192, prot) }, -1, "cannot become writable");

    // SAFETY: both mappings live through the calls.
    unsafe { copy::copy_in(memfd.range().sub(5000, 5).unwrap(), b"still") };
    let mut out = [0; 5];
    // SAFETY: as above.
    unsafe { copy::copy_out(&mut out, seen.range().sub(5000, 5).unwrap()) };
    assert_eq!(&out, b"still", "its maker writes, and the peer sees it");
}

#[test]
fn what_peers_may_write_they_can_map_either_way() {
    let memfd = create(4096);
    let peer = OwnedFd::from(as_peer(&memfd));
    assert!(Mapping::of(&peer, 4096).unwrap().is_writable());
    assert!(!Mapping::read_only(&peer, 4096).unwrap().is_writable());
}

#[test]
fn huge_pages_are_there_or_the_error_says_what_to_raise() {
    let options = MemfdOptions::new("huge", (5 << 20) + 17).pages(Pages::Huge).peers_may_write(false);
    match Memfd::create(&options) {
        Ok(memfd) => {
            memfd.populate().unwrap();
            assert_eq!(memfd.range().len(), (5 << 20) + 17);
            assert_eq!(Mapping::of(memfd.file(), 1).unwrap_err().errno, libc::EPERM);
            // A peer maps some of it; both unmappings are of whole pages, which their drops assert.
            let seen = Mapping::read_only(memfd.file(), (5 << 20) + 17).unwrap();
            seen.populate().unwrap();
            // SAFETY: both mappings live through the calls.
            unsafe { copy::copy_in(memfd.range().sub(5 << 20, 5).unwrap(), b"hello") };
            let mut out = [0; 5];
            // SAFETY: as above.
            unsafe { copy::copy_out(&mut out, seen.range().sub(5 << 20, 5).unwrap()) };
            assert_eq!(&out, b"hello");
        }
        Err(error) => {
            println!("SKIPPED in part, no huge pages: {error}");
            assert!(error.to_string().contains("raise vm.nr_hugepages"), "{error}");
        }
    }
    for bytes in [3 << 20, 1 << 40] {
        let error = Memfd::create(&MemfdOptions::new("odd", 4096).pages(Pages::HugeOf(bytes))).unwrap_err();
        assert!(error.op == "memfd_create" && error.operands.contains("/sys/kernel/mm/hugepages"), "{error}");
    }
}

#[test]
fn more_huge_pages_than_any_pool_has_are_an_error_that_leaves_nothing_behind() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for _ in 0..100 {
        let options = MemfdOptions::new("huge", 1 << 45).pages(Pages::Huge);
        Memfd::create(&options).unwrap_err();
        Memfd::create(&MemfdOptions::new("long", usize::MAX)).unwrap_err();
    }
    // Other tests of this process open some meanwhile.
    assert!(descriptors() < before + 50);
}

#[test]
fn memory_comes_from_the_node_that_was_asked_for() {
    let bound = |node| Memfd::create(&MemfdOptions::new("bound", 8192).numa_node(Some(node)));
    match bound(0) {
        Ok(memfd) => {
            memfd.populate().unwrap();
            assert_eq!(numa::node_of(memfd.range()), Some(0));
        }
        Err(error) => {
            println!("SKIPPED in part, no nodes: {error}");
            assert!([libc::ENOSYS, libc::EPERM].contains(&error.errno), "{error}");
        }
    }
    for node in [1023, 1024, u32::MAX] {
        let error = bound(node).unwrap_err();
        assert!(error.op == "mbind" && error.operands.contains("/sys/devices/system/node"), "{error}");
    }
}
