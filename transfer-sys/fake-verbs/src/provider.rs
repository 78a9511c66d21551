//! What this process has of a world, and the thread that stands for its NIC.
#![allow(unsafe_code, reason = "where this library lies, and futex(2)")]

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use transfer_sys::process::Process;

use crate::engine::SendQueue;
use crate::queues::Wire;
use crate::shared::{Guard, Map};

/// This process in its world.
pub(crate) struct Provider {
    pub(crate) map: Map,
    pub(crate) folder: PathBuf,
    /// Slot of this process.
    pub(crate) me: u32,
    local: Mutex<Local>,
}

/// What only this process needs to know. Locked before the world is.
#[derive(Default)]
pub(crate) struct Local {
    pub(crate) sends: HashMap<u32, SendQueue>,
    /// Addresses of the objects that C knows, by slot: what events are translated with.
    pub(crate) qps: HashMap<u32, usize>,
    /// Devices, which are never freed: what was opened refers to its device.
    pub(crate) devices: HashMap<u32, usize>,
    pub(crate) cqs: HashMap<u32, usize>,
    pub(crate) srqs: HashMap<u32, usize>,
    /// Mappings of what was registered by a descriptor, by slot of the registration.
    pub(crate) mapped: HashMap<u32, (usize, usize)>,
    pub(crate) peers: HashMap<u32, Process>,
}

/// The time; the one place that looks at a clock.
pub(crate) fn now() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "hardware has a clock of its own")]
    Instant::now()
}

/// This process's part of the world that the library lies in; `None` where there is no world.
pub(crate) fn provider() -> Option<&'static Provider> {
    static PROVIDER: OnceLock<Option<Provider>> = OnceLock::new();
    static NIC: OnceLock<bool> = OnceLock::new();
    let provider = PROVIDER.get_or_init(Provider::new).as_ref()?;
    let nic = || std::thread::Builder::new().name("fake-nic".to_owned()).spawn(|| provider.run()).is_ok();
    NIC.get_or_init(nic).then_some(provider)
}

/// The folder that this library was loaded from.
fn own_folder() -> Option<PathBuf> {
    // SAFETY: V5 (docs/ARCHITECTURE.md). Room for what is found; an address of this library.
    let name = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr((own_folder as *const ()).cast(), &raw mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    Path::new(OsStr::from_bytes(name.to_bytes())).parent().map(Path::to_owned)
}

impl Provider {
    fn new() -> Option<Self> {
        let folder = own_folder()?;
        let map = Map::open(&folder).ok()?;
        let mut shared = map.lock();
        let me = shared.procs.iter().position(|proc| proc.pid == 0)?;
        shared.procs[me].pid = i32::try_from(std::process::id()).ok()?;
        drop(shared);
        // SAFETY: V5. A plain call. Peers reach into this process as a NIC would, where the kernel would not let them.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
        Some(Self { map, folder, me: u32::try_from(me).ok()?, local: Mutex::default() })
    }

    pub(crate) fn wire(&self) -> Wire<'_> {
        Wire { map: &self.map, folder: &self.folder }
    }

    pub(crate) fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        self.map.lock()
    }

    /// The NIC: carries on what had to wait, when its time has come or somebody rings.
    fn run(&self) {
        let bell = self.map.doorbell(self.me as usize);
        loop {
            let seen = bell.load(Ordering::Acquire);
            let next = self.progress_all();
            let wait = next.map(|next| next.saturating_duration_since(now()).max(Duration::from_micros(50)));
            let time = wait.map(|wait| libc::timespec {
                tv_sec: wait.as_secs().cast_signed(),
                tv_nsec: wait.subsec_nanos().into(),
            });
            let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: V5. An aligned word of a shared mapping, and a time that lives through the call.
            unsafe { libc::syscall(libc::SYS_futex, bell.as_ptr(), libc::FUTEX_WAIT, seen, time) };
        }
    }
}
