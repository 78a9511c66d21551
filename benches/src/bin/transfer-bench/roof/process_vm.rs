//! process_vm_readv(2) and process_vm_writev(2) in a plain loop, for the roof of process-vm: as many spans in a call as
//! the kernel takes, between this process and plain memory of the target.

use std::io::{IoSlice, IoSliceMut};

use anyhow::{Context as _, Result, ensure};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use transfer_bench::path::Op;
use transfer_bench::shape::{Shape, Side};

use crate::talk::{Answer, SECRET_BYTES, unexpected};

/// The most spans of a call (`UIO_MAXIOV` of the kernel).
const SPANS_MAX: usize = 1024;
/// Bytes of a call, well below the 2 GiB at which the kernel stops.
const CALL_BYTES_MAX: u64 = 1 << 30;

/// Plain memory of the target.
#[derive(Debug)]
pub(crate) struct Foreign {
    pid: Pid,
    address: usize,
    secret: [u8; SECRET_BYTES],
}

/// Spans of one call.
pub(crate) enum Batch<'a> {
    Read { local: Vec<IoSliceMut<'a>>, remote: Vec<RemoteIoVec>, bytes: u64 },
    Write { local: Vec<IoSlice<'a>>, remote: Vec<RemoteIoVec>, bytes: u64 },
}

impl Foreign {
    /// The memory that the target speaks of.
    pub(crate) fn of(answer: &Answer) -> Result<Self> {
        match answer {
            Answer::Memory { pid, address, secret } => {
                Ok(Self { pid: Pid::from_raw(*pid), address: usize::try_from(*address)?, secret: *secret })
            }
            other => Err(unexpected(other)),
        }
    }

    /// Makes sure that it is the target's memory and not that of another process which has the same number here.
    pub(crate) fn verify(&self) -> Result<()> {
        let mut found = [0; SECRET_BYTES];
        let remote = [RemoteIoVec { base: self.address, len: SECRET_BYTES }];
        process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut found)], &remote)
            .with_context(|| format!("process_vm_readv of process {}", self.pid))?;
        ensure!(
            found == self.secret,
            "process {} is not the target; is it in another PID namespace?",
            self.pid
        );
        Ok(())
    }

    /// All calls that move the spans.
    pub(crate) fn batches<'a>(&self, local: &'a mut [u8], shape: Shape, op: Op) -> Result<Vec<Batch<'a>>> {
        let len = usize::try_from(shape.len())?;
        let mut slices = split(local, &shape.offsets(Side::Local), len)?.into_iter();
        let remote = shape.offsets(Side::Remote).into_iter().map(|offset| {
            // The secret lies in the guard before the first span, so it stays.
            let base = self.address + usize::try_from(offset)?;
            Ok(RemoteIoVec { base, len })
        });
        let remote = remote.collect::<Result<Vec<_>>>()?;
        let fitting = usize::try_from((CALL_BYTES_MAX / shape.len()).max(1))?;
        let mut batches = Vec::new();
        for remote in remote.chunks(fitting.min(SPANS_MAX)) {
            let (local, remote) = (slices.by_ref().take(remote.len()), remote.to_vec());
            let bytes = remote.len() as u64 * shape.len();
            batches.push(match op {
                Op::Read => Batch::Read { local: local.map(IoSliceMut::new).collect(), remote, bytes },
                Op::Write => {
                    Batch::Write { local: local.map(|slice| IoSlice::new(slice)).collect(), remote, bytes }
                }
            });
        }
        Ok(batches)
    }

    /// Makes the calls.
    pub(crate) fn run(&self, batches: &mut [Batch<'_>]) -> Result<()> {
        for batch in batches {
            let (moved, wanted) = match batch {
                Batch::Read { local, remote, bytes } => (process_vm_readv(self.pid, local, remote)?, *bytes),
                Batch::Write { local, remote, bytes } => {
                    (process_vm_writev(self.pid, local, remote)?, *bytes)
                }
            };
            ensure!(moved as u64 == wanted, "the kernel moved {moved} of {wanted} bytes");
        }
        Ok(())
    }
}

/// Slices of `len` bytes at `offsets`, which do not overlap, in the order of `offsets`.
fn split<'a>(mut memory: &'a mut [u8], offsets: &[u64], len: usize) -> Result<Vec<&'a mut [u8]>> {
    let mut order: Vec<(u64, usize)> = offsets.iter().copied().zip(0..).collect();
    order.sort_unstable();
    let (mut slices, mut at) = (Vec::with_capacity(order.len()), 0);
    for (offset, index) in order {
        let offset = usize::try_from(offset)?;
        let rest = memory.get_mut(offset - at..).context("a span outside of the memory")?;
        let (slice, rest) = rest.split_at_mut_checked(len).context("a span outside of the memory")?;
        slices.push((index, slice));
        (memory, at) = (rest, offset + len);
    }
    slices.sort_unstable_by_key(|(index, _)| *index);
    Ok(slices.into_iter().map(|(_, slice)| slice).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This process is as good a target as any.
    fn here(memory: &[u8]) -> Foreign {
        let secret = memory[..SECRET_BYTES].try_into().unwrap();
        Foreign { pid: Pid::this(), address: memory.as_ptr().addr(), secret }
    }

    #[test]
    fn exactly_the_spans_are_moved_both_ways() {
        let shape = Shape::new(1500, 10).unwrap();
        let bytes = usize::try_from(shape.region_bytes()).unwrap();
        for op in Op::ALL {
            let (mut local, mut remote) = (vec![1_u8; bytes], vec![1_u8; bytes]);
            let (from, to) = match op {
                Op::Read => (&mut remote, &mut local),
                Op::Write => (&mut local, &mut remote),
            };
            from.fill(2);
            let _kept = &*to;
            let foreign = here(&remote);
            foreign.verify().unwrap();
            let mut batches = foreign.batches(&mut local, shape, op).unwrap();
            assert_eq!(batches.len(), 2);
            foreign.run(&mut batches).unwrap();
            drop(batches);
            let (to, side) = match op {
                Op::Read => (std::hint::black_box(&local), Side::Local),
                Op::Write => (std::hint::black_box(&remote), Side::Remote),
            };
            assert_eq!(to.iter().filter(|&&byte| byte == 2).count(), 15_000, "{op}");
            for offset in shape.offsets(side) {
                let offset = usize::try_from(offset).unwrap();
                assert!(to[offset..offset + 10].iter().all(|&byte| byte == 2), "{op}");
            }
        }
    }

    #[test]
    fn another_process_is_told_from_the_target() {
        let memory = [5; 64];
        let mut foreign = here(&memory);
        foreign.secret = [6; SECRET_BYTES];
        assert!(foreign.verify().unwrap_err().to_string().contains("is not the target"));
        assert!(split(&mut [0; 10], &[4, 0], 4).is_ok());
        assert!(split(&mut [0; 7], &[4, 0], 4).is_err());
    }
}
