//! A transfer within this host, from its beginning to its end.
//!
//! It is looked at between two slices, which are a fraction of a millisecond apart: that is where a cancelled transfer,
//! a lost peer or a deadline shows.

use transfer_proto::plan::Path;
use transfer_proto::proto::xfer::{Outcome, SliceError, SliceLimits, SlicePost, Xfer};
use transfer_sys::process::RANGES_MAX;

use super::job::{End, Next};
use super::moves::Batch;
use crate::error::Error;
use crate::shared::{Passes, Shared, Word};
use crate::xfer::XferCore;

/// Bytes that the kernel copies in one call where its ranges do not run out first.
const FOREIGN_BYTES_MAX: u64 = 16 << 20;

/// What a transfer that is under way holds: the right to touch its memory, and what to say at its end.
#[derive(Debug)]
pub(crate) struct Work {
    passes: Passes,
    word: Word,
}

impl Work {
    pub(crate) fn begin(agent: &Shared, core: &XferCore, passes: Passes, word: Word) {
        let limits = match core.remote.path() {
            // A call into the kernel costs as much as some pages, so it gets as many ranges as it takes.
            Path::ProcessMemory => agent.config.slice_bytes_max.max(FOREIGN_BYTES_MAX),
            _ => agent.config.slice_bytes_max,
        };
        // Whoever takes a slice copies it at once, so there are never more in flight than threads at it.
        let limits = SliceLimits::new(limits, RANGES_MAX, u32::MAX);
        core.job.begin(limits, agent.clock.now() + core.timeout, Self { passes, word });
    }
}

/// Makes a transfer stop where there is a reason to.
fn look_around(state: &mut Xfer, agent: &Shared, core: &XferCore, closing: bool) {
    if core.is_stopped() || closing {
        state.cancel();
    } else if !core.remote.core.peer.is_up() {
        state.peer_lost();
    } else {
        state.handle_timeout(agent.clock.now());
    }
}

/// The next slice that nobody has taken, its pieces in `batch`. Where there is none, the transfer may have ended here.
pub(super) fn take_slice(
    agent: &Shared,
    core: &XferCore,
    closing: bool,
    batch: &mut Batch,
) -> Option<SlicePost> {
    let look = |state: &mut Xfer| look_around(state, agent, core, closing);
    match core.job.take(core.sides(), batch.pieces(), look) {
        Next::Slice(post) => return Some(post),
        Next::End(end) => tell(agent, core, end),
        Next::Nothing => {}
    }
    None
}

/// A slice that was taken is copied, or failed; nothing touches its bytes any more.
pub(super) fn complete(agent: &Shared, core: &XferCore, post: SlicePost, result: Result<u64, SliceError>) {
    if let Some(end) = core.job.complete(core.sides(), post, result) {
        tell(agent, core, end);
    }
}

fn tell(agent: &Shared, core: &XferCore, end: End<Work>) {
    let Work { passes, word } = end.held;
    let result = match end.outcome {
        // Nobody asked for it, so it was the agent's end.
        Outcome::Cancelled if !core.is_stopped() => Err(Error::AgentClosed),
        outcome => agent.result_of(core, outcome),
    };
    agent.end_local(core, passes, word, result);
}
