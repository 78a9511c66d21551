//! KV cache events in vLLM's wire format: what a router needs to know which prefixes lie on which engine.
//!
//! Three ZMQ frames: topic, sequence number (big endian, from 0), and a msgpack batch: an array of time, events and
//! rank, each event a map with all of its fields. The engine thread numbers the batches, so whatever is lost on the
//! way shows as a gap, which the replay endpoint fills; a number that starts again from 0 is another process, with
//! an empty cache. The prefix cache is never cleared as a whole, so `AllBlocksCleared` does not occur.
//!
//! A block is named by the low 64 bits of its hash as an integer, as vLLM names its own. The names are this engine's:
//! a reader that wants to match them against a prompt does so by the tokens, the salt and the parents in the events.

mod publish;
mod wire;

pub(crate) use publish::{EventEndpoints, EventSettings, EventSink, bind};
