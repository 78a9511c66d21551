//! What all handles of an agent share, and the commands that they send to its driver.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use transfer_proto::id::{CounterId, Incarnation, RailId, RegionId};
use transfer_proto::plan::Path;
use transfer_proto::proto::metadata::{AgentMetadata, RegionInfo};
use transfer_proto::proto::xfer::{Failure, Outcome, SliceError};
use transfer_sys::memfd::Mapping;
use transfer_sys::process::Process;

use crate::address::Address;
use crate::backend::shm::{Copies, Work};
use crate::clock::{self, Clock};
use crate::config::Checked;
use crate::counter::Counters;
use crate::driver::{Driver, GUEST, Seat, Wire};
use crate::error::{Error, Result};
use crate::event::EventQueue;
use crate::list::{LocalList, RemoteList};
use crate::mem::{self, Guest, Guests, Ledger, PeerLedger, RegionCore, RegionTable, RemoteRegion};
use crate::peer::{PeerCore, Ways};
use crate::rates::CopyRate;
use crate::secure::Seals;
use crate::sync::{Followers, Lead, Pool, Queue, Shelf, Signal, Wake};
use crate::xfer::{Done, XferCore, XferRef};

/// A connection of either family.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Local(UnixStream),
}

/// What the driver says to somebody who connects.
#[derive(Debug)]
pub(crate) enum Meeting {
    /// The peer introduced itself: open the other connections, then [`Command::Opened`].
    Hello { peer: Arc<PeerCore>, local_name: String, addresses: Vec<String>, token: u64 },
    /// The peer can be used.
    Up(Arc<PeerCore>),
    /// It cannot.
    Failed(Error),
}

/// A data connection past its handshake.
#[derive(Debug)]
pub(crate) struct DataStream {
    pub(crate) stream: TcpStream,
    /// What it is encrypted with, if it is.
    pub(crate) seals: Option<Seals>,
}

/// The further connections to a peer.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) local: Option<UnixStream>,
    pub(crate) data: Vec<DataStream>,
    pub(crate) ways: Ways,
    /// Where further data connections are opened.
    pub(crate) end: Option<DataEnd>,
}

/// Where a peer takes data connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataEnd {
    pub(crate) address: SocketAddr,
    /// The word that they must show there.
    pub(crate) token: u64,
}

/// What handles ask of the driver.
pub(crate) enum Command {
    /// Introduce this agent on a new connection.
    Meet { wire: Wire, address: String, reply: Sender<Meeting> },
    /// The further connections of a peer that was met stand.
    Opened { peer: Arc<PeerCore>, opened: Opened },
    /// A data connection was opened again, or could not be.
    Rail { peer: Arc<PeerCore>, rail: RailId, stream: Option<DataStream> },
    /// They could not be opened.
    GiveUp { peer: Arc<PeerCore>, error: Error },
    /// Say when the peer has taken in everything that was sent to it.
    Sync { peer: Incarnation, reply: Sender<()> },
    /// Ask the peer for the file of a region.
    Map { peer: Incarnation, region: RegionId, reply: Sender<Result<OwnedFd>> },
    /// Send a notification.
    Notify { peer: Incarnation, bytes: Vec<u8>, reply: Sender<Result<()>> },
    /// Tell a peer of a transfer that is done.
    Tell { peer: Incarnation, word: Word },
    /// Run a transfer that found no room among the others.
    Post(Box<Posted>),
    /// End a transfer.
    Cancel(XferRef),
    /// Tell the peers of a region.
    RegionAdded(RegionInfo),
    /// Tell the peers that a region goes, and say when all have let go of it.
    RegionClosed { region: Arc<RegionCore>, reply: Option<Sender<()>> },
    /// End the connection with a peer.
    Disconnect(Incarnation),
    /// End everything.
    Shutdown,
}

/// What the peer is told when a transfer is done, exactly once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Word {
    pub(crate) notif: Option<Vec<u8>>,
    pub(crate) bump: Option<(CounterId, u64)>,
}

impl Word {
    pub(crate) fn is_empty(&self) -> bool {
        self.notif.is_none() && self.bump.is_none()
    }
}

