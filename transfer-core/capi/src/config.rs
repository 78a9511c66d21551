//! The configuration of an agent.

use std::ffi::c_char;
use std::time::Duration;

use transfer_core::{Config, Error, Key, Path, PathSet, Policy};

use crate::boundary::{Call, Outcome, call};
use crate::error::hr_error_t;
use crate::status::hr_status_t;
use crate::versioned::Versioned;

/// A way for bytes to go. Each is a bit, for hr_config_t.paths.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a C enum; values are only ever added")]
pub enum hr_path_t {
    /// None, or one that this header does not know.
    HR_PATH_OTHER = 0,
    /// The peer's memory is mapped here: one copy at memory speed, without the peer's help.
    HR_PATH_SHARED_MEMORY = 1,
    /// The kernel copies between the two processes, without the peer's help.
    HR_PATH_PROCESS_MEMORY = 2,
    /// Sockets; the peer's agent takes part.
    HR_PATH_TCP = 4,
}

impl From<Path> for hr_path_t {
    fn from(path: Path) -> Self {
        match path {
            Path::SharedMemory => Self::HR_PATH_SHARED_MEMORY,
            Path::ProcessMemory => Self::HR_PATH_PROCESS_MEMORY,
            Path::Tcp => Self::HR_PATH_TCP,
            _ => Self::HR_PATH_OTHER,
        }
    }
}

/// Bit of hr_config_t.flags: meets peers of other hosts although there is no key: whoever reaches the port can read and
/// write every region. Without it and without a key, a tcp_listen beyond loopback is an error.
pub const HR_CONFIG_INSECURE_REMOTE_WITHOUT_KEY: u32 = 1;

/// Bit of hr_config_t.flags: where the best path to a peer's memory is ruled out by something that could be mended,
/// preparing a list fails with HR_FALLBACK_REFUSED. Without it the next path is taken, and hr_peer_explain() tells. Paths
/// that are left out of hr_config_t.paths do not count, nor do those that only lead within one host.
pub const HR_CONFIG_STRICT: u32 = 2;

/// Bit of hr_config_t.flags: what goes over data connections is encrypted and authenticated; within one host nothing
/// changes. It is enough that one of two agents asks for it. Needs a key. It takes a core for every few GB/s, at both
/// ends, and 600 KiB of memory for each data connection.
pub const HR_CONFIG_ENCRYPT_DATA: u32 = 4;

/// All of them.
const FLAGS: u32 = HR_CONFIG_INSECURE_REMOTE_WITHOUT_KEY | HR_CONFIG_STRICT | HR_CONFIG_ENCRYPT_DATA;

/// Bytes behind hr_config_t.key.
pub const HR_KEY_SIZE: usize = 32;

