//! A schedule: two nodes, what their applications want, and everything that goes wrong, all from one seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use transfer_proto::desc::{Desc, DescList};
use transfer_proto::proto::preamble::Kind;
use transfer_proto::proto::xfer::{Outcome, SliceLimits};

use crate::agent::{Agent, AgentKnobs, Order};
use crate::memory::{BLOCK, BlockId, Life, Memory, Op, Record, Seq};
use crate::net::{Came, ConnId, Micros, Net, NetKnobs};
use crate::rng::Rng;

const MS: Micros = 1000;
/// Long after every timeout: what has not ended by then hangs.
const CALM_MAX: Micros = 40_000 * MS;
/// By then every silence has been noticed.
const NOTICED: Micros = 4_000 * MS;
/// So many turns at one point of time are a loop.
const TURNS_MAX: u32 = 10_000;

/// Everything outside the agents.
pub(crate) struct Outside {
    pub(crate) net: Net,
    pub(crate) memory: Memory,
    pub(crate) rng: Rng,
    pub(crate) now: Micros,
    knobs: NetKnobs,
    /// What went wrong first.
    problem: Option<String>,
    trace: Option<Vec<String>>,
}

impl Outside {
    pub(crate) fn open(&mut self, kind: Kind, nodes: [usize; 2]) -> ConnId {
        self.net.open(kind, nodes, self.now, self.knobs, &mut self.rng)
    }

    pub(crate) fn send(&mut self, id: ConnId, end: usize, bytes: &[u8]) -> Option<usize> {
        self.net.send(id, end, bytes, self.now, &mut self.rng)
    }

    pub(crate) fn receive(&mut self, id: ConnId, end: usize, max: usize) -> Came {
        self.net.receive(id, end, max, self.now)
    }

    pub(crate) fn close(&mut self, id: ConnId, end: usize) {
        self.net.close(id, end, self.now);
    }

    /// Keeps the first thing that should not have happened.
    pub(crate) fn judge<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result
            .map_err(|problem| {
                self.note(|| format!("WRONG: {problem}"));
                self.problem.get_or_insert(problem);
            })
            .ok()
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12} µs  {}", self.now, text()));
        }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize),
    /// Bytes come to a node.
    Came(usize),
    Act,
    Redial,
    Restart(usize),
}

struct Node {
    agent: Option<Agent>,
    lives: u32,
    frozen_until: Micros,
    looked: Micros,
}

/// What a schedule did, to see that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) done: u32,
    pub(crate) failed: u32,
    pub(crate) stopped: u32,
    pub(crate) peer_lost: u32,
    pub(crate) notified: u32,
    pub(crate) cuts: u32,
}

impl Stats {
    pub(crate) fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.stopped += other.stopped;
        self.peer_lost += other.peer_lost;
        self.notified += other.notified;
        self.cuts += other.cuts;
    }
}

struct World {
    outside: Outside,
    nodes: [Node; 2],
    events: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    counter: u64,
    knobs: AgentKnobs,
    chaos_ends: Micros,
    faults: u64,
    stats: Stats,
    turns_here: u32,
}

/// Runs the schedule of a seed: what it did or what went wrong first, and what happened, where that is wanted.
pub(crate) fn run(seed: u64, traced: bool) -> (Result<Stats, String>, Vec<String>) {
    let mut world = World::new(seed, traced);
    let ended = world.run();
    let problem = world.outside.problem.take().or_else(|| ended.err());
    (problem.map_or_else(|| Ok(world.stats()), Err), world.outside.trace.take().unwrap_or_default())
}

