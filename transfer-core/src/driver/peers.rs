//! Control connections, and the peers behind them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};

use crossbeam_channel::Sender;
use transfer_proto::id::{Incarnation, RailId, RegionId};
use transfer_proto::plan::Reason;
use transfer_proto::proto::control::Farewell;
use transfer_proto::proto::link::{Link, LinkError, LinkEvent, NotifError, Role};
use transfer_proto::proto::metadata::AgentMetadata;
use transfer_proto::proto::time::Time;
use transfer_sys::poll::Ready;

use super::strangers::Source;
use super::{Conn, Driver, LocalConn, Wire};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::peer::{LocalWay, Peer, PeerCore, Ways};
use crate::shared::{DataEnd, DataStream, Meeting, Opened, Stream, Word};

/// A control connection.
pub(super) struct ControlConn {
    wire: Wire,
    /// Who opened it, where that was a peer.
    source: Option<Source>,
    pub(super) link: Link,
    /// The peer, once it has introduced itself.
    peer: Option<Incarnation>,
    /// What its further connections must show.
    secret: u64,
    /// Where it was reached, for errors.
    address: String,
    /// Who connected and waits.
    reply: Option<Sender<Meeting>>,
    writable_watched: bool,
    readable_watched: bool,
    /// It is among those to be flushed.
    dirty: bool,
}

impl ControlConn {
    /// Who opened it, while that is not known to be a peer.
    pub(super) fn stranger(&self) -> Option<Source> {
        self.source.filter(|_| self.peer.is_none())
    }
}

/// A peer that has introduced itself.
pub(super) struct PeerEntry {
    pub(super) core: Arc<PeerCore>,
    /// Its control connection.
    control: u64,
    /// Its Unix socket.
    pub(super) local: Option<u64>,
    pub(super) local_way: Result<LocalWay, Reason>,
    secret: u64,
    /// Where data connections to it are opened, if they are opened here.
    pub(super) data_end: Option<DataEnd>,
    /// Who connected to it while it was being met already.
    waiting: Vec<Sender<Meeting>>,
    /// Who waits for it to have taken in everything.
    syncing: VecDeque<Sender<()>>,
}

/// Somebody who waits for a peer that has not introduced itself on the connection that will stand.
pub(super) struct Early {
    peer: Incarnation,
    reply: Sender<Meeting>,
    /// Nobody waits for longer.
    ends: Time,
}

impl Driver {
    /// Somebody connected us to a peer.
    pub(super) fn meet(&mut self, wire: Wire, address: String, reply: Sender<Meeting>) {
        let (token, stream) = (self.new_token(), &wire.stream);
        let added =
            stream.set_nonblocking().and_then(|()| self.epoll().add(stream.as_fd(), token, true, false));
        match added {
            Ok(()) => self.add_control(token, wire, None, address, Some(reply)),
            Err(error) => drop(reply.send(Meeting::Failed(error.into()))),
        }
    }

    /// A peer connected to us.
    pub(super) fn met(&mut self, token: u64, wire: Wire, source: Source) {
        self.make_room_for_introduction();
        self.add_control(token, wire, Some(source), source.to_string(), None);
    }

    fn add_control(
        &mut self,
        token: u64,
        wire: Wire,
        source: Option<Source>,
        address: String,
        reply: Option<Sender<Meeting>>,
    ) {
        let (config, now) = (self.shared.config.link(), self.shared.clock.now());
        let secret = crate::agent::random_word();
        let link = if reply.is_some() {
            Link::initiator(config, self.shared.metadata(), secret, now)
        } else {
            Link::responder(config, self.shared.incarnation, now)
        };
        let (writable_watched, readable_watched, dirty) = (false, true, true);
        let conn = ControlConn {
            wire,
            source,
            link,
            peer: None,
            secret,
            address,
            reply,
            writable_watched,
            readable_watched,
            dirty,
        };
        self.dirty.push(token);
        self.set_timer(token, conn.link.poll_timeout());
        self.conns.insert(token, Conn::Control(Box::new(conn)));
    }