/// How an agent behaves. hr_config_init() fills in the defaults; set a name and change what you need. It is read by
/// hr_agent_create() only, and what it points to need not live longer than that call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a C struct; it grows at its end")]
pub struct hr_config_t {
    /// sizeof(hr_config_t); set by hr_config_init().
    pub size: usize,
    /// Name of the agent, for people; it need not be unique. 1 to 255 bytes. There is no default.
    pub name: *const c_char,
    /// Where to accept peers by TCP, as IP:PORT; port 0 takes a free one. Default "127.0.0.1:0". NULL: only peers of
    /// this host can connect.
    pub tcp_listen: *const c_char,
    /// Bytes that describe the application to its peers (layout of its KV cache, say). At most 64 KiB. Default none.
    pub app_metadata: *const u8,
    /// How many bytes.
    pub app_metadata_len: usize,
    /// HR_KEY_SIZE random bytes that all agents have in common: each proves to the other that it has them. Default
    /// NULL: no key, and then only peers of this host are met. Whoever has it may do everything; payload travels as it
    /// is, unless HR_CONFIG_ENCRYPT_DATA is set.
    pub key: *const u8,
    /// Paths that transfers may take: hr_path_t values, or'ed. Default all.
    pub paths: u32,
    /// HR_CONFIG_ values, or'ed. Default none.
    pub flags: u32,
    /// Data connections to each peer, 1 to 64. Default 2. Each costs a socket on both sides.
    pub tcp_streams: u32,
    /// Kernel buffer of each data connection, in each direction. Default 0: the kernel sizes them to the path.
    pub tcp_buffer_bytes: u32,
    /// Slices of one transfer in flight, 1 to 1024. Default 16.
    pub slices_in_flight_max: u32,
    /// Threads that copy within one host, for transfers that nobody waits for; at most 64. Default 0: by the number of
    /// cores.
    pub copy_threads: u32,
    /// Events that may wait for the application. When it is full, peers are not read from until some are taken, so
    /// nothing is lost. Default 65536.
    pub events_max: u64,
    /// Transfers within one host of at most so many bytes are copied inside the posting call, which saves the
    /// hand-over to another thread. Default 1 MiB, 20 to 100 microseconds.
    pub inline_bytes_max: u64,
    /// Bytes of a slice, 4 KiB to 64 MiB: the unit of progress, cancellation and striping. Default 2 MiB.
    pub slice_bytes_max: u64,
    /// Bytes that may wait to be sent to a peer before notifications are refused, 64 KiB to 1 GiB. Default 4 MiB.
    pub unsent_bytes_max: u64,
    /// How long a transfer may take, unless it says otherwise, in nanoseconds. Default 30 s.
    pub transfer_timeout_ns: u64,
    /// How long connecting to a peer may take, in nanoseconds, 10 ms to an hour. Default 5 s.
    pub connect_timeout_ns: u64,
    /// A peer that says nothing for so many nanoseconds, 50 ms to an hour, is lost. Default 1 s; a quarter of it is the
    /// heartbeat.
    pub peer_timeout_ns: u64,
    /// For so many nanoseconds after data has moved, whoever drives the agent looks again and again instead of sleeping,
    /// and hr_xfer_poll() drives it too. It saves the wake-up of a thread for each message, some microseconds, at the
    /// price of a core. Default 0: nobody ever spins. At most a second.
    pub busy_poll_ns: u64,
    /// Blocks that all regions of the agent together may have (hr_region_options_t.block_bytes). Default 2^24, which is
    /// the most. Each has 8 bytes in a file in memory, whose pages cost nothing before they are used; it counts against
    /// RLIMIT_FSIZE and address space.
    pub blocks_max: u64,
    /// Instead of key: a file that holds it, as 64 hexadecimal digits or HR_KEY_SIZE bytes, and that nobody but its owner
    /// may read or write. Default NULL. Both together are an error.
    pub key_file: *const c_char,
    /// Threads that carry transfers over sockets, of more than about a MiB; smaller ones are carried by whoever drives the
    /// agent. At most 64; 0: none. Default -1: one for each core, and no more than tcp_streams. They are started by the
    /// first such transfer, at either end, and sleep while there is none.
    pub tcp_threads: i64,
}

// SAFETY: C1. repr(C), `size` first, integers and pointers only; `tests::layout` finds padding.
unsafe impl Versioned for hr_config_t {
    fn defaults(size: usize) -> Self {
        let config = Config::new("");
        Self {
            size,
            name: std::ptr::null(),
            tcp_listen: c"127.0.0.1:0".as_ptr(),
            app_metadata: std::ptr::null(),
            app_metadata_len: 0,
            key: std::ptr::null(),
            paths: PATHS.into_iter().map(|path| hr_path_t::from(path) as u32).sum(),
            flags: 0,
            tcp_streams: u32::try_from(config.tcp_streams).unwrap_or(u32::MAX),
            tcp_buffer_bytes: config.tcp_buffer_bytes.unwrap_or(0),
            slices_in_flight_max: config.slices_in_flight_max,
            copy_threads: u32::try_from(config.copy_threads.unwrap_or(0)).unwrap_or(u32::MAX),
            events_max: config.events_max as u64,
            inline_bytes_max: config.inline_bytes_max,
            slice_bytes_max: config.slice_bytes_max,
            unsent_bytes_max: config.unsent_bytes_max as u64,
            transfer_timeout_ns: nanos(config.transfer_timeout),
            connect_timeout_ns: nanos(config.connect_timeout),
            peer_timeout_ns: nanos(config.peer_timeout),
            busy_poll_ns: nanos(config.busy_poll),
            blocks_max: config.blocks_max as u64,
            key_file: std::ptr::null(),
            tcp_threads: config.tcp_threads.and_then(|threads| i64::try_from(threads).ok()).unwrap_or(-1),
        }
    }
}

const PATHS: [Path; 3] = Path::ALL;

