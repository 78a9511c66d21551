//! The pure part of transfer-core.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
