//! A peer that has been let in and then sends anything, over real sockets: it loses its own connection and nothing else.
//! Meanwhile another peer's transfers go on, no byte outside a region changes, and in the end nothing is left behind.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

#[path = "support/guarded.rs"]
mod guarded;
#[path = "support/puppet.rs"]
mod puppet;
mod support;

use std::cell::Cell;
use std::io::{ErrorKind, Write};

use guarded::{Guarded, Holdings, alone, resident};
use puppet::{BAIT, Puppet, Rail, headers};
use support::{WAIT, bytes_of, config, pattern, until};
use transfer_core::{
    Access, Agent, CounterId, Desc, DescList, Error, Event, Farewell, LocalList, PathSet, Peer, RailId,
    RegionId, RegionOptions, RemoteList, Status,
};
use transfer_proto::id::XferId;
use transfer_proto::proto::control::{Deframer, Frame};
use transfer_proto::proto::data::{DataHeader, DataKind, HEADER_BYTES, Head, PAYLOAD_MAX};

/// Where the puppet may write, and where the healthy peer reads and writes.
const OPEN_BYTES: usize = 16 << 10;
const STEADY_BYTES: usize = 300_000;

/// The agent under test, and a healthy peer of it.
struct Scene {
    held: Holdings,
    there: Agent,
    open: Guarded,
    steady: Guarded,
    _good: Agent,
    peer: Peer,
    local: LocalList,
    remote: RemoteList,
    mine: transfer_core::Region,
    rounds: Cell<u64>,
}

impl Scene {
    fn new() -> Self {
        let held = Holdings::now();
        let patient = |name| {
            let mut config = config(name, PathSet::TCP);
            // A puppet does not send heartbeats.
            config.peer_timeout = WAIT;
            Agent::new(config).unwrap()
        };
        let (there, good) = (patient("there"), patient("good"));
        let open = Guarded::new(&there, OPEN_BYTES, &RegionOptions::new("open").block_bytes(512));
        // No single bit leads from one name to the other.
        let between = [(); 2].map(|()| there.adopt(vec![0; 8], "between").unwrap());
        let steady = Guarded::new(&there, STEADY_BYTES, &RegionOptions::new("steady"));
        drop(between);
        assert_eq!((open.region.id().slot(), steady.region.id().slot()), (0, 3));
        let peer = good.connect(&there.address().unwrap()).unwrap();
        let mine = good.alloc(STEADY_BYTES, "mine").unwrap();
        let whole = |id| DescList::from(Desc::contiguous(id, 0, STEADY_BYTES as u64));
        let local = good.prepare(&whole(mine.id())).unwrap();
        let remote = peer.prepare(&whole(steady.region.id())).unwrap();
        let scene = Self {
            held,
            there,
            open,
            steady,
            _good: good,
            peer,
            local,
            remote,
            mine,
            rounds: Cell::default(),
        };
        scene.refill();
        scene.goes_on();
        scene
    }

    /// The healthy peer writes and reads back, and nobody has touched what is not theirs.
    fn goes_on(&self) {
        let round = self.rounds.replace(self.rounds.get() + 1);
        let bytes = pattern(round, STEADY_BYTES);
        self.mine.write_at(0, &bytes).unwrap();
        self.peer.write(&self.local, &self.remote).post().unwrap().wait(WAIT).unwrap();
        assert!(bytes_of(&self.steady.region) == bytes, "what was written");
        self.mine.write_at(0, &vec![0; STEADY_BYTES]).unwrap();
        self.peer.read(&self.local, &self.remote).post().unwrap().wait(WAIT).unwrap();
        assert!(bytes_of(&self.mine) == bytes, "what was read");
        assert!(self.open.holds() && self.steady.holds(), "somebody wrote outside a region");
        while self.there.poll_event().is_some() {}
    }

    fn refill(&self) {
        self.open.region.write_at(0, &pattern(1, OPEN_BYTES)).unwrap();
    }

    /// The puppets are gone: nothing is left of them, nor of anybody.
    fn end(self) {
        until("only the healthy peer is left", || self.there.peers().len() == 1);
        self.goes_on();
        self.open.region.close().unwrap();
        self.steady.region.close().unwrap();
        let held = self.held;
        drop(self);
        held.come_back();
    }
}

/// Every way in which one bit may be another.
fn flips(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit, flipped)
    })
}

