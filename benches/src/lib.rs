//! What the paths of this machine give: bandwidth and latency beside the roof, verified first.
//!
//! The binary `transfer-bench` moves real bytes between two real processes; this library is its pure part.
//!
//! | module | holds |
//! |---|---|
//! | [`shape`] | what is moved: one span, or many scattered ones, on both sides |
//! | [`pattern`] | bytes that know their place, and what each side must hold after a transfer |
//! | [`stats`] | medians, percentiles, a histogram |
//! | [`report`] | a row of the table, its columns, its JSON |
//! | [`plot`] | the rows as a picture |
//! | [`path`] | paths and operations by the names that users type |
//!
//! The two processes are an initiator, which posts and measures, and a target, which serves. They talk by notifications
//! of the engine, so whoever may connect may ask, and nobody else. `run` starts a target of its own.
//!
//! # How a row is made
//! 1. **Verify.** Each process fills its own region with its own pattern. One transfer runs. Then every byte of both
//!    regions is compared: those in the spans, those between them, and the source, which must not have changed.
//! 2. **Measure** in windows that alternate with the roof, so that both see the same neighbours. A row shows the
//!    medians of the windows, and as the share of the roof the median of each window beside the roof just before and
//!    after it.
//! 3. **Compare again**: nothing but the verified bytes may have been touched meanwhile.
//!
//! # The roof
//! It never uses the engine's own copy kernels or framing, which would only compare the engine with itself.
//!
//! | path | roof |
//! |---|---|
//! | shm | one thread copies the same spans between two ordinary mappings of one process with `copy_from_slice`, which is the C library's memcpy |
//! | process-vm | a plain loop of process_vm_readv or process_vm_writev over the same spans, 1024 in a call, with ordinary memory of the target |
//! | tcp | as many plain sockets as the agent has data connections, as the system sets them up (no buffer sizes asked for), between the same two processes, moving as many bytes from and into memory of the same size. Below one slice of the engine that is one socket, and so a round trip. Or iperf3 with as many streams |
//!
//! Where transfers are polled for, the bare sockets of both sides do not sleep either.

pub mod path;
pub mod pattern;
pub mod plot;
pub mod report;
pub mod shape;
pub mod stats;
