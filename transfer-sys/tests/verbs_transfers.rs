//! Moving bytes between two queue pairs of one process, every way there is.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod verbs;

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use transfer_sys::verbs::{
    Access, Bind, MemoryRegion, MemoryWindow, PortState, QpState, RemoteMemory, SendBatch, SendFlags, SendOp,
    Sge, WcOpcode, WcStatus,
};
use verbs::{ALL, Bed, End, Memory, PORT, is_real, pattern};

#[test]
fn a_device_says_what_it_is() {
    let bed = Bed::new();
    let context = bed.open(0);
    let attr = context.device_attr().unwrap();
    assert!(
        attr.ports >= 1 && attr.qp_wrs_max >= 1024 && attr.sges_max >= 4 && attr.reads_max >= 1,
        "{attr:?}"
    );
    let port = context.port_attr(PORT).unwrap();
    assert_eq!(port.state, PortState::Active);
    assert!(port.active_mtu.bytes() >= 1024 && port.rate_mbps > 0, "{port:?}");
    assert_eq!(context.port_attr(200).unwrap_err().errno, libc::EINVAL);
    let (_, ip, _) = verbs::address_index(&context);
    assert!(is_real() || ip == std::net::Ipv4Addr::new(10, 77, 0, 1), "{ip}");
    assert!(context.gids(PORT).unwrap().iter().any(|entry| entry.gid.is_link_local()));
    assert_eq!(context.poll_event().unwrap(), None);
    drop(context);
    bed.assert_empty();
}

#[test]
fn writes_and_reads_arrive() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let to = b.address().memory;
    for len in [1, 8, 4096, 65_537, 700_000] {
        a.bytes.fill(0, &pattern(len, len));
        b.bytes.fill(0, &vec![0; len]);
        a.post(len as u64, &SendOp::Write(to), &[a.sge(0, len)]);
        let done = a.poll_one();
        assert_eq!((done.wr_id(), done.opcode()), (len as u64, Some(WcOpcode::Write)), "{done:?}");
        assert!(b.bytes.get(0, len) == pattern(len, len), "write of {len}");

        b.bytes.fill(0, &pattern(len + 1, len));
        a.post(1, &SendOp::Read(to), &[a.sge(0, len)]);
        let done = a.poll_one();
        assert_eq!((done.opcode(), done.byte_len() as usize), (Some(WcOpcode::Read), len), "{done:?}");
        assert!(a.bytes.get(0, len) == pattern(len + 1, len), "read of {len}");
    }
    drop((a, b));
    bed.assert_empty();
}

#[test]
fn several_ranges_are_gathered_and_scattered() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    a.bytes.fill(0, &pattern(1, 4096));
    let sges = [a.sge(100, 10), a.sge(0, 50), a.sge(1000, 1), a.sge(2000, 300)];
    a.post(1, &SendOp::Write(b.address().memory), &sges);
    assert!(a.poll_one().is_ok());
    let expected =
        [a.bytes.get(100, 10), a.bytes.get(0, 50), a.bytes.get(1000, 1), a.bytes.get(2000, 300)].concat();
    assert_eq!(b.bytes.get(0, expected.len()), expected);

    let into = [a.sge(5000, 361 - 61), a.sge(9000, 61)];
    a.post(2, &SendOp::Read(b.address().memory), &into);
    assert!(a.poll_one().is_ok());
    assert_eq!([a.bytes.get(5000, 300), a.bytes.get(9000, 61)].concat(), expected);
}

