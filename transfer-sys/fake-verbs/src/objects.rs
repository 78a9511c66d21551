//! Making and destroying, in the world; the errno of what is refused. What C sees of an object is made in `exports`.
#![allow(unsafe_code, reason = "mapping what is registered by a descriptor")]

use std::fs;

use transfer_sys::verbs::sys;

use crate::memory::key;
use crate::provider::Provider;
use crate::shared::{
    Armed, CQ_ENTRIES, Cq, MRS, Mr, Mw, NONE, Object, QUEUE_WRS, RECEIVE_SGES, ReceiveQueue, Shared, Srq,
};
use crate::windows::unbind;

pub(crate) type Made<T> = Result<T, i32>;

/// Every flag that registrations take.
const ACCESS: u32 = sys::IBV_ACCESS_LOCAL_WRITE
    | sys::IBV_ACCESS_REMOTE_WRITE
    | sys::IBV_ACCESS_REMOTE_READ
    | sys::IBV_ACCESS_MW_BIND
    | sys::IBV_ACCESS_RELAXED_ORDERING;

/// Where memory comes from that is to be registered.
pub(crate) enum Source {
    Address(u64),
    /// A descriptor, and an offset in it.
    Descriptor(i32, u64),
}

fn object(owner: u32, device: u32, context: u32) -> Object {
    Object { live: true, owner, device, context, generation: 0, users: 0 }
}

impl Provider {
    /// An object like the context that it belongs to.
    pub(crate) fn in_context(&self, shared: &Shared, context: u32) -> Made<Object> {
        let device = shared.contexts[context as usize].device;
        if shared.devices[device as usize].removed {
            return Err(libc::EIO);
        }
        Ok(object(self.me, device, context))
    }

    pub(crate) fn open(&self, device: u32) -> Made<u32> {
        let mut shared = self.lock();
        if shared.devices[device as usize].removed {
            return Err(libc::ENODEV);
        }
        let like = object(self.me, device, NONE);
        Object::claim(&mut shared.contexts, |one| one, like).ok_or(libc::EMFILE)
    }

    pub(crate) fn close(&self, context: u32) -> Made<()> {
        let shared = &mut *self.lock();
        release(&mut shared.contexts[context as usize])
    }

    pub(crate) fn alloc_pd(&self, context: u32) -> Made<u32> {
        let shared = &mut *self.lock();
        let like = self.in_context(shared, context)?;
        let slot = Object::claim(&mut shared.pds, |one| one, like).ok_or(libc::ENOMEM)?;
        shared.contexts[context as usize].users += 1;
        Ok(slot)
    }

    pub(crate) fn dealloc_pd(&self, pd: u32) -> Made<()> {
        let shared = &mut *self.lock();
        let context = shared.pds[pd as usize].context;
        release(&mut shared.pds[pd as usize])?;
        shared.contexts[context as usize].users -= 1;
        Ok(())
    }

    /// Slot and key of a new registration.
    pub(crate) fn register(
        &self,
        pd: u32,
        source: &Source,
        len: u64,
        base: Option<u64>,
        access: u32,
    ) -> Made<(u32, u32)> {
        let writes = access & (sys::IBV_ACCESS_REMOTE_WRITE | sys::IBV_ACCESS_REMOTE_ATOMIC) != 0;
        if access & !ACCESS != 0 || len == 0 || writes && access & sys::IBV_ACCESS_LOCAL_WRITE == 0 {
            return Err(libc::EINVAL);
        }
        // The kernel maps whole pages.
        let (Source::Address(place) | Source::Descriptor(_, place)) = *source;
        if base.is_some_and(|base| base % 4096 != place % 4096) {
            return Err(libc::EINVAL);
        }
        let (addr, mapped) = match *source {
            Source::Address(addr) => {
                is_mapped(addr, len, access & sys::IBV_ACCESS_LOCAL_WRITE != 0)?;
                (addr, None)
            }
            Source::Descriptor(fd, offset) => {
                let (at, size) = map_descriptor(fd, offset, len)?;
                (at as u64 + offset, Some((at, size)))
            }
        };
        let mut local = self.local();
        let shared = &mut *self.lock();
        let like = self.in_context(shared, shared.pds[pd as usize].context)?;
        let slot = Object::claim(&mut shared.mrs, |mr| &mut mr.object, like).ok_or(libc::ENOMEM)?;
        shared.pds[pd as usize].users += 1;
        let mr = &mut shared.mrs[slot as usize];
        let key = key(slot as usize, &mr.object);
        *mr = Mr { object: mr.object, key, pd, addr, base: base.unwrap_or(addr), len, access };
        if let Some(mapped) = mapped {
            local.mapped.insert(slot, mapped);
        }
        Ok((slot, key))
    }

