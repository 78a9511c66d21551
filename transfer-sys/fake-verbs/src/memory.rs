//! Keys, what they allow, and moving bytes.
#![allow(unsafe_code, reason = "copies between processes")]

use std::collections::HashMap;

use transfer_sys::process::Process;
use transfer_sys::verbs::sys;
use transfer_sys::{OsResult, RawRange};

use crate::provider::Local;
use crate::shared::{MRS, Mr, Object, SEND_SGES, Shared};

/// Ranges of one process.
pub(crate) struct Ranges {
    ranges: [RawRange; SEND_SGES],
    count: usize,
}

impl Ranges {
    fn new() -> Self {
        Self { ranges: [RawRange::new(std::ptr::null_mut(), 0); SEND_SGES], count: 0 }
    }

    pub(crate) fn one(addr: u64, len: u64) -> Self {
        let mut ranges = Self::new();
        ranges.push(addr, len);
        ranges
    }

    fn push(&mut self, addr: u64, len: u64) {
        let place = self.ranges.get_mut(self.count);
        if let (Some(place), Ok(addr), Ok(len)) = (place, usize::try_from(addr), usize::try_from(len)) {
            *place = RawRange::new(std::ptr::with_exposed_provenance_mut(addr), len);
            self.count += 1;
        }
    }

    pub(crate) fn as_slice(&self) -> &[RawRange] {
        &self.ranges[..self.count]
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().iter().map(RawRange::len).sum()
    }

    /// `len` bytes from `offset` of all of them together.
    pub(crate) fn part(&self, mut offset: usize, mut len: usize) -> Self {
        let mut part = Self::new();
        for range in self.as_slice() {
            let skipped = offset.min(range.len());
            offset -= skipped;
            let taken = len.min(range.len() - skipped);
            if taken > 0 {
                part.push((range.addr().addr() + skipped) as u64, taken as u64);
                len -= taken;
            }
        }
        part
    }
}

/// The key of what lies in `slot`: the low byte is a tag, so that a key that was used once is not soon used again.
pub(crate) fn key(slot: usize, object: &Object) -> u32 {
    let slot = u32::try_from(slot).unwrap_or(0);
    object.generation << 21 | slot << 8 | object.generation & 0xff
}

/// The slot that a key names: of a registration, or behind those, of a window.
fn slot(key: u32) -> usize {
    (key >> 8 & 0x1fff) as usize
}

/// The slot of the window that a key names.
pub(crate) fn window_slot(key: u32) -> Option<usize> {
    slot(key).checked_sub(MRS)
}

fn inside(addr: u64, len: u64, base: u64, of: u64) -> bool {
    addr >= base && addr - base <= of && len <= of - (addr - base)
}

fn registration(shared: &Shared, key: u32) -> Option<&Mr> {
    shared.mrs.get(slot(key)).filter(|mr| mr.object.live && mr.key == key)
}

/// Where the ranges of a work request lie in their own process; `None` where one is not registered for that.
pub(crate) fn local(
    shared: &Shared,
    (owner, pd): (u32, u32),
    sges: &[sys::ibv_sge],
    written: bool,
) -> Option<Ranges> {
    let mut ranges = Ranges::new();
    for sge in sges.iter().filter(|sge| sge.length > 0) {
        let mr = registration(shared, sge.lkey)?;
        let allowed = !written || mr.access & sys::IBV_ACCESS_LOCAL_WRITE != 0;
        let len = u64::from(sge.length);
        if mr.object.owner != owner || mr.pd != pd || !allowed || !inside(sge.addr, len, mr.base, mr.len) {
            return None;
        }
        ranges.push(mr.addr + (sge.addr - mr.base), len);
    }
    Some(ranges)
}