/// A header with its list, and the payload that it announces.
fn message(kind: DataKind, list: Option<&DescList>, payload: &[u8]) -> Vec<u8> {
    let mut header = DataHeader::new(kind, XferId::new(3, 4), 5);
    let mut bytes = vec![0; HEADER_BYTES];
    if let Some(list) = list {
        list.encode(&mut bytes);
    }
    header.descs_len = u32::try_from(bytes.len() - HEADER_BYTES).unwrap();
    header.payload_len = payload.len() as u64;
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    bytes.extend_from_slice(payload);
    bytes
}

/// What the open region may hold after these bytes were taken for a request: that of the spans that it names, if all
/// of them lie in it, and the rest as it was.
fn may_have_changed(open: RegionId, head: &Head) -> Vec<bool> {
    let mut may = vec![false; OPEN_BYTES];
    let Head::Whole { header, list, .. } = head else { return may };
    let inside = list.check(|id| (id == open).then_some(OPEN_BYTES as u64)).is_ok();
    if header.kind == DataKind::Write && inside && list.bytes() == header.payload_len {
        for span in (0..list.count()).filter_map(|index| list.span(index)) {
            let start = usize::try_from(span.offset).unwrap();
            may[start..start + usize::try_from(span.len).unwrap()].fill(true);
        }
    }
    may
}

#[test]
fn whichever_bit_of_a_request_is_another_only_its_connection_is_lost() {
    let _alone = alone();
    let scene = Scene::new();
    let (mut puppet, mut rail) = Puppet::meet(&scene.there);
    let open = scene.open.region.id();
    let mut list = DescList::from(Desc::paged(open, 64, 256, 512, vec![3, 1]));
    list.push(Desc::contiguous(open, 8192, 100).at_generation(scene.open.region.generation()));
    let payload = pattern(2, 612);
    let (before, used) = (pattern(1, OPEN_BYTES), resident());
    let (mut answered, mut cut) = (0, 0);
    for kind in [DataKind::Write, DataKind::ReadRequest] {
        let payload = if kind == DataKind::Write { &payload[..] } else { &[] };
        let whole = message(kind, Some(&list), payload);
        let head_len = whole.len() - payload.len();
        for (bit, flipped) in flips(&whole[..head_len]) {
            let judged = Head::decode(&[&flipped, payload].concat());
            rail.blurt(&flipped);
            rail.blurt(payload);
            match &judged {
                // The agent has to find out for itself.
                Err(_) => {}
                Ok(_) => rail.shut(),
            }
            let answer = rail.drain();
            answered += usize::from(!answer.is_empty());
            cut += usize::from(judged.is_err());
            assert!(judged.is_ok() || answer.is_empty(), "{kind:?}, bit {bit}: an answer to nonsense");
            let after = bytes_of(&scene.open.region);
            let may = judged.map_or_else(|_| vec![false; OPEN_BYTES], |head| may_have_changed(open, &head));
            let kept = |at: &usize| may[*at] || after[*at] == before[*at];
            assert_eq!((0..OPEN_BYTES).find(|at| !kept(at)), None, "{kind:?}, bit {bit}");
            scene.refill();
            rail = puppet.replace(rail);
            if bit % 256 == 0 {
                scene.goes_on();
            }
        }
    }
    assert!(answered > 100 && cut > 100, "{answered} answered, {cut} cut off");
    // Each connection has a buffer of 64 KiB: keeping those would show.
    assert!(resident() < used + (48 << 20), "{used} bytes before, {} after", resident());
    // What is right is still served, on the connection that came last.
    rail.blurt(&message(DataKind::Write, Some(&list), &payload));
    assert_eq!(rail.take().0.status, Status::Ok);
    drop((puppet, rail));
    scene.end();
}

/// A transfer of the agent under test with the puppet, and what the puppet says of it.
struct Asked {
    kind: DataKind,
    xfer: transfer_core::Xfer,
}

/// The agent's side of transfers with a puppet.
struct Baited {
    peer: Peer,
    mine: Guarded,
    local: LocalList,
    remote: RemoteList,
}

const ASKED_BYTES: usize = 700;

