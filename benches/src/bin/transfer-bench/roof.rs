//! What a path could give: the same bytes moved with nothing of ours in the way. See the library's page for why it is
//! measured so.
#![expect(clippy::disallowed_methods, reason = "owns the clock of its measurement")]

use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use transfer_bench::path::Op;
use transfer_bench::shape::{Shape, Side};
use transfer_bench::stats::gbps;
use transfer_core::Config;

use crate::raw::{self, RawStream};
use crate::target::Hello;

/// Spans start at the same places in their page as those of the engine's regions do.
const PAGE_BYTES: usize = 4096;
/// Bytes copied between two looks at the clock.
const BATCH_BYTES: u64 = 4 << 20;

/// The roof of a path.
pub(crate) enum Roof {
    Copy { local: Vec<u8>, remote: Vec<u8> },
    Sockets { streams: Vec<RawStream> },
}

impl Roof {
    /// One thread's memcpy.
    pub(crate) fn copy(region_bytes: u64) -> Result<Self> {
        let bytes = usize::try_from(region_bytes)?.checked_add(PAGE_BYTES).context("too long")?;
        // Ones, since zeroed memory is not there before it is touched.
        Ok(Self::Copy { local: vec![1; bytes], remote: vec![1; bytes] })
    }

    /// As many sockets as an agent has.
    pub(crate) fn sockets(hello: &Hello) -> Result<Self> {
        let connect = |_| RawStream::connect(hello.raw);
        let streams = (0..Config::new("").tcp_streams).map(connect).collect::<Result<_>>()?;
        Ok(Self::Sockets { streams })
    }

    /// The roof for one shape and direction.
    pub(crate) fn of(&mut self, shape: Shape, op: Op) -> Result<ShapeRoof<'_>> {
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
            Self::Sockets { streams } => {
                // The engine moves a slice over one connection, so only several slices use several.
                let slices = shape.bytes().div_ceil(Config::new("").slice_bytes_max);
                let used = streams.len().min(usize::try_from(slices)?);
                Work::Sockets { streams: &mut streams[..used], op }
            }
        };
        Ok(ShapeRoof { work, bytes: shape.bytes(), rounds: 1 })
    }
}

fn span(start: u64, len: u64) -> Result<Range<usize>> {
    let start = usize::try_from(start)?;
    Ok(start..start + usize::try_from(len)?)
}

fn aligned(memory: &mut [u8]) -> &mut [u8] {
    let skip = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
    &mut memory[skip..]
}

/// The roof for one shape and direction.
pub(crate) struct ShapeRoof<'a> {
    work: Work<'a>,
    bytes: u64,
    /// How often the sockets move the bytes in a burst, by what the last one took.
    rounds: u64,
}

enum Work<'a> {
    Copy { src: &'a [u8], dst: &'a mut [u8], spans: Vec<(Range<usize>, Range<usize>)> },
    Sockets { streams: &'a mut [RawStream], op: Op },
}

impl ShapeRoof<'_> {
    /// Moves the bytes again and again for about `slot`; GB/s.
    pub(crate) fn burst(&mut self, slot: Duration) -> Result<f64> {
        match &mut self.work {
            Work::Copy { src, dst, spans } => {
                let (begin, batch) = (Instant::now(), (BATCH_BYTES / self.bytes).max(1));
                let mut moved = 0;
                loop {
                    for _ in 0..batch {
                        for (from, to) in &*spans {
                            dst[to.clone()].copy_from_slice(&src[from.clone()]);
                        }
                        // Otherwise the same copy need not be made twice.
                        black_box(&mut *dst);
                    }
                    moved += batch * self.bytes;
                    let elapsed = begin.elapsed();
                    if elapsed >= slot {
                        return Ok(gbps(moved, elapsed));
                    }
                }
            }
            Work::Sockets { streams, op } => {
                let elapsed = raw::burst(streams, *op, self.bytes, self.rounds)?;
                let rate = gbps(self.rounds * self.bytes, elapsed);
                let per_round = (elapsed.as_nanos() / u128::from(self.rounds)).max(1);
                self.rounds = u64::try_from(slot.as_nanos() / per_round)?.max(1);
                Ok(rate)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_moves_exactly_the_spans() {
        let shape = Shape::new(9, 100).unwrap();
        let mut roof = Roof::copy(shape.region_bytes()).unwrap();
        if let Roof::Copy { local, .. } = &mut roof {
            local.fill(7);
        }
        assert!(roof.of(shape, Op::Write).unwrap().burst(Duration::from_millis(1)).unwrap() > 0.0);
        let Roof::Copy { remote, .. } = &mut roof else { panic!("a copy") };
        let remote = aligned(remote);
        assert_eq!(remote.iter().filter(|&&byte| byte == 7).count(), 900);
        for start in shape.offsets(Side::Remote) {
            assert!(remote[span(start, 100).unwrap()].iter().all(|&byte| byte == 7));
        }
    }
}
