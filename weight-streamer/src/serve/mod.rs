//! The source: an agent that answers requests for chunks.
//!
//! The receiver asks for chunks by notification and names a place in its own staging region for each; the source
//! WRITEs the chunk there, with the answer behind the data. The other way round (the source announces a slot, the
//! receiver READs it and gives it back) would leave the source's memory in the hands of every receiver: one that
//! stalls holds a slot until a lease runs out, and a late READ after that sees another chunk. Here
//! - *memory* is bounded by the cache of the source and by the staging region of the receiver, both set aside at the
//!   start; a request is 21 bytes in a bounded line;
//! - *a dead or stalled receiver* costs one transfer timeout of at most half of the workers, then its line is dropped;
//! - *a dead source* leaves a slot half written, of which the receiver is never told;
//! - *several receivers* take turns, chunk by chunk;
//! - *the egress cap* holds, because nothing leaves unless a worker sends it.
//!
//! A worker does one job from start to end: chunk into a cache slot, wait for the cap, post the WRITE, wait for it.

mod cache;
mod queue;

use crate::clock;
use crate::error::Error;
use crate::library::Library;
use crate::manifest::{DEFAULT_CHUNK_BYTES, Hash, Manifest};
use crate::pacer::Pacer;
use crate::wire::{Hello, MANIFEST_REGION, Reply, Request, STAGING_REGION};
use cache::{Cache, Pinned};
use queue::FairQueue;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use transfer_core::{
    Address, Agent, Config, Desc, DescList, Event, Incarnation, Key, PathSet, Peer, Region, RegionId,
};

/// How long the threads wait before they look whether the server was stopped.
const TICK: Duration = Duration::from_millis(100);
/// How often receivers that wait hear that they are not forgotten.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// Longest time that one chunk may take on its way; a receiver that does not take it is dropped then.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);
/// Most requests waiting for one receiver.
const LINE_MAX: usize = 1024;

/// What to serve and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServeOptions {
    /// The model directory.
    pub dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Size of the chunks.
    pub chunk_bytes: u32,
    /// Memory for chunks that are being sent or may be asked for again.
    pub cache_bytes: u64,
    /// Hard cap on what leaves, in bytes per second.
    pub limit_bytes_per_second: Option<u64>,
    /// The key that receivers must have. Without one only this host is served.
    pub key: Option<Key>,
    /// Serve other hosts although there is no key: whoever reaches the port can read the model.
    pub insecure_remote_without_key: bool,
    /// Which paths of the transfer engine may be used.
    pub paths: PathSet,
    /// Threads that read, check and send.
    pub workers: usize,
}

impl ServeOptions {
    /// Serves `dir` on a free loopback port, with 256 MiB of cache and no cap.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            chunk_bytes: DEFAULT_CHUNK_BYTES,
            cache_bytes: 256 << 20,
            limit_bytes_per_second: None,
            key: None,
            insecure_remote_without_key: false,
            paths: PathSet::ALL,
            workers: 4,
        }
    }
}

/// A running source; stops when dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: Address,
    root: Hash,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    agent: Agent,
    library: Library,
    cache: Cache,
    cache_region: RegionId,
    /// Holds the manifest for as long as receivers may read it.
    _manifest_region: Region,
    line: Mutex<FairQueue<Incarnation, Job>>,
    work: Condvar,
    pacer: Option<Mutex<Pacer>>,
    started: Instant,
    stop: AtomicBool,
    bytes_sent: AtomicU64,
}

#[derive(Debug)]
struct Job {
    peer: Peer,
    request: Request,
}

