//! What descriptors cost before any byte moves: checking, pairing and coding 16384 pages, a long prompt's worth.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a bench")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use transfer_bench::shape::{Shape, Side};
use transfer_core::{Agent, Config, DescList};
use transfer_proto::codec::Reader;
use transfer_proto::desc::Selection;
use transfer_proto::plan::{Pieces, Side as PlanSide};

const PAGES: u32 = 16_384;
/// Short, so that the regions are small: nothing here touches their bytes.
const PAGE_BYTES: u64 = 64;
/// What the engine puts into one slice.
const SLICE_BYTES: u64 = 1 << 20;
const SLICE_PIECES: usize = 1000;

fn shape() -> Shape {
    Shape::new(PAGES, PAGE_BYTES).unwrap()
}

fn prepare(c: &mut Criterion) {
    let (here, there) = (Agent::new(Config::new("here")).unwrap(), Agent::new(Config::new("there")).unwrap());
    let bytes = usize::try_from(shape().region_bytes()).unwrap();
    let (ours, theirs) = (here.alloc(bytes, "pages").unwrap(), there.alloc(bytes, "pages").unwrap());
    let peer = here.connect(&there.address().unwrap()).unwrap();
    let (local, remote) = (shape().list(Side::Local, ours.id()), shape().list(Side::Remote, theirs.id()));
    let mut group = c.benchmark_group("prepare");
    group.throughput(Throughput::Elements(u64::from(PAGES)));
    group.bench_function("local", |b| b.iter(|| here.prepare(black_box(&local)).unwrap()));
    group.bench_function("remote", |b| b.iter(|| peer.prepare(black_box(&remote)).unwrap()));
    group.finish();
}

fn walk(c: &mut Criterion) {
    let id = transfer_core::RegionId::from_u64(0);
    let (local, remote) = (shape().list(Side::Local, id), shape().list(Side::Remote, id));
    let sides = (PlanSide::new(&local, &Selection::All), PlanSide::new(&remote, &Selection::All));
    let mut group = c.benchmark_group("walk");
    group.throughput(Throughput::Elements(u64::from(PAGES)));
    let mut slice = Vec::with_capacity(SLICE_PIECES);
    group.bench_function("pair and slice", |b| {
        b.iter(|| {
            let (mut pieces, mut count) = (Pieces::new(), 0);
            loop {
                slice.clear();
                if pieces.slice(sides, SLICE_BYTES, SLICE_PIECES, &mut slice) == 0 {
                    assert_eq!(count, PAGES as usize, "none of these pages are neighbours on both sides");
                    return count;
                }
                count += black_box(&slice).len();
            }
        });
    });
    group.finish();
}

fn codec(c: &mut Criterion) {
    let list = shape().list(Side::Remote, transfer_core::RegionId::from_u64(0));
    let mut coded = Vec::new();
    list.encode(&mut coded);
    let decode = |bytes: &[u8]| DescList::decode(&mut Reader::new(bytes)).unwrap();
    assert_eq!(decode(&coded), list);
    let mut group = c.benchmark_group("codec");
    group.throughput(Throughput::Elements(u64::from(PAGES)));
    let mut out = Vec::with_capacity(coded.len());
    group.bench_function("encode", |b| {
        b.iter(|| {
            out.clear();
            black_box(&list).encode(&mut out);
            out.len()
        });
    });
    group.bench_function("decode", |b| b.iter(|| decode(black_box(&coded))));
    group.finish();
}

criterion_group!(benches, prepare, walk, codec);
criterion_main!(benches);
