//! Queues: chains, full ones, shared ones, several threads on one, and being woken by one.
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

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use transfer_sys::verbs::{
    CompletionChannel, CompletionQueue, EventKind, ProtectionDomain, RecvBatch, RemoteMemory, SendBatch,
    SendFlags, SendOp, Sge, SharedReceiveQueue, Subject,
};
use verbs::{Bed, End, is_real, pattern};

#[test]
fn chains_of_a_thousand_complete_by_their_last() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let to = b.address().memory;
    let mut batch = SendBatch::new(1000, 1000, 0);
    for round in 0..5_usize {
        a.bytes.fill(0, &pattern(round, 64_000));
        batch.clear();
        for index in 0..1000 {
            // Pages in reverse order; every hundredth completes.
            let flags = if index % 100 == 99 { SendFlags::SIGNALED } else { SendFlags::NONE };
            let at = RemoteMemory::new(to.addr + (999 - index) * 64, to.key);
            let from = a.sge(usize::try_from(index).unwrap() * 64, 64);
            batch.push(index, &SendOp::Write(at), flags, &[from]).unwrap();
        }
        a.post_batch(&mut batch).unwrap();
        let done: Vec<u64> = a
            .poll(10)
            .iter()
            .map(|done| {
                assert!(done.is_ok(), "{done:?}");
                done.wr_id()
            })
            .collect();
        assert_eq!(done, (0..10).map(|hundred| hundred * 100 + 99).collect::<Vec<_>>());
        let expected: Vec<u8> = pattern(round, 64_000).chunks(64).rev().flatten().copied().collect();
        assert!(b.bytes.get(0, 64_000) == expected, "round {round}");
    }
}

#[test]
fn a_full_queue_says_how_much_of_a_chain_was_taken() {
    let Some(bed) = Bed::fake() else { return };
    let (a, b) = bed.connected();
    let to = b.address().memory;
    let capacity = a.qp.caps().send_wrs as usize;
    let mut batch = SendBatch::new(capacity + 5, capacity + 5, 0);
    for index in 0..capacity + 5 {
        batch.push(index as u64, &SendOp::Write(to), SendFlags::NONE, &[a.sge(0, 1)]).unwrap();
    }
    // Nothing of it was told to complete, so nothing ever frees a place: as on hardware.
    let error = a.post_batch(&mut batch).unwrap_err();
    assert_eq!((error.posted, error.error.errno), (capacity, libc::ENOMEM), "{error}");
    assert_eq!(a.post_batch(&mut batch).unwrap_err().posted, 0);
}

#[test]
fn places_are_free_again_when_a_later_completion_was_polled() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let to = b.address().memory;
    let capacity = a.qp.caps().send_wrs as usize;
    let mut batch = SendBatch::new(capacity, capacity, 0);
    for round in 0..4 {
        batch.clear();
        for index in 0..capacity {
            let flags = if index + 1 == capacity { SendFlags::SIGNALED } else { SendFlags::NONE };
            batch.push(round, &SendOp::Write(to), flags, &[a.sge(0, 8)]).unwrap();
        }
        a.post_batch(&mut batch).unwrap();
        if !is_real() {
            // Done, and told so, but nobody has looked.
            assert_eq!(a.post_batch(&mut batch).unwrap_err().posted, 0);
        }
        assert_eq!(a.poll_one().wr_id(), round);
    }
}

#[test]
fn threads_may_post_and_poll_at_once() {
    let bed = Bed::new();
    let (a, b) = bed.connected();
    let (to, key) = (b.address().memory, a.region.local_key());
    let from = a.bytes.addr(0);
    a.bytes.fill(0, &pattern(4, 4096));
    let (qp, cq) = (&a.qp, &a.cq);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            scope.spawn(move || {
                let mut batch = SendBatch::new(1, 1, 0);
                for index in 0..100 {
                    let offset = (thread * 100 + index) * 8;
                    let at = RemoteMemory::new(to.addr + offset, to.key);
                    batch.clear();
                    let sge = Sge::new(from + offset, 8, key);
                    batch.push(thread, &SendOp::Write(at), SendFlags::SIGNALED, &[sge]).unwrap();
                    // SAFETY: V3. The memory lives as long as the queue pair.
                    unsafe { qp.post_send(&mut batch) }.unwrap();
                }
            });
        }
        scope.spawn(|| assert!(verbs::poll(cq, 200).iter().all(|done| done.is_ok())));
        scope.spawn(|| assert!(verbs::poll(cq, 200).iter().all(|done| done.is_ok())));
    });
    assert_eq!(b.bytes.get(0, 3200), pattern(4, 3200));
}

