//! The engine's place among its peers: the agent, its events, and the books of both sides of a hand-off.
//!
//! One task receives the agent's events and answers claims from the books at once, whatever the engine thread is
//! computing; another ends what is overdue. Blocks go back to the engine thread through one callback.

#![expect(clippy::disallowed_methods, reason = "this module owns the clock of leases and claims")]

use super::claim::{Message, Refusal, Ticket};
use super::layout::Description;
use super::lease::{Ended, LeaseTable};
use super::log::PullLog;
use super::params::{Outgoing, Source};
use super::pull::{PullError, PullJob};
use super::used::UsedParams;
use crate::metrics::Metrics;
use crate::sched::BlockId;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;
use transfer_core::{Agent, Event, Peer, RegionId};

/// How often overdue leases and claims are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);

/// Addresses beyond which those without a living peer are forgotten.
const PEERS_MAX: usize = 1024;

/// What the service is set up with.
#[derive(Debug)]
pub(crate) struct KvSettings {
    pub(crate) agent: Agent,
    /// The region that holds the KV cache.
    pub(crate) region: RegionId,
    /// This engine's KV cache as its peers see it.
    pub(crate) description: Description,
    /// How long blocks are kept for a decode engine to claim them.
    pub(crate) lease: Duration,
    /// How long a pull may take, and for how long a claim is granted.
    pub(crate) pull_timeout: Duration,
    pub(crate) metrics: Arc<Metrics>,
}

/// Takes blocks back whose hand-off has ended.
type FreeBlocks = Box<dyn Fn(Vec<BlockId>) + Send + Sync>;

/// The connection to an address; locked while it is being made, so that pulls that begin together share it.
type PeerSlot = Arc<tokio::sync::Mutex<Option<Peer>>>;

/// The answer to a claim.
pub(super) type Answer = Result<Duration, PullError>;

/// Peer and request.
type ClaimKey = (String, String);

/// The service; a cheap handle.
#[derive(Clone)]
pub(crate) struct KvService {
    inner: Arc<Inner>,
}

struct Inner {
    settings: KvSettings,
    engine_id: String,
    runtime: tokio::runtime::Handle,
    free: FreeBlocks,
    leases: Mutex<LeaseTable>,
    used: Mutex<UsedParams>,
    log: Mutex<PullLog>,
    /// Claims that wait for their answer, by peer and request.
    claims: Mutex<HashMap<ClaimKey, (u64, oneshot::Sender<Answer>)>>,
    next_claim: AtomicU64,
    peers: Mutex<HashMap<String, PeerSlot>>,
}