    pub(crate) fn deregister(&self, slot: u32) -> Made<()> {
        let mut local = self.local();
        let shared = &mut *self.lock();
        let pd = shared.mrs[slot as usize].pd;
        release(&mut shared.mrs[slot as usize].object)?;
        shared.pds[pd as usize].users -= 1;
        if let Some((at, size)) = local.mapped.remove(&slot) {
            // SAFETY: V5 (docs/ARCHITECTURE.md). Mapped when it was registered; nobody has its address.
            unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at), size) };
        }
        Ok(())
    }

    pub(crate) fn alloc_mw(&self, pd: u32, kind: u32) -> Made<(u32, u32)> {
        let shared = &mut *self.lock();
        let like = self.in_context(shared, shared.pds[pd as usize].context)?;
        if kind != sys::IBV_MW_TYPE_2 || !shared.devices[like.device as usize].windows {
            return Err(libc::EOPNOTSUPP);
        }
        let slot = Object::claim(&mut shared.mws, |mw| &mut mw.object, like).ok_or(libc::ENOMEM)?;
        shared.pds[pd as usize].users += 1;
        let mw = &mut shared.mws[slot as usize];
        let key = key(MRS + slot as usize, &mw.object);
        let object = mw.object;
        *mw = Mw { object, key, pd, bound: false, mr: NONE, qp: NONE, base: 0, len: 0, access: 0 };
        Ok((slot, key))
    }

    pub(crate) fn dealloc_mw(&self, slot: u32) -> Made<()> {
        let shared = &mut *self.lock();
        unbind(shared, slot as usize);
        let pd = shared.mws[slot as usize].pd;
        release(&mut shared.mws[slot as usize].object)?;
        shared.pds[pd as usize].users -= 1;
        Ok(())
    }

    /// Slot and generation of a new channel.
    pub(crate) fn create_channel(&self, context: u32) -> Made<u32> {
        let shared = &mut *self.lock();
        let like = self.in_context(shared, context)?;
        let slot = Object::claim(&mut shared.channels, |one| one, like).ok_or(libc::EMFILE)?;
        shared.contexts[context as usize].users += 1;
        Ok(slot)
    }

    pub(crate) fn destroy_channel(&self, slot: u32) -> Made<()> {
        let shared = &mut *self.lock();
        let context = shared.channels[slot as usize].context;
        release(&mut shared.channels[slot as usize])?;
        shared.contexts[context as usize].users -= 1;
        Ok(())
    }

    pub(crate) fn create_cq(&self, context: u32, entries: i32, channel: Option<u32>) -> Made<u32> {
        let capacity = u32::try_from(entries).map_err(|_| libc::EINVAL)?;
        if capacity == 0 || capacity as usize > CQ_ENTRIES {
            return Err(libc::EINVAL);
        }
        let shared = &mut *self.lock();
        let like = self.in_context(shared, context)?;
        let slot = Object::claim(&mut shared.cqs, |cq| &mut cq.object, like).ok_or(libc::ENOMEM)?;
        shared.contexts[context as usize].users += 1;
        if let Some(channel) = channel {
            shared.channels[channel as usize].users += 1;
        }
        let cq = &mut shared.cqs[slot as usize];
        let (object, channel) = (cq.object, channel.unwrap_or(NONE));
        *cq = Cq { object, capacity, head: 0, tail: 0, armed: Armed::No, channel, broken: false };
        Ok(slot)
    }

    pub(crate) fn destroy_cq(&self, slot: u32) -> Made<()> {
        let mut local = self.local();
        let shared = &mut *self.lock();
        let Cq { object, channel, .. } = shared.cqs[slot as usize];
        release(&mut shared.cqs[slot as usize].object)?;
        local.cqs.remove(&slot);
        shared.contexts[object.context as usize].users -= 1;
        if channel != NONE {
            shared.channels[channel as usize].users -= 1;
        }
        Ok(())
    }

    pub(crate) fn create_srq(&self, pd: u32, attr: &sys::ibv_srq_attr) -> Made<u32> {
        let queue =
            receive_queue(attr.max_wr, attr.max_sge).filter(|_| attr.max_wr > 0).ok_or(libc::EINVAL)?;
        let shared = &mut *self.lock();
        let like = self.in_context(shared, shared.pds[pd as usize].context)?;
        let slot = Object::claim(&mut shared.srqs, |srq| &mut srq.object, like).ok_or(libc::ENOMEM)?;
        shared.pds[pd as usize].users += 1;
        let srq = &mut shared.srqs[slot as usize];
        *srq = Srq { object: srq.object, pd, limit: 0, queue };
        Ok(slot)
    }

    pub(crate) fn destroy_srq(&self, slot: u32) -> Made<()> {
        let mut local = self.local();
        let shared = &mut *self.lock();
        let pd = shared.srqs[slot as usize].pd;
        release(&mut shared.srqs[slot as usize].object)?;
        local.srqs.remove(&slot);
        shared.pds[pd as usize].users -= 1;
        Ok(())
    }
}

