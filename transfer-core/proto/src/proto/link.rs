//! The state machine of a control connection, from the moment on at which both ends know that they may talk:
//! introductions, heartbeats, notifications, regions that come and go.
//!
//! Bytes and time go in; bytes to send and events come out. It never blocks and owns no socket.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::codec::DecodeError;
use crate::id::{CounterId, Incarnation, RailId, RegionId};
use crate::proto::control::{Deframer, Farewell, Frame, NOTIF_MAX};
use crate::proto::metadata::{AgentMetadata, RegionInfo};
use crate::proto::time::Time;

/// Which side opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// This one.
    Initiator,
    /// The peer.
    Responder,
}

/// Times of a link.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LinkConfig {
    /// The handshake must be over after this.
    pub handshake_timeout: Duration,
    /// The peer is lost when it said nothing for this long. A quarter of it is the heartbeat.
    pub silence_max: Duration,
    /// Bytes that may wait to be sent before notifications are refused.
    pub unsent_max: usize,
}

impl LinkConfig {
    /// All fields.
    #[must_use]
    pub fn new(handshake_timeout: Duration, silence_max: Duration, unsent_max: usize) -> Self {
        Self { handshake_timeout, silence_max, unsent_max }
    }
}

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// It sent something that is not in the protocol.
    #[error("malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// It sent something out of order.
    #[error("unexpected {frame} message while {state}")]
    Unexpected {
        /// What came.
        frame: &'static str,
        /// What was going on.
        state: &'static str,
    },
    /// Something came that the peer's key does not fit: somebody on the way changes what is sent.
    #[error("what came was not sealed by the peer: it was changed on the way")]
    Tampered,
    /// The handshake took too long.
    #[error("the handshake did not finish in time")]
    HandshakeTimeout,
    /// Nothing was heard for too long: the peer hangs, or the way to it is cut.
    #[error("silent for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The connection broke: the peer died, or the way to it is cut.
    #[error("connection lost")]
    Disconnected,
    /// The peer said that it goes.
    #[error("{}", farewell_text(*farewell))]
    Farewell {
        /// Its reason.
        farewell: Farewell,
        /// Who said it.
        incarnation: Incarnation,
    },
    /// This side ended it.
    #[error("closed by this agent")]
    ClosedHere,
}

fn farewell_text(farewell: Farewell) -> &'static str {
    match farewell {
        Farewell::Closing => "the peer closed the connection",
        Farewell::Duplicate => "another connection to the peer stands already",
        Farewell::NotAllowed => "the peer accepts only its own host",
        Farewell::Protocol => "the peer says that this agent broke the protocol",
    }
}

/// What a link tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkEvent {
    /// The peer introduced itself. The initiator now opens its further connections and calls
    /// [`Link::opened`]; the responder waits for them.
    Hello {
        /// All about the peer.
        metadata: AgentMetadata,
        /// What our further connections must show.
        token: u64,
    },
    /// The peer can be used.
    Up,
    /// Bytes for the application.
    Notif(Vec<u8>),
    /// A counter of ours is to be raised: data of the peer has landed.
    Bump {
        /// Which.
        counter: CounterId,
        /// By how much.
        by: u64,
    },
    /// The peer registered a region.
    RegionAdd(RegionInfo),
    /// The peer has deregistered a region.
    RegionDel(RegionId),
    /// The peer has closed its end of a rail.
    RailClosed(RailId),
    /// The peer asks to be told when it has been sent everything that this side's application has said by now; then
    /// [`Link::synced`] is to be called.
    Sync,
    /// The peer has taken in what was sent before [`Link::sync`], and we what it had sent by then.
    Synced,
    /// The link ended; nothing comes after this.
    Closed(LinkError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Hello,
    /// Further connections are being opened.
    Opening,
    Up,
    Closed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Hello => "waiting for Hello",
            Self::Opening => "waiting for Ready",
            Self::Up => "up",
            Self::Closed => "closed",
        }
    }
}

