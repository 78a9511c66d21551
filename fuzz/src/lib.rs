//! What must hold for any input, as one function for each target. A target is this function and nothing else.
//!
//! `ci/fuzz` runs them all; libFuzzer is told how large a single allocation may get, so that a length that is believed
//! before its bytes are there is a crash as well.

pub mod data;
pub mod entry;
pub mod frames;
pub mod link;
pub mod lists;
pub mod metadata;
pub mod rails;
pub mod small;
pub mod steps;
pub mod xfer;
