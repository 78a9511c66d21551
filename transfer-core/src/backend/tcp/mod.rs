//! Over sockets: several connections to each peer, payload straight from and into registered memory.
//!
//! A write carries its payload behind the header; a read asks the target to push. Either way the target checks
//! every span against its regions before a byte moves. Connections are run by the driver, and those on which much moves
//! by threads of their own.
//!
//! | module | holds |
//! |---|---|
//! | [`rails`] | which connections lead to a peer, and the slices that wait for one |
//! | [`carriers`] | threads that carry bulk |
//! | [`line`] | a connection between the driver and a carrier |
//! | [`conn`] | the protocol on one connection, both directions |
//! | [`intake`] | bytes off a socket: heads into a buffer, payload to its place |
//! | [`send`] | frames on their way to a socket |
//! | [`serve`] | what a peer may touch |
//! | [`wire`] | what the bytes of a connection travel in |
//! | [`sealed`] | that, where they are encrypted |

mod carriers;
mod conn;
mod intake;
mod line;
mod rails;
mod sealed;
mod send;
mod serve;
mod wire;

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use transfer_proto::id::{Incarnation, RailId, XferId};
use transfer_proto::proto::rails::{RailError, RailEvent};
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::SliceError;
use transfer_sys::poll::{Epoll, Ready};
use transfer_sys::{OsError, OsResult, socket};

use self::carriers::Carriers;
use self::conn::{Conn, ConnError};
use self::line::Line;
use self::rails::PeerRails;
use self::wire::Wire;
use super::{Backend, Completion, Slice};
use crate::shared::{DataStream, Shared};
use crate::xfer::XferRef;

/// Kernel buffers of a connection within the host, so that what is between sender and receiver stays in a core's cache:
/// the receiver then copies it from there, which is half as fast again.
const LOCAL_BUFFER_BYTES: u32 = 512 << 10;

/// Sets what the kernel holds of a connection. Between hosts that follows the way, as far as nothing else was asked for.
fn size_buffers(stream: &TcpStream, wanted: Option<u32>) -> OsResult<()> {
    let ends = stream.local_addr().and_then(|local| Ok((local.ip(), stream.peer_addr()?.ip())));
    let (local, peer) = ends.map_err(|e| OsError::from_io("getpeername", "data connection", &e))?;
    let is_local = local == peer || peer.to_canonical().is_loopback();
    let bytes = wanted.or_else(|| is_local.then_some(LOCAL_BUFFER_BYTES));
    bytes.map_or(Ok(()), |bytes| socket::set_buffers(stream.as_fd(), bytes))
}

/// The data connections of an agent.
pub(crate) struct Tcp {
    shared: Arc<Shared>,
    lines: FxHashMap<u64, Arc<Line>>,
    carriers: Carriers,
    peers: HashMap<Incarnation, PeerRails>,
    /// Peers with slices that were submitted since they were last given to rails.
    submitted: Vec<Incarnation>,
    /// Connections that got slices and were not told to send them.
    unsent: Vec<u64>,
    /// The connection that moved last here.
    warm: Option<u64>,
    done: Vec<Completion>,
    news: Vec<(Incarnation, RailEvent)>,
    /// Tokens of connections with a report, kept for their memory.
    told: Vec<u64>,
}

impl Tcp {
    pub(crate) fn new(shared: Arc<Shared>, epoll: Arc<Epoll>) -> Self {
        let (lines, peers) = (FxHashMap::default(), HashMap::new());
        let (submitted, unsent, done, news) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (carriers, told) = (Carriers::new(Arc::clone(&shared), epoll), Vec::new());
        Self { shared, lines, carriers, peers, submitted, unsent, warm: None, done, news, told }
    }

    /// Takes over a connection that does not block, is past its greeting, and is watched for reading. `opener` says
    /// that it was opened here. One that the peer may not have is closed.
    pub(crate) fn adopt(
        &mut self,
        token: u64,
        data: DataStream,
        (peer, rail): (Incarnation, RailId),
        opener: bool,
    ) {
        let silence_max = self.shared.config.peer_timeout;
        let rails = self.peers.entry(peer).or_insert_with(|| PeerRails::new(silence_max, opener));
        if let Err(error) = rails.add(rail, token, self.shared.clock.now()) {
            return tracing::warn!(%peer, %error, "refused a data connection");
        }
        if let Err(error) = size_buffers(&data.stream, self.shared.config.tcp_buffer_bytes) {
            // It moves bytes all the same.
            tracing::warn!(%peer, %rail, %error, "cannot size the buffers of a data connection");
        }
        let conn = Conn::new(Wire::new(data), peer, rail);
        self.lines.insert(token, Arc::new(Line::new(token, conn)));
        self.submitted.push(peer);
        self.note(peer);
    }