impl Baited {
    fn new(scene: &Scene, puppet: &Puppet) -> Self {
        let peer = puppet.seen_by(&scene.there).unwrap();
        let mine = Guarded::new(&scene.there, OPEN_BYTES, &RegionOptions::new("mine"));
        let part = |id| DescList::from(Desc::contiguous(id, 1000, ASKED_BYTES as u64));
        let local = scene.there.prepare(&part(mine.region.id())).unwrap();
        let remote = peer.prepare(&part(BAIT)).unwrap();
        Self { peer, mine, local, remote }
    }

    fn post(&self, write: bool) -> Asked {
        self.mine.region.write_at(0, &pattern(1, OPEN_BYTES)).unwrap();
        let (request, kind) = if write {
            (self.peer.write(&self.local, &self.remote), DataKind::Write)
        } else {
            (self.peer.read(&self.local, &self.remote), DataKind::ReadRequest)
        };
        Asked { kind, xfer: request.post().unwrap() }
    }

    /// It ended as it may, and left everything else alone.
    fn ended(&self, asked: &Asked, what: &str) -> bool {
        let outcome = asked.xfer.wait(WAIT);
        let (before, after) = (pattern(1, OPEN_BYTES), bytes_of(&self.mine.region));
        let part = 1000..1000 + ASKED_BYTES;
        assert!(
            after[..part.start] == before[..part.start] && after[part.end..] == before[part.end..],
            "{what}"
        );
        assert!(self.mine.holds(), "{what}");
        match outcome {
            Ok(done) => {
                assert_eq!(done.bytes, ASKED_BYTES as u64, "{what}");
                let wanted = if asked.kind == DataKind::Write { &before[part.clone()] } else { &answer() };
                assert!(after[part] == *wanted, "{what}: done with other bytes");
                true
            }
            Err(Error::TransferFailed { .. } | Error::Stale { .. }) => false,
            Err(other) => panic!("{what}: {other}"),
        }
    }
}

/// What the puppet's memory holds.
fn answer() -> Vec<u8> {
    pattern(9, ASKED_BYTES)
}

/// The right answer: with its header, and with a verdict behind it if the target wants to say that later.
fn reply(to: &DataHeader, pending: bool) -> Vec<u8> {
    if to.kind == DataKind::Write {
        return DataHeader::new(DataKind::Ack, to.xfer, to.slice).encode().to_vec();
    }
    let mut header = DataHeader::new(DataKind::ReadReply, to.xfer, to.slice);
    header.payload_len = ASKED_BYTES as u64;
    let mut bytes = answer();
    if pending {
        header.status = Status::Pending;
        bytes.extend(DataHeader::new(DataKind::Verdict, to.xfer, to.slice).encode());
    }
    [&header.encode()[..], &bytes].concat()
}

#[test]
fn whichever_bit_of_an_answer_is_another_its_transfer_ends_or_goes_another_way() {
    let _alone = alone();
    let scene = Scene::new();
    let (mut puppet, mut rail) = Puppet::meet(&scene.there);
    let baited = Baited::new(&scene, &puppet);
    let (mut done, mut failed, mut resent) = (0, 0, 0);
    // An acknowledgement, a reply, a reply whose verdict follows, and that verdict.
    for (write, pending, verdict) in
        [(true, false, false), (false, false, false), (false, true, false), (false, true, true)]
    {
        for bit in 0..HEADER_BYTES * 8 {
            let what = format!("write {write}, pending {pending}, verdict {verdict}, bit {bit}");
            let asked = baited.post(write);
            let (request, _) = rail.take();
            assert_eq!(request.kind, asked.kind);
            let mut bytes = reply(&request, pending);
            let start = if verdict { bytes.len() - HEADER_BYTES } else { 0 };
            bytes[start + bit / 8] ^= 1 << (bit % 8);
            rail.blurt(&bytes);
            rail.shut();
            rail.drain();
            rail = puppet.replace(rail);
            // Where that was no answer, the slice comes again, once both ends have closed what it was on.
            if let Some((request, _)) = rail.take_unless(|| asked.xfer.poll().is_some()) {
                resent += 1;
                rail.blurt(&reply(&request, pending));
            }
            if baited.ended(&asked, &what) { done += 1 } else { failed += 1 }
        }
        scene.goes_on();
    }
    assert!(done > 100 && failed > 10 && resent > 100, "{done} done, {failed} failed, {resent} sent again");
    baited.mine.region.close().unwrap();
    drop((baited, puppet, rail));
    scene.end();
}

