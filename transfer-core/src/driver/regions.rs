//! Regions that come and go.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use transfer_proto::id::{Incarnation, RegionId};
use transfer_proto::proto::metadata::RegionInfo;
use transfer_proto::proto::time::Time;

use super::Driver;
use crate::mem::{Inside, RegionCore};

/// How soon those who were writing are looked at again: they are gone after a slice, and nobody tells when.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A region of ours that was closed; its memory is kept until nobody touches it.
pub(super) struct Closing {
    region: Arc<RegionCore>,
    /// Who was writing when its generations were made void.
    inside: Inside,
    reply: Option<Sender<()>>,
}

impl Closing {
    fn is_over(&mut self) -> bool {
        self.inside.left() && self.region.gate().is_idle()
    }
}

impl Driver {
    pub(super) fn announce_region(&mut self, info: &RegionInfo) {
        self.for_each_link(|_, link| link.add_region(info.clone()));
    }

    /// A region was closed: peers forget it, and its memory goes when nobody is inside any more.
    pub(super) fn close_region(&mut self, region: Arc<RegionCore>, reply: Option<Sender<()>>) {
        let id = region.id;
        self.for_each_link(|_, link| link.delete_region(id));
        let inside = self.shared.guests.inside();
        self.closing.push(Closing { region, inside, reply });
    }

    /// A peer closed one of its regions. Those of our transfers that are inside find its generations void.
    pub(super) fn forget_region(&mut self, peer: Incarnation, id: RegionId) {
        if let Some(entry) = self.peers.get(&peer) {
            entry.core.remove_region(id);
        }
    }

    /// Ends what nobody is inside of any more.
    pub(super) fn check_regions(&mut self) {
        for closed in self.closing.extract_if(.., Closing::is_over) {
            if let Some(reply) = closed.reply {
                // Who closed it may have stopped waiting.
                let _told = reply.send(());
            }
        }
    }

    /// Soon, while somebody was seen writing; the ends of our own transfers are turns of their own.
    pub(super) fn closing_timeout(&self) -> Option<Time> {
        let waits = self.closing.iter().any(|closing| !closing.inside.is_empty());
        waits.then(|| self.shared.clock.now() + LOOK_AGAIN)
    }
}
