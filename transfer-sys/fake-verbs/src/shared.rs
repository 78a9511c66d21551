//! The file of a world: what hardware would know. Zeros are a world without anything in it.
#![allow(unsafe_code, reason = "a mapping that processes share")]

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use transfer_sys::verbs::sys;

pub(crate) const DEVICES: usize = 8;
pub(crate) const PROCS: usize = 64;
pub(crate) const CONTEXTS: usize = 128;
pub(crate) const PDS: usize = 256;
pub(crate) const MRS: usize = 4096;
pub(crate) const MWS: usize = 4096;
pub(crate) const CHANNELS: usize = 256;
pub(crate) const CQS: usize = 256;
pub(crate) const CQ_ENTRIES: usize = 16384;
pub(crate) const SRQS: usize = 32;
pub(crate) const QPS: usize = 256;
pub(crate) const QUEUE_WRS: usize = 8192;
pub(crate) const SEND_SGES: usize = 16;
pub(crate) const RECEIVE_SGES: usize = 4;
pub(crate) const INLINE_BYTES: usize = 220;
pub(crate) const READS: u8 = 16;
pub(crate) const GIDS: usize = 4;
pub(crate) const FAULTS: usize = 32;
/// No object.
pub(crate) const NONE: u32 = u32::MAX;

