//! A batch of cache events as msgpack.

use crate::hash::BlockHash;
use crate::sched::CacheEvent;
use rmpv::Value;

/// Where the blocks lie, in vLLM's words: the memory that the engine computes in is its "GPU" tier, and readers tell
/// tiers apart by this name.
const MEDIUM: &str = "GPU";

/// `[timestamp, events, data parallel rank]`.
pub(super) fn encode_batch(timestamp: f64, events: Vec<CacheEvent>, block_size: usize) -> Vec<u8> {
    let events = events.into_iter().map(|event| encode_event(event, block_size)).collect();
    let batch = Value::Array(vec![Value::F64(timestamp), Value::Array(events), Value::from(0)]);
    let mut bytes = Vec::new();
    // Writing into a vector cannot fail.
    drop(rmpv::encode::write_value(&mut bytes, &batch));
    bytes
}

fn encode_event(event: CacheEvent, block_size: usize) -> Value {
    Value::Array(match event {
        CacheEvent::Stored { hashes, parent, tokens } => vec![
            Value::from("BlockStored"),
            encode_hashes(hashes),
            parent.map_or(Value::Nil, |hash| Value::from(hash.low_u64())),
            Value::Array(tokens.into_iter().map(Value::from).collect()),
            Value::from(block_size as u64),
            Value::Nil,
            Value::from(MEDIUM),
            Value::Nil,
        ],
        CacheEvent::Removed { hashes } => {
            vec![Value::from("BlockRemoved"), encode_hashes(hashes), Value::from(MEDIUM)]
        }
        CacheEvent::Cleared => vec![Value::from("AllBlocksCleared")],
    })
}

fn encode_hashes(hashes: Vec<BlockHash>) -> Value {
    Value::Array(hashes.into_iter().map(|hash| Value::from(hash.low_u64())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_the_fields_of_the_array_form_in_order() {
        let (first, second) = (BlockHash::of(None, &[1]), BlockHash::of(None, &[2]));
        let events = vec![
            CacheEvent::Stored { hashes: vec![second], parent: Some(first), tokens: vec![5, 6] },
            CacheEvent::Removed { hashes: vec![first] },
            CacheEvent::Cleared,
        ];
        let bytes = encode_batch(1.5, events, 2);
        let value = rmpv::decode::read_value(&mut &bytes[..]).unwrap();
        let expected = format!(
            "[1.5, [[\"BlockStored\", [{1}], {0}, [5, 6], 2, nil, \"GPU\", nil], \
             [\"BlockRemoved\", [{0}], \"GPU\"], [\"AllBlocksCleared\"]], 0]",
            first.low_u64(),
            second.low_u64()
        );
        assert_eq!(value.to_string(), expected);
    }
}
