//! What tests make a world with, disturb it by, and look at afterwards.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use transfer_sys::verbs::sys;

use crate::queues::{Wire, event_of_device};
use crate::shared::{DEVICES, Device, FAULTS, FaultEntry, FaultKind, Gid, Map, Object};

/// What is below the verbs of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkKind {
    /// RoCE: addressed by GIDs.
    Ethernet,
    /// InfiniBand: addressed by LIDs, or GIDs.
    Infiniband,
}

/// A device of a world.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceConfig {
    /// Its name.
    pub name: String,
    /// What is below.
    pub link: LinkKind,
    /// What it is plugged into: devices on different wires do not reach each other.
    pub wire: u32,
    /// Its IPv4 address, on Ethernet; the device has a link-local address as well.
    pub ip: Ipv4Addr,
    /// Its LID, on InfiniBand.
    pub lid: u16,
    /// Bytes of a packet, as the interface numbers them (5: 4096).
    pub mtu: u32,
    /// Lanes and speed, as the interface numbers them (2 and 128: NDR over four lanes, 400 Gbit/s).
    pub rate: (u8, u8),
    /// Whether it has memory windows.
    pub windows: bool,
}

impl DeviceConfig {
    /// A RoCE device of 400 Gbit/s.
    #[must_use]
    pub fn new(name: &str, ip: Ipv4Addr) -> Self {
        let (link, rate) = (LinkKind::Ethernet, (2, 128));
        Self { name: name.to_owned(), link, wire: 0, ip, lid: 0, mtu: 5, rate, windows: true }
    }

    fn shared(&self, index: u64) -> Device {
        let ethernet = self.link == LinkKind::Ethernet;
        let guid = 0x0200_0000_0000_0000 | index;
        let local = Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(guid)).octets();
        let unused = Gid { bytes: [0; 16], kind: 0, used: false };
        let mut gids = [unused; 4];
        if ethernet {
            // In the order that kernels have: what is made from the hardware address first, each in both versions.
            let ip = self.ip.to_ipv6_mapped().octets();
            let (v1, v2) = (sys::IBV_GID_TYPE_ROCE_V1, sys::IBV_GID_TYPE_ROCE_V2);
            for (gid, (bytes, kind)) in gids.iter_mut().zip([(local, v1), (local, v2), (ip, v1), (ip, v2)]) {
                *gid = Gid { bytes, kind, used: true };
            }
        } else {
            gids[0] = Gid { bytes: local, kind: sys::IBV_GID_TYPE_IB, used: true };
        }
        let mut name = [0; 32];
        for (to, from) in name.iter_mut().zip(self.name.bytes().take(31)) {
            *to = from;
        }
        Device {
            name,
            guid,
            wire: self.wire,
            present: true,
            removed: false,
            port_up: true,
            ethernet,
            lid: if ethernet { 0 } else { self.lid },
            mtu: self.mtu,
            width: self.rate.0,
            speed: self.rate.1,
            windows: self.windows,
            gids,
        }
    }
}

/// What happens to a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is lost, however often it is sent: retries are exceeded.
    Lost,
    /// The queue pair fails by itself.
    QpError,
    /// It is carried out so many milliseconds late.
    Late(u64),
    /// So many bytes of it arrive; then no answer comes.
    Partial(u64),
    /// The peer finds its key wrong.
    WrongKey,
}

/// Objects of a process that were not destroyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Open devices.
    pub contexts: usize,
    /// Protection domains.
    pub pds: usize,
    /// Registrations.
    pub mrs: usize,
    /// Memory windows.
    pub mws: usize,
    /// Completion channels.
    pub channels: usize,
    /// Completion queues.
    pub cqs: usize,
    /// Shared receive queues.
    pub srqs: usize,
    /// Queue pairs.
    pub qps: usize,
}

/// A world: devices on wires, and the library by which processes see them. Gone when it is dropped.
pub struct World {
    map: Map,
    folder: TempDir,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("folder", &self.folder.path()).finish_non_exhaustive()
    }
}

impl World {
    /// The name of the library in a world.
    const LIBRARY: &'static str = "libibverbs.so.1";

