//! A simulated agent: what the driver and its tcp backend do, over the real state machines.

use std::collections::BTreeMap;
use std::time::Duration;

use transfer_proto::desc::{DescList, Selection};
use transfer_proto::id::{RailId, XferId};
use transfer_proto::plan::Side;
use transfer_proto::proto::control::Farewell;
use transfer_proto::proto::link::{Link, LinkConfig, LinkEvent, Role};
use transfer_proto::proto::metadata::AgentMetadata;
use transfer_proto::proto::preamble::{self, Flags, Kind, PREAMBLE_BYTES};
use transfer_proto::proto::rails::{RailEvent, Rails, RailsConfig};
use transfer_proto::proto::session::{SESSION_HELLO_BYTES, SessionHello};
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::{Outcome, SliceError, SliceLimits, Xfer};

use crate::memory::{BlockId, Life, Op, Seq, incarnation};
use crate::net::{Came, ConnId, Micros};
use crate::wire::{Completion, DataConn, Slice, Turn};
use crate::world::Outside;

/// After this much silence a peer is lost.
pub(crate) const SILENCE: Duration = Duration::from_millis(1000);
const HANDSHAKE: Duration = Duration::from_millis(800);
const REOPEN_AFTER: Duration = Duration::from_millis(50);

/// How an agent is set up.
#[derive(Clone, Copy)]
pub(crate) struct AgentKnobs {
    pub(crate) rails: u32,
    pub(crate) limits: SliceLimits,
    pub(crate) slices_per_rail: u32,
    /// Bytes that it takes off a data connection at a time.
    pub(crate) turn_bytes: usize,
}

/// A data connection that is being opened.
struct Dialing {
    net: ConnId,
    rail: RailId,
    ends: Time,
    came: Vec<u8>,
}

/// A control connection, and the peer behind it.
struct Peer {
    end: usize,
    link: Link,
    rails: Rails,
    /// Who it is, once it has introduced itself.
    life: Option<Life>,
    /// What its further connections must show, and what ours must.
    secret: u64,
    token: u64,
    dialing: Vec<Dialing>,
    conns: BTreeMap<RailId, DataConn>,
    /// Slices for which no rail had room.
    waiting: Vec<Slice>,
}

struct Task {
    seq: Seq,
    session: ConnId,
    op: Op,
    state: Xfer,
    local: DescList,
    remote: DescList,
    notifies: bool,
    abandoned: bool,
    forced: bool,
}

/// What the world hands in to be moved.
pub(crate) struct Order {
    pub(crate) seq: Seq,
    pub(crate) session: ConnId,
    pub(crate) op: Op,
    pub(crate) local: DescList,
    pub(crate) remote: DescList,
    pub(crate) notifies: bool,
    pub(crate) timeout: Duration,
}

pub(crate) struct Agent {
    pub(crate) life: Life,
    knobs: AgentKnobs,
    born: Micros,
    /// How far its clock has jumped.
    jumped: Micros,
    /// When it meant to look again.
    expected: Option<Time>,
    fresh: BTreeMap<ConnId, Vec<u8>>,
    peers: BTreeMap<ConnId, Peer>,
    slots: Vec<(u32, Option<Task>)>,
    done: Vec<Completion>,
    /// Completions that come once more.
    late: Vec<Completion>,
    /// Blocks that were taken from transfers, and may still have somebody inside.
    pub(crate) revoking: Vec<(BlockId, Seq)>,
}

impl Agent {
    pub(crate) fn new(life: Life, knobs: AgentKnobs, now: Micros) -> Self {
        let (jumped, expected) = (0, None);
        let (fresh, peers, slots, done, late, revoking) = Default::default();
        Self { life, knobs, born: now, jumped, expected, fresh, peers, slots, done, late, revoking }
    }

    fn time(&self, now: Micros) -> Time {
        Time::at(Duration::from_micros(now - self.born + self.jumped))
    }

    /// Its clock goes forward, as after a suspend.
    pub(crate) fn jump(&mut self, by: Micros) {
        self.jumped += by;
    }

    fn metadata(&self) -> AgentMetadata {
        AgentMetadata::new(format!("node {}", self.life.0), incarnation(self.life))
    }

