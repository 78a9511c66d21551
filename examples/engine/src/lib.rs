//! A reference engine: a real Llama-class model on CPU that shows how an engine links the transfer engine.
//!
//! From pure to impure:
//! - `hash`, `sched`: blocks, prefix cache and continuous batching; no I/O, no clock, no model;
//! - `kv`: the hand-off of KV blocks between engines, from its pure books and messages to the agent;
//! - `worker`: the engine thread, which drives scheduler and model;
//! - `events`, `http`, `metrics`: what the outside sees;
//! - `serve`: puts an engine together; [`cli`]: the command line.
//!
//! The model itself is the crate `engine-model`. Everything that moves KV bytes goes through `transfer-core`.

pub mod cli;
mod error;
mod events;
mod fingerprint;
mod hash;
mod http;
mod kv;
mod metrics;
mod sched;
mod serve;
mod worker;