    /// A control connection, which may have something to send after this.
    fn control(&mut self, token: u64) -> Option<&mut ControlConn> {
        match self.conns.get_mut(&token) {
            Some(Conn::Control(conn)) => {
                if !std::mem::replace(&mut conn.dirty, true) {
                    self.dirty.push(token);
                }
                Some(conn)
            }
            _ => None,
        }
    }

    fn set_timer(&mut self, token: u64, at: Option<Time>) {
        match at {
            Some(at) => self.conn_timers.set(token, at),
            None => self.conn_timers.remove(token),
        }
    }

    pub(super) fn link_of(&mut self, peer: Incarnation) -> Option<&mut Link> {
        let token = self.peers.get(&peer)?.control;
        self.control(token).map(|conn| &mut conn.link)
    }

    /// All links; each tells only peers that know us.
    pub(super) fn for_each_link(&mut self, mut act: impl FnMut(Option<Incarnation>, &mut Link)) {
        for (token, conn) in &mut self.conns {
            if let Conn::Control(conn) = conn {
                if !std::mem::replace(&mut conn.dirty, true) {
                    self.dirty.push(*token);
                }
                act(conn.peer, &mut conn.link);
            }
        }
    }

    /// The peer of this incarnation that connected to us, and the word that its further connections must know.
    pub(super) fn session(&self, incarnation: Incarnation) -> Option<(Incarnation, u64)> {
        let key = self.key_of(incarnation, Role::Responder);
        self.peers.get(&key).map(|entry| (key, entry.secret))
    }

    /// The word of the session that stands with a peer.
    pub(super) fn session_word(&self, peer: Incarnation) -> Option<u64> {
        self.peers.get(&peer).map(|entry| entry.secret)
    }

    pub(super) fn handle_control(&mut self, token: u64, ready: Ready) {
        let now = self.shared.clock.now();
        if ready.readable && !self.paused {
            let Some(conn) = self.control(token) else { return };
            conn.wire.receive(&mut conn.link, now);
        }
        self.handle_link_events(token);
    }

    fn handle_link_events(&mut self, token: u64) {
        while let Some(event) = self.control(token).and_then(|conn| conn.link.poll_event()) {
            let peer = self.control(token).and_then(|conn| conn.peer);
            match (event, peer) {
                (LinkEvent::Hello { metadata, token: theirs }, _) => {
                    self.handle_hello(token, metadata, theirs)
                }
                (LinkEvent::Closed(error), _) => self.handle_closed(token, error),
                (LinkEvent::Up, Some(peer)) => self.handle_up(peer),
                (LinkEvent::Notif(bytes), Some(peer)) => {
                    if let Some(peer) = self.handle_of(peer) {
                        self.shared.events.push(Event::Notif { peer, bytes });
                    }
                }
                // One that is gone by now is passed over.
                (LinkEvent::Bump { counter, by }, Some(_)) => {
                    let _known = self.shared.counters.bump(counter, by);
                }
                (LinkEvent::RegionAdd(info), Some(peer)) => {
                    if let Some(entry) = self.peers.get(&peer) {
                        entry.core.add_region(info);
                    }
                }
                (LinkEvent::RegionDel(id), Some(peer)) => self.forget_region(peer, id),
                (LinkEvent::Sync, Some(peer)) => {
                    // A region that was registered before the peer asked may still be on its way to this thread.
                    self.handle_commands(self.shared.clock.now());
                    if let Some(link) = self.link_of(peer) {
                        link.synced();
                    }
                }
                (LinkEvent::RailClosed(rail), Some(peer)) => self.rail_closed(peer, rail),
                (LinkEvent::Synced, Some(peer)) => {
                    let waiting = self.peers.get_mut(&peer).and_then(|entry| entry.syncing.pop_front());
                    if let Some(reply) = waiting {
                        // Who asked may have stopped waiting.
                        let _told = reply.send(());
                    }
                }
                _ => {}
            }
        }
    }

