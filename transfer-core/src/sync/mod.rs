//! What threads share: each structure in a module of its own, small enough for every interleaving to be tried
//! (`ci/loom`).
//!
//! What threads share elsewhere runs under loom where it stands: gates (`mem::gate`), the ledger's lanes and generations
//! (`backend::lease`), transfers within the host (`backend::shm::job`), counters and event queues. Their words come from
//! [`prim`], which is loom's there; crossbeam's channels and the words in shared files have stand-ins.
//!
//! Not tried, since there is nothing to interleave: tables behind one lock that nobody waits for (regions, peers, guests,
//! mappings, holds and stores of directories); what is written once (`OnceLock`); flags of which late news costs a turn
//! (`Shared::wanted`, `PeerCore::up`, `XferCore::stop`), since who sets them does not rely on their being seen; rates, where
//! a note may get lost; channels that carry an answer.

mod doorbell;
mod ending;
mod followers;
mod lead;
#[cfg(loom)]
mod loom_channel;
mod pool;
mod queue;
mod signal;
mod wake;

use doorbell::Doorbell;
pub(crate) use ending::Ending;
pub(crate) use followers::Followers;
pub(crate) use lead::{Lead, Leading};
pub(crate) use pool::{Held, Pool, Reuse, Shelf};
pub(crate) use queue::Queue;
pub(crate) use signal::Signal;
pub(crate) use wake::Wake;

/// The primitives: loom's own where it tries the interleavings.
pub(crate) mod prim {
    #[cfg(loom)]
    pub(crate) mod channel {
        pub(crate) use super::super::loom_channel::{Receiver, Sender, bounded};
    }
    #[cfg(not(loom))]
    pub(crate) mod channel {
        pub(crate) use crossbeam_channel::{Receiver, Sender, bounded};
    }
    #[cfg(loom)]
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(loom)]
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    #[cfg(loom)]
    pub(crate) use loom::thread::yield_now;
    #[cfg(not(loom))]
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(not(loom))]
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
    #[cfg(not(loom))]
    pub(crate) use std::thread::yield_now;
}