#[test]
fn a_shared_queue_feeds_several_queue_pairs_and_tells_when_it_runs_dry() {
    let bed = Bed::new();
    let (left, right) = (bed.open(0), bed.open(1));
    let senders = [End::new(&left, |_| {}), End::new(&left, |_| {})];
    let pd = ProtectionDomain::new(&right).unwrap();
    let srq = SharedReceiveQueue::new(&pd, 16, 1, 42).unwrap();
    let cq = CompletionQueue::new(&right, 64, None, 2).unwrap();
    let receivers =
        [0, 1].map(|_| End::in_domain(&right, &pd, &cq, |config| config.srq = Some(Arc::clone(&srq))));
    for (sender, receiver) in senders.iter().zip(&receivers) {
        sender.connect(&receiver.address());
        receiver.connect(&sender.address());
    }
    let mut batch = RecvBatch::new(4, 4);
    for id in 0..4 {
        let at = usize::try_from(id).unwrap() * 100;
        batch.push(id, &[receivers[0].sge(at, 100)]).unwrap();
    }
    // SAFETY: V3. The memory lives as long as the queue.
    unsafe { srq.post_receive(&mut batch) }.unwrap();
    srq.set_limit(2).unwrap();
    for (index, sender) in [0, 1, 0].map(|index| (index, &senders[index])) {
        sender.bytes.fill(0, &pattern(index, 100));
        sender.post(1, &SendOp::Send, &[sender.sge(0, 100)]);
        assert!(sender.poll_one().is_ok());
    }
    let done = verbs::poll(&cq, 3);
    let numbers: Vec<u32> = done.iter().map(transfer_sys::verbs::Completion::qp_num).collect();
    let [first, second] = [0, 1].map(|index: usize| receivers[index].qp.number());
    assert_eq!(numbers, [first, second, first]);
    assert_eq!(receivers[0].bytes.get(100, 100), pattern(1, 100));
    let event = receivers[0].event();
    assert_eq!((event.kind, event.subject), (EventKind::ReceiveQueueLimit, Subject::SharedReceiveQueue(42)));
    drop((senders, receivers, srq, cq, pd));
    drop((left, right));
    bed.assert_empty();
}

#[test]
fn a_channel_wakes_once_for_each_time_it_was_asked_to() {
    let bed = Bed::new();
    let (left, right) = (bed.open(0), bed.open(1));
    let channel = CompletionChannel::new(&right).unwrap();
    let cq = CompletionQueue::new(&right, 64, Some(&channel), 99).unwrap();
    let (a, b) = (End::new(&left, |_| {}), End::with_cq(&right, &cq, |_| {}));
    a.connect(&b.address());
    b.connect(&a.address());
    for round in 0..3 {
        b.receive(round, &[]);
        cq.request_event(false).unwrap();
        assert_eq!(channel.poll_event().unwrap(), None);
        a.post(round, &SendOp::WriteImm(b.address().memory, 1), &[a.sge(0, 1)]);
        let mut poll = libc::pollfd { fd: channel.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 30_000) }, 1);
        assert_eq!(channel.poll_event().unwrap(), Some(99));
        assert_eq!(channel.poll_event().unwrap(), None);
        assert_eq!(b.poll_one().wr_id(), round);
        assert!(a.poll_one().is_ok());
    }
    drop((a, b, cq, channel, left, right));
    bed.assert_empty();
}
