//! The key space: which key an agent has, what stands there, and all that stands under a prefix.

use serde_json::json;

use super::super::entry::{ENTRIES_MAX, Entry, LISTING_BYTES_MAX};
use super::super::error::Corrupt;
use super::super::watch::{Listing, Revision};
use super::super::{DirectoryError, Result};
use super::client::{Client, Refusal};
use super::wire::{Pair, Range, encode};

/// Entries in one answer, so that it stays below what is read of one.
const PAGE: usize = 32;
/// How often a listing begins again because its revision was compacted away under it.
const RELISTS_MAX: usize = 3;

#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// What all keys of entries begin with.
    base: String,
    /// What all keys begin with that say whose a name was last.
    lives: String,
}

impl Keys {
    pub(super) fn new(namespace: &str) -> Self {
        Self { base: format!("{namespace}/agents/"), lives: format!("{namespace}/lives/") }
    }

    /// Where it says whose the name was last, whether he is there or not.
    pub(super) fn life(&self, name: &str) -> String {
        format!("{}{name}", self.lives)
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    /// The first key that no longer begins like those of `prefix`. No byte of UTF-8 is 255.
    pub(super) fn end(&self, prefix: &str) -> Vec<u8> {
        let mut end = self.key(prefix).into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end
    }

    /// Whose key that is.
    pub(super) fn name(&self, key: &[u8]) -> Result<String, Corrupt> {
        let nameless = || Corrupt::nameless(String::from_utf8_lossy(key));
        let name = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&self.base));
        name.filter(|name| !name.is_empty()).map(str::to_owned).ok_or_else(nameless)
    }

    /// What stands there.
    pub(super) fn entry(&self, pair: &Pair) -> Result<Entry, Corrupt> {
        let name = self.name(&pair.key)?;
        Entry::decode(&self.key(&name), &name, &pair.value)
    }

    pub(super) async fn get(&self, client: &Client, name: &str) -> Result<Option<Pair>> {
        let range: Range = client.post("kv/range", &json!({ "key": encode(self.key(name)) })).await?;
        Ok(range.kvs.into_iter().next())
    }

    /// The lease that the key of `name` hangs on: zero for none, `None` where there is no key.
    pub(super) async fn lease_of(&self, client: &Client, name: &str) -> Result<Option<u64>> {
        let request = json!({ "key": encode(self.key(name)), "keys_only": true });
        let range: Range = client.post("kv/range", &request).await?;
        Ok(range.kvs.first().map(|pair| pair.lease))
    }

    /// All of one moment.
    pub(super) async fn list(&self, client: &Client, prefix: &str) -> Result<Listing> {
        for _ in 0..RELISTS_MAX {
            match self.list_once(client, prefix).await {
                Err(ListError::Compacted) => {}
                Err(ListError::Failed(error)) => return Err(error),
                Ok(listing) => return Ok(listing),
            }
        }
        let cause = "its history is compacted faster than it can be listed".to_owned();
        Err(DirectoryError::Unreachable { place: client.place(), cause })
    }

    async fn list_once(&self, client: &Client, prefix: &str) -> Result<Listing, ListError> {
        let (mut entries, mut corrupt, mut bytes) = (Vec::new(), Vec::new(), 0);
        let (mut from, end, mut revision) = (self.key(prefix).into_bytes(), self.end(prefix), 0_u64);
        loop {
            let page = json!({ "key": encode(&from), "range_end": encode(&end), "limit": PAGE.to_string(),
                "revision": revision.to_string() });
            let range: Range = client.post("kv/range", &page).await.map_err(ListError::of)?;
            if revision == 0 {
                revision = range.header.revision;
            }
            for pair in &range.kvs {
                bytes += pair.value.len();
                match self.entry(pair) {
                    Ok(entry) => entries.push(entry),
                    Err(damage) => corrupt.push(damage),
                }
            }
            if entries.len() + corrupt.len() > ENTRIES_MAX || bytes > LISTING_BYTES_MAX {
                let limit = format!("{ENTRIES_MAX} entries and {LISTING_BYTES_MAX} bytes are read at once");
                let what = format!("what stands under {:?}", self.key(prefix));
                return Err(ListError::Failed(DirectoryError::TooLarge { what, limit }));
            }
            match range.kvs.last().filter(|_| range.more) {
                Some(last) => from = [&last.key[..], &[0]].concat(),
                None => return Ok(Listing::new(Revision::new(revision), entries, corrupt)),
            }
        }
    }
}

enum ListError {
    Compacted,
    Failed(DirectoryError),
}

impl ListError {
    fn of(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Failed(failure, _) if failure.compacted() => Self::Compacted,
            refusal => Self::Failed(refusal.into()),
        }
    }
}