    fn add_peer(&mut self, session: ConnId, end: usize, link: Link, secret: u64) {
        let config = RailsConfig::new(SILENCE, self.knobs.slices_per_rail);
        let config = if end == 0 { config.reopening(REOPEN_AFTER) } else { config };
        let (life, token, rails) = (None, 0, Rails::new(config));
        let (dialing, conns, waiting) = Default::default();
        let peer = Peer { end, link, rails, life, secret, token, dialing, conns, waiting };
        self.peers.insert(session, peer);
    }

    /// Connects to a peer.
    pub(crate) fn connect(&mut self, node: usize, outside: &mut Outside) {
        let session = outside.open(Kind::Control, [self.life.0, node]);
        let secret = outside.rng.next();
        let config = LinkConfig::new(HANDSHAKE, SILENCE, 1 << 20);
        let link = Link::initiator(config, self.metadata(), secret, self.time(outside.now));
        self.add_peer(session, 0, link, secret);
    }

    pub(crate) fn is_connecting(&self) -> bool {
        self.peers.values().any(|peer| peer.end == 0)
    }

    /// Peers that can be used.
    pub(crate) fn up(&self) -> Vec<(ConnId, Life)> {
        let up = |(session, peer): (&ConnId, &Peer)| {
            peer.life.filter(|_| peer.link.is_up()).map(|life| (*session, life))
        };
        self.peers.iter().filter_map(up).collect()
    }

    /// Whether it has one peer, which is up, and none that it has not noticed the loss of.
    pub(crate) fn is_settled(&self) -> bool {
        self.peers.len() == 1 && self.up().len() == 1
    }

    /// Starts a transfer.
    pub(crate) fn post(&mut self, order: Order, outside: &mut Outside) {
        let Order { seq, session, op, local, remote, notifies, timeout } = order;
        let state = Xfer::new(self.knobs.limits, self.time(outside.now) + timeout);
        let slot = self.slots.iter().position(|(_, task)| task.is_none()).unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        let id = XferId::new(u32::try_from(slot).unwrap(), self.slots[slot].0);
        outside.memory.name(seq, id);
        let (abandoned, forced) = (false, false);
        self.slots[slot].1 =
            Some(Task { seq, session, op, state, local, remote, notifies, abandoned, forced });
    }

    /// Asks for the end of a transfer.
    pub(crate) fn cancel(&mut self, seq: Seq) {
        let of = |task: &&mut Task| task.seq == seq;
        if let Some(task) = self.slots.iter_mut().filter_map(|(_, task)| task.as_mut()).find(of) {
            task.state.cancel();
        }
    }

    /// One turn of the driver; returns when it wants the next one.
    pub(crate) fn turn(&mut self, outside: &mut Outside) -> Option<Micros> {
        let now = self.time(outside.now);
        if self.expected.is_some_and(|expected| now > expected + SILENCE / 4) {
            for peer in self.peers.values_mut() {
                peer.link.handle_bytes(&[], now);
                peer.rails.excuse(now);
            }
        }
        let more = self.read_all(now, outside);
        self.time_out(now);
        self.settle(now, outside);
        self.flush_all(now, outside);
        self.settle(now, outside);
        self.repeat_late(outside);
        self.flush_links(now, outside);
        self.check_revoked(outside);
        let next = if more { Some(now + Duration::from_micros(outside.rng.range(1, 500))) } else { None };
        let next = next.into_iter().chain(self.next_timeout()).min();
        self.expected = next;
        next.map(|at| outside.now + u64::try_from(at.after(now).as_micros()).unwrap() + 1)
    }

    fn next_timeout(&self) -> Option<Time> {
        let links = self.peers.values().filter_map(|peer| peer.link.poll_timeout());
        let rails = self.peers.values().filter_map(|peer| peer.rails.poll_timeout());
        let dials = self.peers.values().flat_map(|peer| peer.dialing.iter().map(|dialing| dialing.ends));
        let waiting = |task: &&Task| !task.forced;
        let tasks = self.slots.iter().filter_map(|(_, task)| task.as_ref()).filter(waiting);
        links.chain(rails).chain(dials).chain(tasks.map(|task| task.state.poll_timeout())).min()
    }

