//! Who is at the other end: a key that the agents share, and the handshake that proves it. Bytes go in and come out;
//! sockets and clock stay with the callers.
//!
//! | module | holds |
//! |---|---|
//! | [`key`] | the key, and where it is read from |
//! | [`handshake`] | how every connection begins, with a key and without, on both sides |
//! | [`records`] | what travels on a control connection that is sealed |
//! | [`seals`] | what payload travels in where it is encrypted |
//!
//! # What a key gives
//! Only agents that have it are talked to, on every connection, and each connection belongs to the session that its
//! opener proves. The control connection is sealed: nobody on the way reads, changes, repeats or leaves out what goes
//! over it without its end. Keys of a connection are made for it and forgotten with it, so a key that leaks later
//! does not open what was recorded before.
//!
//! # What it does not give
//! All who have it are equal: it does not tell one agent from another, and whoever has it may read and write every
//! region of every agent that he reaches. It does not guard payload by itself: after their handshake, data connections
//! are plain TCP. Who is on the way there reads what is moved, and can also put bytes of his own into the stream, as
//! payload or as requests, and so read and write the regions that it leads to. Against him there is
//! [`Config::encrypt_data`](crate::Config::encrypt_data): data connections are then sealed as well, and a byte that is
//! not the peer's ends its connection before anything of its record lands. What it does not hide is how much goes when,
//! and between whom. And a key guards connections, not memory: on one host the system decides who gets at the memory of a process, and whoever
//! may trace it (ptrace(2)) or is root needs no key.

mod handshake;
mod key;
mod records;
mod seals;

pub(crate) use handshake::{HandshakeError, Initiating, Keys, Responding, Step, Terms};
pub use key::Key;
pub(crate) use records::Records;
pub(crate) use seals::{BadRecord, OPENED_ROOM, PLAIN_MAX, RECORD_MAX, Seals};

#[cfg(test)]
pub(crate) use handshake::tests::encrypted_pair;