/// Frees the slot of an object that nothing else needs.
pub(crate) fn release(object: &mut Object) -> Made<()> {
    if object.users > 0 {
        return Err(libc::EBUSY);
    }
    object.live = false;
    Ok(())
}

/// Where entry `index` of a completion queue lies.
pub(crate) fn place(index: u64) -> usize {
    usize::try_from(index).unwrap_or(0) % CQ_ENTRIES
}

/// Room for so many receives of so many ranges, if the device has it.
pub(crate) fn receive_queue(capacity: u32, sges: u32) -> Option<ReceiveQueue> {
    let fits = capacity as usize <= QUEUE_WRS && sges as usize <= RECEIVE_SGES;
    fits.then_some(ReceiveQueue { capacity, sges, head: 0, tail: 0, used: 0 })
}

/// Whether all of the memory is mapped, and writable where it is to be written: pinning it fails otherwise.
fn is_mapped(addr: u64, len: u64, writable: bool) -> Made<()> {
    let end = addr.checked_add(len).ok_or(libc::EINVAL)?;
    let maps = fs::read_to_string("/proc/self/maps").map_err(|_| libc::ENOMEM)?;
    let mut at = addr;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let Some((from, to)) = range.split_once('-') else { continue };
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        let allowed = rights.starts_with('r') && (!writable || rights[1..].starts_with('w'));
        if (number(from)..number(to)).contains(&at) && allowed {
            at = number(to);
        }
        if at >= end {
            return Ok(());
        }
    }
    Err(libc::EFAULT)
}

/// Maps a descriptor that stands for a dma-buf: a memfd, the nearest thing that needs no driver.
fn map_descriptor(fd: i32, offset: u64, len: u64) -> Made<(usize, usize)> {
    let link = fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| libc::EBADF)?;
    if !link.to_string_lossy().starts_with("/memfd:") {
        return Err(libc::EINVAL);
    }
    let size = fs::metadata(format!("/proc/self/fd/{fd}")).map_err(|_| libc::EBADF)?.len();
    if offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(libc::EINVAL);
    }
    let size = usize::try_from(size).map_err(|_| libc::EINVAL)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: V5. A new mapping, which goes when the registration does.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED { Err(libc::EINVAL) } else { Ok((at.expose_provenance(), size)) }
}