    fn handle_of(&self, peer: Incarnation) -> Option<Peer> {
        Some(Peer::new(Arc::clone(&self.peers.get(&peer)?.core), Arc::clone(&self.shared)))
    }

    /// A peer has introduced itself. Two agents that connect to each other at the same time keep one connection:
    /// one that is up, else the one that the agent of the lower incarnation opened. Both sides see it alike.
    fn handle_hello(&mut self, token: u64, metadata: AgentMetadata, theirs: u64) {
        let Some(role) = self.control(token).map(|conn| conn.link.role()) else { return };
        let incarnation = metadata.incarnation;
        let key = self.key_of(incarnation, role);
        let existing = self.peers.get(&key).map(|entry| (entry.control, entry.core.is_up()));
        if let Some((other, up)) = existing {
            let other_role = self.control(other).map(|conn| conn.link.role());
            let ours_wins = self.shared.incarnation < incarnation;
            let wanted = if ours_wins { Role::Initiator } else { Role::Responder };
            if up || other_role == Some(role) || other_role == Some(wanted) {
                return self.refuse_duplicate(token, key);
            }
            self.refuse_duplicate(other, key);
        }
        self.add_peer(token, key, metadata, theirs);
    }

    /// Under which name a peer is kept. An agent that is its own peer is two: the one that connects, and the one
    /// that is connected to.
    fn key_of(&self, incarnation: Incarnation, role: Role) -> Incarnation {
        if incarnation == self.shared.incarnation && role == Role::Responder {
            return Incarnation::from_bytes(incarnation.to_bytes().map(|byte| !byte));
        }
        incarnation
    }

    fn add_peer(&mut self, token: u64, key: Incarnation, metadata: AgentMetadata, theirs: u64) {
        let me = self.shared.metadata();
        let Some(conn) = self.control(token) else { return };
        conn.peer = Some(key);
        let (control, secret, reply) = (token, conn.secret, conn.reply.clone());
        if conn.link.role() == Role::Responder {
            conn.link.introduce(me, secret);
        }
        let (local_name, addresses) = (metadata.local_name.clone(), metadata.addresses.clone());
        let core = Arc::new(PeerCore::new(key, metadata));
        let replaced = self.peers.remove(&key);
        let mut waiting = replaced.map(|old| self.drop_replaced(key, old)).unwrap_or_default();
        waiting.extend(self.early.extract_if(.., |early| early.peer == key).map(|early| early.reply));
        let entry = PeerEntry {
            core: Arc::clone(&core),
            control,
            local: None,
            local_way: Err(Reason::OtherHost),
            secret,
            data_end: None,
            waiting,
            syncing: VecDeque::new(),
        };
        self.peers.insert(key, entry);
        if let Some(reply) = reply {
            // Who connected may have stopped waiting; then the handshake's own deadline ends it.
            let _told = reply.send(Meeting::Hello { peer: core, local_name, addresses, token: theirs });
        }
    }

    /// Drops what belonged to a connection that gave way to another one. Who waited for it waits on.
    fn drop_replaced(&mut self, key: Incarnation, old: PeerEntry) -> Vec<Sender<Meeting>> {
        old.core.set_lost(LinkError::ClosedHere);
        self.tcp.remove_peer(key);
        if let Some(local) = old.local {
            self.drop_conn(local);
        }
        old.waiting
    }

    /// Ends a connection in favour of another one with the same peer; who waits for it waits for that one.
    fn refuse_duplicate(&mut self, token: u64, peer: Incarnation) {
        let Some(conn) = self.control(token) else { return };
        conn.peer = None;
        let reply = conn.reply.take();
        conn.link.bye(Farewell::Duplicate);
        self.flush_control(token);
        self.drop_conn(token);
        if let Some(reply) = reply {
            self.wait_for(peer, reply);
        }
    }

