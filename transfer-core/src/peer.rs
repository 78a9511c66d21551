//! Peers, as the application sees them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use transfer_proto::desc::DescList;
use transfer_proto::id::{Incarnation, RegionId};
use transfer_proto::plan::{Explanation, Facts, Path, PathSet, Policy, Reason, choose};
use transfer_proto::proto::link::{LinkError, NotifError};
use transfer_proto::proto::metadata::{AgentMetadata, RegionInfo, RegionKind};

use crate::error::{Error, Result};
use crate::list::{LocalList, RemoteCore, RemoteList};
use crate::mem::{Guest, RemoteRegion};
use crate::rates::Rates;
use crate::shared::{Command, Shared};
use crate::xfer::{Op, Request};

/// The ways to a peer, found out while meeting it.
#[derive(Debug)]
pub(crate) struct Ways {
    /// Its process, where a Unix socket leads to it.
    pub(crate) local: Result<LocalWay, Reason>,
    /// Whether data connections stand.
    pub(crate) tcp: bool,
    /// Whether they are encrypted.
    pub(crate) encrypted: bool,
}

/// A peer on this host.
#[derive(Debug)]
pub(crate) struct LocalWay {
    pub(crate) guest: Arc<Guest>,
    /// Whether the kernel lets us at its memory.
    pub(crate) ptrace: bool,
}

/// A peer, for everybody inside the agent.
#[derive(Debug)]
pub(crate) struct PeerCore {
    pub(crate) name: String,
    pub(crate) incarnation: Incarnation,
    /// Under which name the driver keeps it: its incarnation, except for an agent that is its own peer.
    pub(crate) key: Incarnation,
    app: Arc<[u8]>,
    regions: RwLock<BTreeMap<RegionId, Arc<RemoteRegion>>>,
    pub(crate) ways: OnceLock<Ways>,
    /// How fast transfers with it were.
    pub(crate) rates: Rates,
    up: AtomicBool,
    lost: OnceLock<LinkError>,
}

impl PeerCore {
    pub(crate) fn new(key: Incarnation, metadata: AgentMetadata) -> Self {
        let regions = metadata.regions.into_iter().map(|info| (info.id, Arc::new(RemoteRegion::new(info))));
        Self {
            name: metadata.name,
            incarnation: metadata.incarnation,
            key,
            app: metadata.app.into(),
            regions: RwLock::new(regions.collect()),
            ways: OnceLock::new(),
            rates: Rates::default(),
            up: AtomicBool::new(false),
            lost: OnceLock::new(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(crate) fn set_up(&self) {
        self.up.store(true, Ordering::Release);
    }

    /// The peer is gone: its regions are closed, so that nobody starts on them any more.
    pub(crate) fn set_lost(&self, cause: LinkError) {
        // The first cause is the one that is told.
        let _first = self.lost.set(cause);
        self.up.store(false, Ordering::Release);
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.values().for_each(|region| region.close());
    }

    pub(crate) fn lost_error(&self) -> Error {
        let cause = self.lost.get().copied().unwrap_or(LinkError::Disconnected);
        Error::PeerLost { peer: self.name.clone(), incarnation: self.incarnation, cause }
    }

    pub(crate) fn ensure_up(&self) -> Result<()> {
        if self.is_up() { Ok(()) } else { Err(self.lost_error()) }
    }

    pub(crate) fn region(&self, id: RegionId) -> Option<Arc<RemoteRegion>> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn add_region(&self, info: RegionInfo) {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.entry(info.id).or_insert_with(|| Arc::new(RemoteRegion::new(info)));
    }

    /// Closes a region and takes its name away.
    pub(crate) fn remove_region(&self, id: RegionId) {
        if let Some(removed) = self.regions.write().unwrap_or_else(PoisonError::into_inner).remove(&id) {
            removed.close();
        }
    }

    /// The peer as a process of this host, where it is one.
    pub(crate) fn guest(&self) -> Option<&Arc<Guest>> {
        self.ways.get().and_then(|ways| ways.local.as_ref().ok()).map(|way| &way.guest)
    }

    fn infos(&self) -> Vec<RegionInfo> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.values().map(|region| region.info.clone()).collect()
    }

    fn facts(&self, allowed: PathSet, regions: &[Arc<RemoteRegion>]) -> Facts {
        let mut facts = Facts::best();
        facts.allowed = allowed;
        facts.mappable = regions.iter().all(|region| region.info.kind == RegionKind::Allocated);
        if let Some(ways) = self.ways.get() {
            facts.local = ways.local.as_ref().map(|_| ()).map_err(|reason| *reason);
            facts.ptrace = ways.local.as_ref().is_ok_and(|local| local.ptrace);
            (facts.tcp, facts.encrypted) = (ways.tcp, ways.encrypted);
        }
        facts
    }
}

/// Another agent that this one is connected to. Clones name the same peer.
#[derive(Clone)]
pub struct Peer {
    pub(crate) core: Arc<PeerCore>,
    pub(crate) agent: Arc<Shared>,
}

impl Peer {
    pub(crate) fn new(core: Arc<PeerCore>, agent: Arc<Shared>) -> Self {
        Self { core, agent }
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Which life of it. A peer that restarted is another one.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.core.incarnation
    }

    /// What its application says of itself.
    #[must_use]
    pub fn app_metadata(&self) -> Arc<[u8]> {
        Arc::clone(&self.core.app)
    }

    /// Its regions, as of now.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionInfo> {
        self.core.infos()
    }

    /// Its first region of that label.
    #[must_use]
    pub fn region(&self, label: &str) -> Option<RegionInfo> {
        self.regions().into_iter().find(|info| info.label == label)
    }

    /// Whether it is connected. A peer that was lost never comes back; connect again to its next incarnation.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.core.is_up()
    }