    fn read_all(&mut self, now: Time, outside: &mut Outside) -> bool {
        let mut more = false;
        for net in outside.net.accept(self.life.0, outside.now) {
            self.fresh.insert(net, Vec::new());
        }
        for net in self.fresh.keys().copied().collect::<Vec<_>>() {
            self.read_fresh(net, now, outside);
        }
        let mut sessions: Vec<_> = self.peers.keys().copied().collect();
        outside.rng.shuffle(&mut sessions);
        for session in sessions {
            let control_first = outside.rng.percent(50);
            if control_first {
                self.read_control(session, now, outside);
            }
            let peer = self.peers.get_mut(&session).unwrap();
            peer.read_dialing(now, self.life, outside);
            let mut rails: Vec<_> = peer.conns.keys().copied().collect();
            outside.rng.shuffle(&mut rails);
            for rail in rails {
                let conn = peer.conns.get_mut(&rail).unwrap();
                match conn.receive(self.knobs.turn_bytes, outside, &mut self.done) {
                    Turn::Idle => {}
                    Turn::Moved => {
                        more = true;
                        peer.rails.progressed(rail, now);
                    }
                    Turn::Broken => peer.break_rail(rail, now, outside, &mut self.done),
                }
            }
            if !control_first {
                self.read_control(session, now, outside);
            }
        }
        more
    }

    /// A connection that was accepted says what it is.
    fn read_fresh(&mut self, net: ConnId, now: Time, outside: &mut Outside) {
        let wanted = match outside.net.kind(net) {
            Kind::Data => PREAMBLE_BYTES + SESSION_HELLO_BYTES,
            // Its preamble and proof come before the link, and are not simulated.
            _ => 0,
        };
        let Some(held) = self.fresh.get_mut(&net) else { return };
        match outside.receive(net, 1, wanted - held.len()) {
            Came::Bytes(bytes) => held.extend(bytes),
            Came::Nothing => {}
            Came::End => {
                self.fresh.remove(&net);
                return outside.close(net, 1);
            }
        }
        if held.len() < wanted {
            return;
        }
        let held = self.fresh.remove(&net).unwrap();
        if outside.net.kind(net) == Kind::Control {
            let config = LinkConfig::new(HANDSHAKE, SILENCE, 1 << 20);
            let link = Link::responder(config, incarnation(self.life), now);
            let secret = outside.rng.next();
            return self.add_peer(net, 1, link, secret);
        }
        let hello = SessionHello::decode(held[PREAMBLE_BYTES..].try_into().unwrap());
        let me = self.life;
        let expecting = |(_, peer): &(&ConnId, &mut Peer)| peer.secret == hello.token && peer.life.is_some();
        let Some((session, peer)) = self.peers.iter_mut().find(expecting) else {
            return outside.close(net, 1);
        };
        outside.note(|| format!("{me:?} is offered rail {} of session {session}", hello.rail));
        if peer.rails.opened(hello.rail, now).is_err() {
            return outside.close(net, 1);
        }
        // A connection that has just been opened takes so few bytes; if it is broken, that shows soon.
        let _sent = outside.send(net, 1, &preamble::encode(Kind::Data, Flags::NONE));
        peer.adopt((net, 1), hello.rail, me);
    }

    fn read_control(&mut self, session: ConnId, now: Time, outside: &mut Outside) {
        let peer = self.peers.get_mut(&session).unwrap();
        match outside.receive(session, peer.end, 1 << 16) {
            Came::Bytes(bytes) => peer.link.handle_bytes(&bytes, now),
            Came::Nothing => {}
            Came::End => peer.link.disconnected(),
        }
    }

    fn time_out(&mut self, now: Time) {
        for peer in self.peers.values_mut() {
            peer.link.handle_timeout(now);
            peer.rails.handle_timeout(now);
        }
        for task in self.slots.iter_mut().filter_map(|(_, task)| task.as_mut()) {
            task.state.handle_timeout(now);
        }
    }

    /// Carries what each machine says to the others until nothing is said any more.
    fn settle(&mut self, now: Time, outside: &mut Outside) {
        loop {
            let mut moved = false;
            for session in self.peers.keys().copied().collect::<Vec<_>>() {
                while let Some(event) = self.peers.get_mut(&session).and_then(|peer| peer.link.poll_event()) {
                    moved = true;
                    self.handle_link(session, event, now, outside);
                }
                while let Some(event) = self.peers.get_mut(&session).and_then(|peer| peer.rails.poll_event())
                {
                    moved = true;
                    self.handle_rail(session, event, now, outside);
                }
                if let Some(peer) = self.peers.get_mut(&session) {
                    peer.place_waiting(now, &self.slots);
                }
            }
            for completion in std::mem::take(&mut self.done) {
                moved = true;
                if outside.rng.percent(10) {
                    self.late.push(completion.clone());
                }
                self.complete(completion, now);
            }
            for slot in 0..self.slots.len() {
                moved |= self.pump(slot, now, outside);
            }
            if !moved {
                return;
            }
        }
    }

