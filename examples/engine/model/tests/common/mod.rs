//! A small model with awkward widths: none is a multiple of the kernel's 16 lanes.
#![allow(dead_code, reason = "each test file uses its part")]

use engine_model::{Chunk, Dtype, KvCache, Model, ModelSpec, make_model};
use tempfile::TempDir;

pub(crate) fn small_spec() -> ModelSpec {
    ModelSpec {
        hidden_size: 40,
        intermediate_size: 52,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 10,
        max_position_embeddings: 256,
        ..ModelSpec::default()
    }
}

pub(crate) fn made(spec: &ModelSpec) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    make_model(dir.path(), spec).unwrap();
    dir
}

pub(crate) fn cache(model: &Model, block_size: usize, num_blocks: usize, dtype: Dtype) -> KvCache {
    KvCache::in_memory(model.config().kv_layout(block_size, num_blocks, dtype)).unwrap()
}

/// Logits of the last token, computed with everything in one chunk on a cache of its own.
pub(crate) fn whole(model: &Model, tokens: &[u32], dtype: Dtype) -> Vec<f32> {
    let cache = cache(model, 16, tokens.len().div_ceil(16), dtype);
    let blocks: Vec<u32> = (0..).take(tokens.len().div_ceil(16)).collect();
    let chunk = Chunk { tokens, start: 0, blocks: &blocks, want_logits: true };
    model.forward(&[chunk], &cache).unwrap().pop().unwrap().unwrap()
}

pub(crate) fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Deterministic token ids that do not repeat soon.
pub(crate) fn tokens(count: usize, seed: u32) -> Vec<u32> {
    (0u32..).map(|i| (i * 37 + seed * 101 + i * i * seed) % 900).take(count).collect()
}