    fn wait_for(&mut self, peer: Incarnation, reply: Sender<Meeting>) {
        match self.peers.get_mut(&peer) {
            Some(entry) if entry.core.is_up() => {
                let _told = reply.send(Meeting::Up(Arc::clone(&entry.core)));
            }
            Some(entry) => entry.waiting.push(reply),
            // The peer knows of the other connection before we do: its introduction is still on the way.
            None => {
                let ends = self.shared.clock.now() + self.shared.config.connect_timeout;
                self.early.push(Early { peer, reply, ends });
            }
        }
    }

    /// The further connections of a peer that we connected to stand.
    pub(super) fn opened(&mut self, peer: &Arc<PeerCore>, opened: Opened) {
        if !self.is_current(peer) {
            return;
        }
        let key = peer.key;
        let Opened { local, data, ways, end } = opened;
        if let Some(entry) = self.peers.get_mut(&key) {
            entry.data_end = end;
        }
        if let Err(error) = self.adopt_connections(key, local, data) {
            tracing::warn!(%error, peer = peer.name, "cannot use the connections to a peer");
            return self.farewell(key, Farewell::Closing);
        }
        let _first = peer.ways.set(ways);
        let Some(token) = self.peers.get(&key).map(|entry| entry.control) else { return };
        if let Some(conn) = self.control(token) {
            conn.link.opened();
        }
        self.handle_link_events(token);
    }

    /// Whether this is what we know of the peer now; another connection may have taken its place.
    pub(super) fn is_current(&self, peer: &Arc<PeerCore>) -> bool {
        self.peers.get(&peer.key).is_some_and(|entry| Arc::ptr_eq(&entry.core, peer))
    }

    /// The further connections of a peer could not be opened. Unless another connection has taken the place of
    /// this one, who connected is told.
    pub(super) fn give_up(&mut self, peer: &Arc<PeerCore>, error: Error) {
        if !self.is_current(peer) {
            return;
        }
        let token = self.peers.get(&peer.key).map(|entry| entry.control);
        if let Some(reply) = token.and_then(|token| self.control(token)).and_then(|conn| conn.reply.take()) {
            let _told = reply.send(Meeting::Failed(error));
        }
        self.farewell(peer.key, Farewell::Closing);
    }

    fn adopt_connections(
        &mut self,
        peer: Incarnation,
        local: Option<UnixStream>,
        data: Vec<DataStream>,
    ) -> Result<()> {
        // As they were numbered when they were opened.
        for (slot, stream) in (0..).zip(data) {
            self.adopt_rail(peer, RailId::new(slot, 0), stream)?;
        }
        if let Some(stream) = local {
            let token = self.new_token();
            let stream = Stream::Local(stream);
            stream.set_nonblocking()?;
            self.epoll().add(stream.as_fd(), token, true, false)?;
            if let Stream::Local(stream) = stream {
                self.conns.insert(token, Conn::Local(LocalConn::new(stream, peer)));
            }
            if let Some(entry) = self.peers.get_mut(&peer) {
                entry.local = Some(token);
            }
        }
        Ok(())
    }

    fn handle_up(&mut self, peer: Incarnation) {
        let (tcp, encrypted) = (self.tcp.count(peer) > 0, self.tcp.is_encrypted(peer));
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        // The side that connected has told its ways already; the other one finds its own from what was opened.
        let local = std::mem::replace(&mut entry.local_way, Err(Reason::OtherHost));
        let _first = entry.core.ways.set(Ways { local, tcp, encrypted });
        entry.core.set_up();
        let core = Arc::clone(&entry.core);
        let control = entry.control;
        let mut waiting = std::mem::take(&mut entry.waiting);
        // From the time of a handshake to that of a heartbeat.
        let timeout = self.control(control).and_then(|conn| conn.link.poll_timeout());
        self.set_timer(control, timeout);
        waiting.extend(self.control(control).and_then(|conn| conn.reply.take()));
        let mut peers = self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.insert(peer, Arc::clone(&core));
        drop(peers);
        for reply in waiting {
            let _told = reply.send(Meeting::Up(Arc::clone(&core)));
        }
        tracing::info!(peer = core.name, incarnation = %peer, "peer up");
        self.shared.events.push(Event::PeerUp { peer: Peer::new(core, Arc::clone(&self.shared)) });
    }

