//! Who is at the other end: a key that the agents share, and the handshake that proves it. Bytes go in and come out;
//! sockets and clock stay with the callers.
//!
//! | module | holds |
//! |---|---|
//! | [`key`] | the key, and where it is read from |
//! | [`handshake`] | how every connection begins, with a key and without, on both sides |
//! | [`records`] | what travels on a connection that is sealed |
//!
//! # What a key gives
//! Only agents that have it are talked to, on every connection, and each connection belongs to the session that its
//! opener proves. The control connection is sealed: nobody on the way reads, changes, repeats or leaves out what goes
//! over it without its end. Keys of a connection are made for it and forgotten with it, so a key that leaks later
//! does not open what was recorded before.
//!
//! # What it does not give
//! All who have it are equal: it does not tell one agent from another, and whoever has it may read and write every
//! region of every agent that he reaches. It does not hide payload: bytes on data connections travel as they are. And
//! it guards connections, not memory: on one host the system decides who gets at the memory of a process, and whoever
//! may trace it (ptrace(2)) or is root needs no key.

mod handshake;
mod key;
mod records;

pub(crate) use handshake::{HandshakeError, Initiating, Responding, Step, Terms};
pub use key::Key;
pub(crate) use records::Records;