/// Why a notification was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotifError {
    /// Longer than [`NOTIF_MAX`].
    #[error("a notification of {len} bytes is over the limit of {}", NOTIF_MAX)]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The link is not up.
    #[error("the peer is not connected")]
    NotUp,
    /// The peer takes them too slowly.
    #[error("the peer does not take notifications: {unsent} bytes are waiting")]
    Busy {
        /// Bytes that wait.
        unsent: usize,
    },
}

/// A control connection.
#[derive(Debug)]
pub struct Link {
    role: Role,
    state: State,
    config: LinkConfig,
    me: Incarnation,
    introduced: bool,
    deframer: Deframer,
    out: Vec<u8>,
    events: VecDeque<LinkEvent>,
    handshake_ends: Time,
    heard: Time,
    sent: Time,
}

impl Link {
    /// The side that opened the connection: sends `Hello` at once.
    #[must_use]
    pub fn initiator(config: LinkConfig, me: AgentMetadata, token: u64, now: Time) -> Self {
        let mut link = Self::new(Role::Initiator, config, me.incarnation, now);
        link.introduce(me, token);
        link
    }

    /// Says who this agent is. From here on the peer knows its regions, and is told when they change.
    pub fn introduce(&mut self, me: AgentMetadata, token: u64) {
        self.introduced = true;
        self.send(&Frame::Hello { metadata: me, token });
    }

    /// The side that was connected to. It introduces itself, by [`Link::introduce`], only after the peer has: then the peer's further connections find it known.
    #[must_use]
    pub fn responder(config: LinkConfig, me: Incarnation, now: Time) -> Self {
        Self::new(Role::Responder, config, me, now)
    }

    fn new(role: Role, config: LinkConfig, me: Incarnation, now: Time) -> Self {
        Self {
            role,
            state: State::Hello,
            me,
            introduced: false,
            deframer: Deframer::default(),
            out: Vec::new(),
            events: VecDeque::new(),
            handshake_ends: now + config.handshake_timeout,
            heard: now,
            sent: now,
            config,
        }
    }