/// Descriptors that lead nowhere, and what the agent says to them; `None` where it hangs up.
fn lists_to_nowhere(scene: &Scene, gone: RegionId, stale: u64) -> Vec<(DescList, Option<Status>)> {
    let open = scene.open.region.id();
    let (len, unknown) = (OPEN_BYTES as u64, RegionId::new(77, 0));
    let many: DescList = (0..1300).map(|_| Desc::contiguous(open, 0, 1)).collect();
    let mut later = DescList::from(Desc::contiguous(open, 0, 10));
    later.push(Desc::contiguous(open, len - 9, 10));
    let bad = |desc: Desc| (DescList::from(desc), Some(Status::BadSpan));
    vec![
        bad(Desc::contiguous(open, len, 1)),
        bad(Desc::contiguous(open, 0, len + 1)),
        bad(Desc::contiguous(open, u64::MAX, 1)),
        bad(Desc::contiguous(open, u64::MAX - 5, 6)),
        bad(Desc::contiguous(open, 1, u64::MAX)),
        bad(Desc::strided(open, 0, 8, u64::MAX / 2, 4)),
        bad(Desc::strided(open, 0, 8, 1 << 62, 5)),
        bad(Desc::strided(open, u64::MAX - 7, 8, 8, 2)),
        bad(Desc::paged(open, 0, 8, 8, vec![0, u32::MAX])),
        bad(Desc::paged(open, 0, 8, u64::MAX, vec![1, 2])),
        bad(Desc::contiguous(unknown, 0, 1)),
        bad(Desc::contiguous(gone, 0, 1)),
        bad(Desc::contiguous(RegionId::new(open.slot(), open.generation() + 1), 0, 1)),
        (later, Some(Status::BadSpan)),
        (Desc::contiguous(open, 0, 100).at_generation(stale).into(), Some(Status::Stale)),
        // Each span is right, and the payload would be of 2^41 bytes, or of 4 GiB.
        (Desc::strided(open, 0, 512, 0, u32::MAX).into(), None),
        (Desc::strided(open, 0, 512, 0, 1 << 23).into(), None),
        // More descriptors than a slice may have, or than fit one head.
        (many, None),
        ((0..5000).map(|_| Desc::contiguous(open, 0, 1)).collect(), None),
    ]
}

#[test]
fn descriptors_that_lead_nowhere_are_refused_before_a_byte_moves() {
    let _alone = alone();
    let scene = Scene::new();
    let (mut puppet, mut rail) = Puppet::meet(&scene.there);
    let closed = scene.there.adopt(vec![5; 100], "closed").unwrap();
    let gone = closed.id();
    drop(closed);
    let stale = scene.open.region.generation();
    scene.open.region.revoke(100, 1).unwrap();
    for (at, (list, wanted)) in lists_to_nowhere(&scene, gone, stale).into_iter().enumerate() {
        for (kind, payload) in [(DataKind::Write, &pattern(3, 100)[..]), (DataKind::ReadRequest, &[])] {
            rail.blurt(&message(kind, Some(&list), payload));
            let Some(wanted) = wanted else {
                // It may say no, too; it does not do it.
                rail.shut();
                assert!(headers(&rail.drain()).iter().all(|answer| answer.status != Status::Ok), "{at}");
                rail = puppet.replace(rail);
                continue;
            };
            let (answer, bytes) = rail.take();
            assert!(answer.status == wanted && bytes.is_empty(), "{at}, {kind:?}: {answer:?}");
        }
        assert!(bytes_of(&scene.open.region) == pattern(1, OPEN_BYTES), "{at}");
        scene.goes_on();
    }
    // A payload of another length than its spans.
    let list = DescList::from(Desc::contiguous(scene.open.region.id(), 1024, 100));
    for len in [0, 99, 101, 5000] {
        rail.blurt(&message(DataKind::Write, Some(&list), &vec![0; len]));
        assert_eq!(rail.take().0.status, Status::BadLength);
    }
    assert!(bytes_of(&scene.open.region) == pattern(1, OPEN_BYTES));
    drop((puppet, rail));
    scene.end();
}