/// What every object has.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Object {
    pub(crate) live: bool,
    /// Slot of the process.
    pub(crate) owner: u32,
    pub(crate) device: u32,
    /// Slot of the context.
    pub(crate) context: u32,
    /// How often the slot was used.
    pub(crate) generation: u32,
    /// Objects that would be left without it.
    pub(crate) users: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Gid {
    pub(crate) bytes: [u8; 16],
    pub(crate) kind: u32,
    pub(crate) used: bool,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Device {
    pub(crate) name: [u8; 32],
    pub(crate) guid: u64,
    pub(crate) wire: u32,
    pub(crate) present: bool,
    pub(crate) removed: bool,
    pub(crate) port_up: bool,
    pub(crate) ethernet: bool,
    pub(crate) lid: u16,
    pub(crate) mtu: u32,
    pub(crate) width: u8,
    pub(crate) speed: u8,
    pub(crate) windows: bool,
    pub(crate) gids: [Gid; GIDS],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Proc {
    pub(crate) pid: i32,
    /// Changed and woken (futex(2)) when the NIC of that process has something to do.
    pub(crate) doorbell: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Mr {
    pub(crate) object: Object,
    pub(crate) key: u32,
    pub(crate) pd: u32,
    /// Where it lies in its process.
    pub(crate) addr: u64,
    /// What work requests call its first byte.
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) access: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Mw {
    pub(crate) object: Object,
    pub(crate) key: u32,
    pub(crate) pd: u32,
    pub(crate) bound: bool,
    pub(crate) mr: u32,
    pub(crate) qp: u32,
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) access: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Cqe {
    pub(crate) wc: sys::ibv_wc,
    /// Slot of the queue pair.
    pub(crate) qp: u32,
    /// Places in its send queue that polling this frees; 0 for a receive.
    pub(crate) frees: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Armed {
    No = 0,
    Solicited = 1,
    Any = 2,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Cq {
    pub(crate) object: Object,
    pub(crate) capacity: u32,
    pub(crate) head: u64,
    pub(crate) tail: u64,
    pub(crate) armed: Armed,
    pub(crate) channel: u32,
    pub(crate) broken: bool,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Receive {
    pub(crate) wr_id: u64,
    pub(crate) count: u32,
    pub(crate) sges: [sys::ibv_sge; RECEIVE_SGES],
}

/// Posted receives: of a queue pair, or shared.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ReceiveQueue {
    pub(crate) capacity: u32,
    pub(crate) sges: u32,
    pub(crate) head: u64,
    pub(crate) tail: u64,
    /// Posted and not polled as completed yet.
    pub(crate) used: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Srq {
    pub(crate) object: Object,
    pub(crate) pd: u32,
    pub(crate) limit: u32,
    pub(crate) queue: ReceiveQueue,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Qp {
    pub(crate) object: Object,
    pub(crate) number: u32,
    pub(crate) state: u32,
    pub(crate) pd: u32,
    pub(crate) send_cq: u32,
    pub(crate) receive_cq: u32,
    pub(crate) srq: u32,
    pub(crate) queue: ReceiveQueue,
    pub(crate) attr: sys::ibv_qp_attr,
}

/// A fault that waits for its moment.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct FaultEntry {
    pub(crate) kind: FaultKind,
    pub(crate) device: u32,
    /// Work requests of that device to let pass first.
    pub(crate) skip: u32,
    pub(crate) argument: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum FaultKind {
    None = 0,
    Lost,
    QpError,
    Late,
    Partial,
    WrongKey,
}

#[repr(C)]
pub(crate) struct Shared {
    lock: libc::pthread_mutex_t,
    pub(crate) ready: u32,
    /// Milliseconds after which an answer that does not come has been waited for, at most.
    pub(crate) patience_ms: u64,
    pub(crate) fault_count: u32,
    pub(crate) faults: [FaultEntry; FAULTS],
    pub(crate) devices: [Device; DEVICES],
    pub(crate) procs: [Proc; PROCS],
    pub(crate) contexts: [Object; CONTEXTS],
    pub(crate) pds: [Object; PDS],
    pub(crate) mrs: [Mr; MRS],
    pub(crate) mws: [Mw; MWS],
    pub(crate) channels: [Object; CHANNELS],
    pub(crate) cqs: [Cq; CQS],
    pub(crate) srqs: [Srq; SRQS],
    pub(crate) qps: [Qp; QPS],
    // Only what is touched takes memory: the file has holes.
    pub(crate) cq_rings: [[Cqe; CQ_ENTRIES]; CQS],
    pub(crate) srq_rings: [[Receive; QUEUE_WRS]; SRQS],
    pub(crate) qp_rings: [[Receive; QUEUE_WRS]; QPS],
}

/// The mapped file.
pub(crate) struct Map {
    shared: NonNull<Shared>,
}

// SAFETY: V5 (docs/ARCHITECTURE.md). What is in it is reached through its lock, or by atomic accesses.
unsafe impl Send for Map {}
// SAFETY: V5, as above.
unsafe impl Sync for Map {}

impl Map {
    /// The name of the file in the folder of a world.
    pub(crate) const FILE: &'static str = "world";

    /// Makes the file in `folder`.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(folder.join(Self::FILE))?;
        file.set_len(size_of::<Shared>() as u64)?;
        let map = Self::of(&file)?;
        map.make_lock();
        map.lock().ready = 1;
        Ok(map)
    }

    /// Maps the one that is there.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(folder.join(Self::FILE))?;
        if file.metadata()?.len() != size_of::<Shared>() as u64 {
            return Err(io::Error::other("a world of another build"));
        }
        Self::of(&file)
    }

    fn of(file: &File) -> io::Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: V5. A new mapping of a file that is that long, and that nobody cuts.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), prot, flags, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(at.cast()).map(|shared| Self { shared }).ok_or_else(|| io::Error::other("mapped at 0"))
    }

    /// A lock that survives whoever dies with it.
    fn make_lock(&self) {
        // SAFETY: V5. Memory of this mapping, before anybody else has it.
        unsafe {
            let mut attr = std::mem::zeroed();
            libc::pthread_mutexattr_init(&raw mut attr);
            libc::pthread_mutexattr_setpshared(&raw mut attr, libc::PTHREAD_PROCESS_SHARED);
            libc::pthread_mutexattr_setrobust(&raw mut attr, libc::PTHREAD_MUTEX_ROBUST);
            libc::pthread_mutex_init(&raw mut (*self.shared.as_ptr()).lock, &raw const attr);
            libc::pthread_mutexattr_destroy(&raw mut attr);
        }
    }

    /// The world, for this thread alone.
    pub(crate) fn lock(&self) -> Guard<'_> {
        // SAFETY: V5. Made with the file. Whoever died with it left single stores behind, each of which is a state of
        // its own; so the world goes on as it is.
        unsafe {
            let lock = &raw mut (*self.shared.as_ptr()).lock;
            if libc::pthread_mutex_lock(lock) == libc::EOWNERDEAD {
                libc::pthread_mutex_consistent(lock);
            }
        }
        Guard { map: self }
    }

    /// Whether completion queue `slot` has nothing, without the lock.
    pub(crate) fn cq_is_empty(&self, slot: usize) -> bool {
        // SAFETY: V5. In bounds, since the caller has a queue of that slot; a count that is a moment old is as good.
        unsafe {
            let cq = &raw const (*self.shared.as_ptr()).cqs[slot];
            (&raw const (*cq).head).read_volatile() == (&raw const (*cq).tail).read_volatile()
        }
    }

    /// The doorbell of process `slot`.
    pub(crate) fn doorbell(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: V5. In bounds; only ever touched as an atomic.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.shared.as_ptr()).procs[slot].doorbell) }
    }

    /// Wakes the NIC of process `slot`.
    pub(crate) fn ring(&self, slot: u32) {
        let bell = self.doorbell(slot as usize % PROCS);
        bell.fetch_add(1, Ordering::Release);
        // SAFETY: V5. An aligned word of a shared mapping.
        unsafe { libc::syscall(libc::SYS_futex, bell.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: V5. Mapped by `of`; guards borrow the map.
        unsafe { libc::munmap(self.shared.as_ptr().cast(), size_of::<Shared>()) };
    }
}

/// The world under its lock.
pub(crate) struct Guard<'a> {
    map: &'a Map,
}

impl Deref for Guard<'_> {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        // SAFETY: V5. The lock is held.
        unsafe { self.map.shared.as_ref() }
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Shared {
        // SAFETY: V5. The lock is held.
        unsafe { &mut *self.map.shared.as_ptr() }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: V5. Held by this thread.
        unsafe { libc::pthread_mutex_unlock(&raw mut (*self.map.shared.as_ptr()).lock) };
    }
}

impl Object {
    /// Takes the first free one of `of`.
    pub(crate) fn claim<T>(of: &mut [T], object: impl Fn(&mut T) -> &mut Self, like: Self) -> Option<u32> {
        let slot = of.iter_mut().position(|one| !object(one).live)?;
        let it = object(&mut of[slot]);
        let generation = it.generation.wrapping_add(1);
        *it = Self { live: true, generation, users: 0, ..like };
        u32::try_from(slot).ok()
    }
}