    /// A control connection has ended.
    fn handle_closed(&mut self, token: u64, error: LinkError) {
        self.flush_control(token);
        let Some(conn) = self.control(token) else { return };
        let (peer, address, reply) = (conn.peer, conn.address.clone(), conn.reply.take());
        self.drop_conn(token);
        if let Some(reply) = reply {
            match error {
                LinkError::Farewell { farewell: Farewell::Duplicate, incarnation } => {
                    self.wait_for(incarnation, reply);
                }
                _ => drop(reply.send(Meeting::Failed(Error::from_meeting(&address, error)))),
            }
        }
        if let Some(peer) = peer {
            self.lose_peer(peer, error);
        }
    }

    /// Everything that hangs on a peer ends.
    fn lose_peer(&mut self, peer: Incarnation, error: LinkError) {
        let Some(entry) = self.peers.remove(&peer) else { return };
        let was_up = entry.core.is_up();
        entry.core.set_lost(error);
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
        self.tcp.remove_peer(peer);
        if let Some(local) = entry.local {
            self.drop_conn(local);
        }
        for id in self.xfers.ids() {
            if self.xfers.get(id).is_some_and(|task| task.core().remote.core.peer.key == peer) {
                self.stop_xfer(id, transfer_proto::proto::xfer::Xfer::peer_lost);
            }
        }
        let reason = entry.core.lost_error();
        for reply in entry.waiting {
            let _told = reply.send(Meeting::Failed(reason.clone()));
        }
        if was_up {
            tracing::info!(peer = entry.core.name, incarnation = %peer, %error, "peer lost");
            let peer = Peer::new(entry.core, Arc::clone(&self.shared));
            self.shared.events.push(Event::PeerLost { peer, reason });
        }
    }

    /// A data or local connection of a peer broke: the peer cannot be relied on.
    pub(super) fn connection_lost(&mut self, peer: Incarnation) {
        let Some(token) = self.peers.get(&peer).map(|entry| entry.control) else { return };
        if let Some(conn) = self.control(token) {
            conn.link.bye(Farewell::Closing);
        }
        self.flush_control(token);
        self.drop_conn(token);
        self.lose_peer(peer, LinkError::Disconnected);
    }

    /// Ends the connection with a peer, which is told why.
    pub(super) fn farewell(&mut self, peer: Incarnation, farewell: Farewell) {
        let Some(token) = self.peers.get(&peer).map(|entry| entry.control) else { return };
        if let Some(conn) = self.control(token) {
            conn.link.bye(farewell);
        }
        self.handle_link_events(token);
    }

    /// Closes a connection; the kernel ends its watch with it.
    pub(super) fn drop_conn(&mut self, token: u64) {
        self.conns.remove(&token);
        self.conn_timers.remove(token);
    }

    pub(super) fn handle_local(&mut self, token: u64) {
        let regions = &self.shared.regions;
        let Some(Conn::Local(conn)) = self.conns.get_mut(&token) else { return };
        let result = conn.receive(regions).and_then(|()| conn.flush());
        self.settle_local(token, result);
    }

    fn settle_local(&mut self, token: u64, result: transfer_sys::OsResult<()>) {
        let Some(Conn::Local(conn)) = self.conns.get_mut(&token) else { return };
        let epoll = &self.shared.seat.inner;
        let watched =
            result.and_then(|()| epoll.modify(conn.stream.as_fd(), token, true, conn.wants_write()));
        if let Err(error) = watched {
            let peer = conn.peer;
            tracing::debug!(%error, %peer, "local connection lost");
            self.connection_lost(peer);
        }
    }

    /// Tells when a peer has taken in everything that was sent to it, and we what it had sent by then.
    pub(super) fn sync(&mut self, peer: Incarnation, reply: Sender<()>) {
        if self.link_of(peer).is_some_and(Link::sync)
            && let Some(entry) = self.peers.get_mut(&peer)
        {
            entry.syncing.push_back(reply);
        }
    }

