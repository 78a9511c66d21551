//! KV cache events in vLLM's wire format: what a router needs to know which prefixes lie on which engine.
//!
//! Three ZMQ frames: topic, sequence number (big endian, from 0), and a msgpack batch in array form. The engine
//! thread numbers the batches, so whatever is lost on the way shows as a gap, which the replay endpoint fills.

mod publish;
mod wire;

pub(crate) use publish::{EventEndpoints, EventSettings, EventSink, bind};