impl fmt::Debug for KvService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvService").field("engine_id", &self.inner.engine_id).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KvService {
    /// Starts the service's tasks on the current runtime. `free` takes back blocks whose hand-off has ended.
    pub(crate) fn start(settings: KvSettings, free: impl Fn(Vec<BlockId>) + Send + Sync + 'static) -> Self {
        let inner = Inner {
            engine_id: settings.agent.incarnation().to_string(),
            settings,
            runtime: tokio::runtime::Handle::current(),
            free: Box::new(free),
            leases: Mutex::default(),
            used: Mutex::default(),
            log: Mutex::default(),
            claims: Mutex::default(),
            next_claim: AtomicU64::default(),
            peers: Mutex::default(),
        };
        let service = Self { inner: Arc::new(inner) };
        tokio::spawn(service.clone().follow_events());
        tokio::spawn(service.clone().expire_overdue());
        service
    }

    /// Names this engine in hand-offs; another after every start.
    pub(crate) fn engine_id(&self) -> &str {
        &self.inner.engine_id
    }

    /// Where peers reach this engine's agent.
    pub(crate) fn agent_address(&self) -> Option<String> {
        self.inner.settings.agent.address().map(|address| address.to_string())
    }

    /// Keeps the blocks of a prompt for another engine and says how it finds them. `cached_tokens` of the prompt were
    /// in the cache before. `None`: no peer can reach this engine, so the blocks are free again.
    pub(crate) fn keep(
        &self,
        id: &str,
        tokens: &[u32],
        blocks: Vec<BlockId>,
        cached_tokens: usize,
    ) -> Option<Outgoing> {
        let Some((host, port)) = self.agent_address().and_then(|address| split_address(&address)) else {
            (self.inner.free)(blocks);
            return None;
        };
        let lease = self.inner.settings.lease;
        let source = Source {
            engine_id: self.inner.engine_id.clone(),
            request_id: id.to_owned(),
            host,
            port,
            blocks: blocks.clone(),
            num_tokens: None,
        };
        let ticket = Ticket::new(tokens, &blocks);
        lock(&self.inner.leases).hold(id.to_owned(), blocks, ticket, Instant::now() + lease);
        self.show_leases();
        let expiry = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + lease;
        Some(Outgoing::new(source, tokens.len(), cached_tokens, expiry.as_secs_f64()))
    }

    /// Pulls the blocks of `job` in the background; `done` hears how it ended, after the last byte was written.
    /// Dropping the returned sender gives up the pull.
    pub(crate) fn spawn_pull(
        &self,
        job: PullJob,
        done: impl FnOnce(Result<(), PullError>) + Send + 'static,
    ) -> oneshot::Sender<()> {
        let (keep, given_up) = oneshot::channel();
        let service = self.clone();
        self.inner.runtime.spawn(async move {
            let result = tokio::select! {
                result = service.pull(&job) => result,
                _ = given_up => Err(PullError::GivenUp),
            };
            done(result);
        });
        keep
    }

    /// Uses up a hand-off of which nothing is needed and tells the prefill side in the background. Fails if it was
    /// used before.
    pub(crate) fn release_unused(&self, source: Source, ticket: Ticket) -> Result<(), PullError> {
        self.note_use(&source)?;
        let service = self.clone();
        self.inner.runtime.spawn(async move {
            let told = service.connect(&source).await.and_then(|peer| service.release(&peer, &source, ticket));
            if let Err(error) = told {
                tracing::warn!(%error, request = source.request_id, "the prefill side keeps its blocks until their lease ends");
            }
        });
        Ok(())
    }

    pub(super) fn note_use(&self, source: &Source) -> Result<(), PullError> {
        let fresh = lock(&self.inner.used).note(&source.engine_id, &source.request_id);
        if fresh {
            Ok(())
        } else {
            Err(PullError::Refused { request_id: source.request_id.clone(), refusal: Refusal::Used })
        }
    }

    pub(super) fn release(&self, peer: &Peer, source: &Source, ticket: Ticket) -> Result<(), PullError> {
        let message = Message::Release { id: source.request_id.clone(), ticket };
        peer.notify(&message.encode()).map_err(|error| PullError::transfer(peer, source, &error))
    }

    pub(super) fn settings(&self) -> &KvSettings {
        &self.inner.settings
    }

    pub(super) fn peer_slot(&self, address: &str) -> PeerSlot {
        let mut peers = lock(&self.inner.peers);
        if peers.len() >= PEERS_MAX {
            let in_use =
                |slot: &PeerSlot| slot.try_lock().map_or(true, |peer| peer.as_ref().is_some_and(Peer::is_up));
            peers.retain(|_, slot| in_use(slot));
        }
        Arc::clone(peers.entry(address.to_owned()).or_default())
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, PullLog> {
        lock(&self.inner.log)
    }

    /// Sends a claim; the receiver hears the answer, or that the peer is gone.
    pub(super) fn send_claim(
        &self,
        peer: &Peer,
        source: &Source,
        ticket: Ticket,
    ) -> Result<ClaimGuard<'_>, PullError> {
        let key = (peer.incarnation().to_string(), source.request_id.clone());
        let (sender, answer) = oneshot::channel();
        let mut claims = lock(&self.inner.claims);
        if claims.contains_key(&key) {
            let request_id = source.request_id.clone();
            return Err(PullError::Refused { request_id, refusal: Refusal::Used });
        }
        let number = self.inner.next_claim.fetch_add(1, Relaxed);
        claims.insert(key.clone(), (number, sender));
        drop(claims);
        let guard = ClaimGuard { service: self, key, number, answer };
        let message = Message::Claim { id: source.request_id.clone(), ticket };
        peer.notify(&message.encode()).map_err(|error| PullError::transfer(peer, source, &error))?;
        Ok(guard)
    }

    async fn follow_events(self) {
        loop {
            match self.inner.settings.agent.next_event().await {
                Event::Notif { peer, bytes } => self.receive(&peer, &bytes),
                Event::PeerLost { peer, reason } => {
                    self.peer_lost(&peer.incarnation().to_string(), &reason.to_string());
                }
                _ => {}
            }
        }
    }

    fn receive(&self, peer: &Peer, bytes: &[u8]) {
        let name = peer.incarnation().to_string();
        match Message::decode(bytes) {
            Ok(Message::Claim { id, ticket }) => self.answer_claim(peer, &name, id, ticket),
            Ok(Message::Release { id, ticket }) => {
                if let Some(blocks) = lock(&self.inner.leases).release(&id, ticket, &name) {
                    (self.inner.free)(blocks);
                }
                self.show_leases();
            }
            Ok(Message::Granted { id, millis }) => {
                self.deliver(name, id, Ok(Duration::from_millis(millis.into())));
            }
            Ok(Message::Refused { id, refusal }) => {
                let error = PullError::Refused { request_id: id.clone(), refusal };
                self.deliver(name, id, Err(error));
            }
            Err(error) => tracing::warn!(peer = peer.name(), %error, "a notification was ignored"),
        }
    }

    fn answer_claim(&self, peer: &Peer, name: &str, id: String, ticket: Ticket) {
        let grant = self.inner.settings.pull_timeout;
        let claimed = lock(&self.inner.leases).claim(&id, ticket, name, Instant::now(), grant);
        self.show_leases();
        let answer = match claimed {
            Ok(()) => Message::Granted { id, millis: u32::try_from(grant.as_millis()).unwrap_or(u32::MAX) },
            Err(refusal) => Message::Refused { id, refusal },
        };
        if let Err(error) = peer.notify(&answer.encode()) {
            tracing::warn!(peer = peer.name(), %error, "a claim could not be answered");
        }
    }

    fn deliver(&self, peer: String, id: String, answer: Answer) {
        if let Some((_, waiting)) = lock(&self.inner.claims).remove(&(peer, id)) {
            // The pull may have given up in the meantime; then nobody wants to know.
            drop(waiting.send(answer));
        }
    }

    fn peer_lost(&self, name: &str, reason: &str) {
        let mut claims = lock(&self.inner.claims);
        let waiting: Vec<_> = claims.keys().filter(|(peer, _)| peer == name).cloned().collect();
        for key in waiting {
            if let Some((_, sender)) = claims.remove(&key) {
                let error = PullError::PeerLost { engine: name.to_owned(), reason: reason.to_owned() };
                drop(sender.send(Err(error)));
            }
        }
        drop(claims);
        let ended = lock(&self.inner.leases).peer_lost(name);
        self.free_ended(ended, "its reader is gone");
    }

    async fn expire_overdue(self) {
        let mut ticks = tokio::time::interval(EXPIRY_INTERVAL);
        loop {
            ticks.tick().await;
            let ended = lock(&self.inner.leases).expire(Instant::now());
            self.free_ended(ended, "its time is over");
        }
    }

    fn free_ended(&self, ended: Vec<Ended>, why: &str) {
        if ended.is_empty() {
            return;
        }
        for Ended { id, blocks, claimed } in ended {
            tracing::info!(request = id, blocks = blocks.len(), claimed, "a hand-off ended unused: {why}");
            (self.inner.free)(blocks);
        }
        self.show_leases();
    }

    fn show_leases(&self) {
        let leases = lock(&self.inner.leases);
        self.inner.settings.metrics.set_leases(leases.blocks(), leases.claims());
    }
}

/// A claim that waits for its answer; dropping it forgets the claim.
pub(super) struct ClaimGuard<'a> {
    service: &'a KvService,
    key: ClaimKey,
    number: u64,
    pub(super) answer: oneshot::Receiver<Answer>,
}

impl Drop for ClaimGuard<'_> {
    fn drop(&mut self) {
        let mut claims = lock(&self.service.inner.claims);
        // Once this claim is answered, another one may have taken its place.
        if claims.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            claims.remove(&self.key);
        }
    }
}

/// Host and port of an agent's address.
fn split_address(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.strip_prefix("tcp://")?.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_address_splits_into_host_and_port() {
        assert_eq!(split_address("tcp://127.0.0.1:80"), Some(("127.0.0.1".into(), 80)));
        assert_eq!(split_address("tcp://[::1]:80"), Some(("[::1]".into(), 80)));
        assert_eq!(split_address("unix:///x"), None);
        assert_eq!(split_address("tcp://x:99999"), None);
    }
}
