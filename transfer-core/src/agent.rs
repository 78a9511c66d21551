//! Agents: one endpoint in one process.

use std::collections::HashMap;
use std::fmt;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as LocalAddr, UnixListener};
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use transfer_proto::desc::DescList;
use transfer_proto::id::Incarnation;
use transfer_proto::plan::Path;
use transfer_proto::proto::metadata::AgentMetadata;
use transfer_sys::OsError;

use crate::address::Address;
use crate::backend::shm::Copies;
use crate::clock::Clock;
use crate::config::{Checked, Config};
use crate::counter::{Counter, Counters};
use crate::dial::dial;
use crate::driver::{Driver, Seat};
use crate::error::{Error, Result};
use crate::event::{Event, EventQueue, Taken};
use crate::list::{LocalCore, LocalList};
use crate::mem::{self, Guests, Ledger, Region, RegionOptions, RegionTable, Unnamed};
use crate::peer::Peer;
use crate::rates::CopyRate;
use crate::shared::{Command, POSTS_MAX, Shared, Stock};
use crate::sync::{Followers, Lead, Queue, Signal, Wake};

/// One endpoint: it owns registered memory, meets peers, and moves bytes to and from theirs.
///
/// Clones name the same agent. When the last one is dropped, the agent says goodbye to its peers, every transfer
/// ends with [`Error::AgentClosed`], and its thread is joined.
///
/// Safe to use from any thread. An agent runs a driver thread, which waits in epoll(7) and uses no CPU when nothing
/// happens or a thread of the application waits instead, and `copy_threads` that copy within the host.
#[derive(Clone)]
pub struct Agent {
    shared: Arc<Shared>,
    _driver: Arc<DriverHandle>,
}

struct DriverHandle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for DriverHandle {
    fn drop(&mut self) {
        self.shared.send(Command::Shutdown);
        // Also where there is no driver any more to read that.
        self.shared.seat.kick();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic there was told on its own thread.
            let _ended = thread.join();
        }
        // Our own writes have ended with the threads; peers may still write into memory that is about to go.
        self.shared.ledger.retire();
        self.shared.end_regions();
        self.shared.counters.close();
        self.shared.events.clear();
    }
}

impl Agent {
    /// Creates an agent: listens, and starts its threads. Takes well under a millisecond.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Os`] where the address is taken or a resource is short.
    pub fn new(config: Config) -> Result<Self> {
        let config = config.check()?;
        if config.accepts_anybody() {
            tracing::warn!(
                agent = config.name,
                "insecure_remote_without_key is set: whoever reaches this agent's address can read and write all \
                 its regions"
            );
        }
        let incarnation = Incarnation::from_bytes(random()?);
        let tcp_listener = config.tcp_listen.map(listen_tcp).transpose()?;
        let (local_name, local_listener) = listen_local(&config, incarnation)?;
        let mut addresses = Vec::new();
        if let Some(listener) = &tcp_listener {
            let address =
                listener.local_addr().map_err(|e| OsError::from_io("getsockname", "listener", &e))?;
            addresses.push(Address::from(address));
        }
        if !local_name.is_empty() {
            addresses.push(Address::Local { name: local_name.clone() });
        }
        let ledger = Arc::new(Ledger::with_room(&config.name, config.blocks_max)?);
        let (commands, receiver) = crossbeam_channel::unbounded();
        let signal = Arc::new(Signal::default());
        let shared = Arc::new(Shared {
            clock: Clock::start(),
            incarnation,
            probe: Box::new(incarnation.to_bytes()),
            local_name,
            addresses,
            regions: RegionTable::default(),
            counters: Arc::new(Counters::new(Arc::clone(&signal))),
            copy_rate: CopyRate::default(),
            guests: Guests::new(Arc::clone(&ledger)),
            ledger,
            peers: Mutex::new(HashMap::new()),
            events: EventQueue::new(config.events_max, Arc::clone(&signal)),
            signal,
            commands,
            posts: Queue::new(POSTS_MAX),
            stock: Stock::new(),
            copies: Copies::new(),
            wake: Arc::new(Wake::new()?),
            lead: Lead::new(),
            seat: Seat::new()?,
            followers: Followers::new(),
            wanted: AtomicBool::new(false),
            config,
        });
        let driver = Driver::new(Arc::clone(&shared), receiver, tcp_listener, local_listener)?;
        let name = format!("{}-driver", shared.config.name);
        shared.lead.put(Some(Box::new(driver)));
        let sitter = Arc::clone(&shared);
        let spawned = std::thread::Builder::new().name(name.clone()).spawn(move || sitter.sit());
        let thread = spawned.map_err(|e| {
            drop(shared.lead.put(None));
            OsError::from_io("pthread_create", name, &e)
        })?;
        let handle = DriverHandle { shared: Arc::clone(&shared), thread: Mutex::new(Some(thread)) };
        Ok(Self { shared, _driver: Arc::new(handle) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.config.name
    }

    /// Which life of it.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.shared.incarnation
    }

    /// Where peers reach it: the TCP address where it has one.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        self.shared.addresses.first().cloned()
    }

