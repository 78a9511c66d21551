//! The rails to one peer: the connections behind their names, and the slices that wait for one.

use std::collections::VecDeque;
use std::time::Duration;

use transfer_proto::id::{RailId, XferId};
use transfer_proto::proto::rails::{RailError, Rails, RailsConfig};
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::SliceError;

use super::conn::AWAITED_MAX;
use crate::backend::{Completion, Slice};

/// Time before a rail that was lost is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(50);

/// The rails to a peer.
pub(super) struct PeerRails {
    pub(super) rails: Rails,
    /// The connection of each rail that stands.
    conns: Vec<(RailId, u64)>,
    /// Slices that no rail takes now, in order.
    waiting: VecDeque<Slice>,
}

impl PeerRails {
    /// None yet. Whoever opened the first ones opens further ones in their place.
    pub(super) fn new(silence_max: Duration, opener: bool) -> Self {
        let config = RailsConfig::new(silence_max, AWAITED_MAX);
        let config = if opener { config.reopening(REOPEN_AFTER) } else { config };
        Self { rails: Rails::new(config), conns: Vec::new(), waiting: VecDeque::new() }
    }

    pub(super) fn add(&mut self, rail: RailId, token: u64, now: Time) -> Result<(), RailError> {
        self.rails.opened(rail, now)?;
        self.conns.push((rail, token));
        Ok(())
    }

    /// Forgets the connection of a rail, and says which it was.
    pub(super) fn take_conn(&mut self, rail: RailId) -> Option<u64> {
        let at = self.conns.iter().position(|(id, _)| *id == rail)?;
        Some(self.conns.swap_remove(at).1)
    }

    /// The connections that stand.
    pub(super) fn tokens(&self) -> impl Iterator<Item = u64> {
        self.conns.iter().map(|(_, token)| *token)
    }

    /// Queues a slice behind those that wait.
    pub(super) fn queue(&mut self, slice: Slice) {
        self.waiting.push_back(slice);
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next slice that a rail takes, and the connection of that rail.
    pub(super) fn next(&mut self, now: Time) -> Option<(Slice, u64)> {
        let bytes = self.waiting.front()?.bytes;
        let rail = self.rails.choose(bytes, now)?;
        let token = self.conns.iter().find(|(id, _)| *id == rail)?.1;
        self.rails.posted(rail, bytes, now);
        self.waiting.pop_front().map(|slice| (slice, token))
    }

    /// Ends slices that wait.
    pub(super) fn end_waiting(
        &mut self,
        xfer: Option<XferId>,
        error: SliceError,
        done: &mut Vec<Completion>,
    ) {
        self.waiting.retain(|slice| {
            let ends = xfer.is_none_or(|xfer| xfer == slice.xfer);
            if ends {
                done.push(slice.failed(error));
            }
            !ends
        });
    }
}
