//! An agent's own key: its lease, its renewal, and transactions that leave a successor's key alone. A second key says whose
//! the name was last and hangs on no lease, so that a successor that has left is not forgotten.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use transfer_proto::id::Incarnation;

use super::super::entry::Entry;
use super::super::{DirectoryError, Hold, Result};
use super::check_size;
use super::client::{Client, Refusal};
use super::engine::Engine;
use super::keys::Keys;
use super::wire::{Done, Lease, Pair, Streamed, Txn, encode};

/// Renewals in a time to live, so that two may be missed.
const RENEWALS_PER_TTL: u32 = 3;
/// How often a write is tried again because somebody else changed the key meanwhile.
const CONFLICTS_MAX: usize = 8;

/// A key and the lease that it hangs on.
#[derive(Debug)]
pub(super) struct Own {
    client: Arc<Client>,
    keys: Keys,
    entry: Entry,
    lease: u64,
    /// The time to live that etcd gave the lease, which may be longer than what was asked for.
    granted: Duration,
    /// Nobody had the name before, so nobody has to be kept from coming back.
    first: bool,
}

/// What has to hold for a write. A revision says when a key was changed last; 0: it is not there.
#[derive(Clone, Copy)]
enum If {
    /// The entry is as it was then, and so, if that is given, is what says whose the name was last.
    At { entry: u64, life: Option<u64> },
    /// The entry hangs on our lease.
    Ours,
}

/// What stands where a write did not go.
#[derive(Default)]
struct Found {
    entry: Option<Pair>,
    /// Whose the name was last.
    life: Option<Pair>,
}

impl Own {
    /// Takes the name from whoever has it at the beginning of the call. Another life that takes it during the call is
    /// later, and keeps it.
    pub(super) async fn publish(client: Arc<Client>, keys: Keys, entry: Entry) -> Result<Self> {
        let mut own = Self { client, keys, entry, lease: 0, granted: Duration::ZERO, first: false };
        own.grant().await?;
        let taken = own.take().await;
        if taken.is_err() {
            // The first error counts; what is left of the lease ends by itself.
            let _revoked = own.revoke().await;
        }
        taken.map(|()| own)
    }

    async fn take(&mut self) -> Result<()> {
        let mut now = self.keys.get(&self.client, &self.entry.name).await?;
        let first = now.as_ref().and_then(|pair| self.life(pair));
        for _ in 0..CONFLICTS_MAX {
            let revision = now.as_ref().map_or(0, |pair| pair.mod_revision);
            match self.put(If::At { entry: revision, life: None }, &self.entry).await? {
                Ok(before) => {
                    self.first = before.is_none_or(|life| self.is_own(&life));
                    return Ok(());
                }
                Err(found) => now = found.entry,
            }
            let life = now.as_ref().and_then(|pair| self.life(pair));
            match life {
                // Sent twice, because the first answer was lost.
                _ if now.as_ref().is_some_and(|pair| pair.lease == self.lease) => return Ok(()),
                Some(by) if life != first && by != self.entry.incarnation => return Err(self.superseded(by)),
                _ => {}
            }
        }
        Err(self.contended())
    }

    fn life(&self, pair: &Pair) -> Option<Incarnation> {
        self.keys.entry(pair).ok().map(|entry| entry.incarnation)
    }

    fn is_own(&self, life: &Pair) -> bool {
        life.value == self.entry.incarnation.to_bytes()
    }

    fn superseded(&self, by: Incarnation) -> DirectoryError {
        DirectoryError::Superseded { name: self.entry.name.clone(), by }
    }

    fn contended(&self) -> DirectoryError {
        let cause = format!("{:?} changes faster than it can be written", self.keys.key(&self.entry.name));
        DirectoryError::Unreachable { place: self.client.place(), cause }
    }

    async fn grant(&mut self) -> Result<()> {
        let seconds = self.entry.ttl.as_millis().div_ceil(1000);
        let lease: Lease = self.client.post("lease/grant", &json!({ "TTL": seconds.to_string() })).await?;
        self.lease = lease.id;
        self.granted = Duration::from_secs(lease.ttl.max(1));
        Ok(())
    }

    /// Writes `entry` under our lease, and that the name is ours; whose it was before. Where the condition does not hold:
    /// what stands there instead.
    async fn put(&self, condition: If, entry: &Entry) -> Result<Result<Option<Pair>, Found>, Refusal> {
        let (key, life) = (encode(self.keys.key(&entry.name)), encode(self.keys.life(&entry.name)));
        let lease = self.lease.to_string();
        let at = |key: &str, revision: u64| -> Value {
            json!({ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string() })
        };
        let compare: Vec<Value> = match condition {
            If::At { entry, life: None } => vec![at(&key, entry)],
            If::At { entry, life: Some(revision) } => vec![at(&key, entry), at(&life, revision)],
            If::Ours => vec![json!({ "key": key, "target": "LEASE", "result": "EQUAL", "lease": lease })],
        };
        let put = json!({ "request_put": { "key": key, "value": encode(entry.encode()), "lease": lease } });
        let own = json!({ "request_put": { "key": life, "value": encode(entry.incarnation.to_bytes()),
            "prev_kv": true } });
        let look = [&key, &life].map(|key| json!({ "request_range": { "key": key } }));
        let txn = json!({ "compare": compare, "success": [put, own], "failure": look });
        let answer: Txn = self.client.post("kv/txn", &txn).await?;
        if answer.succeeded {
            let before = answer.responses.into_iter().find_map(|response| response.response_put?.prev_kv);
            return Ok(Ok(before));
        }
        let ranges = answer.responses.into_iter().filter_map(|response| response.response_range);
        let mut found = ranges.map(|range| range.kvs.into_iter().next());
        Ok(Err(Found { entry: found.next().flatten(), life: found.next().flatten() }))
    }

