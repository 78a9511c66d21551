//! The transfers under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use transfer_proto::id::XferId;
use transfer_proto::plan::Piece;
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::{Outcome, SliceLimits, Xfer};

use super::timers::Timers;
use crate::backend::{Slice, SlicePieces};
use crate::shared::Posted;
use crate::sync::Pool;
use crate::xfer::XferRef;

/// States of transfers, and lists of pieces, that are kept for later ones; a list takes up to 40 KiB.
const SPARES_MAX: usize = 256;
const PIECES_MAX: usize = 256;

/// A transfer, its state, and the right to touch its memory.
pub(super) struct Task {
    pub(super) state: Xfer,
    posted: Posted,
    abandoned: bool,
}

/// What is left of a transfer that has ended.
pub(super) struct Ended {
    pub(super) posted: Posted,
    pub(super) outcome: Outcome,
}

/// All of them, by slot and generation, so that a late completion never meets another transfer.
pub(super) struct Xfers {
    slots: Vec<(u32, Option<Task>)>,
    free: Vec<u32>,
    deadlines: Timers<XferId>,
    /// States of transfers that have ended, and pieces of slices: for their memory.
    spares: Vec<Xfer>,
    pieces: Arc<Pool<Vec<Piece>>>,
}

impl Default for Xfers {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            deadlines: Timers::default(),
            spares: Vec::new(),
            pieces: Arc::new(Pool::new(PIECES_MAX)),
        }
    }
}

impl Xfers {
    /// A state for a new transfer.
    pub(super) fn state(&mut self, limits: SliceLimits, deadline: Time) -> Xfer {
        let Some(mut state) = self.spares.pop() else { return Xfer::new(limits, deadline) };
        state.restart(limits, deadline);
        state
    }

    pub(super) fn insert(&mut self, posted: Posted, state: Xfer) -> XferId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let id = XferId::new(slot, self.slots[slot as usize].0);
        // Zero says "not in the driver yet".
        posted.core.id.store(id.to_u64() + 1, Ordering::Release);
        self.deadlines.set(id, state.poll_timeout());
        self.slots[slot as usize].1 = Some(Task { state, posted, abandoned: false });
        id
    }

    pub(super) fn get(&mut self, id: XferId) -> Option<&mut Task> {
        let (generation, task) = self.slots.get_mut(id.slot() as usize)?;
        if *generation == id.generation() { task.as_mut() } else { None }
    }

    /// All that are under way.
    pub(super) fn ids(&self) -> Vec<XferId> {
        let named = |(slot, (generation, task)): (usize, &(u32, Option<Task>))| {
            task.as_ref().map(|_| XferId::new(u32::try_from(slot).unwrap_or(u32::MAX), *generation))
        };
        self.slots.iter().enumerate().filter_map(named).collect()
    }

    /// The earliest deadline.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.deadlines.first()
    }

    /// A transfer whose deadline has passed; each is given out once.
    pub(super) fn take_due(&mut self, now: Time) -> Option<XferId> {
        self.deadlines.take_due(now)
    }

    /// Takes out a transfer that has reached its end.
    pub(super) fn take_ended(&mut self, id: XferId) -> Option<Ended> {
        let task = self.get(id)?;
        let outcome = task.state.poll_outcome(task.posted.core.sides())?;
        let slot = &mut self.slots[id.slot() as usize];
        slot.0 = slot.0.wrapping_add(1);
        let task = slot.1.take()?;
        self.free.push(id.slot());
        self.deadlines.remove(id);
        if self.spares.len() < SPARES_MAX {
            self.spares.push(task.state);
        }
        Some(Ended { posted: task.posted, outcome })
    }

    /// The next slice of a transfer to submit.
    pub(super) fn next_slice(&mut self, id: XferId) -> Option<Slice> {
        let mut pieces = SlicePieces::new(&self.pieces);
        let task = self.get(id)?;
        let post = task.state.poll_slice(task.posted.core.sides(), &mut pieces)?;
        let core = task.posted.core.clone();
        Some(Slice { xfer: id, slice: post.id, bytes: post.bytes, pieces, core })
    }
}

impl Task {
    pub(super) fn core(&self) -> &XferRef {
        &self.posted.core
    }

    /// Whether its slices are to be called back now, which is done once.
    pub(super) fn take_abandon(&mut self) -> bool {
        let abandon = self.state.is_stopping() && self.state.in_flight() > 0 && !self.abandoned;
        self.abandoned |= abandon;
        abandon
    }
}