    /// Everything that a peer needs to know, as a versioned blob for the application to carry; see
    /// [`Agent::add_peer`]. Regions registered later are told over the control connection.
    #[must_use]
    pub fn metadata(&self) -> Vec<u8> {
        self.shared.metadata().to_blob()
    }

    // ---- memory

    /// Allocates zeroed memory that peers on this host can map, which is the fastest way between processes. Every page
    /// gets its memory now, at a few GB/s, so that transfers meet no page faults and a shortage shows here. `label` is for peers to find it by; at most 255 bytes, not necessarily unique.
    ///
    /// # Errors
    /// [`Error::Os`] where memory is short, [`Error::TooLarge`].
    pub fn alloc(&self, len: usize, label: &str) -> Result<Region> {
        self.alloc_with(len, &RegionOptions::new(label))
    }

    /// The same, with rights, blocks, huge pages and the like.
    ///
    /// # Errors
    /// As [`Agent::alloc`]; [`Error::Os`] also where huge pages or the node are not there, with what to do.
    pub fn alloc_with(&self, len: usize, options: &RegionOptions) -> Result<Region> {
        options.check()?;
        self.insert(mem::alloc(len, options, &self.shared.ledger)?)
    }

    /// Registers a buffer, which the region owns from now on.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn adopt(&self, bytes: Vec<u8>, label: &str) -> Result<Region> {
        self.adopt_with(bytes, &RegionOptions::new(label))
    }

    /// The same, with rights, blocks and the like.
    ///
    /// # Errors
    /// As [`Agent::adopt`]; [`Error::InvalidConfig`] for options that only allocated memory can have.
    pub fn adopt_with(&self, bytes: Vec<u8>, options: &RegionOptions) -> Result<Region> {
        options.check_given()?;
        self.insert(mem::adopt(bytes, options, &self.shared.ledger)?)
    }

    /// Registers any memory of this process.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    ///
    /// # Safety
    /// The `len` bytes at `addr` must stay mapped, readable and writable until [`Region::close`] has returned `Ok`,
    /// or the agent was dropped. Peers write them at any time: no reference to them may exist meanwhile.
    #[allow(unsafe_code, reason = "takes raw memory from the application")]
    pub unsafe fn register(&self, addr: NonNull<u8>, len: usize, label: &str) -> Result<Region> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.register_with(addr, len, &RegionOptions::new(label)) }
    }

    /// The same, with rights, blocks and the like.
    ///
    /// # Errors
    /// As [`Agent::register`]; [`Error::InvalidConfig`] for options that only allocated memory can have.
    ///
    /// # Safety
    /// As [`Agent::register`].
    #[allow(unsafe_code, reason = "takes raw memory from the application")]
    pub unsafe fn register_with(
        &self,
        addr: NonNull<u8>,
        len: usize,
        options: &RegionOptions,
    ) -> Result<Region> {
        options.check_given()?;
        self.insert(mem::borrow(addr, len, options, &self.shared.ledger)?)
    }

    fn insert(&self, region: Unnamed) -> Result<Region> {
        let core = self.shared.regions.insert(region)?;
        self.shared.send(Command::RegionAdded(core.info()));
        Ok(Region::new(core, Arc::downgrade(&self.shared)))
    }

    /// Checks a list against this agent's regions and binds it to their memory. Keep it and use it again.
    ///
    /// # Errors
    /// [`Error::BadList`], [`Error::RegionClosed`].
    pub fn prepare(&self, list: &DescList) -> Result<LocalList> {
        let regions = &self.shared.regions;
        let find = |id| regions.find(id).map(|region| region.range().len() as u64);
        list.check(find).map_err(|source| Error::BadList { side: "local", source })?;
        let bound = list.descs().iter().map(|desc| {
            let region = desc.region();
            regions.find(region).ok_or(Error::RegionClosed { region })
        });
        let bound = bound.collect::<Result<Vec<_>>>()?;
        let ledger = Arc::clone(&self.shared.ledger);
        let core = LocalCore::new(list.clone(), bound, Arc::as_ptr(&self.shared), ledger);
        Ok(LocalList { core: Arc::new(core) })
    }

    /// A counter at zero, for peers to raise with their transfers.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with 65536 of them; [`Error::AgentClosed`].
    pub fn counter(&self) -> Result<Counter> {
        self.shared.counters.create()
    }

    // ---- peers

    /// Connects to the agent at `address`, or returns the peer where it is connected already. When it returns, both
    /// sides know each other. Blocks up to `connect_timeout`, and up to `peer_timeout` for a peer that freezes.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::VersionMismatch`], [`Error::AuthRequired`] where one side has a key and the
    /// other has none, or neither and they are not on one host, [`Error::AuthFailed`] where the keys differ,
    /// [`Error::Protocol`], [`Error::PeerLost`] when it goes in mid-handshake.
    pub fn connect(&self, address: &Address) -> Result<Peer> {
        let peer = Peer::new(dial(&self.shared, address)?, Arc::clone(&self.shared));
        peer.sync()?;
        Ok(peer)
    }

    /// Connects to the agent that a blob of [`Agent::metadata`] speaks of. Blocks like [`Agent::connect`].
    ///
    /// # Errors
    /// As [`Agent::connect`]; [`Error::Protocol`] for a damaged blob; [`Error::Unreachable`] where another agent is
    /// found at its addresses, because the one that made the blob is gone.
    pub fn add_peer(&self, blob: &[u8]) -> Result<Peer> {
        let metadata = AgentMetadata::from_blob(blob)
            .map_err(|error| Error::from_preamble("the metadata blob".to_owned(), error))?;
        let incarnation = metadata.incarnation;
        if let Some(core) = self.shared.peer(incarnation) {
            return Ok(Peer::new(core, Arc::clone(&self.shared)));
        }
        let mut last = Error::unreachable(&metadata.name, &"its metadata names no address");
        for text in &metadata.addresses {
            match self.connect(&text.parse()?) {
                Ok(peer) if peer.incarnation() == incarnation => return Ok(peer),
                Ok(peer) => {
                    let cause = format!("agent {} is there now, not {incarnation}", peer.incarnation());
                    last = Error::unreachable(text, &cause);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The peers that are connected.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        let peers = self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.values().map(|core| Peer::new(Arc::clone(core), Arc::clone(&self.shared))).collect()
    }

    // ---- events

    fn taken(&self, taken: Taken) -> Option<Event> {
        if taken.wake_driver {
            self.shared.wake.set();
        }
        taken.event
    }

    /// A descriptor for an epoll(7) or poll(2) loop of the application: it is readable once an event has come, a transfer
    /// of this agent has ended, or a counter was raised. Reading its eight bytes clears it (eventfd(2)); then take events
    /// until there are none, poll the transfers and look at the counters. It starts out readable. Cost: from the first
    /// call on, a syscall for each event, transfer and raise.
    ///
    /// # Errors
    /// [`Error::Os`] where no descriptor is left.
    pub fn event_fd(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.shared.signal.fd()?)
    }

    /// The next event, if there is one. Cost: one lock.
    #[must_use]
    pub fn poll_event(&self) -> Option<Event> {
        self.taken(self.shared.events.take())
    }

    /// The next event; `None` when `timeout` is over first.
    #[must_use]
    pub fn wait_event(&self, timeout: Duration) -> Option<Event> {
        self.taken(self.shared.events.wait(timeout))
    }

    /// The next event, on any executor. Several may wait; each event goes to one of them.
    pub async fn next_event(&self) -> Event {
        loop {
            let taken = self.shared.events.next().await;
            if let Some(event) = self.taken(taken) {
                return event;
            }
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("name", &self.name())
            .field("incarnation", &self.incarnation())
            .field("addresses", &self.shared.addresses)
            .finish_non_exhaustive()
    }
}

fn listen_tcp(address: std::net::SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
    Ok(listener.map_err(|e| OsError::from_io("bind", address.to_string(), &e))?)
}

/// The abstract Unix socket for peers of this host, unless the configuration leaves local paths out.
fn listen_local(config: &Checked, incarnation: Incarnation) -> Result<(String, Option<UnixListener>)> {
    let wanted = config.paths.contains(Path::SharedMemory)
        || config.paths.contains(Path::ProcessMemory)
        || config.tcp_listen.is_none();
    if !wanted {
        return Ok((String::new(), None));
    }
    let name = format!("headrace-{incarnation}");
    let listener = LocalAddr::from_abstract_name(&name)
        .and_then(|address| UnixListener::bind_addr(&address))
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    let listener = listener.map_err(|e| OsError::from_io("bind", name.clone(), &e))?;
    Ok((name, Some(listener)))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let failed = |e: getrandom::Error| OsError::new("getrandom", "", e.raw_os_error().unwrap_or(5));
    getrandom::fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// A word that nobody can guess.
#[expect(clippy::expect_used, reason = "the same source gave the incarnation, and it does not dry up")]
pub(crate) fn random_word() -> u64 {
    u64::from_le_bytes(random().expect("getrandom works once it has worked"))
}
