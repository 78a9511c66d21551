//! One pull on the decode side: connect, compare layouts, claim, read, and accept the bytes only in time.

#![expect(clippy::disallowed_methods, reason = "this module owns the clock of a pull")]

use super::claim::{Message, Refusal, Ticket};
use super::layout::{Description, LayoutError, REGION_LABEL};
use super::log::PullRecord;
use super::params::Source;
use super::service::KvService;
use crate::sched::BlockId;
use engine_model::{KvLayout, Plane};
use std::sync::Arc;
use std::time::{Duration, Instant};
use transfer_core::{Address, Desc, DescList, Done, Peer, RegionId};

/// What has to be pulled for one request.
#[derive(Debug)]
pub(crate) struct PullJob {
    pub(crate) source: Source,
    pub(crate) prompt: Arc<[u32]>,
    /// Leading blocks of the prompt that are here already.
    pub(crate) have: usize,
    /// Where the blocks behind those go.
    pub(crate) blocks: Vec<BlockId>,
    /// The id of the answer that the blocks are for, and the client's own id.
    pub(crate) id: String,
    pub(crate) request_id: Option<String>,
}

/// Why keys and values did not arrive.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error("the prefill engine cannot be reached at {address}: {reason}. Repeat the prefill")]
    Unreachable { address: String, reason: String },
    #[error(
        "these kv_transfer_params were issued by engine {issued}, but at {address} there is now engine {found}: \
         the prefill engine was restarted and its blocks are gone. Repeat the prefill"
    )]
    Restarted { issued: String, found: String, address: String },
    #[error("the KV caches do not fit together: {0}")]
    Layout(#[from] LayoutError),
    #[error("these kv_transfer_params do not fit the prompt: {what}. Send the same prompt to both engines")]
    OtherPrompt { what: String },
    #[error(
        "the prefill engine does not hand over the blocks of request {request_id}: {refusal}. Repeat the prefill"
    )]
    Refused { request_id: String, refusal: Refusal },
    #[error("the prefill engine {engine} was lost: {reason}. Repeat the prefill")]
    PeerLost { engine: String, reason: String },
    #[error(
        "the keys and values of request {request_id} did not arrive within {seconds:.1} s. Repeat the prefill"
    )]
    Timeout { request_id: String, seconds: f64 },
    #[error("the keys and values of request {request_id} could not be read: {reason}. Repeat the prefill")]
    Transfer { request_id: String, reason: String },
    #[error("the pull was given up because the client has left")]
    GivenUp,
}

impl PullError {
    /// An error of the transfer engine, seen from this hand-off. Once the peer is gone that is what matters, whatever
    /// the call failed with that noticed it first.
    pub(super) fn transfer(peer: &Peer, source: &Source, error: &transfer_core::Error) -> Self {
        let reason = error.to_string();
        if matches!(error, transfer_core::Error::PeerLost { .. }) || !peer.is_up() {
            Self::PeerLost { engine: source.engine_id.clone(), reason }
        } else {
            Self::Transfer { request_id: source.request_id.clone(), reason }
        }
    }
}

/// The time a pull has: counted from before the claim, so it ends before the prefill side's does.
struct Limit {
    start: Instant,
    limit: Duration,
}

impl Limit {
    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }

    fn timeout(&self, source: &Source) -> PullError {
        let seconds = self.start.elapsed().as_secs_f64();
        PullError::Timeout { request_id: source.request_id.clone(), seconds }
    }
}

impl KvService {
    /// Pulls the blocks of `job` and logs how it went.
    pub(super) async fn pull(&self, job: &PullJob) -> Result<(), PullError> {
        let start = Instant::now();
        let result = self.claim_and_read(job, start).await;
        let total_seconds = start.elapsed().as_secs_f64();
        let (bytes, seconds, path) = result.as_ref().map_or((0, 0.0, String::new()), |done| {
            (done.bytes, done.elapsed.as_secs_f64(), done.path.to_string())
        });
        let error = result.as_ref().err().map(ToString::to_string);
        let blocks = if error.is_none() { job.blocks.len() } else { 0 };
        match &error {
            None => tracing::info!(id = job.id, blocks, bytes, seconds, path, "KV blocks have landed"),
            Some(error) => tracing::warn!(id = job.id, error, "KV blocks were not pulled"),
        }
        self.settings().metrics.count_pull(blocks, bytes, seconds, error.is_none());
        self.log().push(PullRecord {
            id: job.id.clone(),
            request_id: job.request_id.clone(),
            local_blocks: job.have,
            blocks,
            bytes,
            seconds,
            total_seconds,
            path,
            error,
        });
        result.map(drop)
    }

