//! The pure part of transfer-core: descriptors, plans, wire formats and state machines.
//!
//! Time and completions come in, posts and events go out; nothing here does I/O, reads a clock, looks at the
//! environment or holds memory that others write. The crate is `no_std` and forbids unsafe code, so the
//! compiler proves it, and a simulator can run it.
//!
//! | module | holds |
//! |---|---|
//! | [`id`] | names of agents, regions and transfers |
//! | [`codec`] | bounded reading and writing of little-endian bytes |
//! | [`desc`] | descriptor lists: contiguous, strided and paged spans, and their codec |
//! | [`plan`] | pairing two lists into pieces and slices; choosing a path and saying why |
//! | [`proto`] | frames, metadata, and the state machines of links and transfers |

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod codec;
pub mod desc;
pub mod id;
pub mod plan;
pub mod proto;
