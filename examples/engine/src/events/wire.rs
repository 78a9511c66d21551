//! A batch of cache events as msgpack.

use crate::hash::BlockHash;
use crate::sched::{CacheEvent, RunStart};
use rmpv::Value;

/// Where the blocks lie, in vLLM's words: the memory that the engine computes in is its "GPU" tier, and readers tell
/// tiers apart by this name.
const MEDIUM: &str = "GPU";
/// All layers of the model share one group of blocks.
const GROUP: u64 = 0;

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
    match event {
        CacheEvent::Stored { hashes, start, tokens } => {
            let mut keys = vec![Value::Nil; hashes.len()];
            let parent = match start {
                RunStart::Behind(hash) => Value::from(hash.low_u64()),
                RunStart::Root(salt) => {
                    if let (Some(salt), Some(first)) = (salt, keys.first_mut()) {
                        *first = Value::Array(vec![Value::from(&*salt)]);
                    }
                    Value::Nil
                }
            };
            map([
                ("type", Value::from("BlockStored")),
                ("block_hashes", encode_hashes(&hashes)),
                ("parent_block_hash", parent),
                ("token_ids", Value::Array(tokens.into_iter().map(Value::from).collect())),
                ("block_size", Value::from(block_size as u64)),
                ("lora_id", Value::Nil),
                ("medium", Value::from(MEDIUM)),
                ("lora_name", Value::Nil),
                ("extra_keys", Value::Array(keys)),
                ("group_idx", Value::from(GROUP)),
                ("kv_cache_spec_kind", Value::from("full_attention")),
            ])
        }
        CacheEvent::Removed { hashes } => map([
            ("type", Value::from("BlockRemoved")),
            ("block_hashes", encode_hashes(&hashes)),
            ("medium", Value::from(MEDIUM)),
            ("group_idx", Value::from(GROUP)),
        ]),
    }
}

fn map<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Map(fields.into_iter().map(|(name, value)| (Value::from(name), value)).collect())
}

fn encode_hashes(hashes: &[BlockHash]) -> Value {
    Value::Array(hashes.iter().map(|hash| Value::from(hash.low_u64())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_every_field_by_name() {
        let (first, second) = (BlockHash::of(None, &[1]), BlockHash::of(None, &[2]));
        let stored = |start, hashes| CacheEvent::Stored { hashes, start, tokens: vec![5, 6] };
        let events = vec![
            stored(RunStart::Behind(first), vec![second]),
            stored(RunStart::Root(Some("mine".into())), vec![first, second]),
            CacheEvent::Removed { hashes: vec![first] },
        ];
        let bytes = encode_batch(1.5, events, 2);
        let value = rmpv::decode::read_value(&mut &bytes[..]).unwrap();
        let (first, second) = (first.low_u64(), second.low_u64());
        let stored = |hashes: String, parent: String, keys: &str| {
            format!(r#"{{"type": "BlockStored", "block_hashes": [{hashes}], "parent_block_hash": {parent}, "#)
                + r#""token_ids": [5, 6], "block_size": 2, "lora_id": nil, "medium": "GPU", "lora_name": nil, "#
                + &format!(
                    r#""extra_keys": {keys}, "group_idx": 0, "kv_cache_spec_kind": "full_attention"}}"#
                )
        };
        let expected = [
            stored(second.to_string(), first.to_string(), "[nil]"),
            stored(format!("{first}, {second}"), "nil".into(), r#"[["mine"], nil]"#),
            format!(
                r#"{{"type": "BlockRemoved", "block_hashes": [{first}], "medium": "GPU", "group_idx": 0}}"#
            ),
        ];
        assert_eq!(value.to_string(), format!("[1.5, [{}], 0]", expected.join(", ")));
    }
}