#[test]
fn messages_and_numbers_complete_receives() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    a.bytes.fill(0, &pattern(3, 1000));
    b.receive(10, &[b.sge(0, 600), b.sge(5000, 600)]);
    b.receive(11, &[]);
    b.receive(12, &[b.sge(8000, 100)]);
    a.post(1, &SendOp::SendImm(77), &[a.sge(0, 1000)]);
    a.post(2, &SendOp::WriteImm(b.address().memory, 0xdead_beef), &[a.sge(0, 16)]);
    a.post(3, &SendOp::Send, &[a.sge(4, 8)]);
    assert!(a.poll(3).iter().all(|done| done.is_ok()));
    let got = b.poll(3);
    let seen: Vec<_> = got.iter().map(|done| (done.wr_id(), done.opcode().unwrap(), done.imm())).collect();
    assert_eq!(
        seen,
        [
            (10, WcOpcode::Receive, Some(77)),
            (11, WcOpcode::ReceiveWriteImm, Some(0xdead_beef)),
            (12, WcOpcode::Receive, None)
        ]
    );
    assert_eq!((got[0].byte_len(), got[2].byte_len()), (1000, 8));
    assert_eq!([b.bytes.get(16, 584), b.bytes.get(5000, 400)].concat(), pattern(3, 1000)[16..]);
    assert_eq!(b.bytes.get(0, 16), pattern(3, 16));
    assert_eq!(b.bytes.get(8000, 8), pattern(3, 12)[4..]);
}

#[test]
fn a_number_needs_no_bytes() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    b.receive(5, &[]);
    a.post(1, &SendOp::WriteImm(b.address().memory, 9), &[]);
    assert!(a.poll_one().is_ok());
    assert_eq!(b.poll_one().imm(), Some(9));
}

#[test]
fn inline_bytes_need_no_registration_and_may_change_at_once() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    assert!(a.qp.caps().inline_bytes >= 64);
    let mut batch = SendBatch::new(1, 0, 64);
    for round in 0..3 {
        let bytes = pattern(round, 64);
        batch.clear();
        batch.push_inline(1, &SendOp::Write(b.address().memory), SendFlags::SIGNALED, &bytes).unwrap();
        a.post_batch(&mut batch).unwrap();
        batch.clear();
        batch.push_inline(1, &SendOp::Send, SendFlags::NONE, &[0; 64]).unwrap();
        assert!(a.poll_one().is_ok());
        assert_eq!(b.bytes.get(0, 64), bytes);
    }
    let limit = a.qp.caps().inline_bytes as usize;
    let mut batch = SendBatch::new(1, 0, limit + 1);
    batch
        .push_inline(1, &SendOp::Write(b.address().memory), SendFlags::SIGNALED, &vec![0; limit + 1])
        .unwrap();
    assert_eq!(a.post_batch(&mut batch).unwrap_err().posted, 0);
}

#[test]
fn a_window_gives_access_until_it_is_taken_back() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let window = MemoryWindow::new(&b.pd).unwrap();
    let key = window.next_key();
    let bind = Bind::all(&window, key, &b.region, Access::REMOTE_WRITE | Access::REMOTE_READ);
    b.post(1, &SendOp::Bind(bind), &[]);
    let done = b.poll_one();
    assert_eq!(done.opcode(), Some(WcOpcode::Bind), "{done:?}");

    let to = RemoteMemory::new(b.bytes.addr(0), key);
    a.bytes.fill(0, b"through the window");
    a.post(2, &SendOp::Write(to), &[a.sge(0, 18)]);
    assert!(a.poll_one().is_ok());
    assert_eq!(b.bytes.get(0, 18), b"through the window");

    b.post(3, &SendOp::Invalidate(key), &[]);
    assert_eq!(b.poll_one().opcode(), Some(WcOpcode::Invalidate));
    a.bytes.fill(0, b"too late, too late");
    a.post(4, &SendOp::Write(to), &[a.sge(0, 18)]);
    assert_eq!(a.poll_one().status(), WcStatus::RemoteAccess);
    assert_eq!(b.bytes.get(0, 18), b"through the window");
    drop((a, window, b));
    bed.assert_empty();
}

