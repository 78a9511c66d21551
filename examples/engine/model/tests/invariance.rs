//! The promise of this crate: how work is cut and batched never changes a bit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

mod common;

use std::sync::{Arc, LazyLock};

use common::{bits, cache, made, small_spec, tokens, whole};
use engine_model::{BlockStore as _, Chunk, Dtype, KvCache, MemoryStore, Model, Plane};
use proptest::prelude::*;

static MODEL: LazyLock<Model> = LazyLock::new(|| Model::load(made(&small_spec()).path(), None).unwrap());

/// One sequence of a batch: its tokens and the lengths of the chunks that it is cut into, repeated.
#[derive(Clone, Debug)]
struct Sequence {
    tokens: Vec<u32>,
    cuts: Vec<usize>,
}

fn sequence() -> impl Strategy<Value = Sequence> {
    (1usize..100, 0u32..50, prop::collection::vec(1usize..40, 1..6))
        .prop_map(|(len, seed, cuts)| Sequence { tokens: tokens(len, seed), cuts })
}

/// The logits after every single token, computed one token at a time.
fn one_by_one(sequence: &Sequence, dtype: Dtype) -> Vec<Vec<u32>> {
    let cache = cache(&MODEL, 16, 7, dtype);
    let step = |position: usize| {
        let tokens = &sequence.tokens[position..=position];
        let chunk = Chunk { tokens, start: position, blocks: &[3, 0, 6, 1, 5, 2, 4], want_logits: true };
        bits(MODEL.forward(&[chunk], &cache).unwrap()[0].as_ref().unwrap())
    };
    (0..sequence.tokens.len()).map(step).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_cut_and_any_mix_gives_the_bits_of_single_tokens(
        sequences in prop::collection::vec(sequence(), 1..4),
        lag in prop::collection::vec(0usize..3, 3),
        block_size in prop::sample::select(vec![1, 16, 32, 48]),
        dtype in prop::sample::select(vec![Dtype::Bf16, Dtype::F32]),
        shuffle in any::<u32>(),
    ) {
        let expected: Vec<_> = sequences.iter().map(|s| one_by_one(s, dtype)).collect();
        let num_blocks: usize = sequences.iter().map(|s| s.tokens.len().div_ceil(block_size)).sum();
        let cache = cache(&MODEL, block_size, num_blocks, dtype);
        let mut free: Vec<u32> = (0..u32::try_from(num_blocks).unwrap()).collect();
        free.sort_by_key(|block| block.wrapping_mul(2_654_435_761).rotate_left(shuffle % 32) ^ shuffle);
        let blocks: Vec<Vec<u32>> = sequences
            .iter()
            .map(|s| free.split_off(free.len() - s.tokens.len().div_ceil(block_size)))
            .collect();
        let mut done = vec![0; sequences.len()];
        for step in 0.. {
            let mut owners = Vec::new();
            let mut chunks = Vec::new();
            for (index, s) in sequences.iter().enumerate() {
                let start = done[index];
                if start == s.tokens.len() || step < lag[index] {
                    continue;
                }
                let len = s.cuts[step % s.cuts.len()].min(s.tokens.len() - start);
                let tokens = &s.tokens[start..start + len];
                chunks.push(Chunk { tokens, start, blocks: &blocks[index], want_logits: step % 3 != 1 });
                owners.push(index);
                done[index] += len;
            }
            if chunks.is_empty() && step > 3 {
                break;
            }
            let logits = MODEL.forward(&chunks, &cache).unwrap();
            prop_assert_eq!(logits.len(), chunks.len());
            for ((index, chunk), logits) in owners.into_iter().zip(&chunks).zip(&logits) {
                prop_assert_eq!(logits.is_some(), chunk.want_logits);
                if let Some(logits) = logits {
                    prop_assert!(bits(logits) == expected[index][done[index] - 1], "sequence {}", index);
                }
            }
        }
    }
}

#[test]
fn chunks_of_one_sequence_may_share_a_step() {
    let tokens = tokens(50, 3);
    let cache = cache(&MODEL, 16, 4, Dtype::Bf16);
    let blocks = [2, 1, 0, 3];
    let chunk = |from: usize, to: usize| Chunk {
        tokens: &tokens[from..to],
        start: from,
        blocks: &blocks,
        want_logits: to == 50,
    };
    let logits = MODEL.forward(&[chunk(0, 20), chunk(20, 33), chunk(33, 50)], &cache).unwrap();
    assert_eq!(bits(logits[2].as_ref().unwrap()), bits(&whole(&MODEL, &tokens, Dtype::Bf16)));
}

#[test]
fn a_copy_of_the_pages_goes_on_as_if_nothing_had_happened() {
    let dir = made(&small_spec());
    let (here, there) = (Model::load(dir.path(), None).unwrap(), Model::load(dir.path(), None).unwrap());
    let tokens = tokens(70, 9);
    let layout = here.config().kv_layout(32, 3, Dtype::Bf16);
    let (from, to) =
        (Arc::new(MemoryStore::new(layout.total_bytes())), Arc::new(MemoryStore::new(layout.total_bytes())));
    let prompt = Chunk { tokens: &tokens[..69], start: 0, blocks: &[0, 1, 2], want_logits: false };
    let answers = here.forward(&[prompt], &KvCache::new(layout, from.clone()).unwrap()).unwrap();
    assert_eq!(answers, [None]);
    let mut page = vec![0; layout.page_bytes()];
    for layer in 0..layout.layers {
        for plane in [Plane::Key, Plane::Value] {
            for (source, target) in [(0, 2), (1, 0), (2, 1)] {
                from.read(layout.plane_offset(layer, plane) + source * layout.page_bytes(), &mut page);
                to.write(layout.plane_offset(layer, plane) + target * layout.page_bytes(), &page);
            }
        }
    }
    let last = Chunk { tokens: &tokens[69..], start: 69, blocks: &[2, 0, 1], want_logits: true };
    let logits = there.forward(&[last], &KvCache::new(layout, to).unwrap()).unwrap();
    assert_eq!(bits(logits[0].as_ref().unwrap()), bits(&whole(&here, &tokens, Dtype::Bf16)));
}

#[test]
fn the_storage_of_bf16_weights_does_not_matter_but_the_type_of_the_cache_does() {
    let dir = made(&small_spec());
    let narrow = Model::load(dir.path(), Some(Dtype::Bf16)).unwrap();
    let wide = Model::load(dir.path(), Some(Dtype::F32)).unwrap();
    let tokens = tokens(20, 5);
    let logits = bits(&whole(&narrow, &tokens, Dtype::Bf16));
    assert_eq!(logits, bits(&whole(&wide, &tokens, Dtype::Bf16)));
    assert_ne!(logits, bits(&whole(&narrow, &tokens, Dtype::F32)), "the cache rounds");
}
