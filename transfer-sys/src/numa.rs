//! Nodes of memory: where memory is to be, where it is, and running next to it.
//!
//! On a machine with one node nothing here has an effect, and [`Nodes::several`] says so.
#![allow(unsafe_code, reason = "mbind, get_mempolicy, sched_getaffinity and sched_setaffinity")]

use std::path::Path;
use std::ptr::null_mut;

use crate::{OsError, OsResult, RawRange};

/// One more than the highest node that can be named; kernels are built for 1024 at most.
const NODES_MAX: u32 = 1024;
const WORD_BITS: u32 = libc::c_ulong::BITS;
const MASK_WORDS: usize = (NODES_MAX / WORD_BITS) as usize;
/// Ask for the node of the page at an address (linux/mempolicy.h).
const MPOL_F_NODE: libc::c_ulong = 1 << 0;
const MPOL_F_ADDR: libc::c_ulong = 1 << 1;

/// Has pages of `range` that are not there yet come from `node` alone (mbind(2), `MPOL_BIND`). Where the range is a
/// mapping of a shared file, that holds for everybody who maps it.
///
/// # Errors
/// [`OsError`]: EINVAL where there is no such node, ENOSYS where the kernel knows none.
pub(crate) fn bind(range: RawRange, node: u32) -> OsResult<()> {
    let operands = || format!("node {node}; /sys/devices/system/node/has_memory lists those there are");
    if node >= NODES_MAX {
        return Err(OsError::new("mbind", operands(), libc::EINVAL));
    }
    let mut mask = [0 as libc::c_ulong; MASK_WORDS];
    mask[(node / WORD_BITS) as usize] = 1 << (node % WORD_BITS);
    // The kernel takes one bit less than it is told of.
    let bits = libc::c_ulong::from(NODES_MAX) + 1;
    let addr = range.addr();
    // SAFETY: the mask has as many bits; the policy of a range changes no byte of it.
    let rc =
        unsafe { libc::syscall(libc::SYS_mbind, addr, range.len(), libc::MPOL_BIND, mask.as_ptr(), bits, 0) };
    if rc == 0 { Ok(()) } else { Err(OsError::last("mbind", operands())) }
}

/// The node that has the page at the start of `range`; `None` where the page is not there, or the kernel does not say.
/// Cost: one syscall.
#[must_use]
pub fn node_of(range: RawRange) -> Option<u32> {
    let mut node: libc::c_int = -1;
    let addr = range.addr();
    let (none, at): (*mut libc::c_ulong, *mut libc::c_int) = (null_mut(), &raw mut node);
    // SAFETY: the kernel writes one int, and checks the address itself.
    let rc = unsafe { libc::syscall(libc::SYS_get_mempolicy, at, none, 0, addr, MPOL_F_NODE | MPOL_F_ADDR) };
    if rc == 0 { u32::try_from(node).ok() } else { None }
}

/// The nodes of a machine that has several, and which processors this process may use next to each.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// By the node's number; `None` for one without processors for us.
    near: Vec<Option<libc::cpu_set_t>>,
    /// All processors that this process may use.
    all: libc::cpu_set_t,
}

impl Nodes {
    /// What the kernel says; `None` on a machine with one node. Cost: some files of sysfs.
    #[must_use]
    pub fn several() -> Option<Self> {
        Self::read(Path::new("/sys/devices/system/node"), allowed()?)
    }

    fn read(nodes: &Path, all: libc::cpu_set_t) -> Option<Self> {
        let online = parse_list(&std::fs::read_to_string(nodes.join("online")).ok()?)?;
        if online.len() < 2 {
            return None;
        }
        let mut near = vec![None; *online.iter().max()? as usize + 1];
        for node in online {
            let cpus = std::fs::read_to_string(nodes.join(format!("node{node}/cpulist"))).ok()?;
            near[node as usize] = intersection(&parse_list(&cpus)?, &all);
        }
        Some(Self { near, all })
    }

    /// Keeps the calling thread next to `node` from now on, or, with `None` or a node that has no processor for us,
    /// anywhere. Cost: one syscall, and perhaps a move to another processor.
    pub fn stay_near(&self, node: Option<u32>) {
        let near = node.and_then(|node| self.near.get(node as usize)?.as_ref());
        let set: *const libc::cpu_set_t = near.unwrap_or(&self.all);
        // SAFETY: a set of the size that is told.
        let _refused = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
        // A thread that cannot be moved copies from where it is.
    }
}

/// The processors that the calling thread may use.
fn allowed() -> Option<libc::cpu_set_t> {
    // SAFETY: a set is an array of words; zero is the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set of the size that is told.
    let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    (rc == 0).then_some(set)
}

/// Those of `cpus` that are in `all`; `None` where there are none.
fn intersection(cpus: &[u32], all: &libc::cpu_set_t) -> Option<libc::cpu_set_t> {
    // SAFETY: a set is an array of words; zero is the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        let cpu = cpu as usize;
        // SAFETY: numbers that do not fit the set are ignored (CPU_SET(3)).
        if cpu < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(cpu, all) } {
            // SAFETY: as above.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
    }
    // SAFETY: plain counting.
    (unsafe { libc::CPU_COUNT(&set) } > 0).then_some(set)
}

/// A list as sysfs writes it: `0-3,8`.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut list = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if last >= 1 << 16 {
            return None;
        }
        list.extend(first..=last);
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_sysfs_writes_them() {
        assert_eq!(parse_list("0-2,8,10-11\n"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!((parse_list("x"), parse_list("0-99999999")), (None, None));
    }

    #[test]
    fn a_machine_of_two_nodes_keeps_threads_next_to_their_memory() {
        // Node 0 is given the processors that there are, node 1 none.
        let all = allowed().unwrap();
        // SAFETY: plain reading of a set.
        let cpus = (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &all) });
        let cpus: Vec<String> = cpus.map(|cpu| cpu.to_string()).collect();
        let dir = std::env::temp_dir().join(format!("headrace-nodes-{}", std::process::id()));
        for (node, list) in [("node0", cpus[0].clone()), ("node1", String::new())] {
            std::fs::create_dir_all(dir.join(node)).unwrap();
            std::fs::write(dir.join(node).join("cpulist"), list).unwrap();
        }
        std::fs::write(dir.join("online"), "0-1\n").unwrap();
        let nodes = Nodes::read(&dir, all).unwrap();
        std::fs::write(dir.join("online"), "0\n").unwrap();
        assert!(Nodes::read(&dir, all).is_none(), "one node is none");
        std::fs::remove_dir_all(&dir).unwrap();

        // A thread of its own, since it is moved about.
        std::thread::spawn(move || {
            // SAFETY: plain counting.
            let count = || unsafe { libc::CPU_COUNT(&allowed().unwrap()) };
            let everywhere = count();
            nodes.stay_near(Some(0));
            assert_eq!(count(), 1);
            nodes.stay_near(Some(1));
            assert_eq!(count(), everywhere);
            nodes.stay_near(Some(0));
            nodes.stay_near(None);
            assert_eq!(count(), everywhere);
        })
        .join()
        .unwrap();
    }
}
