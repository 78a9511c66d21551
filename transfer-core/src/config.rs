//! The configuration of an agent.

use std::net::SocketAddr;
use std::time::Duration;

use transfer_proto::plan::{PathSet, Policy};
use transfer_proto::proto::link::LinkConfig;
use transfer_proto::proto::metadata::{APP_METADATA_MAX, NAME_MAX};
use transfer_proto::proto::xfer::SliceLimits;

use crate::error::{Error, Result};
use crate::secure::{Key, Terms};

/// How an agent behaves. Start from [`Config::new`] and change what you need; it is checked when the agent is
/// created.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Name of the agent, for people; it need not be unique. At most 255 bytes.
    pub name: String,
    /// Where to accept peers by TCP; port 0 takes a free one. Default `127.0.0.1:0`. `None`: only peers of this
    /// host can connect, by [`crate::Address::Local`].
    pub tcp_listen: Option<SocketAddr>,
    /// What all agents that may meet have in common: each proves it to the other on every connection, and control
    /// connections are sealed with it. Default `None`, and then only peers of this host are met, over Unix sockets
    /// and loopback. What it gives and what not: whoever has it may do everything; and payload travels as it is, so that
    /// whoever is on the way can read it, and can put bytes of his own into a data connection and so write into regions,
    /// unless [`Config::encrypt_data`] is set.
    pub key: Option<Key>,
    /// Data connections are encrypted and authenticated (AES-256-GCM), with keys of their own: nobody on the way reads what is
    /// moved, and a byte that the peer did not send ends the connection and lands nowhere. It is enough that one of
    /// two agents asks for it. Needs [`Config::key`]. Default false: a core encrypts several GB/s, and so does another
    /// one at the other end, but a core moves more than that without; each data connection takes 600 KiB of memory.
    /// Paths within the host are as they are.
    pub encrypt_data: bool,
    /// Meets peers of other hosts although there is no key: whoever reaches the port, or is reached by name, can
    /// read and write every region. Default false, and then a listening address beyond loopback is an error, and
    /// so is connecting to one.
    pub insecure_remote_without_key: bool,
    /// Bytes that describe the application to its peers (layout of its KV cache, say). At most 64 KiB.
    pub app_metadata: Vec<u8>,
    /// Paths that transfers may take. Default all.
    pub paths: PathSet,
    /// What to do where the best path to a peer's memory is ruled out by something that could be mended. Default: take the
    /// next one, and tell by [`crate::Peer::explain`]. With [`Policy::Strict`], preparing a list fails instead.
    pub policy: Policy,
    /// Data connections to each peer. Default 2; each costs a socket on both sides.
    pub tcp_streams: usize,
    /// Threads that carry transfers over sockets, of more than about a MiB; smaller ones are carried by whoever drives
    /// the agent. Default `None`: one for each core, and no more than `tcp_streams`. With 0 there are none. They are
    /// started by the first such transfer, at either end, and sleep while there is none.
    pub tcp_threads: Option<usize>,
    /// Kernel buffer of each data connection, in each direction. Default `None`: between hosts the kernel sizes them to
    /// the way, up to `net.ipv4.tcp_rmem` and `tcp_wmem`; within a host they have 512 KiB, so that a core's cache holds
    /// what is under way. A number goes for both, and is cut to `net.core.rmem_max` and `wmem_max`, which are small by
    /// default (tcp(7)).
    pub tcp_buffer_bytes: Option<u32>,
    /// Transfers within one host of at most so many bytes are copied inside the posting call, which saves the
    /// hand-over to another thread. Default 1 MiB, 20 to 100 µs.
    pub inline_bytes_max: u64,
    /// Threads that copy within one host, for transfers that nobody waits for. Default `None`: one, or two where the
    /// process has at least eight cores, since one copies at half the speed of such a machine's memory or less.
    pub copy_threads: Option<usize>,
    /// Bytes of a slice: the unit of progress, cancellation and striping. Default 2 MiB, what one call to a socket takes.
    pub slice_bytes_max: u64,
    /// Slices of one transfer in flight. Default 16.
    pub slices_in_flight_max: u32,
    /// How long a transfer may take, unless it says otherwise. Default 30 s.
    pub transfer_timeout: Duration,
    /// How long connecting to a peer may take. Default 5 s.
    pub connect_timeout: Duration,
    /// A peer that says nothing for this long is lost. Default 1 s; a quarter of it is the heartbeat.
    pub peer_timeout: Duration,
    /// For this long after data has moved, whoever drives the agent looks again and again instead of sleeping, and
    /// [`Xfer::poll`](crate::Xfer::poll) drives it too. It saves the wake-up of a thread for each message, some
    /// microseconds, at the price of a core. Default zero: nobody ever spins. At most 1 s.
    pub busy_poll: Duration,
    /// Blocks that all regions of the agent together may have: see [`crate::RegionOptions::block_bytes`]. Default 2^24, which
    /// is the most. Their generations stand in a file of 8 bytes for each, in memory, whose pages cost nothing before
    /// they are used; it counts against `RLIMIT_FSIZE` (getrlimit(2)) and address space.
    pub blocks_max: usize,
    /// Events that may wait for the application. When it is full, peers are not read from until some are taken,
    /// so nothing is lost. Default 65536.
    pub events_max: usize,
    /// Bytes that may wait to be sent to a peer before notifications are refused. Default 4 MiB.
    pub unsent_bytes_max: usize,
}