impl Server {
    /// Hashes the directory and starts to serve it.
    ///
    /// # Errors
    /// When an option is wrong, the directory cannot be served, or the agent cannot start.
    pub fn start(options: &ServeOptions) -> Result<Self, Error> {
        let workers = options.workers.clamp(1, 64);
        let library = Library::scan(&options.dir, options.chunk_bytes, workers)?;
        let manifest = library.manifest();
        let slots =
            usize::try_from(options.cache_bytes / u64::from(options.chunk_bytes)).unwrap_or(usize::MAX);
        // Every worker must find a slot; more slots than chunks are of no use.
        let slots = slots.min(manifest.chunk_count()).max(workers);
        let encoded = manifest.encode();
        let root = Hash::of(&encoded);
        let agent = Agent::new(agent_config(options, &encoded, root))?;
        let manifest_region = agent.alloc(encoded.len(), MANIFEST_REGION)?;
        manifest_region.write_at(0, &encoded)?;
        let chunk_len = usize::try_from(options.chunk_bytes).unwrap_or(usize::MAX);
        let region = agent.alloc(slots.saturating_mul(chunk_len), "weights.cache")?;
        let no_address = || Error::Options("the agent has no address to be reached at".into());
        let address = agent.address().ok_or_else(no_address)?;
        let shared = Arc::new(Shared {
            agent,
            cache_region: region.id(),
            cache: Cache::new(region, slots, options.chunk_bytes),
            library,
            _manifest_region: manifest_region,
            line: Mutex::new(FairQueue::new(LINE_MAX, workers.div_ceil(2).max(1))),
            work: Condvar::new(),
            pacer: options.limit_bytes_per_second.map(|rate| Mutex::new(Pacer::new(rate))),
            started: clock::now(),
            stop: AtomicBool::new(false),
            bytes_sent: AtomicU64::new(0),
        });
        let mut server = Self { shared, address, root, threads: Vec::new() };
        server.spawn("weights-events", Shared::listen)?;
        for _ in 0..workers {
            server.spawn("weights-send", Shared::send_all)?;
        }
        Ok(server)
    }

    fn spawn(&mut self, name: &str, run: fn(&Shared)) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
        let failed = |error| Error::Options(format!("cannot start a thread: {error}"));
        self.threads.push(spawned.map_err(failed)?);
        Ok(())
    }

    /// Where receivers reach it.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// The root hash of what it serves.
    #[must_use]
    pub const fn root(&self) -> Hash {
        self.root
    }

    /// What it serves.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.shared.library.manifest()
    }

    /// Bytes of chunks that have reached receivers so far.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.shared.bytes_sent.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the weight server panicked");
            }
        }
    }
}