    fn handle_link(&mut self, session: ConnId, event: LinkEvent, now: Time, outside: &mut Outside) {
        let me = self.life;
        outside.note(|| format!("{me:?} session {session}: {event:?}").chars().take(120).collect());
        match event {
            LinkEvent::Hello { metadata, token } => {
                let theirs = metadata.incarnation;
                let known = self.peers.values().any(|peer| peer.life.map(incarnation) == Some(theirs));
                let (metadata, knobs) = (self.metadata(), self.knobs);
                let peer = self.peers.get_mut(&session).unwrap();
                if known {
                    return peer.link.bye(Farewell::Duplicate);
                }
                let life = u32::from_be_bytes(theirs.to_bytes()[..4].try_into().unwrap());
                (peer.life, peer.token) = (Some((1 - me.0, life)), token);
                if peer.link.role() == Role::Responder {
                    peer.link.introduce(metadata, peer.secret);
                } else {
                    (0..knobs.rails).for_each(|slot| peer.dial(RailId::new(slot, 0), me, now, outside));
                }
            }
            LinkEvent::RailClosed(rail) => {
                let peer = self.peers.get_mut(&session).unwrap();
                let heard = peer.rails.handle_closed(rail, now);
                outside.judge(heard.map_err(|error| error.to_string()));
            }
            LinkEvent::Notif(bytes) => {
                let seq = usize::try_from(u64::from_le_bytes(bytes.try_into().unwrap())).unwrap();
                let told = outside.memory.notified(seq, me);
                outside.judge(told);
            }
            LinkEvent::Closed(_) => self.lose(session, now, outside),
            _ => {}
        }
    }

    fn handle_rail(&mut self, session: ConnId, event: RailEvent, now: Time, outside: &mut Outside) {
        let me = self.life;
        outside.note(|| format!("{me:?} session {session}: {event:?}"));
        let Some(peer) = self.peers.get_mut(&session) else { return };
        match event {
            RailEvent::Close(rail) => peer.break_rail(rail, now, outside, &mut self.done),
            RailEvent::Tell(rail) => peer.link.rail_closed(rail),
            RailEvent::Open(rail) => peer.dial(rail, me, now, outside),
            // Every transfer looks at its fences in each turn.
            RailEvent::Closed(_) => {}
            _ => peer.link.bye(Farewell::Closing),
        }
    }

    /// Everything that hangs on a peer ends.
    fn lose(&mut self, session: ConnId, now: Time, outside: &mut Outside) {
        let Some(mut peer) = self.peers.remove(&session) else { return };
        for rail in peer.conns.keys().copied().collect::<Vec<_>>() {
            peer.break_rail(rail, now, outside, &mut self.done);
        }
        peer.dialing.iter().for_each(|dialing| outside.close(dialing.net, 0));
        let lost = |slice: Slice| Completion { id: slice.id, rail: None, result: Err(SliceError::RailLost) };
        self.done.extend(peer.waiting.into_iter().map(lost));
        // What it had to say last.
        let _sent = outside.send(session, peer.end, peer.link.unsent());
        outside.close(session, peer.end);
        outside.memory.session_lost(session, self.life);
        for task in self.slots.iter_mut().filter_map(|(_, task)| task.as_mut()) {
            if task.session == session {
                task.state.peer_lost();
            }
        }
    }

    fn complete(&mut self, completion: Completion, now: Time) {
        let Completion { id: (xfer, number), rail, result } = completion;
        let (generation, task) = &mut self.slots[xfer.slot() as usize];
        let Some(task) = task.as_mut().filter(|_| *generation == xfer.generation()) else { return };
        if let (Some((rail, bytes)), Some(peer)) = (rail, self.peers.get_mut(&task.session)) {
            match result {
                Err(SliceError::RailLost) => {}
                _ => peer.rails.completed(rail, bytes, now),
            }
        }
        task.state.handle_completion(number, rail.map(|(rail, _)| rail), result);
    }

    /// Tells transfers what they have been told before, as a backend may that is closing a connection.
    fn repeat_late(&mut self, outside: &mut Outside) {
        for Completion { id: (xfer, number), rail, result } in
            self.late.extract_if(.., |_| outside.rng.percent(30))
        {
            let (generation, task) = &mut self.slots[xfer.slot() as usize];
            if let Some(task) = task.as_mut().filter(|_| *generation == xfer.generation()) {
                task.state.handle_completion(number, rail.map(|(rail, _)| rail), result);
            }
        }
    }

