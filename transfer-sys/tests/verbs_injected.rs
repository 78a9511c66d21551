//! Faults that only the fake can make, each at its moment; and what has arrived when one struck.
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

use fake_verbs::Fault;
use transfer_sys::verbs::{
    EventKind, PortState, RemoteMemory, SendBatch, SendFlags, SendOp, Subject, WcStatus,
};
use verbs::{Bed, PORT, pattern};

#[test]
fn faults_come_at_their_moment() {
    let Some(bed) = Bed::fake() else { return };
    for (fault, status) in [
        (Fault::Lost, WcStatus::RetryExceeded),
        (Fault::WrongKey, WcStatus::RemoteAccess),
        (Fault::QpError, WcStatus::Flushed),
        (Fault::Partial(1000), WcStatus::RetryExceeded),
    ] {
        let (a, b) = bed.connected();
        bed.world().inject(0, 3, fault).unwrap();
        let mut batch = SendBatch::new(6, 6, 0);
        a.bytes.fill(0, &pattern(5, 6 * 4096));
        b.bytes.fill(0, &[0; 6 * 4096]);
        let to = b.address().memory;
        for id in 0..6 {
            let at = RemoteMemory::new(to.addr + id * 4096, to.key);
            let from = a.sge(usize::try_from(id).unwrap() * 4096, 4096);
            batch.push(id, &SendOp::Write(at), SendFlags::NONE, &[from]).unwrap();
        }
        a.post_batch(&mut batch).unwrap();
        // Those before did not ask to be told of; of those that fail, each is told.
        let done = a.poll(3);
        let seen: Vec<_> = done.iter().map(|done| (done.wr_id(), done.status())).collect();
        assert_eq!(seen, [(3, status), (4, WcStatus::Flushed), (5, WcStatus::Flushed)], "{fault:?}");
        let arrived = 3 * 4096 + if fault == Fault::Partial(1000) { 1000 } else { 0 };
        assert!(b.bytes.get(0, arrived) == pattern(5, arrived), "{fault:?}");
        assert!(b.bytes.get(arrived, 6 * 4096 - arrived).iter().all(|byte| *byte == 0), "{fault:?}");
    }
    let (a, b) = bed.connected();
    bed.world().inject(0, 0, Fault::Late(20)).unwrap();
    a.post(1, &SendOp::Write(b.address().memory), &[a.sge(0, 8)]);
    assert_eq!(a.cq.poll(&mut [Default::default(); 4]).unwrap(), 0, "late");
    assert!(a.poll_one().is_ok());
}

/// A generator of numbers that look random, the same for the same seed (Knuth's MMIX).
fn random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

#[test]
fn whatever_fails_all_before_it_has_arrived_and_nothing_behind_it() {
    const PAGE: usize = 512;
    let Some(bed) = Bed::fake() else { return };
    bed.world().set_patience(4);
    for seed in 0..200_u64 {
        let mut state = seed;
        let (a, b) = bed.connected();
        let count = 1 + random(&mut state, 40);
        let skip = u32::try_from(random(&mut state, 50)).unwrap();
        let fault = match random(&mut state, 5) {
            0 => Fault::Lost,
            1 => Fault::WrongKey,
            2 => Fault::QpError,
            3 => Fault::Late(random(&mut state, 3)),
            _ => Fault::Partial(random(&mut state, PAGE as u64)),
        };
        bed.world().inject(0, skip, fault).unwrap();
        let mut batch = SendBatch::new(64, 64, 0);
        a.bytes.fill(0, &pattern(7, 41 * PAGE));
        let to = b.address().memory;
        for id in 0..count {
            let at = RemoteMemory::new(to.addr + id * PAGE as u64, to.key);
            let from = a.sge(usize::try_from(id).unwrap() * PAGE, PAGE);
            // Some complete; the last one does, so that its end is seen.
            let signaled = id + 1 == count || random(&mut state, 4) == 0;
            let flags = if signaled { SendFlags::SIGNALED } else { SendFlags::NONE };
            batch.push(id, &SendOp::Write(at), flags, &[from]).unwrap();
        }
        a.post_batch(&mut batch).unwrap();
        let mut failed = None;
        loop {
            let done = a.poll_one();
            if !done.is_ok() {
                failed = failed.or_else(|| Some(done.wr_id()));
            }
            if done.wr_id() + 1 == count {
                break;
            }
        }
        let hits = u64::from(skip) < count && !matches!(fault, Fault::Late(_));
        assert_eq!(failed, hits.then_some(u64::from(skip)), "seed {seed}: {fault:?} after {skip} of {count}");
        let whole = PAGE * usize::try_from(failed.unwrap_or(count)).unwrap();
        let part = if let (Some(_), Fault::Partial(bytes)) = (failed, fault) { bytes } else { 0 };
        let arrived = whole + usize::try_from(part).unwrap();
        assert!(b.bytes.get(0, arrived) == pattern(7, arrived), "seed {seed}");
        assert!(b.bytes.get(arrived, 41 * PAGE - arrived).iter().all(|byte| *byte == 0), "seed {seed}");
        drop((a, b));
        bed.assert_empty();
        bed.world().clear_faults();
    }
}

#[test]
fn a_device_that_is_removed_completes_nothing_any_more() {
    let Some(bed) = Bed::fake() else { return };
    let (a, b) = bed.connected();
    a.post(1, &SendOp::Write(b.address().memory), &[a.sge(0, 8)]);
    bed.world().remove_device(0);
    let event = a.event();
    assert_eq!((event.kind, event.subject), (EventKind::DeviceFatal, Subject::Device));
    assert_eq!(a.cq.poll(&mut [Default::default(); 4]).unwrap(), 0);
    let mut batch = SendBatch::new(1, 1, 0);
    batch.push(1, &SendOp::Send, SendFlags::SIGNALED, &[a.sge(0, 8)]).unwrap();
    assert_eq!(a.post_batch(&mut batch).unwrap_err().error.errno, libc::EIO);
    assert_eq!(bed.library.devices().unwrap().len(), 1);
    drop((a, b));
    bed.assert_empty();
}

#[test]
fn a_port_that_flaps_tells_so_and_ends_what_was_under_way() {
    let Some(bed) = Bed::fake() else { return };
    let (a, b) = bed.connected();
    bed.world().port_down(1);
    let event = b.event();
    assert_eq!((event.kind, event.subject), (EventKind::PortError, Subject::Port(1)));
    assert_eq!(b.context.port_attr(PORT).unwrap().state, PortState::Down);
    a.post(1, &SendOp::Write(b.address().memory), &[a.sge(0, 8)]);
    a.post(2, &SendOp::Write(b.address().memory), &[a.sge(0, 8)]);
    let done: Vec<_> = a.poll(2).iter().map(|done| done.status()).collect();
    assert_eq!(done, [WcStatus::RetryExceeded, WcStatus::Flushed]);
    bed.world().port_up(1);
    assert_eq!(b.event().kind, EventKind::PortActive);

    // A short flap is bridged.
    let (a, b) = bed.connected();
    bed.world().set_patience(20_000);
    bed.world().port_down(0);
    a.post(1, &SendOp::Write(b.address().memory), &[a.sge(0, 8)]);
    std::thread::sleep(std::time::Duration::from_millis(10));
    bed.world().port_up(0);
    assert!(a.poll_one().is_ok());
}