    async fn claim_and_read(&self, job: &PullJob, start: Instant) -> Result<Done, PullError> {
        let PullJob { source, prompt, .. } = job;
        let mut limit = Limit { start, limit: self.settings().pull_timeout };
        let peer = tokio::time::timeout(limit.left(), self.connect(source));
        let peer = peer.await.map_err(|_| limit.timeout(source))??;
        let theirs = Description::decode(&peer.app_metadata())?;
        let ours = self.settings().description;
        ours.accepts(&theirs)?;
        check_prompt(source, prompt.len(), ours.layout.block_size)?;

        let ticket = Ticket::new(prompt, &source.blocks);
        limit.start = Instant::now();
        let mut claim = self.send_claim(&peer, source, ticket)?;
        let answer = tokio::time::timeout(limit.left(), &mut claim.answer).await;
        let lost = |_| PullError::PeerLost {
            engine: source.engine_id.clone(),
            reason: "the connection ended before the claim was answered".to_owned(),
        };
        let grant = answer.map_err(|_| limit.timeout(source))?.map_err(lost)??;
        drop(claim);
        // A tenth of the grant is left unused: it covers the way of the last byte and of this thread to the check.
        limit.limit = limit.limit.min(grant - grant / 10);
        // From here on the prefill side holds the blocks for us, so it hears about every end, also of a drop.
        let mut release = ReleaseOnDrop { service: self, peer: &peer, source, ticket, armed: true };
        // Only the prefill side knows whether the claim came first; that it did is worth remembering here too.
        drop(self.note_use(source));
        let done = self.read(&peer, job, &theirs.layout, ticket, &limit).await?;
        release.armed = false;
        if limit.left().is_zero() { Err(limit.timeout(source)) } else { Ok(done) }
    }

    async fn read(
        &self,
        peer: &Peer,
        job: &PullJob,
        theirs: &KvLayout,
        ticket: Ticket,
        limit: &Limit,
    ) -> Result<Done, PullError> {
        let failed = |error| PullError::transfer(peer, &job.source, &error);
        let ours = &self.settings().description.layout;
        let region = peer.region(REGION_LABEL).ok_or(LayoutError::Unreadable)?;
        let wanted = &job.source.blocks[job.have..job.have + job.blocks.len()];
        let local = pages(self.settings().region, ours, &job.blocks);
        let remote = pages(region.id, theirs, wanted);
        let local = self.settings().agent.prepare(&local).map_err(failed)?;
        let remote = peer.prepare(&remote).map_err(failed)?;
        let release = Message::Release { id: job.source.request_id.clone(), ticket }.encode();
        let read = peer.read(&local, &remote).notify(&release).timeout(limit.left());
        let transfer = read.post().map_err(failed)?;
        transfer.await.map_err(|error| match error {
            transfer_core::Error::Deadline { .. } => limit.timeout(&job.source),
            error => failed(error),
        })
    }

    /// The engine that issued `source`: a known connection, or a new one.
    pub(super) async fn connect(&self, source: &Source) -> Result<Peer, PullError> {
        let address = format!("tcp://{}:{}", source.host, source.port);
        let slot = self.peer_slot(&address);
        let mut known = slot.lock().await;
        let fits = |peer: &&Peer| peer.is_up() && peer.incarnation().to_string() == source.engine_id;
        if let Some(peer) = known.as_ref().filter(fits) {
            return Ok(peer.clone());
        }
        let unreachable = |reason: String| PullError::Unreachable { address: address.clone(), reason };
        let target: Address =
            address.parse().map_err(|error: transfer_core::Error| unreachable(error.to_string()))?;
        let agent = self.settings().agent.clone();
        let connecting = tokio::task::spawn_blocking(move || agent.connect(&target));
        let peer = match connecting.await {
            Ok(Ok(peer)) => peer,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(error) => return Err(unreachable(error.to_string())),
        };
        let found = peer.incarnation().to_string();
        *known = Some(peer.clone());
        if found == source.engine_id {
            Ok(peer)
        } else {
            Err(PullError::Restarted { issued: source.engine_id.clone(), found, address })
        }
    }
}

/// Tells the prefill side that its blocks are free again, unless the finished read has told it already.
struct ReleaseOnDrop<'a> {
    service: &'a KvService,
    peer: &'a Peer,
    source: &'a Source,
    ticket: Ticket,
    armed: bool,
}

impl Drop for ReleaseOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = self.service.release(self.peer, self.source, self.ticket)
        {
            tracing::warn!(%error, "the prefill side was not told that its blocks are free");
        }
    }
}

/// The hand-off must be of exactly this prompt.
fn check_prompt(source: &Source, prompt_len: usize, block_size: usize) -> Result<(), PullError> {
    let tokens = source.num_tokens.unwrap_or(prompt_len);
    if tokens != prompt_len {
        let what = format!("remote_num_tokens is {tokens}, the prompt has {prompt_len} tokens");
        return Err(PullError::OtherPrompt { what });
    }
    let blocks = prompt_len.div_ceil(block_size);
    if source.blocks.len() != blocks {
        let what = format!("{} blocks are offered, the prompt has {blocks}", source.blocks.len());
        return Err(PullError::OtherPrompt { what });
    }
    Ok(())
}

/// The pages of `blocks` in every plane of a cache.
fn pages(region: RegionId, layout: &KvLayout, blocks: &[BlockId]) -> DescList {
    let mut list = DescList::new();
    let page = layout.page_bytes() as u64;
    for layer in 0..layout.layers {
        for plane in [Plane::Key, Plane::Value] {
            let offset = layout.plane_offset(layer, plane) as u64;
            list.push(Desc::paged(region, offset, page, page, blocks.to_vec()));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_off_of_another_prompt_is_refused() {
        let source = Source {
            engine_id: "e".into(),
            request_id: "r".into(),
            host: "h".into(),
            port: 1,
            blocks: vec![1, 2],
            num_tokens: Some(20),
        };
        assert!(check_prompt(&source, 20, 16).is_ok());
        assert!(check_prompt(&source, 21, 16).unwrap_err().to_string().contains("the prompt has 21 tokens"));
        assert!(check_prompt(&source, 20, 8).unwrap_err().to_string().contains("the prompt has 3"));
        assert!(check_prompt(&Source { num_tokens: None, ..source }, 32, 16).is_ok());
    }
}
