//! What goes wrong: wrong keys, peers that are not ready or gone, ports and devices that fail.
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

use std::sync::Arc;

use fake_verbs::{DeviceConfig, LinkKind, World};
use transfer_sys::verbs::{
    Access, CompletionQueue, EventKind, Library, LinkLayer, MemoryRegion, MemoryWindow, ProtectionDomain,
    QpConfig, QpState, QueuePair, RecvBatch, RemoteKey, RemoteMemory, Retry, Route, SendOp, Sge, Subject,
    ToInit, ToReceive, WcStatus,
};
use verbs::{BYTES, Bed, End, Memory, PORT, is_real};

/// Posts `op`, and one more behind it: the first has to fail as `status`, and the second is flushed.
fn fails(a: &End, op: &SendOp<'_>, sges: &[Sge], status: WcStatus) {
    a.post(1, op, sges);
    // It may have failed already, and then nothing more is taken but flushed all the same.
    a.post(2, op, sges);
    let done = a.poll(2);
    assert_eq!((done[0].wr_id(), done[0].status()), (1, status), "{done:?}");
    assert_eq!((done[1].wr_id(), done[1].status()), (2, WcStatus::Flushed), "{done:?}");
    assert_eq!(a.qp.query().unwrap().state, QpState::Error);
}

#[test]
fn memory_is_touched_by_the_right_key_within_bounds_only() {
    let bed = Bed::new();
    for case in 0..5 {
        let (a, b) = bed.connected();
        let to = b.address().memory;
        let wrong = match case {
            0 => RemoteMemory::new(to.addr, RemoteKey::new(to.key.raw() ^ 0x5500)),
            1 => RemoteMemory::new(to.addr + BYTES as u64 - 7, to.key),
            2 => RemoteMemory::new(to.addr - 1, to.key),
            3 => RemoteMemory::new(u64::MAX - 3, to.key),
            _ => RemoteMemory::new(0, to.key),
        };
        b.bytes.fill(0, &[9; 64]);
        fails(&a, &SendOp::Write(wrong), &[a.sge(0, 8)], WcStatus::RemoteAccess);
        assert_eq!(b.bytes.get(0, 64), [9; 64]);
        let status = WcStatus::RemoteAccess;
        assert!(status.retry() == Retry::Hopeless && status.words().contains("wrong key"));
    }
}

#[test]
fn memory_of_another_domain_or_without_the_right_is_out_of_reach() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let other = ProtectionDomain::new(&b.context).unwrap();
    let memory = Memory::new(4096);
    // SAFETY: V3. The memory lives until the end of this test.
    let region = unsafe { MemoryRegion::register(&other, memory.range(), verbs::ALL()) }.unwrap();
    let to = RemoteMemory::new(memory.addr(0), region.remote_key());
    fails(&a, &SendOp::Write(to), &[a.sge(0, 8)], WcStatus::RemoteAccess);

    let (a, b) = bed.connected();
    // SAFETY: V3. As above.
    let region = unsafe { MemoryRegion::register(&b.pd, memory.range(), Access::REMOTE_READ) }.unwrap();
    let to = RemoteMemory::new(memory.addr(0), region.remote_key());
    a.post(1, &SendOp::Read(to), &[a.sge(0, 8)]);
    assert!(a.poll_one().is_ok());
    fails(&a, &SendOp::Write(to), &[a.sge(0, 8)], WcStatus::RemoteAccess);

    let (a, b) = bed.connected();
    // SAFETY: V3. As above.
    let region = unsafe { MemoryRegion::register(&b.pd, memory.range(), verbs::ALL()) }.unwrap();
    let to = RemoteMemory::new(memory.addr(0), region.remote_key());
    region.close().unwrap();
    fails(&a, &SendOp::Write(to), &[a.sge(0, 8)], WcStatus::RemoteAccess);
}

#[test]
fn writing_by_peers_needs_writing_by_the_owner() {
    let Some(bed) = Bed::fake() else { return };
    let end = End::new(&bed.open(0), |_| {});
    // SAFETY: V3. Refused.
    let refused = unsafe { MemoryRegion::register(&end.pd, end.bytes.range(), Access::REMOTE_WRITE) };
    assert_eq!(refused.unwrap_err().errno, libc::EINVAL);
    let nowhere = transfer_sys::RawRange::new(std::ptr::without_provenance_mut(4096), 4096);
    // SAFETY: V3. Refused.
    let refused = unsafe { MemoryRegion::register(&end.pd, nowhere, Access::LOCAL_READ) };
    let error = refused.unwrap_err();
    assert!(error.errno == libc::EFAULT && error.to_string().contains("4096 bytes at 0x1000"), "{error}");
}

