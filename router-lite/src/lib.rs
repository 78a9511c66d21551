//! The light router.

pub mod dance;
pub mod health;
pub mod inspect;
pub mod select;
pub mod splice;
pub mod sse;
