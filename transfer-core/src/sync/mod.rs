//! What threads share: each structure in a module of its own, small enough for every interleaving to be tried
//! (`ci/loom`).

mod doorbell;
mod followers;
mod lead;
mod pool;
mod wake;

use doorbell::Doorbell;
pub(crate) use followers::Followers;
pub(crate) use lead::{Lead, Leading};
pub(crate) use pool::{Held, Pool, Reuse, Shelf};
pub(crate) use wake::Wake;

/// The primitives: loom's own where it tries the interleavings.
pub(crate) mod prim {
    #[cfg(loom)]
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(loom)]
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
    #[cfg(loom)]
    pub(crate) use loom::thread::yield_now;
    #[cfg(not(loom))]
    pub(crate) use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(not(loom))]
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard};
    #[cfg(not(loom))]
    pub(crate) use std::thread::yield_now;
}
