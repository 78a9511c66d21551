//! The transfers under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use transfer_proto::id::XferId;
use transfer_proto::plan::Piece;
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::{Outcome, Xfer};

use super::timers::Timers;
use crate::backend::Slice;
use crate::shared::Posted;
use crate::xfer::XferCore;

/// A transfer, its state, and the right to touch its memory.
pub(super) struct Task {
    pub(super) core: Arc<XferCore>,
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
#[derive(Default)]
pub(super) struct Xfers {
    slots: Vec<(u32, Option<Task>)>,
    free: Vec<u32>,
    deadlines: Timers<XferId>,
}

impl Xfers {
    pub(super) fn insert(&mut self, posted: Posted, state: Xfer) -> XferId {
        let core = Arc::clone(&posted.core);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let id = XferId::new(slot, self.slots[slot as usize].0);
        // Zero says "not in the driver yet".
        core.id.store(id.to_u64() + 1, Ordering::Release);
        self.deadlines.set(id, state.poll_timeout());
        self.slots[slot as usize].1 = Some(Task { core, state, posted, abandoned: false });
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
        let outcome = task.state.poll_outcome(task.core.sides())?;
        let slot = &mut self.slots[id.slot() as usize];
        slot.0 = slot.0.wrapping_add(1);
        let task = slot.1.take()?;
        self.free.push(id.slot());
        self.deadlines.remove(id);
        Some(Ended { posted: task.posted, outcome })
    }
}

impl Task {
    /// The next slice to submit.
    pub(super) fn next_slice(&mut self, id: XferId) -> Option<Slice> {
        let mut pieces: Vec<Piece> = Vec::new();
        let post = self.state.poll_slice(self.core.sides(), &mut pieces)?;
        let core = Arc::clone(&self.core);
        Some(Slice { xfer: id, slice: post.id, bytes: post.bytes, pieces, core })
    }

    /// Whether its slices are to be called back now, which is done once.
    pub(super) fn take_abandon(&mut self) -> bool {
        let abandon = self.state.is_stopping() && self.state.in_flight() > 0 && !self.abandoned;
        self.abandoned |= abandon;
        abandon
    }
}
