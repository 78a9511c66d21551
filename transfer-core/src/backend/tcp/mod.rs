//! Over sockets: several connections to each peer, payload straight from and into registered memory.
//!
//! A write carries its payload behind the header; a read asks the target to push. Either way the target checks
//! every span against its regions before a byte moves. All of it runs on the driver's thread, so memory is only
//! touched between two of its steps.
//!
//! | module | holds |
//! |---|---|
//! | [`rails`] | which connections lead to a peer, and the slices that wait for one |
//! | [`conn`] | the protocol on one connection, both directions |
//! | [`intake`] | bytes off a socket: heads into a buffer, payload to its place |
//! | [`send`] | frames on their way to a socket |
//! | [`serve`] | what a peer may touch |
//! | [`wire`] | what the bytes of a connection travel in |

mod conn;
mod intake;
mod rails;
mod send;
mod serve;
mod wire;

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use transfer_proto::id::{Incarnation, RailId, XferId};
use transfer_proto::proto::rails::{RailError, RailEvent};
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::SliceError;
use transfer_sys::poll::{Epoll, Ready};

use self::conn::{Conn, ConnError};
use self::rails::PeerRails;
use self::wire::Wire;
use super::{Backend, Completion, Slice};
use crate::shared::Shared;
use crate::xfer::XferRef;

/// The data connections of an agent.
pub(crate) struct Tcp {
    shared: Arc<Shared>,
    epoll: Arc<Epoll>,
    conns: HashMap<u64, Conn>,
    peers: HashMap<Incarnation, PeerRails>,
    /// Peers with slices that were submitted since they were last given to rails.
    submitted: Vec<Incarnation>,
    /// Connections that got slices and were not told to send them.
    unsent: Vec<u64>,
    done: Vec<Completion>,
    news: Vec<(Incarnation, RailEvent)>,
}

impl Tcp {
    pub(crate) fn new(shared: Arc<Shared>, epoll: Arc<Epoll>) -> Self {
        let (conns, peers) = (HashMap::new(), HashMap::new());
        let (submitted, unsent, done, news) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { shared, epoll, conns, peers, submitted, unsent, done, news }
    }

    /// Takes over a connection that does not block, is past its greeting, and is watched for reading. `opener` says
    /// that it was opened here. One that the peer may not have is closed.
    pub(crate) fn adopt(
        &mut self,
        token: u64,
        stream: TcpStream,
        (peer, rail): (Incarnation, RailId),
        opener: bool,
    ) {
        let silence_max = self.shared.config.peer_timeout;
        let rails = self.peers.entry(peer).or_insert_with(|| PeerRails::new(silence_max, opener));
        if let Err(error) = rails.add(rail, token, self.shared.clock.now()) {
            return tracing::warn!(%peer, %error, "refused a data connection");
        }
        self.conns.insert(token, Conn::new(Wire::Plain(stream), peer, rail));
        self.submitted.push(peer);
        self.note(peer);
    }

    /// How many connections lead to a peer.
    pub(crate) fn count(&self, peer: Incarnation) -> usize {
        self.peers.get(&peer).map_or(0, |rails| rails.rails.standing())
    }

    /// Whether this is one of ours.
    pub(crate) fn owns(&self, token: u64) -> bool {
        self.conns.contains_key(&token)
    }

    /// Goes on with a connection.
    pub(crate) fn ready(&mut self, ready: Ready) {
        let Some(conn) = self.conns.get_mut(&ready.token) else { return };
        let result = Self::go_on(conn, ready.readable, &self.shared, &mut self.done);
        self.settle(ready.token, result);
    }

    /// Reads and sends; says how many bytes moved.
    fn go_on(
        conn: &mut Conn,
        mut readable: bool,
        shared: &Shared,
        done: &mut Vec<Completion>,
    ) -> Result<usize, ConnError> {
        let mut moved = 0;
        loop {
            if readable {
                moved += conn.receive(&shared.regions, done)?;
            }
            moved += conn.flush()?;
            // What was held back until answers had left gives no further sign of itself.
            readable = conn.can_resume();
            if !readable {
                return Ok(moved);
            }
        }
    }