#[test]
fn a_peer_may_not_write_what_is_for_reading_nor_use_an_old_connection_again() {
    let _alone = alone();
    let scene = Scene::new();
    let options = RegionOptions::new("sealed").access(Access::ReadOnly);
    let sealed = Guarded::new(&scene.there, 4096, &options);
    sealed.region.write_at(0, &pattern(4, 4096)).unwrap();
    let (mut puppet, mut rail) = Puppet::meet(&scene.there);
    let list = DescList::from(Desc::contiguous(sealed.region.id(), 0, 4096));
    rail.blurt(&message(DataKind::Write, Some(&list), &[0; 4096]));
    assert_eq!(rail.take().0.status, Status::ReadOnly);
    rail.blurt(&message(DataKind::ReadRequest, Some(&list), &[]));
    assert!(rail.take().1 == pattern(4, 4096));
    assert!(bytes_of(&sealed.region) == pattern(4, 4096));
    // One of the same name while it stands, one that was closed, and one that cannot be.
    let second = puppet.open(rail.id);
    rail.shut();
    rail = puppet.replace(rail);
    for mut refused in [second, puppet.open(RailId::new(0, 0)), puppet.open(RailId::new(64, 0))] {
        refused.blurt(&message(DataKind::ReadRequest, Some(&list), &[]));
        assert!(refused.drain().is_empty());
    }
    // More than it may have.
    let mut more: Vec<_> = (1..64).map(|slot| puppet.open(RailId::new(slot, 0))).collect();
    for rail in &mut more {
        rail.blurt(&message(DataKind::ReadRequest, Some(&list), &[]));
        assert!(rail.take().1 == pattern(4, 4096));
    }
    scene.goes_on();
    sealed.region.close().unwrap();
    drop((puppet, rail, more, sealed));
    scene.end();
}

#[test]
fn an_answer_that_nobody_asked_for_costs_its_connection() {
    let _alone = alone();
    let scene = Scene::new();
    let (mut puppet, mut rail) = Puppet::meet(&scene.there);
    let baited = Baited::new(&scene, &puppet);
    let header = |kind, xfer, slice, status, payload_len| {
        let mut header = DataHeader::new(kind, xfer, slice);
        (header.status, header.payload_len) = (status, payload_len);
        header.encode()
    };
    let ids = [XferId::new(0, 0), XferId::new(u32::MAX, u32::MAX), XferId::new(0, 1)];
    for (kind, payload_len) in [
        (DataKind::Ack, 0),
        (DataKind::Verdict, 0),
        (DataKind::ReadReply, 0),
        (DataKind::ReadReply, 64),
        (DataKind::ReadReply, PAYLOAD_MAX),
    ] {
        for (xfer, status) in ids.into_iter().zip([Status::Ok, Status::Stale, Status::Pending]) {
            rail.blurt(&header(kind, xfer, 0, status, payload_len));
            assert!(rail.drain().is_empty(), "{kind:?}, {xfer}");
            rail = puppet.replace(rail);
        }
    }
    scene.goes_on();
    // While something was asked for: the other kind of answer, that of another slice, two answers, a payload without
    // its verdict.
    for case in 0..5 {
        for write in [true, false] {
            let asked = baited.post(write);
            let (request, _) = rail.take();
            let (xfer, slice) = (request.xfer, request.slice);
            let right = reply(&request, case == 4);
            let wrong = match case {
                0 if write => reply(&DataHeader::new(DataKind::ReadRequest, xfer, slice), false),
                0 => reply(&DataHeader::new(DataKind::Write, xfer, slice), false),
                1 => header(DataKind::Ack, xfer, slice + 1, Status::Ok, 0).to_vec(),
                2 => header(DataKind::Verdict, xfer, slice, Status::Ok, 0).to_vec(),
                3 => [&right[..], &right].concat(),
                // An acknowledgement twice again; or a reply in place of the verdict.
                _ if write => [&right[..], &right].concat(),
                _ => [&right[..right.len() - HEADER_BYTES], &right].concat(),
            };
            rail.blurt(&wrong);
            rail.drain();
            rail = puppet.replace(rail);
            if let Some((request, _)) = rail.take_unless(|| asked.xfer.poll().is_some()) {
                rail.blurt(&reply(&request, false));
            }
            assert!(baited.ended(&asked, "an answer that nobody asked for"), "case {case}, write {write}");
        }
        scene.goes_on();
    }
    baited.mine.region.close().unwrap();
    drop((baited, puppet, rail));
    scene.end();
}

