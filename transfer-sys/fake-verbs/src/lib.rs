//! A libibverbs without hardware, for tests.
//!
//! Built as a shared library it has the symbols of `libibverbs.so.1` that this project uses, so it is opened like the
//! real one, by the path of a copy. Built as a Rust library it is what tests steer it by: [`World`].
//!
//! A *world* is a folder with a copy of the library and a file. Each process that opens the copy maps the file, in
//! which everything lies that hardware would know: devices, registrations, the state of queue pairs, posted receives,
//! completions. So a process can do to another one what a NIC could, without its help: it finds the registration,
//! moves the bytes by process_vm_writev(2), and writes the completion. A process that is stopped is written to like
//! any other, and one that was killed does not answer.
//!
//! It refuses what hardware would refuse, and is never kinder: attributes that are missing from a transition, more work
//! requests than were polled as completed, keys of another domain, objects that are still used. Where devices differ it
//! does what the stricter one does. What it does not have: other types than RC, atomics, timing of any kind; one port
//! for each device. Who stops a process in the instant in which it holds the lock of the file stops everybody; who kills it
//! there does not.
//!
//! | module | holds |
//! |---|---|
//! | [`World`] | making a world, faults at a moment, counting what is left |
//! | `shared` | the file: what hardware would know, and its lock |
//! | `provider` | what this process has of it, and the thread that stands for its NIC |
//! | `exports` | the symbols |
//! | `objects`, `pairs`, `states` | making and destroying; queue pairs and their transitions |
//! | `queues` | completions, events and receives |
//! | `engine`, `memory`, `windows`, `faults` | carrying a work request out, or not |

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "C in Rust: what is reached through one pointer belongs together"
)]

mod engine;
mod exports;
mod faults;
mod memory;
mod objects;
mod pairs;
mod provider;
mod queues;
mod shared;
mod states;
mod windows;
mod world;

pub use world::{Counts, DeviceConfig, Fault, LinkKind, World};