#[test]
fn a_registration_with_a_window_cannot_end() {
    let Some(bed) = Bed::fake() else { return };
    let (_a, b) = bed.connected();
    let window = MemoryWindow::new(&b.pd).unwrap();
    let memory = Memory::new(4096);
    // SAFETY: V3. The memory lives until the end of this test.
    let region = unsafe { MemoryRegion::register(&b.pd, memory.range(), ALL()) }.unwrap();
    b.post(1, &SendOp::Bind(Bind::all(&window, window.next_key(), &region, Access::REMOTE_READ)), &[]);
    assert!(b.poll_one().is_ok());
    let refused = region.close().unwrap_err();
    assert_eq!(refused.1.errno, libc::EBUSY);
    drop(window);
    refused.0.close().unwrap();
}

#[test]
fn a_registration_may_have_a_base_of_its_own() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let memory = Memory::new(8192);
    let access = ALL() | Access::RELAXED;
    let base = 0x4000_0000 + memory.addr(0) % 4096;
    // SAFETY: V3. The memory lives until the end of this test.
    let region = unsafe { MemoryRegion::register_at(&b.pd, memory.range(), base, access) }.unwrap();
    // SAFETY: V3. Refused.
    let refused = unsafe { MemoryRegion::register_at(&b.pd, memory.range(), base + 8, access) };
    assert_eq!(refused.unwrap_err().errno, libc::EINVAL, "the kernel maps whole pages");
    assert!(region.is_relaxed());
    a.bytes.fill(0, b"based");
    a.post(1, &SendOp::Write(RemoteMemory::new(base + 7, region.remote_key())), &[a.sge(0, 5)]);
    assert!(a.poll_one().is_ok());
    assert_eq!(memory.get(7, 5), b"based");
    drop(region);
}

#[test]
fn memory_of_a_descriptor_can_be_registered_where_the_device_can() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    // SAFETY: a string that ends with zero.
    let fd = unsafe { libc::memfd_create(c"stands for a dma-buf".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let file = std::fs::File::from(fd);
    file.set_len(65536).unwrap();
    let register = |offset, len| MemoryRegion::register_dmabuf(&b.pd, file.as_fd(), offset, len, 0, ALL());
    if is_real() {
        // What SoftRoCE and its provider cannot do is said, and nothing is registered.
        assert_eq!(register(0, 4096).unwrap_err().errno, libc::EOPNOTSUPP);
        return;
    }
    let region = register(4096, 8192).unwrap();
    a.bytes.fill(0, b"device memory");
    a.post(1, &SendOp::Write(RemoteMemory::new(10, region.remote_key())), &[a.sge(0, 13)]);
    assert!(a.poll_one().is_ok());
    let mut bytes = [0; 13];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4106).unwrap();
    assert_eq!(&bytes, b"device memory");
    assert_eq!(register(60_000, 8192).unwrap_err().errno, libc::EINVAL);
}

#[test]
fn states_are_gone_through_in_order() {
    let bed = Bed::new();
    let (a, b) = (End::new(&bed.open(0), |_| {}), End::new(&bed.open(1), |_| {}));
    assert_eq!(a.qp.query().unwrap().state, QpState::Reset);
    assert_eq!(a.qp.ready_to_send(&a.to_send()).unwrap_err().errno, libc::EINVAL);
    let mut batch = SendBatch::new(1, 1, 0);
    batch.push(1, &SendOp::Send, SendFlags::SIGNALED, &[a.sge(0, 1)]).unwrap();
    // SoftRoCE refuses it as well, but keeps it in the queue, and sends it when it can.
    assert!(is_real() || a.post_batch(&mut batch).is_err(), "nothing can be sent yet");
    a.connect(&b.address());
    let status = a.qp.query().unwrap();
    assert_eq!((status.state, status.peer_qp), (QpState::Sending, b.qp.number()));
    a.qp.fail().unwrap();
    assert_eq!(a.qp.query().unwrap().state, QpState::Error);
    a.qp.reset().unwrap();
    a.connect(&b.address());
    b.connect(&a.address());
    a.post(1, &SendOp::Write(b.address().memory), &[Sge::new(a.bytes.addr(0), 4, a.region.local_key())]);
    let done = a.poll_one();
    assert!(done.is_ok(), "a queue pair can be used anew: {done:?}");
    a.qp.close().unwrap();
}