/// A transfer in the driver or on its way there, with the right to touch its memory.
pub(crate) struct Posted {
    pub(crate) core: XferRef,
    _passes: Passes,
    pub(crate) word: Word,
}

impl Drop for Posted {
    /// Whoever waits for it learns that the driver is gone, wherever that left it.
    fn drop(&mut self) {
        if self.core.finish_unless_told(Err(Error::AgentClosed)) {
            self.core.call_back();
        }
    }
}

/// The right to touch the memory on both sides of a transfer. It keeps the lists, and these the memory.
#[derive(Debug)]
pub(crate) struct Passes {
    local: LocalList,
    remote: RemoteList,
}

impl Passes {
    fn enter(core: &XferCore) -> Result<Self> {
        let (local, remote) = (core.local.clone(), core.remote.clone());
        mem::enter(&local.core.regions).map_err(|region| Error::RegionClosed { region: region.id })?;
        if let Err(region) = mem::enter(&remote.core.regions) {
            mem::leave(&local.core.regions);
            remote.core.peer.ensure_up()?;
            return Err(Error::RegionClosed { region: region.info.id });
        }
        Ok(Self { local, remote })
    }

    /// Whether somebody waits for these rights to be given back.
    pub(crate) fn is_awaited(&self) -> bool {
        mem::are_awaited(&self.local.core.regions) || mem::are_awaited(&self.remote.core.regions)
    }
}

impl Drop for Passes {
    fn drop(&mut self) {
        mem::leave(&self.local.core.regions);
        mem::leave(&self.remote.core.regions);
    }
}

/// Posted transfers that wait for the driver; further ones take the way of all commands, which allocates.
pub(crate) const POSTS_MAX: usize = 4096;
/// Transfers whose memory is kept for later ones; about a KiB each, and their indices.
const CORES_MAX: usize = 256;
/// Copies of indices that are kept, and how many indices such a copy has at most.
const INDICES_MAX: usize = 2 * CORES_MAX;
const INDICES_LEN_MAX: usize = 1 << 16;

/// What transfers are made of, kept from one to the next: posting and ending one allocates nothing once as many have
/// been under way at a time as ever will be.
#[derive(Debug)]
pub(crate) struct Stock {
    pub(crate) cores: Shelf<XferCore>,
    indices: Pool<Vec<u32>>,
}

impl Stock {
    pub(crate) fn new() -> Self {
        Self { cores: Shelf::new(CORES_MAX), indices: Pool::new(INDICES_MAX) }
    }

    /// A copy of some indices.
    pub(crate) fn copy_of(&self, indices: &[u32]) -> Vec<u32> {
        let mut copy = self.indices.take().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(indices);
        copy
    }

    /// A copy that is not needed any more.
    pub(crate) fn give_back(&self, indices: Vec<u32>) {
        if (1..=INDICES_LEN_MAX).contains(&indices.capacity()) {
            self.indices.give(indices);
        }
    }
}

/// The heart of an agent.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Checked,
    pub(crate) clock: Clock,
    pub(crate) incarnation: Incarnation,
    /// The incarnation again, at an address that peers may probe; see [`transfer_proto::proto::local`].
    pub(crate) probe: Box<[u8; 16]>,
    /// Name of the Unix socket, empty where the configuration leaves local paths out.
    pub(crate) local_name: String,
    pub(crate) addresses: Vec<Address>,
    pub(crate) regions: RegionTable,
    pub(crate) counters: Arc<Counters>,
    pub(crate) copy_rate: CopyRate,
    /// What this agent tells peers of its host about its memory and its writing.
    pub(crate) ledger: Arc<Ledger>,
    /// Those peers.
    pub(crate) guests: Guests,
    pub(crate) peers: Mutex<HashMap<Incarnation, Arc<PeerCore>>>,
    pub(crate) events: EventQueue,
    pub(crate) signal: Arc<Signal>,
    pub(crate) commands: Sender<Command>,
    pub(crate) wake: Arc<Wake>,
    /// Transfers over sockets, for the driver. Where there is none any more, they end as they are dropped.
    pub(crate) posts: Queue<Posted>,
    pub(crate) stock: Stock,
    /// The driver, for the one thread that runs it.
    pub(crate) lead: Lead<Box<Driver>>,
    /// Where the agent's own thread sleeps.
    pub(crate) seat: Seat,
    /// Transfers whose waiters found the lead taken.
    pub(crate) followers: Followers<XferRef>,
    /// A polling thread found the lead taken.
    pub(crate) wanted: AtomicBool,
    /// Transfers within this host.
    pub(crate) copies: Copies,
}