    /// Checks a list against the peer's regions, chooses the path for it and, for shared memory, maps what was not
    /// mapped yet. Only for a region that is new here the call waits for the peer, up to `connect_timeout`. Keep the
    /// list and use it again.
    ///
    /// # Errors
    /// [`Error::BadList`], [`Error::NoPath`], [`Error::FallbackRefused`], [`Error::PeerLost`], [`Error::Os`] from
    /// mapping.
    pub fn prepare(&self, list: &DescList) -> Result<RemoteList> {
        self.core.ensure_up()?;
        let known =
            |list: &DescList| list.descs().iter().all(|desc| self.core.region(desc.region()).is_some());
        if !known(list) {
            // The application's own channel may be faster than ours in telling of a new region.
            self.sync()?;
        }
        list.check(|id| self.core.region(id).map(|region| region.info.len))
            .map_err(|source| Error::BadList { side: "remote", source })?;
        let bound = list.descs().iter().map(|desc| {
            let region = desc.region();
            self.core.region(region).ok_or(Error::RegionClosed { region })
        });
        let bound = bound.collect::<Result<Vec<_>>>()?;
        let explanation = choose(&self.core.facts(self.agent.config.paths, &bound));
        let Some(path) = explanation.path else {
            return Err(Error::NoPath { peer: self.core.name.clone(), explanation });
        };
        if self.agent.config.policy == Policy::Strict && explanation.is_fallback() {
            return Err(Error::FallbackRefused { peer: self.core.name.clone(), explanation });
        }
        let mut mapped = Vec::new();
        if path == Path::SharedMemory {
            for region in &bound {
                mapped.push(self.agent.map_region(&self.core, region)?);
            }
        }
        let peer = Arc::clone(&self.core);
        let core = RemoteCore::new(list.clone(), peer, (path, explanation), bound, mapped);
        Ok(RemoteList { core: Arc::new(core) })
    }

    /// A transfer from the peer's spans into local ones.
    pub fn read(&self, local: &LocalList, remote: &RemoteList) -> Request {
        Request::new(self.clone(), Op::Read, local.clone(), remote.clone())
    }

    /// A transfer from local spans into the peer's.
    pub fn write(&self, local: &LocalList, remote: &RemoteList) -> Request {
        Request::new(self.clone(), Op::Write, local.clone(), remote.clone())
    }

    /// What transfers of the path gave so far; before the first one, for mapped memory, what a copy gives here.
    fn expected_rate(&self, path: Path) -> Option<u64> {
        let copy = || (path == Path::SharedMemory).then(|| self.agent.copy_rate.get(&self.agent.clock));
        self.core.rates.seen(path).or_else(copy)
    }

    /// Which path a transfer between the two lists takes, why not another, and how fast it is expected to be. The first call of
    /// an agent may measure its memory, which takes some milliseconds.
    ///
    /// # Errors
    /// [`Error::WrongAgent`] for lists of another peer.
    pub fn explain(&self, _local: &LocalList, remote: &RemoteList) -> Result<Explanation> {
        if !Arc::ptr_eq(&remote.core.peer, &self.core) {
            return Err(Error::WrongAgent { side: "remote" });
        }
        let mut explanation = remote.core.explanation.clone();
        explanation.expected_rate = self.expected_rate(remote.core.path);
        Ok(explanation)
    }

    /// Sends bytes, at most 64 KiB, to the peer's application. They arrive in order with other notifications.
    ///
    /// # Errors
    /// [`Error::NotNotified`] for bytes that are too long; [`Error::PeerLost`]; [`Error::AgentClosed`]. A peer that
    /// is lost later may not have got them.
    pub fn notify(&self, bytes: &[u8]) -> Result<()> {
        self.core.ensure_up()?;
        if bytes.len() > transfer_proto::proto::control::NOTIF_MAX {
            let source = NotifError::TooLong { len: bytes.len() };
            return Err(Error::NotNotified { peer: self.core.name.clone(), source });
        }
        match self.agent.notify(self.core.key, bytes.to_vec()) {
            Err(Error::NotNotified { source: NotifError::NotUp, .. }) => Err(self.core.lost_error()),
            told => told,
        }
    }

    /// Returns when the peer's agent has taken in all that was sent to it, and this one all that the peer had sent by
    /// then: regions it registered before are known, notifications it sent before are among the events. One round
    /// trip.
    ///
    /// # Errors
    /// [`Error::PeerLost`], [`Error::WaitTimedOut`] after `peer_timeout`.
    pub fn sync(&self) -> Result<()> {
        let (peer, timeout) = (self.core.key, self.agent.config.peer_timeout);
        match self.agent.ask(timeout, |reply| Command::Sync { peer, reply }) {
            // The driver lets go of the question when the peer is gone.
            Err(Error::AgentClosed) if !self.core.is_up() => Err(self.core.lost_error()),
            answer => answer,
        }
    }

    /// Ends the connection. Both sides see the peer as lost.
    pub fn disconnect(&self) {
        self.agent.send(Command::Disconnect(self.core.key));
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.core;
        f.debug_struct("Peer")
            .field("name", &core.name)
            .field("incarnation", &core.incarnation)
            .field("up", &core.is_up())
            .finish_non_exhaustive()
    }
}