impl Config {
    /// The defaults.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            tcp_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            key: None,
            encrypt_data: false,
            insecure_remote_without_key: false,
            app_metadata: Vec::new(),
            paths: PathSet::ALL,
            policy: Policy::Fallback,
            tcp_streams: 2,
            tcp_threads: None,
            tcp_buffer_bytes: None,
            inline_bytes_max: 1 << 20,
            copy_threads: None,
            slice_bytes_max: 2 << 20,
            slices_in_flight_max: 16,
            transfer_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(1),
            busy_poll: Duration::ZERO,
            blocks_max: 1 << 24,
            events_max: 1 << 16,
            unsent_bytes_max: 4 << 20,
        }
    }

    /// Whether peers at this address are talked to.
    pub(crate) fn meets(&self, address: SocketAddr) -> bool {
        // A listener for both families sees `127.0.0.1` as `::ffff:127.0.0.1`.
        self.key.is_some() || self.insecure_remote_without_key || address.ip().to_canonical().is_loopback()
    }

    /// Parses, so that nobody behind this line has to check again.
    pub(crate) fn check(self) -> Result<Checked> {
        let invalid =
            |field, problem: String| -> Result<Checked> { Err(Error::InvalidConfig { field, problem }) };
        if self.name.is_empty() || self.name.len() > NAME_MAX {
            return invalid("name", format!("has {} bytes; 1 to {NAME_MAX} are allowed", self.name.len()));
        }
        if self.app_metadata.len() > APP_METADATA_MAX {
            let len = self.app_metadata.len();
            return invalid("app_metadata", format!("has {len} bytes; {APP_METADATA_MAX} are allowed"));
        }
        if let Some(address) = self.tcp_listen
            && !self.meets(address)
        {
            let problem = format!(
                "is {address}, which other hosts reach; set key (or insecure_remote_without_key, and everybody \
                 who reaches it may read and write all regions)"
            );
            return invalid("tcp_listen", problem);
        }
        if self.encrypt_data && self.key.is_none() {
            return invalid(
                "encrypt_data",
                "is set, but there is no key to prove and no key to encrypt with; set key".to_owned(),
            );
        }
        let ranges: [(&'static str, u64, u64, u64); 11] = [
            ("tcp_streams", self.tcp_streams as u64, 1, 64),
            ("tcp_threads", self.tcp_threads.unwrap_or(0) as u64, 0, 64),
            ("copy_threads", self.copy_threads.unwrap_or(1) as u64, 1, 64),
            ("slice_bytes_max", self.slice_bytes_max, 4096, 64 << 20),
            ("slices_in_flight_max", u64::from(self.slices_in_flight_max), 1, 1024),
            ("blocks_max", self.blocks_max as u64, 1, 1 << 24),
            ("events_max", self.events_max as u64, 1, 1 << 24),
            ("unsent_bytes_max", self.unsent_bytes_max as u64, 1 << 16, 1 << 30),
            ("peer_timeout", millis(self.peer_timeout), 50, 3_600_000),
            ("busy_poll", millis(self.busy_poll), 0, 1000),
            ("connect_timeout", millis(self.connect_timeout), 10, 3_600_000),
        ];
        for (field, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return invalid(field, format!("is {value}; it must lie between {min} and {max}"));
            }
        }
        Ok(Checked(self))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Checked(Config);

/// From so many cores on, two threads copy.
const CORES_FOR_TWO: usize = 8;

/// Pieces of one slice: what one readv(2), writev(2) or process_vm_readv(2) takes, with room for a header.
const PIECES_MAX: usize = 1000;

impl Checked {
    pub(crate) fn link(&self) -> LinkConfig {
        LinkConfig::new(self.connect_timeout, self.peer_timeout, self.unsent_bytes_max)
    }

    pub(crate) fn tcp_threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.tcp_threads.unwrap_or_else(|| cores.min(self.tcp_streams))
    }

    pub(crate) fn copy_threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.copy_threads.unwrap_or(if cores < CORES_FOR_TWO { 1 } else { 2 })
    }

    pub(crate) fn terms(&self) -> Terms {
        Terms::new(self.key.clone(), self.encrypt_data)
    }

    /// Whether peers of other hosts are met without a proof.
    pub(crate) fn accepts_anybody(&self) -> bool {
        self.insecure_remote_without_key && self.key.is_none()
    }

    pub(crate) fn slices(&self) -> SliceLimits {
        SliceLimits::new(self.slice_bytes_max, PIECES_MAX, self.slices_in_flight_max)
    }
}

impl std::ops::Deref for Checked {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::new("a");
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn defaults_hold_and_nonsense_is_named() {
        Config::new("a").check().unwrap();
        assert!(refused(|c| c.name.clear()).contains("name has 0 bytes"));
        assert!(refused(|c| c.tcp_listen = "0.0.0.0:0".parse().ok()).contains("set key (or insecure_remote"));
        assert!(refused(|c| c.encrypt_data = true).contains("encrypt_data is set, but there is no key"));
        assert!(refused(|c| c.app_metadata = vec![0; 70_000]).contains("app_metadata"));
        assert!(refused(|c| c.tcp_streams = 0).contains("tcp_streams is 0; it must lie between 1 and 64"));
    }

    #[test]
    fn without_a_key_only_this_host_is_met() {
        let config = Config::new("a");
        for (address, here) in
            [("127.0.0.9:1", true), ("[::1]:1", true), ("[::ffff:127.0.0.1]:1", true), ("10.0.0.1:1", false)]
        {
            let address = address.parse().unwrap();
            assert_eq!(config.meets(address), here, "{address}");
            let with_key = Config { key: Some(Key::from_bytes([1; 32])), ..config.clone() };
            assert!(with_key.meets(address));
            assert!(Config { insecure_remote_without_key: true, ..config.clone() }.meets(address));
        }
    }
}
