//! What a path could give: the same bytes moved with nothing of ours in the way. See the library's page for why it is
//! measured so.
#![expect(clippy::disallowed_methods, reason = "owns the clock of its measurement")]

mod cipher;
mod iperf3;
pub(crate) mod process_vm;
pub(crate) mod sockets;

use std::hint::black_box;
use std::net::IpAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use transfer_bench::path::{Op, PathName};
use transfer_bench::report::{RoofKind, Wait};
use transfer_bench::shape::{Shape, Side};
use transfer_bench::stats::{Histogram, gbps};
use transfer_core::Config;

use crate::talk::{Answer, Ask, Talk, unexpected};
use cipher::Cipher;
use iperf3::Iperf3;
use process_vm::{Batch, Foreign};
use sockets::{Burst, RawStream};

pub(crate) use iperf3::serve as serve_iperf3;

/// Spans start at the same places in their page as those of the engine's regions do.
const PAGE_BYTES: usize = 4096;
/// Bytes moved between two looks at the clock.
const BATCH_BYTES: u64 = 4 << 20;

/// The roof of a path.
pub(crate) enum Roof {
    Copy { local: Vec<u8>, remote: Vec<u8> },
    ProcessVm { local: Vec<u8>, foreign: Foreign },
    Sockets { streams: Vec<RawStream>, wait: Wait },
    Iperf3(Iperf3),
    Cipher(Cipher),
}

/// Plain memory of a region's length. Ones, since zeroed memory is not there before it is touched.
pub(crate) fn plain(region_bytes: u64) -> Result<Vec<u8>> {
    Ok(vec![1; usize::try_from(region_bytes)?.checked_add(PAGE_BYTES).context("too long")?])
}

/// The part of it that begins as a region does.
pub(crate) fn aligned(memory: &mut [u8]) -> &mut [u8] {
    let skip = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
    &mut memory[skip..]
}

impl Roof {
    /// The one that fits the path.
    pub(crate) fn new(path: PathName, talk: &Talk, setup: &Setup) -> Result<Self> {
        match path {
            PathName::ProcessVm => {
                let foreign = Foreign::of(&talk.ask(Ask::Memory)?.wait()?)?;
                Ok(Self::ProcessVm { local: plain(setup.region_bytes)?, foreign })
            }
            PathName::Tcp if setup.encrypt => Ok(Self::Cipher(Cipher::new()?)),
            PathName::Tcp if setup.iperf3 => Ok(Self::Iperf3(Iperf3::new(setup.ip, setup.streams))),
            PathName::Tcp => {
                let ask = Ask::Sockets { streams: setup.streams, wait: setup.wait };
                match talk.ask(ask)?.wait()? {
                    Answer::Sockets { port, secret } => {
                        let connect = |_| RawStream::connect((setup.ip, port).into(), secret);
                        let streams = (0..setup.streams).map(connect).collect::<Result<_>>()?;
                        Ok(Self::Sockets { streams, wait: setup.wait })
                    }
                    other => Err(unexpected(&other)),
                }
            }
            _ => Self::copy(setup.region_bytes),
        }
    }

    /// One thread's memcpy.
    fn copy(region_bytes: u64) -> Result<Self> {
        Ok(Self::Copy { local: plain(region_bytes)?, remote: plain(region_bytes)? })
    }

    /// What it is.
    pub(crate) fn kind(&self) -> RoofKind {
        match self {
            Self::Copy { .. } => RoofKind::Memcpy,
            Self::ProcessVm { .. } => RoofKind::ProcessVm,
            Self::Sockets { .. } => RoofKind::Sockets,
            Self::Iperf3(_) => RoofKind::Iperf3,
            Self::Cipher(_) => RoofKind::Cipher,
        }
    }

    /// The roof for one shape and direction.
    pub(crate) fn of<'a>(&'a mut self, talk: &'a Talk, shape: Shape, op: Op) -> Result<ShapeRoof<'a>> {
        let work = match self {
            Self::Copy { local, remote } => {
                let spans = |side| shape.offsets(side).into_iter().map(move |start| span(start, shape.len()));
                let (from, to, src, dst) = match op {
                    Op::Read => (Side::Remote, Side::Local, remote, local),
                    Op::Write => (Side::Local, Side::Remote, local, remote),
                };
                let spans = spans(from).zip(spans(to)).map(|(from, to)| Ok((from?, to?)));
                Work::Copy { src: aligned(src), dst: aligned(dst), spans: spans.collect::<Result<_>>()? }
            }
            Self::ProcessVm { local, foreign } => {
                foreign.verify()?;
                Work::ProcessVm { batches: foreign.batches(aligned(local), shape, op)?, foreign }
            }
            Self::Sockets { streams, wait } => {
                // The engine moves a slice over one connection, so only several slices use several.
                let slices = shape.bytes().div_ceil(Config::new("").slice_bytes_max);
                let used = streams.len().min(usize::try_from(slices)?);
                Work::Sockets { streams: &mut streams[..used], op, wait: *wait }
            }
            Self::Iperf3(iperf3) => Work::Iperf3 { iperf3, talk, op },
            Self::Cipher(cipher) => Work::Cipher(cipher),
        };
        Ok(ShapeRoof { work, bytes: shape.bytes(), rounds: 1, times: Histogram::default() })
    }
}

