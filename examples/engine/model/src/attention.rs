//! Causal attention of one chunk over its paged context.
//!
//! Scores are dot products in the kernel's fixed order; the maximum, the sum and the weighted values run over the
//! positions in order. So the result of a token depends on the positions before it and on nothing else: not on the
//! chunk it came in, the other chunks of the step, or the block size.

use rayon::prelude::*;

use crate::cache::{KvCache, Plane};
use crate::kernel::{add_scaled, dot_rows, padded};

/// Tokens of a chunk that share one pass over the keys.
const TILE: usize = 16;

/// The shape of the queries.
#[derive(Clone, Copy)]
pub(crate) struct HeadShape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// A chunk's place in its sequence and in the cache.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    pub(crate) layer: usize,
    pub(crate) start: usize,
    pub(crate) blocks: &'a [u32],
}

/// Context of one layer, out of its pages: `[kv_head][position][stride]`.
struct Context {
    keys: Vec<f32>,
    values: Vec<f32>,
    len: usize,
    stride: usize,
}

/// Attends with `queries` of `[token][head][head_dim]`, writing the same shape to `out`.
///
/// Cost: reads the whole context out of the cache once and holds it in `f32` meanwhile.
pub(crate) fn attend(cache: &KvCache, span: Span<'_>, shape: HeadShape, queries: &[f32], out: &mut [f32]) {
    let row = shape.heads * shape.head_dim;
    let len = span.start + queries.len() / row;
    let stride = padded(shape.head_dim);
    let read = |plane| {
        let mut rows = vec![0.0; shape.kv_heads * len * stride];
        cache.gather(span.layer, plane, span.blocks, len, stride, &mut rows);
        rows
    };
    let context = Context { keys: read(Plane::Key), values: read(Plane::Value), len, stride };
    out.par_chunks_mut(TILE * row).zip(queries.par_chunks(TILE * row)).enumerate().for_each(
        |(tile, (out, queries))| {
            let first = span.start + tile * TILE;
            let heads: Vec<Vec<f32>> = (0..shape.heads)
                .into_par_iter()
                .map(|head| attend_head(&context, shape, head, first, queries))
                .collect();
            for (token, out) in out.chunks_exact_mut(row).enumerate() {
                for (out, head) in out.chunks_exact_mut(shape.head_dim).zip(&heads) {
                    out.copy_from_slice(&head[token * stride..token * stride + shape.head_dim]);
                }
            }
        },
    );
}

/// One head of a tile whose first token has position `first`; the result is `[token][stride]`.
#[expect(clippy::cast_precision_loss, reason = "head_dim is at most 1024")]
fn attend_head(context: &Context, shape: HeadShape, head: usize, first: usize, queries: &[f32]) -> Vec<f32> {
    let HeadShape { heads, kv_heads, head_dim } = shape;
    let stride = context.stride;
    let tokens = queries.len() / (heads * head_dim);
    let visible = first + tokens;
    let plane = head / (heads / kv_heads) * context.len * stride;
    let mut query = vec![0.0; tokens * stride];
    for (to, from) in query.chunks_exact_mut(stride).zip(queries.chunks_exact(heads * head_dim)) {
        to[..head_dim].copy_from_slice(&from[head * head_dim..(head + 1) * head_dim]);
    }
    let mut scores = vec![0.0; tokens * visible];
    dot_rows(&query, &context.keys[plane..plane + visible * stride], stride, &mut scores);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut out = vec![0.0; tokens * stride];
    for (token, (out, scores)) in
        out.chunks_exact_mut(stride).zip(scores.chunks_exact_mut(visible)).enumerate()
    {
        let weights = &mut scores[..=first + token];
        let total = softmax_weights(weights, scale);
        add_scaled(out, weights, &context.values[plane..], stride);
        for value in out {
            *value /= total;
        }
    }
    out
}

/// Turns scores into unnormalised weights and returns their sum.
fn softmax_weights(scores: &mut [f32], scale: f32) -> f32 {
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, &score| max.max(score * scale));
    let mut total = 0.0;
    for score in scores {
        *score = (*score * scale - max).exp();
        total += *score;
    }
    total
}