    /// How many connections lead to a peer.
    pub(crate) fn count(&self, peer: Incarnation) -> usize {
        self.peers.get(&peer).map_or(0, |rails| rails.rails.standing())
    }

    /// Whether what goes to a peer is encrypted; all its connections are alike.
    pub(crate) fn is_encrypted(&self, peer: Incarnation) -> bool {
        self.peers.get(&peer).is_some_and(|rails| {
            rails.tokens().any(|token| self.lines.get(&token).is_some_and(|line| line.encrypted))
        })
    }

    /// Whether this is one of ours.
    pub(crate) fn owns(&self, token: u64) -> bool {
        self.lines.contains_key(&token)
    }

    /// Whether there is a connection to [`Tcp::look`] at.
    pub(crate) fn is_warm(&self) -> bool {
        self.warm.is_some()
    }

    /// Takes in what has come on the connection that moved last, without asking epoll. False where nothing has, and
    /// nothing has changed.
    pub(crate) fn look(&mut self, now: Time) -> bool {
        let Some(token) = self.warm.take() else { return false };
        let Some(line) = self.lines.get(&token).cloned() else { return true };
        if line.carrier().is_some() {
            return true;
        }
        let mut guard = line.claim();
        let Some(conn) = guard.as_mut() else { return true };
        let result = conn.turn(true, &self.shared.regions, &mut self.done, now);
        if matches!(result, Ok(0)) && self.done.is_empty() && !conn.has_freed() {
            self.warm = Some(token);
            return false;
        }
        let result = self.settle(&line, conn, result, now);
        drop(guard);
        self.keep_or_lose(&line, result);
        true
    }

    /// Goes on with a connection.
    pub(crate) fn ready(&mut self, ready: Ready, now: Time) {
        let Some(line) = self.lines.get(&ready.token).cloned() else { return };
        let mut guard = line.claim();
        let Some(conn) = guard.as_mut() else { return };
        let result = conn.turn(ready.readable, &self.shared.regions, &mut self.done, now);
        let result = self.settle(&line, conn, result, now);
        drop(guard);
        self.keep_or_lose(&line, result);
    }

    /// After each step: watch for what is needed next.
    fn settle(
        &mut self,
        line: &Arc<Line>,
        conn: &mut Conn,
        result: Result<usize, ConnError>,
        now: Time,
    ) -> Result<(), ConnError> {
        let moved = result?;
        conn.watch(self.carriers.epoll_of(line), line.token)?;
        if moved > 0 || conn.has_freed() {
            self.moved(line, moved > 0, conn.take_freed(), now);
        }
        if line.carrier().is_some() {
            return Ok(());
        }
        if self.carriers.want(conn) {
            self.carriers.lend(line, conn)?;
        } else if moved > 0 {
            self.warm = Some(line.token);
        }
        Ok(())
    }

    /// Gives a connection up that cannot go on.
    fn keep_or_lose(&mut self, line: &Line, result: Result<(), ConnError>) {
        match result {
            Ok(()) => return,
            // Every peer that leaves closes its connections.
            Err(ConnError::Closed) => {
                tracing::debug!(peer = %line.peer, rail = %line.rail, "data connection closed");
            }
            Err(error) => {
                tracing::warn!(peer = %line.peer, rail = %line.rail, %error, "data connection lost");
            }
        }
        self.lose(line.token);
    }

    /// Tells the rails that one of them moves, and of slices that have left it.
    fn moved(&mut self, line: &Line, moved: bool, freed: impl Iterator<Item = u64>, now: Time) {
        let (peer, rail) = (line.peer, line.rail);
        let Some(rails) = self.peers.get_mut(&peer) else { return };
        if moved {
            rails.rails.progressed(rail, now);
        }
        freed.for_each(|bytes| rails.rails.completed(rail, bytes, now));
        if rails.is_waiting() && !self.submitted.contains(&peer) {
            self.submitted.push(peer);
        }
    }