/// Where memory lies that a peer names by `key`, in the process of queue pair `qp`; `None` where it may not be touched.
pub(crate) fn remote(
    shared: &Shared,
    qp: u32,
    key: u32,
    (addr, len): (u64, u64),
    access: u32,
) -> Option<Ranges> {
    let target = &shared.qps[qp as usize];
    let mr = if slot(key) < MRS {
        let mr = registration(shared, key)?;
        (mr.access & access == access && mr.pd == target.pd).then_some(mr)?
    } else {
        let mw = shared.mws.get(window_slot(key)?)?;
        let valid = mw.object.live && mw.bound && mw.key == key && mw.qp == qp && mw.pd == target.pd;
        if !valid || mw.access & access != access || !inside(addr, len, mw.base, mw.len) {
            return None;
        }
        &shared.mrs[mw.mr as usize]
    };
    let same = mr.object.owner == target.object.owner && mr.object.device == target.object.device;
    (same && inside(addr, len, mr.base, mr.len)).then(|| Ranges::one(mr.addr + (addr - mr.base), len))
}

/// Why bytes did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotMoved {
    /// The other process has ended.
    Gone,
    /// Memory is not there (any more).
    Fault,
}

/// Whether process `slot` still lives.
pub(crate) fn lives(shared: &Shared, local: &mut Local, slot: u32) -> bool {
    peer(shared, &mut local.peers, slot).is_ok_and(Process::is_alive)
}

fn peer<'a>(shared: &Shared, peers: &'a mut HashMap<u32, Process>, slot: u32) -> OsResult<&'a Process> {
    Ok(match peers.entry(slot) {
        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::hash_map::Entry::Vacant(entry) => {
            entry.insert(Process::open(shared.procs[slot as usize].pid)?)
        }
    })
}

/// Copies between ranges of this process and ranges of process `slot`, as many bytes as both have.
pub(crate) fn copy(
    shared: &Shared,
    local: &mut Local,
    (me, slot): (u32, u32),
    (here, there): (&Ranges, &Ranges),
    to_peer: bool,
) -> Result<(), NotMoved> {
    let len = here.len().min(there.len());
    let (here, there) = (here.part(0, len), there.part(0, len));
    if me == slot {
        let (from, to) = if to_peer { (&here, &there) } else { (&there, &here) };
        return copy_within(from, to);
    }
    let process = peer(shared, &mut local.peers, slot).map_err(|_| NotMoved::Gone)?;
    // SAFETY: V3 (docs/ARCHITECTURE.md). Registered memory is mapped; where it is not, the kernel says so.
    let moved = unsafe {
        if to_peer {
            process.write(here.as_slice(), there.as_slice())
        } else {
            process.read(here.as_slice(), there.as_slice())
        }
    };
    match moved {
        Ok(moved) if moved == len => Ok(()),
        Err(error) if error.no_such_process() => Err(NotMoved::Gone),
        _ if !process.is_alive() => Err(NotMoved::Gone),
        _ => Err(NotMoved::Fault),
    }
}

/// The same within this process.
fn copy_within(from: &Ranges, to: &Ranges) -> Result<(), NotMoved> {
    let mut at = 0;
    for to in to.as_slice() {
        let mut done = 0;
        for from in from.part(at, to.len()).as_slice() {
            let place = to.addr().wrapping_add(done);
            // SAFETY: V3. Registered memory is mapped; it may overlap where a test says so.
            unsafe { std::ptr::copy(from.addr(), place, from.len()) };
            done += from.len();
        }
        at += done;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_ranges_are_cut_where_they_meet() {
        let mut ranges = Ranges::one(100, 10);
        ranges.push(200, 5);
        let addrs = |part: &Ranges| -> Vec<_> {
            part.as_slice().iter().map(|range| (range.addr().addr(), range.len())).collect()
        };
        assert_eq!(addrs(&ranges.part(8, 4)), [(108, 2), (200, 2)]);
        assert_eq!(addrs(&ranges.part(10, 99)), [(200, 5)]);
        assert_eq!(addrs(&ranges.part(15, 1)), []);
    }

    #[test]
    fn bounds_do_not_wrap() {
        assert!(inside(10, 5, 10, 5) && inside(15, 0, 10, 5));
        assert!(!inside(9, 1, 10, 5) && !inside(10, 6, 10, 5) && !inside(16, 0, 10, 5));
        assert!(!inside(u64::MAX, 2, 10, 5) && !inside(12, u64::MAX, 10, 5));
    }
}
