//! One source as the receiver sees it: connected, introduced, with staging memory of its own.

use super::PullOptions;
use crate::clock;
use crate::error::SourceError;
use crate::manifest::{Hash, Manifest};
use crate::wire::{Hello, MANIFEST_REGION, STAGING_REGION, WireError};
use std::time::Duration;
use transfer_core::{Address, Agent, Config, Desc, DescList, Peer, Region, RegionInfo};

/// How long a source may take to publish its manifest region after it accepted the connection.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a manifest may take on its way.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Most chunks asked of one source at once; enough to keep any pipe full.
const MAX_SLOTS: usize = 64;

/// A connected source.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: String,
    pub(super) hello: Hello,
    pub(super) agent: Agent,
    pub(super) peer: Peer,
    /// Where its chunks arrive; cut into `slots` of the source's chunk size.
    pub(super) staging: Region,
    pub(super) slots: usize,
    /// What it serves, checked against its hello.
    pub(super) manifest: Option<Manifest>,
    /// The path that the engine takes between the two, as it was for the manifest.
    pub(super) path: Option<String>,
}

impl Link {
    /// Connects and reads the hello.
    pub(super) fn connect(address: &Address, options: &PullOptions) -> Result<Self, SourceError> {
        let mut config = Config::new(super::unique_name("pull"));
        // Its regions have one block each.
        config.blocks_max = 1 << 16;
        config.tcp_listen = None;
        config.key.clone_from(&options.key);
        config.insecure_remote_without_key = options.insecure_remote_without_key;
        config.paths = options.paths;
        let agent = Agent::new(config).map_err(SourceError::Unreachable)?;
        // Before the connection, so that the source knows of it from the start.
        let staging_len = usize::try_from(options.staging_bytes).unwrap_or(usize::MAX);
        let staging = agent.alloc(staging_len, STAGING_REGION).map_err(SourceError::Unreachable)?;
        let peer = agent.connect(address).map_err(SourceError::Unreachable)?;
        let hello = Hello::decode(&peer.app_metadata())?;
        let slots = options.staging_bytes / u64::from(hello.chunk_bytes);
        if slots == 0 {
            let (chunk_bytes, staging_bytes) = (hello.chunk_bytes, options.staging_bytes);
            return Err(SourceError::ChunkTooLarge { chunk_bytes, staging_bytes });
        }
        let slots = usize::try_from(slots).unwrap_or(usize::MAX).min(MAX_SLOTS);
        if let Some(expected) = options.expect.filter(|expected| *expected != hello.root) {
            return Err(SourceError::Unexpected { expected, found: hello.root });
        }
        let address = address.to_string();
        let mut link = Self { address, hello, agent, peer, staging, slots, manifest: None, path: None };
        link.manifest = Some(link.fetch_manifest()?);
        Ok(link)
    }

    /// Reads the manifest and checks it against the root hash of the hello.
    fn fetch_manifest(&mut self) -> Result<Manifest, SourceError> {
        let bytes = self.read_manifest()?;
        let found = Hash::of(&bytes);
        if found != self.hello.root {
            return Err(SourceError::FalseManifest { claimed: self.hello.root, found });
        }
        let manifest = Manifest::decode(&bytes)?;
        if manifest.chunk_bytes() != self.hello.chunk_bytes {
            return Err(WireError::Value("chunk size").into());
        }
        Ok(manifest)
    }

    fn read_manifest(&mut self) -> Result<Vec<u8>, SourceError> {
        let len = self.hello.manifest_len;
        let region = self.manifest_region().ok_or(WireError::NotASource)?;
        let buffer_len = usize::try_from(len).unwrap_or(usize::MAX);
        let read = || {
            let local = self.agent.alloc(buffer_len, "weights.manifest.copy")?;
            let remote = self.peer.prepare(&DescList::from(Desc::contiguous(region.id, 0, len)))?;
            let into = self.agent.prepare(&DescList::from(Desc::contiguous(local.id(), 0, len)))?;
            let transfer = self.peer.read(&into, &remote).timeout(MANIFEST_TIMEOUT).post()?;
            let done = transfer.wait(2 * MANIFEST_TIMEOUT)?;
            let mut bytes = vec![0; buffer_len];
            local.read_at(0, &mut bytes)?;
            Ok((bytes, done.path))
        };
        let (bytes, path) = read().map_err(SourceError::Manifest)?;
        self.path = Some(path.to_string());
        Ok(bytes)
    }

    /// The source's manifest region; it may be published a moment after the source began to listen.
    fn manifest_region(&self) -> Option<RegionInfo> {
        let deadline = clock::now() + PUBLISH_TIMEOUT;
        loop {
            let region = self.peer.region(MANIFEST_REGION);
            if region.is_some() || clock::now() >= deadline || !self.peer.is_up() {
                return region;
            }
            // Events of the connection wake this up; none of them is of interest yet.
            drop(self.agent.wait_event(Duration::from_millis(20)));
        }
    }

    /// Where a slot begins in the staging region.
    pub(super) fn slot_offset(&self, slot: usize) -> usize {
        slot.saturating_mul(usize::try_from(self.hello.chunk_bytes).unwrap_or(usize::MAX))
    }
}