    /// Goes on with a transfer. Whether anything happened.
    fn pump(&mut self, slot: usize, now: Time, outside: &mut Outside) -> bool {
        let id = XferId::new(u32::try_from(slot).unwrap(), self.slots[slot].0);
        let Some(task) = &mut self.slots[slot].1 else { return false };
        let mut peer = self.peers.get_mut(&task.session);
        if let Some(peer) = &peer {
            task.state.lift_fences(|rail| peer.rails.is_closed(rail));
        } else {
            task.state.peer_lost();
        }
        let sides = (Side::new(&task.local, &Selection::All), Side::new(&task.remote, &Selection::All));
        let mut pieces = Vec::new();
        let mut moved = false;
        while let Some(post) = task.state.poll_slice(sides, &mut pieces) {
            moved = true;
            let slice = Slice {
                id: (id, post.id),
                op: task.op,
                pieces: std::mem::take(&mut pieces),
                bytes: post.bytes,
            };
            if let Some(peer) = &mut peer {
                peer.waiting.push(slice);
            }
        }
        let forced = task.state.poll_timeout() <= now;
        let due = task.state.is_stopping() && (!task.abandoned || forced && !task.forced);
        if due {
            (task.abandoned, task.forced, moved) = (true, forced, true);
            if let Some(peer) = peer {
                peer.abandon(id, forced, now, outside, &mut self.done);
            }
        }
        if let Some(outcome) = task.state.poll_outcome(sides) {
            let task = self.slots[slot].1.take().unwrap();
            self.slots[slot].0 += 1;
            self.finish(&task, outcome, outside);
            return true;
        }
        moved
    }

    fn finish(&mut self, task: &Task, outcome: Outcome, outside: &mut Outside) {
        let me = self.life;
        outside.note(|| format!("{me:?} transfer {} ends: {outcome:?}", task.seq));
        let ended = outside.memory.ended(task.seq, outcome);
        outside.judge(ended);
        if matches!(outcome, Outcome::Done { .. }) && task.notifies {
            let bytes = (task.seq as u64).to_le_bytes().to_vec();
            // A peer that is gone by now does not get it.
            if let Some(peer) = self.peers.get_mut(&task.session) {
                let _sent = peer.link.notify_of_data(bytes);
            }
        }
    }

    fn flush_all(&mut self, now: Time, outside: &mut Outside) {
        for peer in self.peers.values_mut() {
            let mut rails: Vec<_> = peer.conns.keys().copied().collect();
            outside.rng.shuffle(&mut rails);
            for rail in rails {
                let conn = peer.conns.get_mut(&rail).unwrap();
                for bytes in conn.taken_back.drain(..) {
                    peer.rails.taken_back(rail, bytes);
                }
                if let Turn::Broken = conn.flush(outside) {
                    peer.break_rail(rail, now, outside, &mut self.done);
                }
            }
        }
        self.flush_links(now, outside);
    }

    fn flush_links(&mut self, now: Time, outside: &mut Outside) {
        for (session, peer) in &mut self.peers {
            match outside.send(*session, peer.end, peer.link.unsent()) {
                Some(taken) => peer.link.sent(taken, now),
                // The reading side sees the end too, and tells it.
                None => peer.link.sent(usize::MAX, now),
            }
        }
    }

    /// Gives blocks back that were revoked, once nobody is inside.
    fn check_revoked(&mut self, outside: &mut Outside) {
        let peers = &self.peers;
        let left = |taken: &mut (BlockId, Seq)| {
            !peers.values().flat_map(|peer| peer.conns.values()).any(|conn| conn.is_inside(taken.0))
        };
        for taken in self.revoking.extract_if(.., left) {
            outside.note(|| format!("block {:?} is its owner's again, after transfer {}", taken.0, taken.1));
            outside.memory.given_away(taken, &mut outside.rng);
        }
    }

