//! Over sockets: several connections to each peer, payload straight from and into registered memory.
//!
//! A write carries its payload behind the header; a read asks the target to push. Either way the target checks
//! every span against its regions before a byte moves. All of it runs on the driver's thread, so memory is only
//! touched between two of its steps.

mod conn;
mod intake;
mod send;
mod serve;

use std::collections::{HashMap, VecDeque};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use transfer_proto::id::{Incarnation, RailId, XferId};
use transfer_proto::proto::xfer::SliceError;
use transfer_sys::poll::{Epoll, Ready};

use self::conn::{Conn, ConnError};
use super::{Backend, Completion, Slice};
use crate::shared::Shared;
use crate::xfer::XferRef;

/// The data connections of an agent.
pub(crate) struct Tcp {
    shared: Arc<Shared>,
    epoll: Arc<Epoll>,
    conns: HashMap<u64, Conn>,
    by_peer: HashMap<Incarnation, Vec<u64>>,
    /// Slices for which no connection had room.
    waiting: VecDeque<Slice>,
    /// Connections that got slices and were not told to send them.
    unsent: Vec<u64>,
    done: Vec<Completion>,
    lost: Vec<Incarnation>,
}

impl Tcp {
    pub(crate) fn new(shared: Arc<Shared>, epoll: Arc<Epoll>) -> Self {
        let (conns, by_peer) = (HashMap::new(), HashMap::new());
        let (waiting, unsent) = (VecDeque::new(), Vec::new());
        Self { shared, epoll, conns, by_peer, waiting, unsent, done: Vec::new(), lost: Vec::new() }
    }

    /// Takes over a connection that does not block, is past its greeting, and is watched for reading.
    pub(crate) fn adopt(&mut self, token: u64, stream: TcpStream, peer: Incarnation, rail: RailId) {
        self.conns.insert(token, Conn::new(stream, peer, rail));
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
        let result = Self::go_on(conn, ready.readable, &self.shared, &mut self.done);
        self.settle(ready.token, result);
    }

    fn go_on(
        conn: &mut Conn,
        mut readable: bool,
        shared: &Shared,
        done: &mut Vec<Completion>,
    ) -> Result<(), ConnError> {
        loop {
            if readable {
                conn.receive(&shared.regions, done)?;
            }
            conn.flush()?;
            // What was held back until answers had left gives no further sign of itself.
            readable = conn.can_resume();
            if !readable {
                return Ok(());
            }
        }
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
        let wanted = (!conn.is_congested(), !conn.out.is_empty());
        if wanted != conn.watched {
            conn.watched = wanted;
            if let Err(error) = self.epoll.modify(conn.stream().as_fd(), token, wanted.0, wanted.1) {
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
        self.end_waiting(|slice| slice.core.remote.core.peer.key == peer);
    }

    /// Gives up slices that no connection has taken.
    fn end_waiting(&mut self, which: impl Fn(&Slice) -> bool) {
        let (ended, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|slice| which(slice));
        self.waiting = waiting;
        let ended: VecDeque<Slice> = ended;
        self.done.extend(ended.iter().map(|slice| slice.failed(SliceError::RailLost)));
    }

    /// The connection to a peer that has most room.
    fn roomiest(&self, peer: Incarnation) -> Option<(u64, usize)> {
        let room = |token: &u64| self.conns.get(token).map_or(0, Conn::room);
        let tokens = self.by_peer.get(&peer)?;
        tokens.iter().map(|token| (*token, room(token))).max_by_key(|(_, room)| *room)
    }

    /// Puts a slice on a connection, or gives it back where none has room.
    fn place(&mut self, slice: Slice) -> Option<Slice> {
        let Some((token, room)) = self.roomiest(slice.core.remote.core.peer.key) else {
            self.done.push(slice.failed(SliceError::RailLost));
            return None;
        };
        if room == 0 {
            return Some(slice);
        }
        let conn = self.conns.get_mut(&token)?;
        match conn.submit(slice) {
            Ok(()) if !self.unsent.contains(&token) => self.unsent.push(token),
            Ok(()) => {}
            Err(completion) => self.done.push(completion),
        }
        None
    }
}

impl Backend for Tcp {
    fn submit(&mut self, slice: Slice) {
        // Those that wait for the same peer go first.
        let peer = slice.core.remote.core.peer.key;
        if self.waiting.iter().any(|waiting| waiting.core.remote.core.peer.key == peer) {
            self.waiting.push_back(slice);
        } else if let Some(slice) = self.place(slice) {
            self.waiting.push_back(slice);
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        if !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            self.waiting = waiting.into_iter().filter_map(|slice| self.place(slice)).collect();
        }
        // Slices that were submitted together leave together.
        while let Some(token) = self.unsent.pop() {
            if let Some(conn) = self.conns.get_mut(&token) {
                let result = conn.flush().map(drop);
                self.settle(token, result);
            }
        }
        completions.append(&mut self.done);
    }

    fn abandon(&mut self, core: &XferRef, xfer: XferId, now: bool) {
        let peer = core.remote.core.peer.key;
        self.end_waiting(|slice| slice.xfer == xfer);
        for token in self.by_peer.get(&peer).cloned().unwrap_or_default() {
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            let left = conn.abandon(xfer, &mut self.done);
            if left && now {
                self.lost.push(peer);
                self.close(token);
            }
        }
    }
}