fn agent_config(options: &ServeOptions, encoded: &[u8], root: Hash) -> Config {
    let mut config = Config::new(crate::pull::unique_name("weights"));
    // Its regions have one block each.
    config.blocks_max = 1 << 16;
    config.tcp_listen = Some(options.listen);
    config.key.clone_from(&options.key);
    config.insecure_remote_without_key = options.insecure_remote_without_key;
    config.paths = options.paths;
    config.transfer_timeout = CHUNK_TIMEOUT;
    let manifest_len = u64::try_from(encoded.len()).unwrap_or(u64::MAX);
    config.app_metadata = Hello::new(root, manifest_len, options.chunk_bytes).encode();
    config
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn line(&self) -> MutexGuard<'_, FairQueue<Incarnation, Job>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns what receivers say into jobs.
    fn listen(&self) {
        let mut alive = clock::now();
        while !self.stopped() {
            match self.agent.wait_event(TICK) {
                Some(Event::Notif { peer, bytes }) => self.take_requests(&peer, &bytes),
                Some(Event::PeerUp { peer }) => tracing::info!(receiver = peer.name(), "receiver connected"),
                Some(Event::PeerLost { peer, reason }) => {
                    tracing::info!(receiver = peer.name(), %reason, "receiver gone");
                    self.line().forget(&peer.incarnation());
                }
                _ => {}
            }
            if clock::now().duration_since(alive) >= ALIVE_EVERY {
                alive = clock::now();
                let waiting = self.line().receivers();
                let peers = self.agent.peers();
                let peers = peers.iter().filter(|peer| waiting.contains(&peer.incarnation()));
                peers.for_each(|peer| tell(peer, &Reply::Alive));
            }
        }
    }

    fn take_requests(&self, peer: &Peer, bytes: &[u8]) {
        let requests = match Request::decode_all(bytes) {
            Ok(requests) => requests,
            Err(error) => {
                tracing::warn!(receiver = peer.name(), %error, "a message that is no request");
                return;
            }
        };
        let mut refused = Vec::new();
        let mut line = self.line();
        for request in requests {
            let job = Job { peer: peer.clone(), request };
            if line.push(&peer.incarnation(), job).is_err() {
                refused.push(request.ticket);
            }
        }
        drop(line);
        self.work.notify_all();
        for ticket in refused {
            tell(peer, &Reply::Refused { ticket, reason: "too many requests at once".into() });
        }
    }

    /// One worker: job after job until the server stops.
    fn send_all(&self) {
        let mut buffer = Vec::new();
        while let Some((key, job)) = self.next_job() {
            if let Err(refusal) = self.send(&job, &mut buffer) {
                tracing::error!(receiver = job.peer.name(), chunk = job.request.chunk, "{refusal}");
                tell(&job.peer, &Reply::Refused { ticket: job.request.ticket, reason: refusal.to_string() });
            }
            self.line().done(&key);
            self.work.notify_all();
        }
    }

    fn next_job(&self) -> Option<(Incarnation, Job)> {
        let mut line = self.line();
        while !self.stopped() {
            if let Some(job) = line.pop() {
                return Some(job);
            }
            line = self.work.wait_timeout(line, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }

    /// Sends one chunk. An error is for the receiver to know; a receiver that is gone is none.
    fn send(&self, job: &Job, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let request = job.request;
        let unknown = || Error::Options(format!("chunk {} is not in the manifest", request.chunk));
        let chunk = self.library.manifest().chunk(request.chunk).ok_or_else(unknown)?;
        let pinned = self.cache.pin(&self.library, request.chunk, buffer)?;
        if request.recheck {
            pinned.recheck(&self.library, request.chunk, buffer)?;
        }
        if !self.wait_for_cap(u64::from(chunk.len)) {
            return Ok(());
        }
        match self.write(job, &pinned, u64::from(chunk.len)) {
            Ok(bytes) => {
                self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) if job.peer.is_up() => return Err(error),
            Err(error) => {
                tracing::info!(receiver = job.peer.name(), %error, "receiver gone while a chunk was on its way");
                self.line().forget(&job.peer.incarnation());
            }
        }
        Ok(())
    }

    fn write(&self, job: &Job, pinned: &Pinned<'_>, len: u64) -> Result<u64, Error> {
        let peer = &job.peer;
        let no_staging = || Error::Options(format!("the receiver has no region {STAGING_REGION:?}"));
        let staging = peer.region(STAGING_REGION).ok_or_else(no_staging)?;
        let offset = u64::try_from(pinned.offset()).unwrap_or(u64::MAX);
        let local = DescList::from(Desc::contiguous(self.cache_region, offset, len));
        let remote = DescList::from(Desc::contiguous(staging.id, job.request.offset, len));
        let answer = Reply::Chunk { ticket: job.request.ticket }.encode();
        let (local, remote) = (self.agent.prepare(&local)?, peer.prepare(&remote)?);
        let transfer = peer.write(&local, &remote).notify(&answer).timeout(CHUNK_TIMEOUT).post()?;
        // The engine ends the transfer at its timeout; the margin is for its own report.
        Ok(transfer.wait(CHUNK_TIMEOUT + CHUNK_TIMEOUT)?.bytes)
    }

    /// Waits until the cap lets `len` bytes out; false when the server stops first.
    fn wait_for_cap(&self, len: u64) -> bool {
        let Some(pacer) = &self.pacer else { return true };
        let now = clock::now().duration_since(self.started);
        let at = self.started + pacer.lock().unwrap_or_else(PoisonError::into_inner).book(now, len);
        let mut line = self.line();
        while !self.stopped() {
            let left = at.saturating_duration_since(clock::now());
            if left.is_zero() {
                return true;
            }
            line = self.work.wait_timeout(line, left.min(TICK)).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

fn tell(peer: &Peer, reply: &Reply) {
    if let Err(error) = peer.notify(&reply.encode()) {
        tracing::debug!(receiver = peer.name(), %error, "an answer could not be sent");
    }
}