impl Shared {
    /// What this agent tells of itself.
    pub(crate) fn metadata(&self) -> AgentMetadata {
        let mut metadata = AgentMetadata::new(self.config.name.clone(), self.incarnation);
        metadata.addresses = self.addresses.iter().map(ToString::to_string).collect();
        metadata.local_name.clone_from(&self.local_name);
        metadata.app.clone_from(&self.config.app_metadata);
        metadata.regions = self.regions.infos();
        metadata
    }

    pub(crate) fn probe_address(&self) -> u64 {
        self.probe.as_ptr().addr() as u64
    }

    /// Gives the driver something to do. Nothing happens when it is gone; whoever waits for an answer sees that.
    pub(crate) fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.wake.set();
        }
    }

    /// The same, for those who wait.
    pub(crate) fn ask<T>(&self, timeout: Duration, ask: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(ask(reply));
        Self::answer(&answer, timeout)
    }

    pub(crate) fn answer<T>(answer: &Receiver<T>, timeout: Duration) -> Result<T> {
        answer.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => Error::WaitTimedOut(timeout),
            RecvTimeoutError::Disconnected => Error::AgentClosed,
        })
    }

    pub(crate) fn notify(&self, peer: Incarnation, bytes: Vec<u8>) -> Result<()> {
        let timeout = self.config.peer_timeout;
        self.ask(timeout, |reply| Command::Notify { peer, bytes, reply })?
    }

    /// Runs a transfer: within this host by whoever has time, over sockets in the driver.
    pub(crate) fn post(&self, core: XferRef, word: Word) -> Result<()> {
        let peer = &core.remote.core.peer;
        peer.ensure_up()?;
        let passes = Passes::enter(&core)?;
        if core.remote.path() == Path::Tcp {
            let here = core.bytes <= self.config.inline_bytes_max;
            if let Err(posted) = self.posts.put(Posted { core, _passes: passes, word }) {
                let _sent = self.commands.send(Command::Post(Box::new(posted)));
            }
            if self.posts.has_ended() {
                self.drop_posts();
            }
            self.look(here);
        } else if core.bytes > self.config.inline_bytes_max {
            Work::begin(self, &core, passes, word);
            self.copies.post(self, core);
        } else {
            let result = match self.copies.copy_all(&core) {
                _ if !peer.is_up() => Err(peer.lost_error()),
                Err(failure) => self.result_of(&core, Outcome::Failed(failure)),
                Ok(bytes) => Ok(self.done(&core, bytes)),
            };
            self.end_local(&core, passes, word, result);
        }
        Ok(())
    }

    /// There is no driver for them any more.
    pub(crate) fn drop_posts(&self) {
        while self.posts.take().is_some() {}
    }

    /// A transfer within this host has ended: lets go of its memory, then tells of it.
    pub(crate) fn end_local(&self, core: &XferCore, passes: Passes, word: Word, result: Result<Done>) {
        let awaited = passes.is_awaited();
        drop(passes);
        if awaited {
            self.wake.set();
        }
        if result.is_ok() && !word.is_empty() {
            self.send(Command::Tell { peer: core.remote.core.peer.key, word });
        }
        core.finish_unless_told(result);
        core.call_back();
    }

    /// What is told of a transfer that has ended so.
    pub(crate) fn result_of(&self, core: &XferCore, outcome: Outcome) -> Result<Done> {
        let peer = &core.remote.core.peer;
        match outcome {
            Outcome::Done { bytes } => Ok(self.done(core, bytes)),
            Outcome::Cancelled => Err(Error::Cancelled),
            Outcome::Deadline => Err(Error::Deadline { peer: peer.name.clone(), timeout: core.timeout }),
            Outcome::Failed(_) | Outcome::PeerLost if !peer.is_up() => Err(peer.lost_error()),
            // The driver has yet to see it.
            Outcome::Failed(Failure { error: SliceError::PeerGone, .. }) => Err(peer.lost_error()),
            Outcome::Failed(source) => Err(Error::of_slice(&peer.name, source)),
            _ => Err(peer.lost_error()),
        }
    }

    pub(crate) fn done(&self, core: &XferCore, bytes: u64) -> Done {
        let elapsed = self.clock.elapsed().saturating_sub(core.started);
        let path = core.remote.path();
        core.remote.core.peer.rates.note(path, bytes, elapsed);
        Done { bytes, path, elapsed }
    }

    /// The mapping of a peer's region, asked for where there is none yet.
    pub(crate) fn map_region(&self, peer: &PeerCore, region: &RemoteRegion) -> Result<Arc<Mapping>> {
        if let Some(mapping) = region.mapping() {
            return Ok(mapping);
        }
        let (key, id) = (peer.key, region.info.id);
        let timeout = self.config.connect_timeout;
        match self.ask(timeout, |reply| Command::Map { peer: key, region: id, reply }) {
            Ok(file) => region.map(&file?),
            // The driver lets go of the question when the peer is gone.
            Err(Error::AgentClosed) if !peer.is_up() => Err(peer.lost_error()),
            Err(error) => Err(error),
        }
    }

    /// Takes in a peer at the other end of a Unix socket, which sent its ledger: from here on it is waited for where
    /// memory is revoked.
    pub(crate) fn welcome(
        &self,
        process: Process,
        name: &str,
        incarnation: Incarnation,
        file: &OwnedFd,
    ) -> Result<Arc<Guest>> {
        let (name, ledger) = (name.to_owned(), PeerLedger::map(file)?);
        let guest = Arc::new(Guest { name, incarnation, process, ledger });
        self.guests.add(Arc::clone(&guest));
        // Told once, since a process ends once, and what keeps the descriptor may stay.
        if let Err(error) = self.seat.inner.add_edge(guest.process.as_fd(), GUEST) {
            tracing::warn!(%error, peer = guest.name, "its end will be seen when the next one is met");
        }
        Ok(guest)
    }

    /// Makes older generations of some bytes void, and waits until those who write by them have left.
    pub(crate) fn revoke(&self, region: &RegionCore, offset: u64, len: u64) -> Result<u64> {
        let generation = region.raise(offset, len);
        let mut inside = self.guests.inside();
        let waited = self.config.peer_timeout;
        if clock::wait_until(waited, || inside.left()) {
            return Ok(generation);
        }
        Err(Error::RegionBusy { region: region.id, peer: inside.to_string(), waited })
    }

    /// Deregisters a region and waits until it is left alone.
    pub(crate) fn close_region(&self, region: &Arc<RegionCore>) -> Result<()> {
        region.gate().close();
        region.raise_all();
        self.regions.remove(region.id);
        let (waited, region) = (self.config.peer_timeout, Arc::clone(region));
        let id = region.id;
        match self.ask(waited, |reply| Command::RegionClosed { region, reply: Some(reply) }) {
            Err(Error::WaitTimedOut(_)) => {
                let inside = self.guests.inside();
                let peer = if inside.is_empty() { "a transfer".to_owned() } else { inside.to_string() };
                Err(Error::RegionBusy { region: id, peer, waited })
            }
            // Without a driver nothing runs any more.
            Err(Error::AgentClosed) | Ok(()) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Deregisters a region; the driver keeps its memory until it is left alone.
    pub(crate) fn drop_region(&self, region: &Arc<RegionCore>) {
        region.gate().close();
        region.raise_all();
        if self.regions.remove(region.id) {
            self.send(Command::RegionClosed { region: Arc::clone(region), reply: None });
        }
    }

    /// The agent ends: nobody writes into its memory any more when this returns, or is known to be stopped in it.
    pub(crate) fn end_regions(&self) {
        self.regions.raise_all();
        let mut inside = self.guests.inside();
        if !clock::wait_until(self.config.peer_timeout, || inside.left()) {
            tracing::error!(writer = %inside, "is stopped in mid-copy and may still write into memory of this agent");
        }
    }

    pub(crate) fn peer(&self, incarnation: Incarnation) -> Option<Arc<PeerCore>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).get(&incarnation).cloned()
    }
}
