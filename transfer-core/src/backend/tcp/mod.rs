//! Over sockets: several connections to each peer, payload straight from and into registered memory.
//!
//! A write carries its payload behind the header; a read asks the target to push. Either way the target checks
//! every span against its regions before a byte moves. All of it runs on the driver's thread, so memory is only
//! touched between two of its steps.

mod conn;
mod send;
mod serve;

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use transfer_proto::id::{Incarnation, XferId};
use transfer_proto::proto::xfer::SliceError;
use transfer_sys::poll::{Epoll, Ready};

use self::conn::{Conn, ConnError};
use super::{Backend, Completion, Slice};
use crate::shared::Shared;
use crate::xfer::XferCore;

/// The data connections of an agent.
pub(crate) struct Tcp {
    shared: Arc<Shared>,
    epoll: Arc<Epoll>,
    conns: HashMap<u64, Conn>,
    by_peer: HashMap<Incarnation, Vec<u64>>,
    done: Vec<Completion>,
    lost: Vec<Incarnation>,
}

impl Tcp {
    pub(crate) fn new(shared: Arc<Shared>, epoll: Arc<Epoll>) -> Self {
        let (conns, by_peer) = (HashMap::new(), HashMap::new());
        Self { shared, epoll, conns, by_peer, done: Vec::new(), lost: Vec::new() }
    }

    /// Takes over a connection that does not block, is past its greeting, and is watched for reading.
    pub(crate) fn adopt(&mut self, token: u64, stream: TcpStream, peer: Incarnation) {
        self.conns.insert(token, Conn::new(stream, peer));
        self.by_peer.entry(peer).or_default().push(token);
    }

    /// How many connections lead to a peer.
    pub(crate) fn count(&self, peer: Incarnation) -> usize {
        self.by_peer.get(&peer).map_or(0, Vec::len)
    }

    /// Whether this is one of ours.
    pub(crate) fn owns(&self, token: u64) -> bool {
        self.conns.contains_key(&token)
    }

    /// Goes on with a connection.
    pub(crate) fn ready(&mut self, ready: Ready) {
        let Some(conn) = self.conns.get_mut(&ready.token) else { return };
        let received =
            if ready.readable { conn.receive(&self.shared.regions, &mut self.done) } else { Ok(()) };
        let result = received.and_then(|()| conn.flush());
        self.settle(ready.token, result);
    }

    /// After each step: watch for what is needed next, or give the connection up.
    fn settle(&mut self, token: u64, result: Result<(), ConnError>) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        if let Err(error) = result {
            match error {
                // Every peer that leaves closes its connections.
                ConnError::Closed => tracing::debug!(peer = %conn.peer, "data connection closed"),
                error => tracing::warn!(peer = %conn.peer, %error, "data connection lost"),
            }
            self.lost.push(conn.peer);
            self.close(token);
            return;
        }
        let (readable, writable) = (!conn.is_congested(), !conn.out.is_empty());
        if (readable, writable) != (conn.readable_watched, conn.writable_watched) {
            (conn.readable_watched, conn.writable_watched) = (readable, writable);
            if let Err(error) = self.epoll.modify(conn.stream().as_fd(), token, readable, writable) {
                tracing::error!(%error, "cannot watch a data connection");
                self.lost.push(conn.peer);
                self.close(token);
            }
        }
    }

    fn close(&mut self, token: u64) {
        let Some(conn) = self.conns.remove(&token) else { return };
        if let Some(tokens) = self.by_peer.get_mut(&conn.peer) {
            tokens.retain(|&other| other != token);
        }
        conn.end(&mut self.done);
    }

    /// Peers that lost a connection since the last call. They cannot be relied on any more.
    pub(crate) fn take_lost(&mut self) -> Vec<Incarnation> {
        std::mem::take(&mut self.lost)
    }

    /// Closes all connections to a peer; their slices complete.
    pub(crate) fn remove_peer(&mut self, peer: Incarnation) {
        for token in self.by_peer.remove(&peer).unwrap_or_default() {
            self.close(token);
        }
    }
}

impl Backend for Tcp {
    fn submit(&mut self, slice: Slice) {
        let peer = slice.core.remote.core.peer.key;
        let (xfer, number) = (slice.xfer, slice.slice);
        let waiting = |token: &&u64| self.conns.get(token).map_or(usize::MAX, |conn| conn.out.bytes());
        let token = self.by_peer.get(&peer).and_then(|tokens| tokens.iter().min_by_key(waiting)).copied();
        let conn = token.and_then(|token| self.conns.get_mut(&token).map(|conn| (token, conn)));
        let Some((token, conn)) = conn else {
            self.done.push(Completion { xfer, slice: number, result: Err(SliceError::RailLost) });
            return;
        };
        if let Err(error) = conn.submit(slice) {
            self.done.push(Completion { xfer, slice: number, result: Err(error) });
            return;
        }
        let result = conn.flush();
        self.settle(token, result);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.done);
    }

    fn abandon(&mut self, core: &Arc<XferCore>, xfer: XferId, now: bool) {
        let peer = core.remote.core.peer.key;
        for token in self.by_peer.get(&peer).cloned().unwrap_or_default() {
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            let half_sent = conn.abandon(xfer, &mut self.done);
            if half_sent && now {
                self.lost.push(peer);
                self.close(token);
            }
        }
    }
}
