//! RDMA: libibverbs, opened at run time, as owned objects.
//!
//! The library is rdma-core's `libibverbs.so.1`, or any other file with the same symbols. Nothing is linked with, and
//! nothing of it is needed for building: [`Library::open`] finds out whether it is there, and says what to install
//! where it is not.
//!
//! ```text
//! Library ── Device ── Context ─┬─ ProtectionDomain ─┬─ MemoryRegion
//!                               │                    ├─ MemoryWindow
//!                               │                    ├─ SharedReceiveQueue
//!                               │                    └─ QueuePair ── SendBatch, RecvBatch
//!                               └─ CompletionChannel ── CompletionQueue ── Completion
//! ```
//!
//! Each object holds what it was made from, so whatever is dropped first, destruction goes from the leaves to the
//! root (V2 in docs/ARCHITECTURE.md). A destruction that the library refuses cannot be told by `drop`;
//! [`Library::destroy_failures`] counts them, and [`QueuePair::close`] and [`MemoryRegion::close`] tell.
//!
//! | module | holds |
//! |---|---|
//! | [`sys`] | the structures and constants of `infiniband/verbs.h`, made by `ci/verbs-header` |
//! | `load` | opening the library, its symbols with the version that brought each |
//! | `context`, `port`, `gid`, `event` | a device: what it can do, its ports and addresses, what happens to it |
//! | `memory` | protection domains, registered memory, memory windows |
//! | `cq`, `completion` | completion queues and what comes out of them |
//! | `qp`, `srq` | queue pairs (RC) and shared receive queues |
//! | `op`, `batch` | what work requests do; chains of them, built without allocation |
//!
//! Thread safety: every object may be used by several threads at once; the library locks inside. Posting, polling
//! and arming allocate nothing and make no system call with the usual providers.

mod batch;
mod call;
mod completion;
mod context;
mod cq;
mod event;
mod gid;
mod load;
mod memory;
mod op;
mod port;
mod qp;
mod qp_attr;
mod srq;
#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    non_camel_case_types,
    non_snake_case,
    unused_qualifications,
    unused_imports,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::exhaustive_structs,
    clippy::use_self,
    clippy::ptr_as_ptr,
    reason = "generated from a C header"
)]
pub mod sys;

pub use batch::{BatchFull, PostError, RecvBatch, SendBatch};
pub use completion::{Completion, Retry, WcOpcode, WcStatus};
pub use context::{Context, Device, DeviceAttr};
pub use cq::{CompletionChannel, CompletionQueue};
pub use event::{AsyncEvent, EventKind, Subject};
pub use gid::{Gid, GidEntry, GidKind};
pub use load::{Library, LoadError};
pub use memory::{Access, LocalKey, MemoryRegion, MemoryWindow, ProtectionDomain, RemoteKey};
pub use op::{Bind, RemoteMemory, SendFlags, SendOp, Sge};
pub use port::{LinkLayer, Mtu, PortAttr, PortState};
pub use qp::QueuePair;
pub use qp_attr::{GlobalRoute, QpCaps, QpConfig, QpState, QpStatus, Route, ToInit, ToReceive, ToSend};
pub use srq::SharedReceiveQueue;
