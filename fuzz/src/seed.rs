//! Writes valid messages, and short runs of the machines, as first inputs: `seed corpus`. What fuzzing found to reach
//! more than these lies beside them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use transfer_core::directory::Entry;
use transfer_proto::desc::{Desc, DescList};
use transfer_proto::id::{Incarnation, RailId, RegionId, XferId};
use transfer_proto::proto::control::{Farewell, Frame};
use transfer_proto::proto::data::{DataHeader, DataKind};
use transfer_proto::proto::local::LocalMessage;
use transfer_proto::proto::metadata::{Access, AgentMetadata, Generations, RegionInfo, RegionKind};
use transfer_proto::proto::preamble::{self, Flags, Kind};

fn main() -> std::io::Result<()> {
    let corpus = std::env::args().nth(1).unwrap_or_else(|| "corpus".to_owned());
    for (target, inputs) in all() {
        let folder = Path::new(&corpus).join(target);
        fs::create_dir_all(&folder)?;
        for (at, input) in inputs.iter().enumerate() {
            fs::write(folder.join(format!("seed-{at:02}")), input)?;
        }
    }
    Ok(())
}

fn all() -> [(&'static str, Vec<Vec<u8>>); 13] {
    [
        ("frames", frames().iter().map(|frame| [&[7][..], &encoded(frame)].concat()).collect()),
        ("link", links()),
        ("metadata", vec![metadata(0).to_blob(), metadata(2).to_blob()]),
        ("lists", lists().iter().map(list_bytes).collect()),
        ("data", heads()),
        ("small", small()),
        ("entry", entries()),
        ("rails", rails()),
        ("xfer", xfers()),
        ("handshake", handshakes()),
        ("records", records()),
        ("text", texts()),
        ("capi", capis()),
    ]
}

fn metadata(regions: u32) -> AgentMetadata {
    let mut metadata = AgentMetadata::new("p0".to_owned(), Incarnation::from_bytes([7; 16]));
    if regions > 0 {
        metadata.addresses = vec!["tcp://127.0.0.1:4000".to_owned(), String::new()];
        (metadata.local_name, metadata.app) = ("x".to_owned(), vec![1, 2]);
    }
    metadata.regions = (0..regions).map(region).collect();
    metadata
}

fn region(slot: u32) -> RegionInfo {
    let generations = Generations::new(512, 1024, 7);
    let (kind, access) = match slot % 2 {
        0 => (RegionKind::Allocated, Access::ReadWrite),
        _ => (RegionKind::Foreign, Access::ReadOnly),
    };
    RegionInfo::new(RegionId::new(slot, 1), (0x7000, 4096), "kv".to_owned(), kind, access, generations)
}

fn frames() -> Vec<Frame> {
    vec![
        Frame::Hello { metadata: metadata(1), token: 99 },
        Frame::Ready,
        Frame::Notif(vec![5; 10]),
        Frame::RegionAdd(region(3)),
        Frame::RegionDel(RegionId::new(1, 2)),
        Frame::Ping,
        Frame::Sync,
        Frame::Synced,
        Frame::RailClosed(RailId::new(1, 5)),
        Frame::Bye { farewell: Farewell::Duplicate, incarnation: Incarnation::from_bytes([3; 16]) },
    ]
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![];
    frame.encode(&mut bytes);
    bytes
}

/// A step of the target `link` by which these bytes come.
fn comes(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(255).flat_map(|part| [&[1, u8::try_from(part.len()).unwrap_or(0)], part].concat()).collect()
}

fn links() -> Vec<Vec<u8>> {
    let hello = Frame::Hello { metadata: metadata(0), token: 1 };
    let rest = frames().split_off(2);
    let stream = |first: &[Frame]| {
        first.iter().chain(&rest).flat_map(|frame| comes(&encoded(frame))).collect::<Vec<u8>>()
    };
    let opened = [&comes(&encoded(&hello))[..], &[4, 5, 9, 7, 6, 255, 0, 0, 0, 4, 8, 0, 1]].concat();
    vec![
        [&[0], &opened[..], &stream(&[])].concat(),
        [&[1], &stream(&[hello.clone(), Frame::Ready])[..]].concat(),
        [&[1], &comes(&encoded(&hello))[..], &[0, 0, 32, 9]].concat(),
        [&[1], &comes(&encoded(&Frame::Ready))[..]].concat(),
    ]
}

fn lists() -> Vec<DescList> {
    let id = RegionId::new(1 << 16, 1);
    let all = [
        Desc::contiguous(id, 8, 100).at_generation(3),
        Desc::strided(id, 0, 16, 64, 9),
        Desc::paged(id, 64, 512, 512, vec![9, 1, 2, 3]),
    ];
    let mut lists: Vec<_> = all.iter().cloned().map(DescList::from).collect();
    lists.push(all.into_iter().collect());
    lists.push(DescList::from(Desc::strided(id, u64::MAX, u64::MAX, u64::MAX, u32::MAX)));
    lists
}

fn list_bytes(list: &DescList) -> Vec<u8> {
    let mut bytes = vec![];
    list.encode(&mut bytes);
    bytes
}

fn heads() -> Vec<Vec<u8>> {
    let kinds = [DataKind::Write, DataKind::ReadRequest, DataKind::ReadReply, DataKind::Ack];
    let heads: Vec<Vec<u8>> = kinds
        .iter()
        .map(|kind| {
            let mut header = DataHeader::new(*kind, XferId::new(3, 4), 5);
            let asks = matches!(kind, DataKind::Write | DataKind::ReadRequest);
            let descs = if asks { list_bytes(&lists()[3]) } else { vec![] };
            header.descs_len = u32::try_from(descs.len()).unwrap_or(0);
            header.payload_len = if *kind == DataKind::Write { lists()[3].bytes() } else { 0 };
            [&header.encode(), &descs[..]].concat()
        })
        .collect();
    heads
}

fn small() -> Vec<Vec<u8>> {
    let (incarnation, id) = (Incarnation::from_bytes([9; 16]), RegionId::new(5, 6));
    let messages = [
        LocalMessage::Hello { incarnation, probe: 2 },
        LocalMessage::Welcome { incarnation, probe: 3 },
        LocalMessage::Map(id),
        LocalMessage::Mapped(id),
        LocalMessage::NotMapped(id),
    ];
    let kinds =
        [Kind::Control, Kind::Local, Kind::Data].map(|kind| preamble::encode(kind, Flags::KEY).to_vec());
    kinds.into_iter().chain(messages.map(|message| message.encode().to_vec())).collect()
}

fn entries() -> Vec<Vec<u8>> {
    let value = |regions| {
        let entry = Entry::new(&metadata(regions).to_blob(), Duration::from_secs(10));
        entry.map(|entry| entry.encode()).unwrap_or_default()
    };
    vec![
        [&[2][..], b"p0", &value(0)].concat(),
        [&[2][..], b"p0", &value(2)].concat(),
        [&[1][..], b"d", &value(0)].concat(),
    ]
}

fn rails() -> Vec<Vec<u8>> {
    vec![
        // Two open, carry slices, one is lost, confirmed, and opens again.
        vec![
            1, 1, 0, 0, 1, 1, 0, 4, 9, 9, 4, 4, 9, 9, 4, 0, 9, 0, 6, 0, 0, 9, 9, 2, 0, 0, 3, 0, 0, 0, 99, 0,
            1, 0, 1,
        ],
        // One falls silent, is paused, recovers, and is lost.
        vec![0, 1, 3, 2, 4, 9, 9, 9, 0, 0, 2, 5, 3, 2, 7, 0, 0, 2, 0, 0, 9, 0, 0, 9],
        // Names that cannot be.
        vec![0, 1, 70, 0, 3, 70, 0, 1, 1, 255, 3, 1, 255, 0, 255, 255],
    ]
}

fn xfers() -> Vec<Vec<u8>> {
    let lists: &[u8] = &[1, 0, 31, 40, 7, 1, 1, 9, 8, 8, 3, 2, 5, 1, 7, 2];
    vec![
        [lists, &[49, 3, 3, 0, 0, 3, 0, 0, 0, 3, 0, 0, 3, 0, 0, 0, 0, 3, 0, 0, 3, 0, 0, 0, 0]].concat(),
        [lists, &[49, 3, 3, 0, 0, 3, 0, 0x45, 3, 0, 0, 5, 255, 0, 3, 0, 0, 0]].concat(),
        [lists, &[9, 1, 1, 0, 7, 0, 3, 0, 7]].concat(),
        [lists, &[99, 7, 7, 0, 0, 3, 0, 0x45, 7, 1, 3, 0, 5]].concat(),
        [lists, &[99, 7, 7, 0, 6, 255, 6, 255, 6, 255, 6, 255, 3, 0, 0]].concat(),
    ]
}

fn handshakes() -> Vec<Vec<u8>> {
    // Every kind, with a key on both sides, on one, on none, with two that differ, and with a word that is wrong or that
    // nobody knows; nobody is on the way.
    let met = |kind| [5, 5 + 16, 5 + 32, 4, 1, 0, 13, 5 + 128, 5 + 192].map(|how| vec![kind, how]);
    let mut inputs: Vec<Vec<u8>> = (0..3).flat_map(met).collect();
    // In each message in turn a byte is flipped, some are left out, or it comes twice.
    for meddled in [&[3, 9, 1][..], &[6, 5], &[7]] {
        inputs.extend((0..4).map(|message| [&[2, 5][..], &vec![0; message], meddled].concat()));
    }
    // A stranger's bytes come instead of the opener's.
    let hello = preamble::encode(Kind::Control, Flags::KEY);
    inputs.push([&[0, 5, 4, 8][..], &hello, &[0, 1, 48], &[7; 48]].concat());
    inputs
}

fn records() -> Vec<Vec<u8>> {
    let steps: [&[u8]; 7] = [
        // Both ways, whole, and in pieces.
        &[0, 9, 0, 1, 7, 0, 4, 5, 0, 0, 80, 6, 3, 0, 6, 255, 255, 4],
        // Repeated, swapped, flipped, cut, mirrored, made up.
        &[0, 9, 0, 0, 8, 0, 4, 8],
        &[0, 9, 0, 0, 8, 0, 0x18, 8],
        &[0, 9, 0, 10, 3, 0, 1, 4],
        &[0, 9, 0, 12, 5, 0, 4],
        &[0, 9, 0, 1, 9, 0, 0x0f, 4],
        &[0, 9, 0, 0x1e, 4, 20, 0, 7, 7],
    ];
    (0..2).flat_map(|kind| steps.map(|steps| [&[kind][..], steps].concat())).collect()
}

fn texts() -> Vec<Vec<u8>> {
    let hex = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
    let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let texts = [
        "tcp://[::1]:4000",
        "tcp://worker-3:9",
        "unix:@x",
        "[[a]]:1",
        "p0.agent",
        "a%2Fb.agent",
        "a/b",
        hex,
        base64,
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// An application that creates two agents that meet, a region each, lists of it, and moves it.
fn capis() -> Vec<Vec<u8>> {
    let agent = &[0, 255, 255, 1, 15, 0, 0][..];
    let (meet, region) = (&[1, 1, 0, 3, 255, 0][..], |agent| vec![2, agent, 2, b'k', b'v', 7, 0, 252, 4, 0]);
    let all_of = |region| vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 0, region, 1, 1, 1, 3, 0, 1];
    let ours = [&[4][..], &all_of(1), &[0, 1, 0]].concat();
    let theirs = [&[4][..], &all_of(0), &[1, 0, 0]].concat();
    let pair = [agent, agent, meet, &region(0), &region(1), &ours, &theirs].concat();
    let post = &[6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0][..];
    let wait = &[7, 0, 0, 1, 0, 0][..];
    let free = |kind: u8| [9, kind, 0];
    vec![
        [&pair[..], post, wait].concat(),
        [&pair[..], post, &[7, 0, 0, 2, 0, 0], &free(6), wait].concat(),
        [&pair[..], &free(6), post, &free(4), &free(3)].concat(),
        [agent, &[10, 0, 0], &[7, 0, 0, 6, 0, 0, 9], &[7, 0, 0, 7, 0, 0], &[7, 0, 0, 3, 0, 0]].concat(),
        [agent, &region(0), &[3, 0, 0, 9, 0], &[3, 0, 252, 255, 1], &[3, 0, 0, 9, 3, 9], &[3, 0, 0, 0, 2]]
            .concat(),
    ]
}