/// In nanoseconds, or as many as there are.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn invalid<T>(field: &'static str, problem: impl Into<String>) -> Outcome<T> {
    Err(Error::InvalidConfig { field, problem: problem.into() }.into())
}

fn usize_of(field: &'static str, value: u64) -> Outcome<usize> {
    usize::try_from(value)
        .or_else(|_| invalid(field, format!("is {value}, more than this machine can address")))
}

fn path_set(bits: u32) -> Outcome<PathSet> {
    let mut known = 0;
    let mut set = PathSet::EMPTY;
    for path in PATHS {
        let bit = hr_path_t::from(path) as u32;
        known |= bit;
        if bits & bit != 0 {
            set = set.union(path.into());
        }
    }
    if bits & !known != 0 {
        return invalid("paths", format!("has unknown bits {:#x}", bits & !known));
    }
    Ok(set)
}

impl hr_config_t {
    /// The engine's configuration.
    pub(crate) fn to_config(self, c: &Call) -> Outcome<Config> {
        let mut config = Config::new(c.text(self.name, "config.name")?);
        config.tcp_listen = match c.text_or_none(self.tcp_listen, "config.tcp_listen")? {
            None => None,
            Some(text) => match text.parse() {
                Ok(address) => Some(address),
                Err(_) => return invalid("tcp_listen", format!("is {text:?}; write IP:PORT")),
            },
        };
        let unknown = self.flags & !FLAGS;
        if unknown != 0 {
            return invalid("flags", format!("has unknown bits {unknown:#x}"));
        }
        config.insecure_remote_without_key = self.flags & HR_CONFIG_INSECURE_REMOTE_WITHOUT_KEY != 0;
        if self.flags & HR_CONFIG_STRICT != 0 {
            config.policy = Policy::Strict;
        }
        config.key = self.key_of(c)?;
        config.encrypt_data = self.flags & HR_CONFIG_ENCRYPT_DATA != 0;
        let app = c.slice(self.app_metadata, self.app_metadata_len, "config.app_metadata")?;
        config.app_metadata = app.to_vec();
        config.paths = path_set(self.paths)?;
        config.tcp_streams = usize_of("tcp_streams", self.tcp_streams.into())?;
        config.tcp_buffer_bytes = (self.tcp_buffer_bytes != 0).then_some(self.tcp_buffer_bytes);
        config.slices_in_flight_max = self.slices_in_flight_max;
        let threads = usize_of("copy_threads", self.copy_threads.into())?;
        config.copy_threads = (threads != 0).then_some(threads);
        config.tcp_threads = match self.tcp_threads {
            -1 => None,
            threads => Some(usize_of("tcp_threads", threads.cast_unsigned())?),
        };
        config.events_max = usize_of("events_max", self.events_max)?;
        config.inline_bytes_max = self.inline_bytes_max;
        config.slice_bytes_max = self.slice_bytes_max;
        config.unsent_bytes_max = usize_of("unsent_bytes_max", self.unsent_bytes_max)?;
        config.transfer_timeout = Duration::from_nanos(self.transfer_timeout_ns);
        config.connect_timeout = Duration::from_nanos(self.connect_timeout_ns);
        config.peer_timeout = Duration::from_nanos(self.peer_timeout_ns);
        config.busy_poll = Duration::from_nanos(self.busy_poll_ns);
        config.blocks_max = usize_of("blocks_max", self.blocks_max)?;
        Ok(config)
    }

    fn key_of(self, c: &Call) -> Outcome<Option<Key>> {
        let file = c.text_or_none(self.key_file, "config.key_file")?;
        if self.key.is_null() {
            return Ok(file.map(Key::from_file).transpose()?);
        }
        if file.is_some() {
            return invalid("key_file", "is set beside key; set one of them");
        }
        let key = c.slice(self.key, HR_KEY_SIZE, "config.key")?;
        Ok(<[u8; HR_KEY_SIZE]>::try_from(key).ok().map(Key::from_bytes))
    }
}

/// Fills in the defaults. Call it as hr_config_init(&config, sizeof config). HR_INVALID_ARGUMENT for NULL and for a
/// size that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_config_init(config: *mut hr_config_t, size: usize) -> hr_status_t {
    let no_error: *mut *mut hr_error_t = std::ptr::null_mut();
    // SAFETY: C1.
    unsafe { call(no_error, |c| c.init(config, size, "config")) }
}
