//! What the paths of this machine give: bandwidth and latency beside the roof, verified first.
//!
//! The binary `transfer-bench` moves real bytes between two real processes; this library is its pure part.
//!
//! | module | holds |
//! |---|---|
//! | [`shape`] | what is moved: one span, or many scattered ones, on both sides |
//! | [`pattern`] | bytes that know their place, and what each side must hold after a transfer |
//! | [`stats`] | medians and percentiles |
//! | [`report`] | a row of the table, its columns, its JSON |
//! | [`path`] | paths and operations by the names that users type |
//!
//! # How a row is made
//! 1. **Verify.** Each process fills its own region with its own pattern. One transfer runs. Then every byte of both
//!    regions is compared: those in the spans, those between them, and the source, which must not have changed.
//! 2. **Measure** in rounds that alternate with the roof, so that both see the same neighbours. A row shows the
//!    medians of the rounds, and as the share of the roof the median of the rounds' own shares.
//! 3. **Compare again**: nothing but the verified bytes may have been touched meanwhile.
//!
//! # The roof
//! For shm and process-vm it is one thread that copies the same spans between two ordinary mappings of one process,
//! with `copy_from_slice`, which is the C library's memcpy; not the engine's own copy kernels, which would only
//! compare the engine with itself. For tcp it is as many plain blocking sockets as the agent has data connections, as
//! the system sets them up (no buffer sizes asked for), between the same two processes, moving as many bytes from and
//! into memory of the same size. Below one slice of the engine that is one socket, and so a round trip.

pub mod path;
pub mod pattern;
pub mod report;
pub mod shape;
pub mod stats;