    /// Which side opened it.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the peer can be used.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Bytes came.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Time) {
        self.heard = now;
        self.deframer.push(bytes);
        while self.state != State::Closed {
            match self.deframer.next_frame() {
                Ok(Some(frame)) => self.handle_frame(frame),
                Ok(None) => return,
                Err(error) => self.offend(error.into()),
            }
        }
    }

    fn handle_frame(&mut self, frame: Frame) {
        match (self.state, frame) {
            (_, Frame::Bye { farewell, incarnation }) => {
                self.close(LinkError::Farewell { farewell, incarnation });
            }
            (_, Frame::Ping) => {}
            (State::Hello, Frame::Hello { metadata, token }) => {
                self.state = State::Opening;
                self.events.push_back(LinkEvent::Hello { metadata, token });
            }
            (State::Opening, Frame::Ready) if self.role == Role::Responder => self.up(),
            // Regions may change from the moment on at which they were told.
            (State::Opening | State::Up, Frame::RegionAdd(info)) => {
                self.events.push_back(LinkEvent::RegionAdd(info));
            }
            (State::Opening | State::Up, Frame::RegionDel(id)) => {
                self.events.push_back(LinkEvent::RegionDel(id));
            }
            (State::Opening | State::Up, Frame::RailClosed(id)) => {
                self.events.push_back(LinkEvent::RailClosed(id));
            }
            (State::Opening | State::Up, Frame::Sync) => self.events.push_back(LinkEvent::Sync),
            (State::Up, Frame::Synced) => self.events.push_back(LinkEvent::Synced),
            (State::Up, Frame::Bump { counter, by }) => {
                self.events.push_back(LinkEvent::Bump { counter, by });
            }
            (State::Up, Frame::Notif(bytes)) => self.events.push_back(LinkEvent::Notif(bytes)),
            // The responder is up, and may notify, before this side has seen the last of its own connections.
            (State::Opening, Frame::Bump { counter, by }) if self.role == Role::Initiator => {
                self.events.push_back(LinkEvent::Bump { counter, by });
            }
            (State::Opening, Frame::Notif(bytes)) if self.role == Role::Initiator => {
                self.events.push_back(LinkEvent::Notif(bytes));
            }
            (state, frame) => {
                self.offend(LinkError::Unexpected { frame: frame.name(), state: state.name() });
            }
        }
    }

    /// The initiator's further connections stand.
    pub fn opened(&mut self) {
        if self.state == State::Opening && self.role == Role::Initiator {
            self.send(&Frame::Ready);
            self.up();
        }
    }

    fn up(&mut self) {
        self.state = State::Up;
        self.events.push_back(LinkEvent::Up);
    }

    /// Sends bytes to the peer's application.
    ///
    /// # Errors
    /// [`NotifError`]; nothing was sent then.
    pub fn notify(&mut self, bytes: Vec<u8>) -> Result<(), NotifError> {
        if self.state == State::Up && self.out.len() > self.config.unsent_max {
            return Err(NotifError::Busy { unsent: self.out.len() });
        }
        self.notify_of_data(bytes)
    }

    /// The same for the notification of a transfer that is done: it is never too much, since the number of
    /// transfers bounds it.
    ///
    /// # Errors
    /// [`NotifError`] but for [`NotifError::Busy`].
    pub fn notify_of_data(&mut self, bytes: Vec<u8>) -> Result<(), NotifError> {
        if bytes.len() > NOTIF_MAX {
            return Err(NotifError::TooLong { len: bytes.len() });
        }
        if self.state != State::Up {
            return Err(NotifError::NotUp);
        }
        self.send(&Frame::Notif(bytes));
        Ok(())
    }

    /// Raises a counter of the peer, once the data that it counts has landed. Returns whether the link is up.
    pub fn bump(&mut self, counter: CounterId, by: u64) -> bool {
        self.state == State::Up && self.send_if_known(&Frame::Bump { counter, by })
    }

    /// Tells of a region that was registered. Telling twice does no harm.
    pub fn add_region(&mut self, info: RegionInfo) {
        self.send_if_known(&Frame::RegionAdd(info));
    }

    /// Tells that a region was deregistered.
    pub fn delete_region(&mut self, id: RegionId) {
        self.send_if_known(&Frame::RegionDel(id));
    }

    /// Tells the peer that a rail is closed at this end.
    pub fn rail_closed(&mut self, id: RailId) {
        self.send_if_known(&Frame::RailClosed(id));
    }

    /// Asks the peer to answer once it has taken in everything that was sent before. Returns whether an answer is
    /// to be waited for.
    pub fn sync(&mut self) -> bool {
        self.state == State::Up && self.send_if_known(&Frame::Sync)
    }

    /// Answers [`LinkEvent::Sync`].
    pub fn synced(&mut self) {
        self.send_if_known(&Frame::Synced);
    }

    /// The peer knows our regions from our `Hello` on, until the link closes.
    fn send_if_known(&mut self, frame: &Frame) -> bool {
        let known = self.introduced && self.state != State::Closed;
        if known {
            self.send(frame);
        }
        known
    }

    fn send(&mut self, frame: &Frame) {
        frame.encode(&mut self.out);
    }

    /// Says goodbye and ends the link.
    pub fn bye(&mut self, farewell: Farewell) {
        if self.state != State::Closed {
            self.send(&Frame::Bye { farewell, incarnation: self.me });
            self.close(LinkError::ClosedHere);
        }
    }

    /// The peer broke the protocol: tells it, and ends the link.
    fn offend(&mut self, error: LinkError) {
        self.send(&Frame::Bye { farewell: Farewell::Protocol, incarnation: self.me });
        self.close(error);
    }

    /// What came did not authenticate.
    pub fn tampered(&mut self) {
        self.close(LinkError::Tampered);
    }

    /// The connection broke.
    pub fn disconnected(&mut self) {
        self.close(LinkError::Disconnected);
    }

    fn close(&mut self, error: LinkError) {
        if self.state != State::Closed {
            self.state = State::Closed;
            self.events.push_back(LinkEvent::Closed(error));
        }
    }

    /// When [`Link::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Closed => None,
            State::Up => Some((self.heard + self.config.silence_max).min(self.sent + self.heartbeat())),
            _ => Some(self.handshake_ends),
        }
    }

    fn heartbeat(&self) -> Duration {
        self.config.silence_max / 4
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        match self.state {
            State::Closed => {}
            State::Up => {
                if now >= self.heard + self.config.silence_max {
                    self.close(LinkError::Silent(self.config.silence_max));
                } else if now >= self.sent + self.heartbeat() {
                    self.sent = now;
                    self.send(&Frame::Ping);
                }
            }
            _ if now >= self.handshake_ends => self.close(LinkError::HandshakeTimeout),
            _ => {}
        }
    }

    /// Bytes to send; the owner calls [`Link::sent`] with as many as the connection took.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        &self.out
    }

    /// The connection took so many of the bytes.
    pub fn sent(&mut self, count: usize, now: Time) {
        let count = count.min(self.out.len());
        if count > 0 {
            self.out.drain(..count);
            self.sent = now;
        }
    }

    /// What happened next.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn metadata(n: u8) -> AgentMetadata {
        AgentMetadata::new("agent".to_string(), Incarnation::from_bytes([n; 16]))
    }

    fn config() -> LinkConfig {
        LinkConfig::new(Duration::from_secs(1), Duration::from_secs(4), 1 << 20)
    }

    fn at(ms: u64) -> Time {
        Time::at(Duration::from_millis(ms))
    }

    /// Two links and the wire between them.
    struct Pair {
        a: Link,
        b: Link,
    }

    impl Pair {
        fn new() -> Self {
            let a = Link::initiator(config(), metadata(1), 11, at(0));
            Self { a, b: Link::responder(config(), metadata(2).incarnation, at(0)) }
        }

        /// Carries all bytes, in parts of `step`.
        fn carry(&mut self, step: usize, now: Time) {
            for turn in 0..8 {
                let (from, to) =
                    if turn % 2 == 0 { (&mut self.a, &mut self.b) } else { (&mut self.b, &mut self.a) };
                let bytes = from.unsent().to_vec();
                from.sent(usize::MAX, now);
                for part in bytes.chunks(step) {
                    to.handle_bytes(part, now);
                }
            }
        }

        fn up(step: usize) -> Self {
            let mut pair = Self::new();
            pair.carry(step, at(1));
            assert!(matches!(pair.b.poll_event(), Some(LinkEvent::Hello { token: 11, .. })));
            pair.b.introduce(metadata(2), 22);
            pair.carry(step, at(1));
            assert!(matches!(pair.a.poll_event(), Some(LinkEvent::Hello { token: 22, .. })));
            pair.a.opened();
            pair.carry(step, at(2));
            assert_eq!(
                (pair.a.poll_event(), pair.b.poll_event()),
                (Some(LinkEvent::Up), Some(LinkEvent::Up))
            );
            pair
        }
    }

    #[test]
    fn two_agents_meet_however_the_bytes_are_cut() {
        for step in [1, 3, 1000] {
            let mut pair = Pair::up(step);
            pair.b.notify(b"hello".to_vec()).unwrap();
            pair.carry(step, at(3));
            assert_eq!(pair.a.poll_event(), Some(LinkEvent::Notif(b"hello".to_vec())));
        }
    }

    #[test]
    fn a_silent_peer_is_lost_within_the_bound_and_a_living_one_is_not() {
        let mut pair = Pair::up(1000);
        for ms in (100..20_000).step_by(100) {
            pair.a.handle_timeout(at(ms));
            pair.b.handle_timeout(at(ms));
            pair.carry(1000, at(ms));
        }
        assert!(pair.a.is_up() && pair.b.is_up());
        for ms in (20_000..25_000).step_by(100) {
            pair.a.handle_timeout(at(ms)); // b is frozen: nothing is carried any more
        }
        let silent = LinkEvent::Closed(LinkError::Silent(Duration::from_secs(4)));
        assert_eq!(pair.a.poll_event(), Some(silent));
        assert_eq!(pair.a.poll_timeout(), None);
    }

    #[test]
    fn a_handshake_that_hangs_ends() {
        let mut a = Link::initiator(config(), metadata(1), 0, at(0));
        a.handle_timeout(at(999));
        assert_eq!(a.poll_event(), None);
        a.handle_timeout(a.poll_timeout().unwrap());
        assert_eq!(a.poll_event(), Some(LinkEvent::Closed(LinkError::HandshakeTimeout)));
    }

    #[test]
    fn messages_out_of_order_end_the_link_and_the_peer_is_told() {
        let mut pair = Pair::new();
        pair.a.out.clear();
        pair.a.send(&Frame::Notif(vec![1]));
        pair.carry(1000, at(1));
        let unexpected = LinkError::Unexpected { frame: "Notif", state: "waiting for Hello" };
        assert_eq!(pair.b.poll_event(), Some(LinkEvent::Closed(unexpected)));
        let events: Vec<_> = core::iter::from_fn(|| pair.a.poll_event()).collect();
        let farewell = LinkError::Farewell {
            farewell: Farewell::Protocol,
            incarnation: Incarnation::from_bytes([2; 16]),
        };
        assert_eq!(events.last(), Some(&LinkEvent::Closed(farewell)));
    }

    #[test]
    fn notifications_are_refused_when_the_peer_does_not_take_them() {
        let mut pair = Pair::up(1000);
        let long = vec![0; NOTIF_MAX + 1];
        assert_eq!(pair.a.notify(long.clone()), Err(NotifError::TooLong { len: NOTIF_MAX + 1 }));
        let taken = (0..1000).take_while(|_| pair.a.notify(long[1..].to_vec()).is_ok()).count();
        assert!((16..=18).contains(&taken), "{taken}");
        assert!(matches!(pair.a.notify(vec![]), Err(NotifError::Busy { .. })));
        pair.carry(1 << 16, at(3));
        assert_eq!(pair.a.notify(vec![]), Ok(()));
    }

    #[test]
    fn regions_come_and_go() {
        let mut pair = Pair::up(1000);
        let id = RegionId::new(1, 1);
        pair.a.delete_region(id);
        pair.b.rail_closed(RailId::new(2, 3));
        assert!(pair.a.sync());
        pair.carry(1000, at(3));
        assert_eq!(pair.b.poll_event(), Some(LinkEvent::RegionDel(id)));
        assert_eq!(pair.b.poll_event(), Some(LinkEvent::Sync));
        pair.b.synced();
        pair.carry(1000, at(3));
        assert_eq!(pair.a.poll_event(), Some(LinkEvent::RailClosed(RailId::new(2, 3))));
        assert_eq!(pair.a.poll_event(), Some(LinkEvent::Synced));
        pair.a.add_region(crate::proto::metadata::tests::region(id));
        pair.carry(1000, at(3));
        assert!(matches!(pair.b.poll_event(), Some(LinkEvent::RegionAdd(info)) if info.id == id));
        pair.b.disconnected();
        pair.b.delete_region(id);
        assert!(!pair.b.sync());
    }

    proptest! {
        #[test]
        fn any_bytes_at_any_time_leave_a_link_that_is_consistent(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8), responder: bool
        ) {
            let mut link = if responder {
                Link::responder(config(), metadata(1).incarnation, at(0))
            } else {
                Link::initiator(config(), metadata(1), 0, at(0))
            };
            for (i, part) in parts.iter().enumerate() {
                link.handle_bytes(part, at(i as u64));
            }
            let closed = core::iter::from_fn(|| link.poll_event())
                .filter(|e| matches!(e, LinkEvent::Closed(_))).count();
            prop_assert_eq!(closed == 1, link.poll_timeout().is_none());
            prop_assert!(!link.is_up());
        }
    }
}