    /// What is left, once everything is over.
    pub(crate) fn left(&self) -> Option<String> {
        if let Some(task) = self.slots.iter().find_map(|(_, task)| task.as_ref()) {
            let (flying, fenced) = (task.state.in_flight(), task.state.fenced());
            return Some(format!("transfer {} with {flying} slices in flight, {fenced} fenced", task.seq));
        }
        for conn in self.peers.values().flat_map(|peer| peer.conns.values()) {
            if !conn.left().is_empty() {
                return Some(format!("rail {} with{}", conn.rail, conn.left()));
            }
        }
        for peer in self.peers.values() {
            if let Some(rail) = peer.conns.keys().find(|rail| peer.rails.in_flight(**rail) > 0) {
                return Some(format!("rail {rail} with {} slices", peer.rails.in_flight(*rail)));
            }
        }
        self.revoking.first().map(|block| format!("block {block:?} that was revoked"))
    }
}

impl Peer {
    /// Opens a rail.
    fn dial(&mut self, rail: RailId, me: Life, now: Time, outside: &mut Outside) {
        let Some(theirs) = self.life else { return };
        let net = outside.open(Kind::Data, [me.0, theirs.0]);
        let hello = SessionHello::new(incarnation(me), self.token, rail).encode();
        let _sent =
            outside.send(net, 0, &[&preamble::encode(Kind::Data, Flags::NONE)[..], &hello[..]].concat());
        self.dialing.push(Dialing { net, rail, ends: now + HANDSHAKE / 2, came: Vec::new() });
    }

    fn read_dialing(&mut self, now: Time, me: Life, outside: &mut Outside) {
        for mut dialing in std::mem::take(&mut self.dialing) {
            let missing = PREAMBLE_BYTES - dialing.came.len();
            let (net, rail) = (dialing.net, dialing.rail);
            let ended = match outside.receive(net, 0, missing) {
                Came::Bytes(bytes) => {
                    dialing.came.extend(bytes);
                    false
                }
                Came::Nothing => dialing.ends <= now,
                Came::End => true,
            };
            if ended {
                outside.close(net, 0);
                self.rails.lost(rail, now);
                if !self.link.is_up() {
                    self.link.bye(Farewell::Closing);
                }
            } else if dialing.came.len() < PREAMBLE_BYTES {
                self.dialing.push(dialing);
            } else if self.rails.opened(rail, now).is_ok() {
                self.adopt((net, 0), rail, me);
            } else {
                outside.close(net, 0);
            }
        }
        if self.end == 0 && self.dialing.is_empty() && !self.conns.is_empty() {
            self.link.opened();
        }
    }

    fn adopt(&mut self, net: (ConnId, usize), rail: RailId, me: Life) {
        if let Some(theirs) = self.life {
            self.conns.insert(rail, DataConn::new(net, rail, (me, theirs)));
        }
    }

    /// Closes this end of a rail: nothing lands any more, and its slices are lost.
    fn break_rail(&mut self, rail: RailId, now: Time, outside: &mut Outside, done: &mut Vec<Completion>) {
        if let Some(conn) = self.conns.remove(&rail) {
            outside.close(conn.net, conn.end);
            conn.end(done);
            self.rails.lost(rail, now);
        }
    }

    /// Puts slices on rails that have room.
    fn place_waiting(&mut self, now: Time, slots: &[(u32, Option<Task>)]) {
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        while let Some(slice) = waiting.next() {
            let chosen = self.rails.choose(slice.bytes, now);
            let conn = chosen.and_then(|rail| self.conns.get_mut(&rail));
            let (Some(rail), Some(conn)) = (chosen, conn) else {
                self.waiting = std::iter::once(slice).chain(waiting).collect();
                return;
            };
            if let Some(task) = &slots[slice.id.0.slot() as usize].1 {
                self.rails.posted(rail, slice.bytes, now);
                conn.submit(slice, &task.local, &task.remote);
            }
        }
    }

    /// Calls the slices of a transfer back; with `force`, at the price of the rails that carry them.
    fn abandon(
        &mut self,
        xfer: XferId,
        force: bool,
        now: Time,
        outside: &mut Outside,
        done: &mut Vec<Completion>,
    ) {
        let waiting = self.waiting.extract_if(.., |slice| slice.id.0 == xfer);
        let back = |slice: Slice| Completion { id: slice.id, rail: None, result: Err(SliceError::Abandoned) };
        done.extend(waiting.map(back));
        for rail in self.conns.keys().copied().collect::<Vec<_>>() {
            let carries = self.conns.get_mut(&rail).is_some_and(|conn| conn.abandon(xfer, done));
            if carries && force {
                self.break_rail(rail, now, outside, done);
            }
        }
    }
}