    /// Takes in what carriers have to tell.
    fn collect(&mut self, now: Time) {
        let mut told = std::mem::take(&mut self.told);
        self.carriers.take_told(&mut told);
        for token in told.drain(..) {
            let Some(line) = self.lines.get(&token).cloned() else { continue };
            let mut report = line.report();
            self.done.append(&mut report.done);
            let (moved, error) = (std::mem::take(&mut report.moved), report.error.take());
            self.moved(&line, moved, report.freed.drain(..), now);
            drop(report);
            self.keep_or_lose(&line, error.map_or(Ok(()), Err));
        }
        self.told = told;
    }

    /// Whether bytes cannot be carried any more, by a fault of a thread.
    pub(crate) fn is_broken(&self) -> bool {
        self.carriers.is_broken()
    }

    /// A connection broke: closes this end, after which nothing that comes on it lands.
    fn lose(&mut self, token: u64) {
        let Some(line) = self.lines.remove(&token) else { return };
        end(&line, &mut self.done);
        if let Some(rails) = self.peers.get_mut(&line.peer) {
            rails.take_conn(line.rail);
            rails.rails.lost(line.rail, self.shared.clock.now());
        }
        self.note(line.peer);
    }

    /// Acts on what the rails of a peer ask for; the rest of it is the driver's.
    fn note(&mut self, peer: Incarnation) {
        let Some(rails) = self.peers.get_mut(&peer) else { return };
        while let Some(event) = rails.rails.poll_event() {
            match event {
                RailEvent::Close(rail) => {
                    let line = rails.take_conn(rail).and_then(|token| self.lines.remove(&token));
                    line.into_iter().for_each(|line| end(&line, &mut self.done));
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
        // What a carrier has moved counts.
        self.collect(now);
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
        for line in rails.tokens().filter_map(|token| self.lines.remove(&token)) {
            end(&line, &mut self.done);
        }
        rails.end_waiting(None, SliceError::RailLost, &mut self.done);
    }

    /// Gives waiting slices to rails, as many as they take.
    fn place(&mut self, peer: Incarnation, now: Time) {
        let Some(rails) = self.peers.get_mut(&peer) else { return };
        while let Some((slice, token)) = rails.next(now) {
            let Some(line) = self.lines.get(&token) else { continue };
            if !self.unsent.contains(&token) {
                self.unsent.push(token);
            }
            let Some(slice) = line.leave(slice) else { continue };
            if let Some(Err(completion)) = line.claim().as_mut().map(|conn| conn.submit(slice)) {
                self.done.push(completion);
            }
        }
    }

    /// Sends what was submitted; slices that were submitted together leave together. What is carried, or worth it,
    /// leaves on its carrier.
    fn flush(&mut self, now: Time) {
        while let Some(token) = self.unsent.pop() {
            let Some(line) = self.lines.get(&token).cloned() else { continue };
            if let Some(carrier) = line.carrier() {
                self.carriers.call(carrier);
                continue;
            }
            let mut guard = line.claim();
            let Some(conn) = guard.as_mut() else { continue };
            let result = if self.carriers.want(conn) { Ok(0) } else { conn.flush() };
            if let Ok(moved) = result {
                conn.note_moved(moved, now);
            }
            let result = self.settle(&line, conn, result, now);
            drop(guard);
            self.keep_or_lose(&line, result);
        }
    }
}

/// Ends a connection and its slices, those included of which a carrier had to tell.
fn end(line: &Line, done: &mut Vec<Completion>) {
    let conn = line.claim().take();
    done.append(&mut line.report().done);
    conn.into_iter().for_each(|conn| conn.end(done));
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

    fn poll(&mut self, now: Time, completions: &mut Vec<Completion>) {
        self.collect(now);
        let mut submitted = std::mem::take(&mut self.submitted);
        submitted.drain(..).for_each(|peer| self.place(peer, now));
        // Placing submits nothing.
        self.submitted = submitted;
        self.flush(now);
        completions.append(&mut self.done);
    }

    fn abandon(&mut self, core: &XferRef, xfer: XferId, now: bool) {
        let peer = core.remote.core.peer.key;
        let Some(rails) = self.peers.get_mut(&peer) else { return };
        rails.end_waiting(Some(xfer), SliceError::Abandoned, &mut self.done);
        for token in rails.tokens().collect::<Vec<_>>() {
            let Some(line) = self.lines.get(&token).cloned() else { continue };
            let mut guard = line.claim();
            let Some(conn) = guard.as_mut() else { continue };
            if conn.abandon(xfer, &mut self.done) && now {
                drop(guard);
                self.lose(token);
            } else {
                let result = self.settle(&line, conn, Ok(0), self.shared.clock.now());
                drop(guard);
                self.keep_or_lose(&line, result);
            }
        }
    }
}
