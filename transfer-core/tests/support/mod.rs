//! What the tests share: patterns that tell every byte apart, lists with gaps, and agents.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "waits with a bound")]

use std::time::{Duration, Instant};

use transfer_core::{Agent, Config, Desc, DescList, Key, PathSet, Peer, Region};

pub const WAIT: Duration = Duration::from_secs(20);

/// A byte for each place, so that a byte from anywhere else shows.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Returns when that is so.
pub fn until(what: &str, is: impl Fn() -> bool) {
    let from = Instant::now();
    while !is() {
        assert!(from.elapsed() < WAIT, "{what} in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn config(name: &str, paths: PathSet) -> Config {
    let mut config = Config::new(name);
    config.paths = paths;
    config
}

/// The same over sockets, with a key.
pub fn keyed(name: &str, encrypt_data: bool) -> Config {
    let mut config = config(name, PathSet::TCP);
    (config.key, config.encrypt_data) = (Some(Key::from_bytes([77; 32])), encrypt_data);
    config
}

pub fn agent(name: &str, paths: PathSet) -> Agent {
    Agent::new(config(name, paths)).unwrap()
}

pub fn bytes_of(region: &Region) -> Vec<u8> {
    let mut out = vec![0; region.len()];
    region.read_at(0, &mut out).unwrap();
    out
}

/// Two agents that know each other, in one process.
pub fn pair(paths: PathSet) -> (Agent, Agent, Peer) {
    let (here, there) = (agent("here", paths), agent("there", paths));
    let peer = here.connect(&there.address().unwrap()).unwrap();
    (here, there, peer)
}

/// A shape of a list: what it is called, the list, and the spans as (offset, length) worked out by hand.
pub type Shape = (&'static str, DescList, Vec<(usize, usize)>);

/// Lists over `region` of each shape; every one has 6 * 4096 bytes, so any two of them can be paired.
pub fn shapes(region: &Region) -> Vec<Shape> {
    let id = region.id();
    let pages = [9_u32, 2, 7, 3, 0, 5];
    let paged: Vec<_> = pages.iter().map(|&page| (100 + page as usize * 5000, 4096)).collect();
    let mut mixed = DescList::new();
    mixed.push(Desc::contiguous(id, 7, 4095));
    mixed.push(Desc::strided(id, 8192, 2048, 3000, 4));
    mixed.push(Desc::contiguous(id, 30_001, 1));
    mixed.push(Desc::paged(id, 0, 4096, 4096, vec![10, 8, 9]));
    let mut mixed_spans = vec![(7, 4095)];
    mixed_spans.extend((0..4).map(|i| (8192 + i * 3000, 2048)));
    mixed_spans.push((30_001, 1));
    mixed_spans.extend([10, 8, 9].map(|page| (page * 4096, 4096)));
    vec![
        ("contiguous", DescList::from(Desc::contiguous(id, 3, 6 * 4096)), vec![(3, 6 * 4096)]),
        (
            "strided",
            DescList::from(Desc::strided(id, 11, 2048, 4000, 12)),
            (0..12).map(|i| (11 + i * 4000, 2048)).collect(),
        ),
        ("paged", DescList::from(Desc::paged(id, 100, 4096, 5000, pages.to_vec())), paged),
        ("mixed", mixed, mixed_spans),
    ]
}

pub const REGION_BYTES: usize = 60_000;

/// What `target` must hold after the source's spans were copied onto the target's, byte by byte.
pub fn expected(source: &[u8], from: &[(usize, usize)], target: &[u8], to: &[(usize, usize)]) -> Vec<u8> {
    let places = |spans: &[(usize, usize)]| -> Vec<usize> {
        spans.iter().flat_map(|&(offset, len)| offset..offset + len).collect()
    };
    let mut out = target.to_vec();
    for (s, t) in places(from).into_iter().zip(places(to)) {
        out[t] = source[s];
    }
    out
}
