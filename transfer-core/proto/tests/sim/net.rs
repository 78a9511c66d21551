//! The simulated network: connections whose bytes take their time, break, and break without a word.
//!
//! Bytes stay in order within a connection and overtake each other between two. What a connection has taken is on
//! its way like in a kernel: neither closing its end nor an error seen there calls it back.

use std::collections::VecDeque;

use transfer_proto::proto::preamble::Kind;

use crate::rng::Rng;

pub(crate) type ConnId = usize;
/// Microseconds since the world began.
pub(crate) type Micros = u64;

/// What came.
pub(crate) enum Came {
    Bytes(Vec<u8>),
    Nothing,
    /// The other end closed it, or it broke.
    End,
}

/// One way of a connection.
#[derive(Default)]
struct Way {
    flight: VecDeque<(Micros, Vec<u8>)>,
    ready: VecDeque<u8>,
    /// Bytes taken and not read yet.
    held: usize,
    last_due: Micros,
    /// The sender closed it; what is on its way comes first.
    fin: Option<Micros>,
    /// Nothing that is sent from now on arrives.
    cut: bool,
    /// The sender waits for room.
    full: bool,
}

#[derive(Default)]
struct End {
    node: usize,
    closed: bool,
    error_at: Option<Micros>,
}

struct Conn {
    kind: Kind,
    /// By the end that sends.
    ways: [Way; 2],
    ends: [End; 2],
    capacity: usize,
    delay: (Micros, Micros),
}

/// All connections there ever were.
#[derive(Default)]
pub(crate) struct Net {
    conns: Vec<Conn>,
    /// Connections that nobody has accepted yet: when, and at which node.
    arriving: Vec<(Micros, usize, ConnId)>,
    /// Nodes to be woken, and when.
    pub(crate) wakes: Vec<(Micros, usize)>,
}

/// How slow the connections of a schedule are.
#[derive(Clone, Copy)]
pub(crate) struct NetKnobs {
    pub(crate) delay_max: Micros,
    pub(crate) capacity: usize,
}

impl Net {
    /// A connection from one node to another. It arrives there after a while, if that node lives then.
    pub(crate) fn open(
        &mut self,
        kind: Kind,
        nodes: [usize; 2],
        now: Micros,
        knobs: NetKnobs,
        rng: &mut Rng,
    ) -> ConnId {
        let slowest = rng.range(1, knobs.delay_max);
        let delay = (rng.range(1, slowest), slowest);
        let end = |node| End { node, ..End::default() };
        let (ways, ends) = (Default::default(), [end(nodes[0]), end(nodes[1])]);
        let capacity = if kind == Kind::Control { 1 << 20 } else { knobs.capacity };
        self.conns.push(Conn { kind, ways, ends, capacity, delay });
        let id = self.conns.len() - 1;
        let due = now + rng.range(delay.0, delay.1);
        self.arriving.push((due, nodes[1], id));
        self.wakes.push((due, nodes[1]));
        id
    }

    /// Connections that have come to a node.
    pub(crate) fn accept(&mut self, node: usize, now: Micros) -> Vec<ConnId> {
        let here = |(due, to, _): &mut (Micros, usize, ConnId)| *to == node && *due <= now;
        self.arriving.extract_if(.., here).map(|(_, _, id)| id).collect()
    }

    pub(crate) fn kind(&self, id: ConnId) -> Kind {
        self.conns[id].kind
    }

    /// Takes some of the bytes; `None` where the connection is broken.
    pub(crate) fn send(
        &mut self,
        id: ConnId,
        end: usize,
        bytes: &[u8],
        now: Micros,
        rng: &mut Rng,
    ) -> Option<usize> {
        let conn = &mut self.conns[id];
        if conn.ends[end].error_at.is_some_and(|at| at <= now) {
            return None;
        }
        let way = &mut conn.ways[end];
        let taken = bytes.len().min(conn.capacity.saturating_sub(way.held));
        way.full = taken < bytes.len();
        way.held += taken;
        if way.cut {
            return Some(taken);
        }
        let mut rest = &bytes[..taken];
        while !rest.is_empty() {
            let len = if rng.percent(50) { rest.len() } else { rng.size(1, rest.len()) };
            let (part, behind) = rest.split_at(len);
            way.last_due = way.last_due.max(now + rng.range(conn.delay.0, conn.delay.1));
            way.flight.push_back((way.last_due, part.to_vec()));
            self.wakes.push((way.last_due, conn.ends[1 - end].node));
            rest = behind;
        }
        Some(taken)
    }

