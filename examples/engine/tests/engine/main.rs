//! Real engine processes on loopback, with a small made model: the tokens of a divided engine against those of an
//! undivided one, every fault of the hand-off, the HTTP interface, and KV events.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unreachable_pub,
    missing_docs,
    reason = "tests"
)]

mod api;
mod divided;
mod events;
mod faults;
mod harness;
mod proxy;
mod schedule;