    /// A world of those devices.
    ///
    /// # Errors
    /// Where no file can be made, there are too many devices, or the fake was not built as a shared library.
    pub fn new(devices: &[DeviceConfig]) -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("fake-verbs-").tempdir_in(place)?;
        // A copy is a library of its own: worlds in one process do not see each other.
        fs::copy(built_library()?, folder.path().join(Self::LIBRARY))?;
        let map = Map::create(folder.path())?;
        if devices.len() > DEVICES {
            return Err(io::Error::other("too many devices"));
        }
        let mut shared = map.lock();
        shared.patience_ms = 60;
        for (index, (device, config)) in shared.devices.iter_mut().zip(devices).enumerate() {
            *device = config.shared(index as u64 + 1);
        }
        drop(shared);
        Ok(Self { map, folder })
    }

    /// Two RoCE devices on one wire, `fake0` and `fake1`.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn pair() -> io::Result<Self> {
        let ip = |last| Ipv4Addr::new(10, 77, 0, last);
        Self::new(&[DeviceConfig::new("fake0", ip(1)), DeviceConfig::new("fake1", ip(2))])
    }

    /// The library to open.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.folder.path().join(Self::LIBRARY)
    }

    /// A library of this world without one symbol.
    ///
    /// # Errors
    /// Where the file cannot be read or written, or has no such symbol.
    pub fn library_without(&self, symbol: &str) -> io::Result<PathBuf> {
        let mut bytes = fs::read(self.library())?;
        let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
        let at = bytes.windows(name.len()).position(|window| window == name);
        let at = at.ok_or_else(|| io::Error::other(format!("there is no symbol {symbol}")))?;
        bytes[at + 1] = b'X';
        let path = self.folder.path().join(format!("{}-without-{symbol}", Self::LIBRARY));
        fs::write(&path, bytes)?;
        Ok(path)
    }

    /// Lets `fault` happen to a work request of `device`, after `skip` others of that device.
    ///
    /// # Errors
    /// Where too many faults wait already.
    pub fn inject(&self, device: usize, skip: u32, fault: Fault) -> io::Result<()> {
        let (kind, argument) = match fault {
            Fault::Lost => (FaultKind::Lost, 0),
            Fault::QpError => (FaultKind::QpError, 0),
            Fault::Late(ms) => (FaultKind::Late, ms),
            Fault::Partial(bytes) => (FaultKind::Partial, bytes),
            Fault::WrongKey => (FaultKind::WrongKey, 0),
        };
        let device = u32::try_from(device).map_err(io::Error::other)?;
        let mut shared = self.map.lock();
        let free = shared.faults.iter_mut().find(|entry| entry.kind == FaultKind::None);
        *free.ok_or_else(|| io::Error::other(format!("{FAULTS} faults wait")))? =
            FaultEntry { kind, device, skip, argument };
        shared.fault_count += 1;
        Ok(())
    }

    /// Forgets faults whose moment has not come.
    pub fn clear_faults(&self) {
        let mut shared = self.map.lock();
        shared.faults.iter_mut().for_each(|entry| entry.kind = FaultKind::None);
        shared.fault_count = 0;
    }

    /// How long, at most, a queue pair waits for an answer with all its attempts.
    pub fn set_patience(&self, milliseconds: u64) {
        self.map.lock().patience_ms = milliseconds;
    }

    /// The port of `device` loses its link.
    pub fn port_down(&self, device: usize) {
        self.set_port(device, false, sys::IBV_EVENT_PORT_ERR);
    }

    /// The port of `device` has a link again.
    pub fn port_up(&self, device: usize) {
        self.set_port(device, true, sys::IBV_EVENT_PORT_ACTIVE);
    }

    fn set_port(&self, device: usize, up: bool, event: u32) {
        let mut shared = self.map.lock();
        shared.devices[device].port_up = up;
        let wire = Wire { map: &self.map, folder: self.folder.path() };
        event_of_device(&shared, &wire, device, event);
    }

    /// `device` is pulled out: nothing on it will complete any more.
    pub fn remove_device(&self, device: usize) {
        let mut shared = self.map.lock();
        shared.devices[device].removed = true;
        let wire = Wire { map: &self.map, folder: self.folder.path() };
        event_of_device(&shared, &wire, device, sys::IBV_EVENT_DEVICE_FATAL);
    }

    /// What process `pid` has not destroyed.
    #[must_use]
    pub fn counts(&self, pid: u32) -> Counts {
        let shared = self.map.lock();
        let Some(owner) = shared.procs.iter().position(|proc| u32::try_from(proc.pid) == Ok(pid) && pid != 0)
        else {
            return Counts::default();
        };
        let mine = |object: &Object| object.live && object.owner as usize == owner;
        Counts {
            contexts: shared.contexts.iter().filter(|object| mine(object)).count(),
            pds: shared.pds.iter().filter(|object| mine(object)).count(),
            mrs: shared.mrs.iter().filter(|mr| mine(&mr.object)).count(),
            mws: shared.mws.iter().filter(|mw| mine(&mw.object)).count(),
            channels: shared.channels.iter().filter(|object| mine(object)).count(),
            cqs: shared.cqs.iter().filter(|cq| mine(&cq.object)).count(),
            srqs: shared.srqs.iter().filter(|srq| mine(&srq.object)).count(),
            qps: shared.qps.iter().filter(|qp| mine(&qp.object)).count(),
        }
    }
}

/// Where cargo left the shared library: beside the tests that depend on this crate.
fn built_library() -> io::Result<PathBuf> {
    let file = format!("{}fake_verbs{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let program = std::env::current_exe()?;
    let folders = program.ancestors().skip(1).take(2);
    let places = folders.flat_map(|folder| [folder.join(&file), folder.join("deps").join(&file)]);
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{file} is not beside {}", program.display()))
    })
}