/// What a roof has to know of its session.
pub(crate) struct Setup {
    pub(crate) region_bytes: u64,
    /// Where the target is.
    pub(crate) ip: IpAddr,
    pub(crate) streams: usize,
    pub(crate) wait: Wait,
    pub(crate) iperf3: bool,
    pub(crate) encrypt: bool,
}

fn span(start: u64, len: u64) -> Result<Range<usize>> {
    let start = usize::try_from(start)?;
    Ok(start..start + usize::try_from(len)?)
}

/// The roof for one shape and direction.
pub(crate) struct ShapeRoof<'a> {
    work: Work<'a>,
    bytes: u64,
    /// How often the sockets move the bytes in a burst, by what the last one took.
    rounds: u64,
    /// Nanoseconds of single rounds, where they are timed.
    times: Histogram,
}

enum Work<'a> {
    Copy { src: &'a [u8], dst: &'a mut [u8], spans: Vec<(Range<usize>, Range<usize>)> },
    ProcessVm { batches: Vec<Batch<'a>>, foreign: &'a Foreign },
    Sockets { streams: &'a mut [RawStream], op: Op, wait: Wait },
    Iperf3 { iperf3: &'a Iperf3, talk: &'a Talk, op: Op },
    Cipher(&'a mut Cipher),
}

impl ShapeRoof<'_> {
    /// Moves the bytes again and again for about `slot`; GB/s.
    pub(crate) fn burst(&mut self, slot: Duration) -> Result<f64> {
        let (bytes, begin) = (self.bytes, Instant::now());
        match &mut self.work {
            Work::Copy { src, dst, spans } => {
                let batch = (BATCH_BYTES / bytes).max(1);
                let moves = || {
                    for _ in 0..batch {
                        for (from, to) in &*spans {
                            dst[to.clone()].copy_from_slice(&src[from.clone()]);
                        }
                        // Otherwise the same copy need not be made twice.
                        black_box(&mut *dst);
                    }
                    Ok(batch * bytes)
                };
                repeat(begin, slot, moves)
            }
            Work::ProcessVm { batches, foreign } => {
                let times = &mut self.times;
                let moves = || {
                    let begin = Instant::now();
                    foreign.run(batches)?;
                    times.record(u64::try_from(begin.elapsed().as_nanos())?);
                    Ok(bytes)
                };
                repeat(begin, slot, moves)
            }
            Work::Sockets { streams, op, wait } => {
                let burst = Burst { op: *op, wait: *wait, bytes, rounds: self.rounds };
                let elapsed = sockets::burst(streams, burst, &mut self.times)?;
                let rate = gbps(self.rounds * bytes, elapsed);
                let per_round = (elapsed.as_nanos() / u128::from(self.rounds)).max(1);
                self.rounds = u64::try_from(slot.as_nanos() / per_round)?.max(1);
                Ok(rate)
            }
            Work::Iperf3 { iperf3, talk, op } => iperf3.burst(talk, *op, slot),
            Work::Cipher(cipher) => repeat(begin, slot, || cipher.seal(bytes)),
        }
    }

    /// The median of single rounds since it was last asked, in microseconds; `NaN` where none was timed.
    pub(crate) fn take_p50_us(&mut self) -> f64 {
        std::mem::take(&mut self.times).quantile(500) / 1e3
    }
}

/// Calls `moves`, which says how many bytes it moved, for about `slot`; GB/s.
fn repeat(begin: Instant, slot: Duration, mut moves: impl FnMut() -> Result<u64>) -> Result<f64> {
    let mut moved = 0;
    loop {
        moved += moves()?;
        let elapsed = begin.elapsed();
        if elapsed >= slot {
            return Ok(gbps(moved, elapsed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_moves_exactly_the_spans() {
        let shape = Shape::new(9, 100).unwrap();
        let Roof::Copy { mut local, mut remote } = Roof::copy(shape.region_bytes()).unwrap() else {
            panic!("a copy")
        };
        local.fill(7);
        let spans = |side| shape.offsets(side).into_iter().map(|start| span(start, 100).unwrap());
        let spans = spans(Side::Local).zip(spans(Side::Remote)).collect();
        let work = Work::Copy { src: aligned(&mut local), dst: aligned(&mut remote), spans };
        let mut roof = ShapeRoof { work, bytes: shape.bytes(), rounds: 1, times: Histogram::default() };
        assert!(roof.burst(Duration::from_millis(1)).unwrap() > 0.0);
        assert!(roof.take_p50_us().is_nan());
        let remote = aligned(&mut remote);
        assert_eq!(remote.iter().filter(|&&byte| byte == 7).count(), 900);
        for start in shape.offsets(Side::Remote) {
            assert!(remote[span(start, 100).unwrap()].iter().all(|&byte| byte == 7));
        }
    }
}