#[test]
fn whoever_stops_in_the_middle_holds_up_nobody() {
    let _alone = alone();
    let scene = Scene::new();
    let mut puppets = Vec::new();
    let open = scene.open.region.id();
    let list = DescList::from(Desc::strided(open, 0, 4096, 4096, 4));
    let whole = message(DataKind::Write, Some(&list), &pattern(2, 16384));
    // In the header, in the list, before the payload, and in it.
    for len in [1, 16, 31, 32, 40, 60, whole.len() - 16384, whole.len() - 16000, whole.len() - 1] {
        let (puppet, mut rail) = Puppet::meet(&scene.there);
        rail.blurt(&whole[..len]);
        puppets.push((puppet, rail));
    }
    // They were served as far as they go, by the time that the next one has an answer.
    puppets.iter_mut().for_each(|(puppet, _)| puppet.sync());
    scene.goes_on();
    // Nobody who owns the memory waits for them.
    scene.open.region.revoke(0, OPEN_BYTES).unwrap();
    scene.refill();
    let kept = &whole[whole.len() - 384..];
    for (at, (puppet, rail)) in puppets.iter_mut().enumerate() {
        // What comes late finds that its place is not its place any more.
        if at % 2 == 0 {
            rail.blurt(kept);
        }
        puppet.sync();
        assert!(bytes_of(&scene.open.region) == pattern(1, OPEN_BYTES), "written after it was taken back");
    }
    scene.goes_on();
    // One after the other leaves, with less than it had promised.
    for (puppet, mut rail) in puppets {
        rail.shut();
        rail.drain();
        puppet.finish();
    }
    scene.end();
}

#[test]
fn a_region_is_closed_under_a_peer_that_stops_in_the_middle() {
    let _alone = alone();
    let scene = Scene::new();
    let [written, read] = ["written", "read"].map(|label| {
        let region = Guarded::new(&scene.there, 1 << 20, &RegionOptions::new(label));
        let list = DescList::from(Desc::contiguous(region.region.id(), 0, 1 << 20));
        (region, list)
    });
    let (mut writer, mut writing) = Puppet::meet(&scene.there);
    let whole = message(DataKind::Write, Some(&written.1), &pattern(2, 1 << 20));
    writing.blurt(&whole[..whole.len() / 2]);
    writer.sync();
    // This one asks for more than the kernel buffers, and takes nothing.
    let (mut reader, mut reading) = Puppet::meet(&scene.there);
    for _ in 0..32 {
        reading.blurt(&message(DataKind::ReadRequest, Some(&read.1), &[]));
    }
    reader.sync();
    for (region, _) in [&written, &read] {
        region.region.close().unwrap();
        region.region.write_at(0, &pattern(8, 1 << 20)).unwrap();
    }
    writing.blurt(&whole[whole.len() / 2..]);
    assert!(matches!(writing.take().0.status, Status::Stale | Status::BadSpan));
    for (region, _) in [&written, &read] {
        assert!(
            bytes_of(&region.region) == pattern(8, 1 << 20) && region.holds(),
            "written after it was closed"
        );
    }
    // What the reader gets is what was there before, or is told as gone.
    let mut refused = 0;
    for _ in 0..32 {
        let (answer, bytes) = reading.take();
        let verdict = if answer.status == Status::Pending { reading.take().0 } else { answer };
        match verdict.status {
            Status::Ok => assert!(bytes == vec![0; 1 << 20], "another owner's bytes were told as read"),
            Status::Stale | Status::BadSpan => refused += 1,
            status => panic!("{status:?}"),
        }
    }
    assert!(refused > 0, "the buffers are smaller than that");
    drop((writer, writing, reader, reading, written, read));
    scene.end();
}

#[test]
fn a_peer_that_asks_forever_and_reads_nothing_is_not_read_from() {
    let _alone = alone();
    let scene = Scene::new();
    let (mut puppet, mut rail) = Puppet::meet(&scene.there);
    let used = resident();
    let open = scene.open.region.id();
    let list = |len| DescList::from(Desc::strided(open, 0, len, 0, 16));
    // Short answers, which are copied, and long ones, which are not.
    let requests = [list(16), list(OPEN_BYTES as u64)].map(|l| message(DataKind::ReadRequest, Some(&l), &[]));
    rail.stream.set_nonblocking(true).unwrap();
    let (mut sent, mut full) = (0_usize, 0);
    // It takes what its sockets hold and no more, however often one looks again.
    for turn in 0.. {
        let request = &requests[turn % 2];
        match rail.stream.write(request) {
            Ok(count) if count == request.len() => sent += 1,
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                full += 1;
                if full == 20 {
                    break;
                }
                puppet.sync();
                scene.goes_on();
            }
            Err(e) => panic!("{e}"),
        }
        assert!(sent < 1_000_000, "it goes on taking requests");
    }
    assert!(sent > 256, "{sent} were taken");
    assert!(resident() < used + (32 << 20), "{used} bytes before, {} after {sent} requests", resident());
    scene.goes_on();
    // The memory is its owner's all the time.
    scene.open.region.revoke(0, OPEN_BYTES).unwrap();
    drop((puppet, rail));
    scene.end();
}