    /// Asks a peer for the file of a region.
    pub(super) fn map(&mut self, peer: Incarnation, region: RegionId, reply: Sender<Result<OwnedFd>>) {
        let token = self.peers.get(&peer).and_then(|entry| entry.local);
        let conn = token.and_then(|token| match self.conns.get_mut(&token) {
            Some(Conn::Local(conn)) => Some((token, conn)),
            _ => None,
        });
        let Some((token, conn)) = conn else {
            let _told = reply.send(Err(Error::RegionClosed { region }));
            return;
        };
        conn.map(region, reply);
        let result = conn.flush();
        self.settle_local(token, result);
    }

    pub(super) fn notify(&mut self, peer: Incarnation, bytes: Vec<u8>, reply: &Sender<Result<()>>) {
        let name = self.peers.get(&peer).map_or_else(|| peer.to_string(), |entry| entry.core.name.clone());
        let sent = match self.link_of(peer) {
            Some(link) => link.notify(bytes),
            None => Err(NotifError::NotUp),
        };
        // Who asked may have stopped waiting.
        let _told = reply.send(sent.map_err(|source| Error::NotNotified { peer: name, source }));
    }

    /// Tells of a transfer that is done. A peer that is gone by now does not learn it.
    pub(super) fn tell(&mut self, peer: Incarnation, Word { notif, bump }: Word) {
        let Some(link) = self.link_of(peer) else { return };
        // The counter first: who is woken by the notification finds it raised.
        if let Some((counter, by)) = bump {
            link.bump(counter, by);
        }
        if let Some(Err(error)) = notif.map(|bytes| link.notify_of_data(bytes)) {
            tracing::debug!(%error, %peer, "a notification was not sent");
        }
    }

    /// Sends what was said on control connections since the last call.
    pub(super) fn flush_controls(&mut self) {
        while let Some(token) = self.dirty.pop() {
            self.flush_control(token);
        }
    }

    fn flush_control(&mut self, token: u64) {
        let (now, paused) = (self.shared.clock.now(), self.paused);
        let Some(Conn::Control(conn)) = self.conns.get_mut(&token) else { return };
        conn.dirty = false;
        conn.wire.send(&mut conn.link, now);
        let (readable, writable) = (!paused, conn.wire.is_waiting(&conn.link));
        if (readable, writable) != (conn.readable_watched, conn.writable_watched) {
            (conn.readable_watched, conn.writable_watched) = (readable, writable);
            let epoll = &self.shared.seat.inner;
            if let Err(error) = epoll.modify(conn.wire.stream.as_fd(), token, readable, writable) {
                tracing::error!(%error, "cannot watch a control connection");
                conn.link.disconnected();
            }
        }
    }

    /// Stops reading from peers while the application does not take its events, and goes on when it does.
    pub(super) fn resume_if_room(&mut self) {
        let full = self.shared.events.is_full();
        if full == self.paused {
            return;
        }
        self.paused = full;
        let controls = self.conns.iter().filter(|(_, conn)| matches!(conn, Conn::Control(_)));
        for token in controls.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.flush_control(token);
        }
    }

    pub(super) fn time_out_conns(&mut self, now: Time) {
        self.early.retain(|early| early.ends > now);
        while let Some(token) = self.conn_timers.take_due(now) {
            let paused = self.paused;
            match self.conns.get(&token) {
                Some(Conn::Control(_)) => {
                    let Some(conn) = self.control(token) else { continue };
                    // What we do not read cannot be held against the peer.
                    if paused {
                        conn.link.handle_bytes(&[], now);
                    }
                    conn.link.handle_timeout(now);
                    self.handle_link_events(token);
                    // A heartbeat counts from when it was sent.
                    self.flush_control(token);
                    let next = self.control(token).and_then(|conn| conn.link.poll_timeout());
                    self.set_timer(token, next);
                }
                Some(Conn::Fresh(_)) => self.drop_conn(token),
                _ => {}
            }
        }
    }
}
