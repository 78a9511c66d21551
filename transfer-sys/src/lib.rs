//! The operating system for Headrace: shared memory, another process's memory, sockets that carry file
//! descriptors, readiness, and the copy kernels of `csrc/`.
//!
//! Three steps, nothing more: the raw call, a typed error that names the call and its operands, an owner that
//! releases in `Drop`. No policy lives here; the engine above decides what to do.
//!
//! | module | holds | source of the rules |
//! |---|---|---|
//! | [`copy`] | copies between raw ranges | `csrc/copy.c` |
//! | [`memfd`] | sealed anonymous files and their mappings | memfd_create(2), mmap(2), fcntl(2) |
//! | [`numa`] | nodes of memory, and running next to them | mbind(2), get_mempolicy(2), sched_setaffinity(2) |
//! | [`process`] | another process's memory, and whether it still lives | process_vm_readv(2), pidfd_open(2) |
//! | [`socket`] | vectored I/O on raw ranges, file descriptors in messages, peer credentials | unix(7), tcp(7) |
//! | [`verbs`] | RDMA devices through libibverbs, opened at run time | infiniband/verbs.h of rdma-core |
//! | [`words`] | atomic words that one process writes and others read | memfd_create(2), std::sync::atomic |
//! | [`poll`] | readiness of many sockets, a wake-up word | epoll(7), eventfd(2) |
//!
//! # Safety
//! This is the one place besides the engine's `mem` and `backend` where unsafe code may live. Ranges of memory
//! that somebody else can write are [`RawRange`]s, never slices.

#![cfg(target_os = "linux")]

pub mod copy;
mod error;
pub mod memfd;
pub mod numa;
pub mod poll;
pub mod process;
mod range;
pub mod socket;
pub mod verbs;
pub mod words;

pub use error::{OsError, OsResult};
pub use range::RawRange;
