//! Regions that go: of this agent, whose peers must let go of them, and of peers, which we must let go of.

use std::collections::HashSet;
use std::sync::Arc;

use crossbeam_channel::Sender;
use transfer_proto::id::{Incarnation, RegionId};
use transfer_proto::proto::metadata::RegionInfo;

use super::Driver;
use crate::mem::{RegionCore, RemoteRegion};

/// A region of ours that was closed; its memory is kept until nobody touches it.
pub(super) struct Closing {
    region: Arc<RegionCore>,
    /// Peers that have not let go of it.
    peers: HashSet<Incarnation>,
    reply: Option<Sender<()>>,
}

/// A region of a peer that was closed; the peer waits for our answer.
pub(super) struct Releasing {
    peer: Incarnation,
    region: Arc<RemoteRegion>,
}

impl Driver {
    pub(super) fn announce_region(&mut self, info: &RegionInfo) {
        self.for_each_link(|_, link| link.add_region(info.clone()));
    }

    pub(super) fn close_region(&mut self, region: Arc<RegionCore>, reply: Option<Sender<()>>) {
        let mut peers = HashSet::new();
        let id = region.id;
        self.for_each_link(|peer, link| {
            // A peer that does not know us yet is not told of the region any more.
            if link.delete_region(id)
                && let Some(peer) = peer
            {
                peers.insert(peer);
            }
        });
        self.closing.push(Closing { region, peers, reply });
    }

    /// A peer has let go of a region of ours.
    pub(super) fn region_released(&mut self, peer: Incarnation, id: RegionId) {
        for closing in self.closing.iter_mut().filter(|closing| closing.region.id == id) {
            closing.peers.remove(&peer);
        }
    }

    /// A peer wants one of its regions left alone.
    pub(super) fn release_region(&mut self, peer: Incarnation, id: RegionId) {
        let region = self.peers.get(&peer).and_then(|entry| entry.core.remove_region(id));
        match region {
            Some(region) => self.releasing.push(Releasing { peer, region }),
            // Never known here, so left alone.
            None => self.answer_release(peer, id),
        }
    }

    fn answer_release(&mut self, peer: Incarnation, id: RegionId) {
        if let Some(link) = self.link_of(peer) {
            link.release_region(id);
        }
    }

    /// A peer is gone, and touches nothing any more.
    pub(super) fn forget_peer_regions(&mut self, peer: Incarnation) {
        self.releasing.retain(|releasing| releasing.peer != peer);
        for closing in &mut self.closing {
            closing.peers.remove(&peer);
        }
    }

    /// Ends what nobody is inside of any more.
    pub(super) fn check_regions(&mut self) {
        let released: Vec<_> = self.releasing.extract_if(.., |r| r.region.gate().is_idle()).collect();
        for Releasing { peer, region } in released {
            self.answer_release(peer, region.info.id);
        }
        for closed in self.closing.extract_if(.., |c| c.peers.is_empty() && c.region.gate().is_idle()) {
            if let Some(reply) = closed.reply {
                // Who closed it may have stopped waiting.
                let _told = reply.send(());
            }
        }
    }
}