/// Every message of a control connection.
fn frames(scene: &Scene, counter: CounterId) -> Vec<Frame> {
    vec![
        Frame::Hello { metadata: puppet::introduction(), token: 9 },
        Frame::Ready,
        Frame::Notif(pattern(1, 20)),
        Frame::Bump { counter, by: 1 },
        Frame::RegionAdd(puppet::bait(RegionId::new(1, 0))),
        Frame::RegionDel(RegionId::new(0, 0)),
        Frame::Ping,
        Frame::Sync,
        Frame::Synced,
        Frame::RailClosed(RailId::new(0, 0)),
        Frame::Bye { farewell: Farewell::Closing, incarnation: scene.there.incarnation() },
    ]
}

#[test]
fn whichever_bit_of_a_control_message_is_another_only_that_peer_is_lost() {
    let _alone = alone();
    let scene = Scene::new();
    let counter = scene.there.counter().unwrap();
    let (mut lost, mut kept) = (0, 0);
    for frame in frames(&scene, counter.id()) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        for (bit, flipped) in flips(&bytes) {
            // On a connection that is up; and an introduction as the first message.
            let (mut puppet, rail) = Puppet::meet(&scene.there);
            puppet.blurt(&flipped);
            let mut sync = Vec::new();
            Frame::Sync.encode(&mut sync);
            let mut all = flipped.clone();
            all.extend(sync);
            let mut deframer = Deframer::default();
            deframer.push(&all);
            let judged: Result<Vec<_>, _> =
                std::iter::from_fn(|| deframer.next_frame().transpose()).collect();
            puppet.blurt(&all[flipped.len()..]);
            if let Some(peer) = puppet.seen_by(&scene.there) {
                use_regions(&scene, &peer);
            }
            match judged {
                // The agent hangs up by itself.
                Err(_) => {
                    lost += 1;
                    while puppet.hear().is_some() {}
                }
                Ok(_) => {
                    kept += 1;
                    puppet.finish();
                }
            }
            drop(rail);
            if bit % 128 == 0 {
                scene.goes_on();
            }
        }
    }
    assert!(lost > 500 && kept > 500, "{lost} hung up on, {kept} taken");
    let _any = counter.get();
    drop(counter);
    scene.end();
}

/// Whatever a peer says of its regions, lists over them are right or refused.
fn use_regions(scene: &Scene, peer: &Peer) {
    for region in peer.regions() {
        for list in [Desc::contiguous(region.id, 0, region.len), Desc::contiguous(region.id, region.len, 1)] {
            match peer.prepare(&list.into()) {
                Ok(_) | Err(Error::BadList { .. } | Error::RegionClosed { .. } | Error::PeerLost { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    while let Some(event) = scene.there.poll_event() {
        assert!(matches!(event, Event::PeerUp { .. } | Event::PeerLost { .. } | Event::Notif { .. }));
    }
}

#[test]
fn whichever_bit_of_an_introduction_is_another_nobody_else_is_harmed() {
    let _alone = alone();
    let scene = Scene::new();
    let mut bytes = Vec::new();
    Frame::Hello { metadata: puppet::introduction(), token: 9 }.encode(&mut bytes);
    let mut answered = 0;
    for (bit, flipped) in flips(&bytes) {
        let (_, stream) = Puppet::greet(&scene.there);
        let mut rail = Rail::new(RailId::new(0, 0), stream);
        rail.blurt(&flipped);
        rail.shut();
        answered += usize::from(!rail.drain().is_empty());
        if bit % 128 == 0 {
            scene.goes_on();
        }
    }
    assert!(answered > 500, "{answered} of them are as good as the original");
    scene.end();
}