    /// After each step: watch for what is needed next, or give the connection up.
    fn settle(&mut self, token: u64, result: Result<usize, ConnError>) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        match result {
            // Every peer that leaves closes its connections.
            Err(ConnError::Closed) => {
                tracing::debug!(peer = %conn.peer, rail = %conn.rail, "data connection closed");
                self.lose(token);
            }
            Err(error) => {
                tracing::warn!(peer = %conn.peer, rail = %conn.rail, %error, "data connection lost");
                self.lose(token);
            }
            Ok(moved) => {
                let wanted = (!conn.is_congested(), conn.has_unsent());
                let watched = wanted == conn.watched || {
                    conn.watched = wanted;
                    let modified = self.epoll.modify(conn.stream().as_fd(), token, wanted.0, wanted.1);
                    modified
                        .map_err(|error| tracing::error!(%error, "cannot watch a data connection"))
                        .is_ok()
                };
                if !watched {
                    self.lose(token);
                } else if moved > 0 || conn.has_freed() {
                    self.moved(token);
                }
            }
        }
    }

    /// Tells the rails that one of them moves, and of slices that have left it.
    fn moved(&mut self, token: u64) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let (peer, rail, now) = (conn.peer, conn.rail, self.shared.clock.now());
        let Some(rails) = self.peers.get_mut(&peer) else { return };
        rails.rails.progressed(rail, now);
        conn.take_freed().for_each(|bytes| rails.rails.completed(rail, bytes, now));
        if rails.is_waiting() && !self.submitted.contains(&peer) {
            self.submitted.push(peer);
        }
    }

    /// A connection broke: closes this end, after which nothing that comes on it lands.
    fn lose(&mut self, token: u64) {
        let Some(conn) = self.conns.remove(&token) else { return };
        let (peer, rail) = (conn.peer, conn.rail);
        conn.end(&mut self.done);
        if let Some(rails) = self.peers.get_mut(&peer) {
            rails.take_conn(rail);
            rails.rails.lost(rail, self.shared.clock.now());
        }
        self.note(peer);
    }

    /// Acts on what the rails of a peer ask for; the rest of it is the driver's.
    fn note(&mut self, peer: Incarnation) {
        let Some(rails) = self.peers.get_mut(&peer) else { return };
        while let Some(event) = rails.rails.poll_event() {
            match event {
                RailEvent::Close(rail) => {
                    let conn = rails.take_conn(rail).and_then(|token| self.conns.remove(&token));
                    conn.into_iter().for_each(|conn| conn.end(&mut self.done));
                }
                event => self.news.push((peer, event)),
            }
        }
    }

    /// What became of rails since the last call, for the driver to act on; never [`RailEvent::Close`].
    pub(crate) fn take_news(&mut self) -> Vec<(Incarnation, RailEvent)> {
        std::mem::take(&mut self.news)
    }

    /// The peer says that a rail is closed at its end.
    pub(crate) fn rail_closed(&mut self, peer: Incarnation, rail: RailId) -> Result<(), RailError> {
        let Some(rails) = self.peers.get_mut(&peer) else { return Ok(()) };
        let handled = rails.rails.handle_closed(rail, self.shared.clock.now());
        self.note(peer);
        handled
    }

    /// A rail could not be opened.
    pub(crate) fn rail_failed(&mut self, peer: Incarnation, rail: RailId) {
        if let Some(rails) = self.peers.get_mut(&peer) {
            rails.rails.lost(rail, self.shared.clock.now());
            self.note(peer);
        }
    }

    /// Whether a rail is closed at both ends. Those of a peer that is gone are.
    pub(crate) fn is_closed(&self, peer: Incarnation, rail: RailId) -> bool {
        self.peers.get(&peer).is_none_or(|rails| rails.rails.is_closed(rail))
    }

    /// When [`Tcp::handle_timeout`] is to be called at the latest.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.peers.values().filter_map(|rails| rails.rails.poll_timeout()).min()
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        let due = |rails: &PeerRails| rails.rails.poll_timeout().is_some_and(|at| at <= now);
        let peers: Vec<_> =
            self.peers.iter().filter(|(_, rails)| due(rails)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            if let Some(rails) = self.peers.get_mut(&peer) {
                rails.rails.handle_timeout(now);
            }
            self.note(peer);
        }
    }

    /// This process did not look for a while; its peers are not to blame.
    pub(crate) fn excuse(&mut self, now: Time) {
        self.peers.values_mut().for_each(|rails| rails.rails.excuse(now));
    }

    /// Closes all connections to a peer; their slices complete.
    pub(crate) fn remove_peer(&mut self, peer: Incarnation) {
        let Some(mut rails) = self.peers.remove(&peer) else { return };
        for conn in rails.tokens().filter_map(|token| self.conns.remove(&token)) {
            conn.end(&mut self.done);
        }
        rails.end_waiting(None, SliceError::RailLost, &mut self.done);
    }

    /// Gives waiting slices to rails, as many as they take.
    fn place(&mut self, peer: Incarnation) {
        let now = self.shared.clock.now();
        let Some(rails) = self.peers.get_mut(&peer) else { return };
        while let Some((slice, token)) = rails.next(now) {
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            match conn.submit(slice) {
                Ok(()) if self.unsent.contains(&token) => {}
                Ok(()) => self.unsent.push(token),
                Err(completion) => self.done.push(completion),
            }
        }
    }

    /// Sends what was submitted; slices that were submitted together leave together.
    fn flush(&mut self) {
        while let Some(token) = self.unsent.pop() {
            if let Some(conn) = self.conns.get_mut(&token) {
                let result = conn.flush();
                self.settle(token, result);
            }
        }
    }
}

impl Backend for Tcp {
    fn submit(&mut self, slice: Slice) {
        let peer = slice.core.remote.core.peer.key;
        match self.peers.get_mut(&peer) {
            Some(rails) => {
                rails.queue(slice);
                if !self.submitted.contains(&peer) {
                    self.submitted.push(peer);
                }
            }
            None => self.done.push(slice.failed(SliceError::RailLost)),
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        for peer in std::mem::take(&mut self.submitted) {
            self.place(peer);
        }
        self.flush();
        completions.append(&mut self.done);
    }

    fn abandon(&mut self, core: &XferRef, xfer: XferId, now: bool) {
        let peer = core.remote.core.peer.key;
        let Some(rails) = self.peers.get_mut(&peer) else { return };
        rails.end_waiting(Some(xfer), SliceError::Abandoned, &mut self.done);
        for token in rails.tokens().collect::<Vec<_>>() {
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            let left = conn.abandon(xfer, &mut self.done);
            if left && now {
                self.lose(token);
            } else {
                self.settle(token, Ok(0));
            }
        }
    }
}