impl World {
    fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let delay_max = [200, 2 * MS, 20 * MS][rng.size(0, 2)];
        let net = NetKnobs { delay_max, capacity: [300, 2000, 100_000][rng.size(0, 2)] };
        let limits =
            SliceLimits::new(rng.range(32, 512), rng.size(1, 8), u32::try_from(rng.range(1, 8)).unwrap());
        let knobs = AgentKnobs {
            rails: u32::try_from(rng.range(1, 4)).unwrap(),
            limits,
            slices_per_rail: u32::try_from(rng.range(1, 6)).unwrap(),
            turn_bytes: [100, 1000, 100_000][rng.size(0, 2)],
        };
        let chaos_ends = rng.range(50, 2500) * MS;
        let faults = rng.below(40);
        let (problem, trace) = (None, traced.then(Vec::new));
        let (net_, memory) = (Net::default(), Memory::default());
        let outside = Outside { net: net_, memory, rng, now: 0, knobs: net, problem, trace };
        let node = || Node { agent: None, lives: 0, frozen_until: 0, looked: 0 };
        let (events, stats) = (BinaryHeap::new(), Stats::default());
        let nodes = [node(), node()];
        Self { outside, nodes, events, counter: 0, knobs, chaos_ends, faults, stats, turns_here: 0 }
    }

    fn at(&mut self, when: Micros, event: Event) {
        self.counter += 1;
        self.events.push(Reverse((when, self.counter, event)));
    }

    fn run(&mut self) -> Result<(), String> {
        self.start(0);
        self.start(1);
        self.at(0, Event::Redial);
        self.at(MS, Event::Act);
        self.go_until(self.chaos_ends, |_| false)?;
        for node in 0..2 {
            self.nodes[node].frozen_until = 0;
            if self.nodes[node].agent.is_none() {
                self.start(node);
            }
            self.at(self.outside.now, Event::Wake(node));
        }
        self.outside.note(|| "the storm is over".to_owned());
        // A way that fell silent is noticed after a while.
        self.go_until(self.chaos_ends + NOTICED, |_| false)?;
        let over = |world: &Self| world.agents().all(|agent| agent.left().is_none() && agent.is_settled());
        self.go_until(self.chaos_ends + CALM_MAX, over)?;
        if !over(self) {
            let left =
                self.agents().find_map(Agent::left).unwrap_or_else(|| "no way between the nodes".to_owned());
            return Err(format!("still there long after the storm: {left}"));
        }
        // And it works again, both ways.
        let first = self.outside.memory.records.len();
        for node in 0..2 {
            self.post(node, Duration::from_secs(20));
        }
        let ended =
            |world: &Self| world.outside.memory.records[first..].iter().all(|record| record.notif_over);
        self.go_until(self.outside.now + CALM_MAX, ended)?;
        self.go_until(self.outside.now + 100 * MS, |_| false)?;
        let bad = |record: &&Record| !matches!(record.outcome, Some(Outcome::Done { .. }));
        if let Some(record) = self.outside.memory.records[first..].iter().find(bad) {
            return Err(format!("after the storm a transfer ended as {:?}", record.outcome));
        }
        if let Some(left) = self.agents().find_map(Agent::left) {
            return Err(format!("left at the end: {left}"));
        }
        let alive = |life: Life| self.agents().any(|agent| agent.life == life);
        self.outside.memory.final_check(alive)
    }

    fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.nodes.iter().filter_map(|node| node.agent.as_ref())
    }

    fn start(&mut self, at: usize) {
        let now = self.outside.now;
        let node = &mut self.nodes[at];
        let life = (at, node.lives);
        node.lives += 1;
        node.agent = Some(Agent::new(life, self.knobs, now));
        self.outside.memory.born(life);
        self.outside.note(|| format!("{life:?} begins"));
    }

    /// Lets time pass until then, or until `over` says so.
    fn go_until(&mut self, end: Micros, over: impl Fn(&Self) -> bool) -> Result<(), String> {
        let mut steps = 0_u32;
        while let Some(Reverse((when, _, event))) = self.events.pop() {
            if when > end {
                self.at(when, event);
                self.outside.now = self.outside.now.max(end);
                return Ok(());
            }
            self.turns_here = if when > self.outside.now { 0 } else { self.turns_here + 1 };
            if self.turns_here > TURNS_MAX {
                return Err("time stands still".to_owned());
            }
            self.outside.now = self.outside.now.max(when);
            self.handle(event);
            for (when, node) in std::mem::take(&mut self.outside.net.wakes) {
                // Rounded up, so that what comes at about the same time is seen in one turn.
                self.at(when.next_multiple_of(128), Event::Came(node));
            }
            if self.outside.problem.is_some() {
                return Ok(());
            }
            steps += 1;
            if steps.is_multiple_of(16) && over(self) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(node) => self.turn(node),
            // One look sees all that has come by then.
            Event::Came(node) if self.nodes[node].looked == self.outside.now => {}
            Event::Came(node) => self.turn(node),
            Event::Act => {
                if self.outside.now < self.chaos_ends {
                    self.act();
                    let next = self.outside.now + self.outside.rng.below(self.chaos_ends / 20);
                    self.at(next, Event::Act);
                }
            }
            Event::Redial => {
                let next = self.outside.now + self.outside.rng.range(30, 100) * MS;
                self.at(next, Event::Redial);
                if self.outside.now >= self.nodes[0].frozen_until
                    && let Some(agent) = self.nodes[0].agent.as_mut().filter(|agent| !agent.is_connecting())
                {
                    agent.connect(1, &mut self.outside);
                    self.turn(0);
                }
            }
            Event::Restart(node) => {
                if self.nodes[node].agent.is_none() {
                    self.start(node);
                    self.turn(node);
                }
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let now = self.outside.now;
        let node = &mut self.nodes[at];
        if now < node.frozen_until {
            let thaw = node.frozen_until;
            return self.at(thaw, Event::Came(at));
        }
        node.looked = now;
        if let Some(next) = node.agent.as_mut().and_then(|agent| agent.turn(&mut self.outside)) {
            self.at(next, Event::Wake(at));
        }
    }

    /// Something happens.
    fn act(&mut self) {
        let node = self.outside.rng.size(0, 1);
        if self.outside.rng.below(100) >= self.faults {
            let timeout = match self.outside.rng.below(6) {
                0 => Duration::from_micros(self.outside.rng.range(1, 200_000)),
                _ => Duration::from_secs(20),
            };
            return self.post(node, timeout);
        }
        let now = self.outside.now;
        match self.outside.rng.below(20) {
            0..7 => self.cut(),
            7..10 => self.cancel(node),
            10..14 => self.revoke(node),
            14 => self.close_region(node),
            15 | 16 => self.freeze(node),
            17 => {
                let by = self.outside.rng.range(1, 5000) * MS;
                if let Some(agent) = &mut self.nodes[node].agent {
                    self.outside.note(|| format!("the clock of node {node} jumps by {by}"));
                    agent.jump(by);
                    self.at(now, Event::Wake(node));
                }
            }
            18 => self.kill(node),
            _ => {}
        }
    }

    fn cut(&mut self) {
        let alive = self.outside.net.alive();
        // Control connections live as long as their peers: seldom.
        let data: Vec<_> =
            alive.iter().copied().filter(|id| self.outside.net.kind(*id) == Kind::Data).collect();
        let from = if self.outside.rng.percent(90) { &data } else { &alive };
        if let Some(id) = self.outside.rng.pick(from) {
            self.stats.cuts += 1;
            self.outside.note(|| format!("connection {id} breaks"));
            self.outside.net.cut(id, self.outside.now, &mut self.outside.rng);
        }
    }

    fn freeze(&mut self, node: usize) {
        let until = self.outside.now + self.outside.rng.range(1, 2000) * MS;
        self.outside.note(|| format!("node {node} freezes until {until}"));
        self.nodes[node].frozen_until = until;
    }

    fn kill(&mut self, node: usize) {
        let Some(agent) = self.nodes[node].agent.take() else { return };
        self.outside.note(|| format!("{:?} dies", agent.life));
        self.outside.net.node_died(node, self.outside.now, &mut self.outside.rng);
        self.outside.memory.died(agent.life);
        self.nodes[node].frozen_until = 0;
        let back = self.outside.now + self.outside.rng.range(1, 500) * MS;
        self.at(back, Event::Restart(node));
    }

    fn cancel(&mut self, node: usize) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let records = self.outside.memory.records.iter().enumerate();
        let open = records.filter(|(_, record)| record.outcome.is_none() && record.initiator == agent.life);
        let open: Vec<Seq> = open.map(|(seq, _)| seq).collect();
        if let Some(seq) = self.outside.rng.pick(&open) {
            self.outside.note(|| format!("transfer {seq} is cancelled"));
            agent.cancel(seq);
            self.at(self.outside.now, Event::Wake(node));
        }
    }

    fn revoke(&mut self, node: usize) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let lent = self.outside.memory.lent_blocks(agent.life);
        if let Some(taken) = self.outside.rng.pick(&lent).filter(|taken| !agent.revoking.contains(taken)) {
            self.outside.note(|| format!("block {:?} is revoked under transfer {}", taken.0, taken.1));
            self.outside.memory.revoke(taken.0);
            agent.revoking.push(taken);
            self.at(self.outside.now, Event::Wake(node));
        }
    }

    /// Closes one of a node's regions; the other one stays.
    fn close_region(&mut self, node: usize) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let lent = self.outside.memory.lent_blocks(agent.life);
        let region = transfer_proto::id::RegionId::new(1, 0);
        self.outside.note(|| format!("node {node} closes region {region}"));
        self.outside.memory.close(agent.life, region);
        let inside = lent.into_iter().filter(|taken| taken.0.1 == region && !agent.revoking.contains(taken));
        let inside: Vec<_> = inside.collect();
        agent.revoking.extend(inside);
        self.at(self.outside.now, Event::Wake(node));
    }

    /// An application wants bytes moved.
    fn post(&mut self, node: usize, timeout: Duration) {
        if self.outside.now < self.nodes[node].frozen_until {
            return;
        }
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let up = agent.up();
        let Some((session, target)) = self.outside.rng.pick(&up) else { return };
        let (rng, memory) = (&mut self.outside.rng, &mut self.outside.memory);
        let mut here = memory.free_blocks(agent.life);
        let mut there = memory.free_blocks(target);
        let count = rng.size(0, 6).min(here.len()).min(there.len());
        let page = if rng.percent(50) { BLOCK } else { rng.size(1, BLOCK / 2) * 2 };
        for blocks in [&mut here, &mut there] {
            if rng.percent(50) {
                rng.shuffle(blocks);
            } else {
                // Neighbours, which are joined.
                let from = rng.size(0, blocks.len() - count);
                blocks.rotate_left(from);
            }
            blocks.truncate(count);
        }
        let halves = rng.percent(30);
        let generation = |block: &BlockId| memory.generation(block.0, block.1);
        let (local, remote) = (list(&here, page, halves, |_| 0), list(&there, page, false, generation));
        let op = if rng.percent(50) { Op::Read } else { Op::Write };
        let notifies = rng.percent(60);
        let (initiator, blocks) = (agent.life, [here, there].concat());
        let record = Record::new(op, (initiator, target), session, (local.clone(), remote.clone()), notifies);
        let begun = memory.begin(record, &blocks);
        let Some(seq) = self.outside.judge(begun) else { return };
        self.outside
            .note(|| format!("{initiator:?} posts {seq}: {op:?} of {} bytes, {target:?}", remote.bytes()));
        let order = Order { seq, session, op, local, remote, notifies, timeout };
        agent.post(order, &mut self.outside);
        self.at(self.outside.now, Event::Wake(node));
    }

    fn stats(&self) -> Stats {
        let mut stats = self.stats;
        for record in &self.outside.memory.records {
            stats.notified += record.notified;
            match record.outcome {
                Some(Outcome::Done { .. }) => stats.done += 1,
                Some(Outcome::Failed(_)) => stats.failed += 1,
                Some(Outcome::Cancelled | Outcome::Deadline) => stats.stopped += 1,
                Some(_) => stats.peer_lost += 1,
                None => {}
            }
        }
        stats
    }
}

/// The first bytes of some blocks; in halves, to be cut otherwise than at the other side.
fn list(blocks: &[BlockId], page: usize, halves: bool, generation: impl Fn(&BlockId) -> u64) -> DescList {
    let mut descs: Vec<Desc> = Vec::new();
    for part in blocks.chunk_by(|a, b| a.1 == b.1) {
        let (region, at) = (part[0].1, generation(&part[0]));
        let pages = part.iter().map(|block| u32::try_from(block.2).unwrap()).collect();
        let half = page as u64 / 2;
        if halves {
            let offset = |block: &BlockId| (block.2 * BLOCK) as u64;
            descs.extend(
                part.iter().map(|b| Desc::strided(region, offset(b), half, half, 2).at_generation(at)),
            );
        } else {
            descs.push(Desc::paged(region, 0, page as u64, BLOCK as u64, pages).at_generation(at));
        }
    }
    descs.into_iter().collect()
}