    /// Keeps the lease alive, and the key on it.
    async fn renew(&mut self) -> Result<()> {
        let alive: Streamed<Lease> =
            self.client.post("lease/keepalive", &json!({ "ID": self.lease.to_string() })).await?;
        match alive {
            Streamed { error: Some(failure), .. } if !failure.no_lease() => {
                return Err(failure.sort(&self.client.place()));
            }
            Streamed { result: Some(Lease { ttl: 1.., .. }), .. } => {
                if self.keys.lease_of(&self.client, &self.entry.name).await? == Some(self.lease) {
                    return Ok(());
                }
            }
            // etcd forgot it, because it or this process was away for too long.
            _ => self.grant().await?,
        }
        let entry = self.entry.clone();
        self.write(&entry).await
    }

    /// Writes `entry` where the name is ours, or nobody's, or holds something that cannot be used; and was nobody else's
    /// since it was ours.
    async fn write(&mut self, entry: &Entry) -> Result<()> {
        let mut condition = If::Ours;
        for _ in 0..CONFLICTS_MAX {
            let found = match self.put(condition, entry).await {
                Err(Refusal::Failed(failure, _)) if failure.no_lease() => {
                    self.grant().await?;
                    continue;
                }
                Err(refusal) => return Err(refusal.into()),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(found)) => found,
            };
            condition = match &found.entry {
                Some(pair) if pair.lease == self.lease => If::Ours,
                Some(pair) if let Some(by) = self.life(pair) => return Err(self.superseded(by)),
                other => {
                    let entry = other.as_ref().map_or(0, |pair| pair.mod_revision);
                    If::At { entry, life: Some(self.not_taken(found.life.as_ref())?) }
                }
            };
        }
        Err(self.contended())
    }

    /// When it was written whose the name was last, which has to be us. What cannot be understood there does not count.
    fn not_taken(&self, life: Option<&Pair>) -> Result<u64> {
        let Some(pair) = life else { return Ok(0) };
        match <[u8; 16]>::try_from(pair.value.as_slice()) {
            Ok(by) if !self.is_own(pair) => Err(self.superseded(Incarnation::from_bytes(by))),
            _ => Ok(pair.mod_revision),
        }
    }

    /// Leaves: ends the lease, and with it the entry, if that still hangs on it. That the name was ours is forgotten
    /// where it was nobody's before.
    async fn leave(&self) -> Result<()> {
        self.revoke().await?;
        if !self.first {
            return Ok(());
        }
        let life = encode(self.keys.life(&self.entry.name));
        let own = encode(self.entry.incarnation.to_bytes());
        let compare = json!({ "key": life, "target": "VALUE", "result": "EQUAL", "value": own });
        let forget = json!({ "request_delete_range": { "key": life } });
        let txn = json!({ "compare": [compare], "success": [forget] });
        let _answer: Txn = self.client.post("kv/txn", &txn).await?;
        Ok(())
    }

    /// Ends the lease, and with it the key, if that still hangs on it.
    async fn revoke(&self) -> Result<()> {
        match self.client.post::<Done>("lease/revoke", &json!({ "ID": self.lease.to_string() })).await {
            Err(Refusal::Failed(failure, _)) if failure.no_lease() => Ok(()),
            Err(refusal) => Err(refusal.into()),
            Ok(_) => Ok(()),
        }
    }
}

#[derive(Debug)]
pub(super) struct EtcdHold {
    engine: Arc<Engine>,
    shared: Arc<Shared>,
    renewing: JoinHandle<()>,
    blob_bytes_max: usize,
}

#[derive(Debug)]
struct Shared {
    /// Held over requests, so that renewals and updates come one after the other.
    own: tokio::sync::Mutex<Own>,
    /// What happened at the last renewal. Superseded is for good.
    last: Mutex<Result<()>>,
}

impl Shared {
    fn last(&self) -> MutexGuard<'_, Result<()>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_alive(&self) {
        while !matches!(*self.last(), Err(DirectoryError::Superseded { .. })) {
            let every = self.own.lock().await.granted / RENEWALS_PER_TTL;
            tokio::time::sleep(every).await;
            let mut own = self.own.lock().await;
            let result = own.renew().await;
            let mut last = self.last();
            if let Err(error) = &result
                && result != *last
            {
                tracing::warn!(name = own.entry.name, %error, "a directory entry was not renewed");
            }
            *last = result;
        }
    }
}

impl EtcdHold {
    pub(super) fn start(engine: Arc<Engine>, own: Own, blob_bytes_max: usize) -> Self {
        let shared = Arc::new(Shared { own: tokio::sync::Mutex::new(own), last: Mutex::new(Ok(())) });
        let renewed = Arc::clone(&shared);
        let renewing = engine.spawn(async move { renewed.keep_alive().await });
        Self { engine, shared, renewing, blob_bytes_max }
    }
}

impl Hold for EtcdHold {
    fn check(&self) -> Result<()> {
        self.shared.last().clone()
    }

    fn update(&self, entry: Entry) -> Result<()> {
        check_size(&entry.blob, self.blob_bytes_max)?;
        let shared = Arc::clone(&self.shared);
        self.engine.call(async move {
            let mut own = shared.own.lock().await;
            if let over @ Err(DirectoryError::Superseded { .. }) = shared.last().clone() {
                return over;
            }
            own.write(&entry).await?;
            own.entry = entry;
            Ok(())
        })
    }

    fn end(&self, remove: bool) -> Result<()> {
        self.renewing.abort();
        if !remove {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        self.engine.call(async move { shared.own.lock().await.leave().await })
    }
}