#[test]
fn local_ranges_are_checked_as_well() {
    let bed = Bed::new();
    for case in 0..2 {
        let (a, b) = bed.connected();
        let sge = if case == 0 {
            Sge::new(a.bytes.addr(0) + BYTES as u64 - 1, 2, a.region.local_key())
        } else {
            Sge::new(a.bytes.addr(0), 8, b.region.local_key())
        };
        // The same key may be another registration's where devices count by themselves.
        if case == 1 && (is_real() || a.region.local_key() == b.region.local_key()) {
            continue;
        }
        a.post(1, &SendOp::Write(b.address().memory), &[sge]);
        let status = a.poll_one().status();
        // SoftRoCE calls it an operation that the queue pair cannot do.
        let fits = status == WcStatus::LocalProtection || is_real() && status == WcStatus::LocalOperation;
        assert!(fits, "{status:?}");
    }
}

#[test]
fn a_receiver_that_is_not_ready_is_asked_again_and_given_up() {
    let bed = Bed::new();
    let (mut a, mut b) = (End::new(&bed.open(0), |_| {}), End::new(&bed.open(1), |_| {}));
    (a.retries, b.retries) = ((6, 3), (6, 3));
    a.connect(&b.address());
    b.connect(&a.address());
    fails(&a, &SendOp::Send, &[a.sge(0, 8)], WcStatus::ReceiverNotReady);

    // With as many attempts as it takes, it waits until there is a receive.
    let (mut a, mut b) = (End::new(&bed.open(0), |_| {}), End::new(&bed.open(1), |_| {}));
    (a.retries, b.retries) = ((6, 7), (6, 7));
    a.connect(&b.address());
    b.connect(&a.address());
    a.post(1, &SendOp::SendImm(4), &[a.sge(0, 8)]);
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert_eq!(a.cq.poll(&mut [Default::default(); 4]).unwrap(), 0);
    b.receive(9, &[b.sge(0, 8)]);
    assert!(a.poll_one().is_ok());
    assert_eq!(b.poll_one().imm(), Some(4));
}

#[test]
fn a_message_that_is_too_long_fails_at_both_ends() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    b.receive(7, &[b.sge(0, 16)]);
    a.post(1, &SendOp::Send, &[a.sge(0, 17)]);
    // SoftRoCE calls it a failed operation at both ends.
    let status = a.poll_one().status();
    let (sender, receiver) = if is_real() {
        (WcStatus::RemoteOperation, WcStatus::LocalOperation)
    } else {
        (WcStatus::RemoteInvalidRequest, WcStatus::LocalLength)
    };
    assert_eq!(status, sender);
    let done = b.poll_one();
    assert_eq!((done.wr_id(), done.status()), (7, receiver));
}

