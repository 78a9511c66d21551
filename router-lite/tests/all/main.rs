//! The router over real sockets, in front of mock workers that behave like vLLM.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a test"
)]

mod command;
mod faults;
mod proxy;
mod splicer;
mod split;
mod support;