    pub(crate) fn receive(&mut self, id: ConnId, end: usize, max: usize, now: Micros) -> Came {
        let conn = &mut self.conns[id];
        let way = &mut conn.ways[1 - end];
        while way.flight.front().is_some_and(|(due, _)| *due <= now) {
            way.ready.extend(way.flight.pop_front().unwrap().1);
        }
        let count = way.ready.len().min(max);
        if count > 0 {
            way.held -= count;
            if way.full {
                way.full = false;
                self.wakes.push((now + conn.delay.0, conn.ends[1 - end].node));
            }
            return Came::Bytes(way.ready.drain(..count).collect());
        }
        let ended = |at: Option<Micros>| at.is_some_and(|at| at <= now);
        if ended(conn.ends[end].error_at) || ended(way.fin) && way.flight.is_empty() {
            Came::End
        } else {
            Came::Nothing
        }
    }

    /// Closes one end. What it has sent goes on; the other end sees it after that.
    pub(crate) fn close(&mut self, id: ConnId, end: usize, now: Micros) {
        let conn = &mut self.conns[id];
        if conn.ends[end].closed {
            return;
        }
        conn.ends[end].closed = true;
        let way = &mut conn.ways[end];
        if !way.cut {
            let due = way.last_due.max(now + conn.delay.0);
            way.fin = Some(due);
            self.wakes.push((due, conn.ends[1 - end].node));
        }
    }

    /// Connections that both ends believe in, or one.
    pub(crate) fn alive(&self) -> Vec<ConnId> {
        let alive = |id: &ConnId| {
            let conn = &self.conns[*id];
            conn.ends.iter().any(|end| !end.closed) && !conn.ways.iter().all(|way| way.cut)
        };
        (0..self.conns.len()).filter(alive).collect()
    }

    /// The way breaks. What was on it may still come, late; each end is told at once, late, or never.
    pub(crate) fn cut(&mut self, id: ConnId, now: Micros, rng: &mut Rng) {
        let conn = &mut self.conns[id];
        for way in &mut conn.ways {
            way.cut = true;
            let kept = if rng.percent(60) { way.flight.len() } else { rng.size(0, way.flight.len()) };
            way.flight.truncate(kept);
            let late = if rng.percent(50) { rng.below(400_000) } else { 0 };
            for (due, _) in &mut way.flight {
                *due += late;
            }
        }
        for at in 0..2 {
            if rng.percent(65) {
                let due = now + if rng.percent(50) { rng.below(1000) } else { rng.below(300_000) };
                conn.ends[at].error_at = Some(due);
                self.wakes.push((due, conn.ends[at].node));
            }
            let dues: Vec<_> =
                conn.ways[1 - at].flight.iter().map(|(due, _)| (*due, conn.ends[at].node)).collect();
            self.wakes.extend(dues);
        }
    }

    /// A node dies. Its kernel closes what it had, unless the whole machine is gone.
    pub(crate) fn node_died(&mut self, node: usize, now: Micros, rng: &mut Rng) {
        let machine = rng.percent(30);
        for id in 0..self.conns.len() {
            for end in 0..2 {
                if self.conns[id].ends[end].node == node && !self.conns[id].ends[end].closed {
                    if machine {
                        self.cut(id, now, rng);
                        self.conns[id].ends[1 - end].error_at = None;
                    }
                    self.close(id, end, now);
                }
            }
        }
        self.arriving.retain(|(_, to, _)| *to != node);
    }
}