#[test]
fn what_is_posted_comes_back_when_a_queue_pair_fails() {
    let bed = Bed::new();
    let (_a, b) = bed.connected();
    let mut batch = RecvBatch::new(5, 5);
    (0..5).for_each(|id| batch.push(id, &[b.sge(0, 8)]).unwrap());
    // SAFETY: V3. The memory lives as long as the queue pair.
    unsafe { b.qp.post_receive(&mut batch) }.unwrap();
    b.qp.fail().unwrap();
    let done = b.poll(5);
    assert_eq!(done.iter().map(|done| done.wr_id()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(done.iter().all(|done| done.status() == WcStatus::Flushed));
    b.post(8, &SendOp::Write(b.address().memory), &[b.sge(0, 8)]);
    assert_eq!(b.poll_one().status(), WcStatus::Flushed);
}

#[test]
fn a_queue_pair_that_is_gone_or_connected_otherwise_does_not_answer() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let to = b.address().memory;
    b.qp.close().unwrap();
    fails(&a, &SendOp::Write(to), &[a.sge(0, 8)], WcStatus::RetryExceeded);
    assert_eq!(WcStatus::RetryExceeded.retry(), Retry::OnNewConnection);

    // Numbers of packets that do not fit are not answered either.
    let (a, b) = (End::new(&bed.open(0), |_| {}), End::new(&bed.open(1), |_| {}));
    a.connect(&b.address());
    let mut address = a.address();
    address.psn += 1000;
    b.connect(&address);
    if !is_real() {
        fails(&a, &SendOp::Write(b.address().memory), &[a.sge(0, 8)], WcStatus::RetryExceeded);
    }
}

#[test]
fn a_completion_queue_that_overruns_is_fatal() {
    let Some(bed) = Bed::fake() else { return };
    let context = bed.open(0);
    let cq = CompletionQueue::new(&context, 4, None, 31).unwrap();
    let (a, b) = (End::with_cq(&context, &cq, |_| {}), End::new(&bed.open(1), |_| {}));
    a.connect(&b.address());
    b.connect(&a.address());
    for id in 0..5 {
        a.post(id, &SendOp::Write(b.address().memory), &[a.sge(0, 8)]);
    }
    let first = a.event();
    assert_eq!((first.kind, first.subject), (EventKind::CompletionQueueError, Subject::CompletionQueue(31)));
    let second = a.event();
    assert_eq!((second.kind, second.subject), (EventKind::QueuePairFatal, Subject::QueuePair(a.qp.number())));
    assert_eq!(a.poll(4).len(), 4, "what was there before can be fetched");
}

#[test]
fn addresses_have_to_fit() {
    let Some(_) = Bed::fake() else { return };
    let ip = |last| std::net::Ipv4Addr::new(10, 0, 0, last);
    let mut far = DeviceConfig::new("far", ip(3));
    far.wire = 7;
    let world =
        World::new(&[DeviceConfig::new("here", ip(1)), DeviceConfig::new("there", ip(2)), far]).unwrap();
    let library = Library::open_at(world.library()).unwrap();
    let here = verbs::open(&library, "here");

    // Another wire: the way looks right, and nobody answers.
    let (a, b) = (End::new(&here, |_| {}), End::new(&verbs::open(&library, "far"), |_| {}));
    a.connect(&b.address());
    b.connect(&a.address());
    fails(&a, &SendOp::Write(b.address().memory), &[a.sge(0, 8)], WcStatus::RetryExceeded);

    // An address of the other version of RoCE.
    let (a, b) = (End::new(&here, |_| {}), End::new(&verbs::open(&library, "there"), |_| {}));
    a.qp.init(&ToInit::new(PORT)).unwrap();
    let mut to = a.to_receive(&b.address());
    let mut route = to.route.global.unwrap();
    route.from_index = 2;
    to.route.global = Some(route);
    a.qp.ready_to_receive(&to).unwrap();
    a.qp.ready_to_send(&a.to_send()).unwrap();
    b.connect(&a.address());
    fails(&a, &SendOp::Write(b.address().memory), &[a.sge(0, 8)], WcStatus::RetryExceeded);

    // On Ethernet there is no way by LID, and no packet above what the port takes.
    let c = End::new(&here, |_| {});
    c.qp.init(&ToInit::new(PORT)).unwrap();
    let mut to = c.to_receive(&b.address());
    to.route = Route::by_lid(PORT, 5);
    assert_eq!(c.qp.ready_to_receive(&to).unwrap_err().errno, libc::EINVAL);
}

#[test]
fn ports_of_infiniband_are_reached_by_lid() {
    let Some(_) = Bed::fake() else { return };
    let device = |name, lid| {
        let mut device = DeviceConfig::new(name, std::net::Ipv4Addr::UNSPECIFIED);
        (device.link, device.lid, device.windows) = (LinkKind::Infiniband, lid, false);
        device
    };
    let world = World::new(&[device("ib0", 17), device("ib1", 18)]).unwrap();
    let library = Library::open_at(world.library()).unwrap();
    let [a, b] = ["ib0", "ib1"].map(|name| End::new(&verbs::open(&library, name), |_| {}));
    for (end, peer) in [(&a, &b), (&b, &a)] {
        let port = peer.context.port_attr(PORT).unwrap();
        assert_eq!(port.link_layer, LinkLayer::Infiniband);
        end.qp.init(&ToInit::new(PORT)).unwrap();
        let route = Route::by_lid(PORT, port.lid);
        end.qp.ready_to_receive(&ToReceive::new(route, peer.qp.number(), peer.psn)).unwrap();
        end.qp.ready_to_send(&end.to_send()).unwrap();
    }
    let to = RemoteMemory::new(b.bytes.addr(0), b.region.remote_key());
    a.post(1, &SendOp::Write(to), &[a.sge(0, 8)]);
    assert!(a.poll_one().is_ok());
    assert_eq!(MemoryWindow::new(&a.pd).unwrap_err().errno, libc::EOPNOTSUPP);

    // It may have four READs under way, and the other end serves one.
    a.post(2, &SendOp::Read(to), &[a.sge(0, 8)]);
    assert_eq!(a.poll_one().status(), WcStatus::RemoteInvalidRequest);
    let event = b.event();
    assert_eq!(
        (event.kind, event.subject),
        (EventKind::QueuePairRequestError, Subject::QueuePair(b.qp.number()))
    );
}

#[test]
fn limits_of_a_device_are_refused_when_they_are_exceeded() {
    let bed = Bed::new();
    let context = bed.open(0);
    let attr = context.device_attr().unwrap();
    let pd = ProtectionDomain::new(&context).unwrap();
    let cq = CompletionQueue::new(&context, 8, None, 0).unwrap();
    assert!(CompletionQueue::new(&context, attr.cq_entries_max + 1, None, 0).is_err());
    let mut config = QpConfig::new(&cq);
    config.caps.send_wrs = attr.qp_wrs_max + 1;
    let error = QueuePair::new(&pd, config).unwrap_err();
    assert!(error.op == "ibv_create_qp" && error.operands.contains("send_wrs"), "{error}");
    let mut config = QpConfig::new(&cq);
    config.caps.send_sges = attr.sges_max + 1;
    assert!(QueuePair::new(&pd, config).is_err());
    drop((pd, cq, context));
    bed.assert_empty();
}

#[test]
fn objects_may_be_dropped_in_any_order() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let (qp, region, cq, pd, context) = (a.qp, a.region, Arc::clone(&a.cq), Arc::clone(&a.pd), a.context);
    drop((context, pd, a.pd));
    drop((cq, a.cq));
    drop(region);
    drop(qp);
    drop(b);
    bed.assert_empty();
}
