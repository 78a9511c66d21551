//! Data connections that come and go: the peer is told, and slices that were on them go on once it has answered.

use std::os::fd::AsFd;
use std::sync::Arc;

use transfer_proto::id::{Incarnation, RailId};
use transfer_proto::proto::rails::RailEvent;

use super::Driver;
use crate::dial;
use crate::error::Result;
use crate::peer::PeerCore;
use crate::shared::{Command, DataStream, Stream};

impl Driver {
    /// Acts on what became of rails. False where there was nothing.
    pub(super) fn handle_rail_news(&mut self) -> bool {
        let news = self.tcp.take_news();
        let any = !news.is_empty();
        for (peer, event) in news {
            match event {
                RailEvent::Tell(rail) => {
                    if let Some(link) = self.link_of(peer) {
                        link.rail_closed(rail);
                    }
                }
                RailEvent::Closed(_) => self.lift_fences(peer),
                RailEvent::GiveUp(why) => {
                    tracing::warn!(%peer, ?why, "a peer is given up for its data connections");
                    self.connection_lost(peer);
                }
                RailEvent::Open(rail) => self.reopen(peer, rail),
                _ => {}
            }
        }
        any
    }

    /// Nothing of the slices that were on a closed rail is on its way any more: they go on.
    fn lift_fences(&mut self, peer: Incarnation) {
        for id in self.xfers.ids() {
            if let Some(task) = self.xfers.get(id)
                && task.core().remote.core.peer.key == peer
            {
                task.state.lift_fences(|rail| self.tcp.is_closed(peer, rail));
                self.pump(id);
            }
        }
    }

    /// The peer has closed its end of a rail.
    pub(super) fn rail_closed(&mut self, peer: Incarnation, rail: RailId) {
        if let Err(error) = self.tcp.rail_closed(peer, rail) {
            tracing::warn!(%peer, %error, "a peer broke the protocol");
            self.connection_lost(peer);
        }
    }

    /// Opens a rail again. That blocks, so it has a thread of its own, which ends with the attempt; the pauses between
    /// them grow.
    fn reopen(&mut self, key: Incarnation, rail: RailId) {
        let Some((peer, end)) = self.peers.get(&key).and_then(|e| Some((Arc::clone(&e.core), e.data_end?)))
        else {
            return self.tcp.rail_failed(key, rail);
        };
        let agent = Arc::clone(&self.shared);
        let run = move || {
            let stream = dial::open_rail(&agent, end, rail);
            let stream =
                stream.map_err(|error| tracing::debug!(%rail, %error, "cannot open a rail again")).ok();
            agent.send(Command::Rail { peer, rail, stream });
        };
        let name = format!("{}-rail", self.shared.config.name);
        if let Err(error) = std::thread::Builder::new().name(name).spawn(run) {
            tracing::warn!(%error, "cannot start a thread");
            self.tcp.rail_failed(key, rail);
        }
    }

    /// A rail was opened again, or not.
    pub(super) fn rail_opened(&mut self, peer: &Arc<PeerCore>, rail: RailId, stream: Option<DataStream>) {
        if !self.is_current(peer) {
            return;
        }
        let adopted = stream.is_some_and(|stream| match self.adopt_rail(peer.key, rail, stream) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, peer = peer.name, %rail, "cannot use a data connection");
                false
            }
        });
        if adopted {
            tracing::info!(peer = peer.name, %rail, "a data connection is back");
        } else {
            self.tcp.rail_failed(peer.key, rail);
        }
    }

    /// Takes over a data connection that was opened here.
    pub(super) fn adopt_rail(&mut self, peer: Incarnation, rail: RailId, data: DataStream) -> Result<()> {
        let token = self.new_token();
        let DataStream { stream, seals } = data;
        let stream = Stream::Tcp(stream);
        stream.set_nonblocking()?;
        if let Stream::Tcp(stream) = stream {
            self.epoll().add(stream.as_fd(), token, true, false)?;
            self.tcp.adopt(token, DataStream { stream, seals }, (peer, rail), true);
        }
        Ok(())
    }
}
