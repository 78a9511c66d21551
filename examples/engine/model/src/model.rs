//! The decoder: loading it, and one step over any mix of prompt chunks and decodes.

use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::attention::{HeadShape, Span, attend};
use crate::cache::{KvCache, Plane};
use crate::config::{Dtype, ModelConfig};
use crate::error::ModelError;
use crate::ops::{Linear, RmsNorm};
use crate::rope::{Angles, Rope};
use crate::weights::Weights;

/// Consecutive tokens of one sequence that a step computes: a prompt, a piece of one, or the one token of a decode.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a request that callers build by field")]
pub struct Chunk<'a> {
    /// The tokens; at least one.
    pub tokens: &'a [u32],
    /// Position of `tokens[0]` in its sequence. The positions before it are already in the cache.
    pub start: usize,
    /// Blocks that cover positions `0..start + tokens.len()`, in order; more are ignored.
    pub blocks: &'a [u32],
    /// Whether the logits of the last token are wanted.
    pub want_logits: bool,
}

/// A loaded model. Immutable, so any number of threads may step it at once, each on blocks of its own.
///
/// Cost: the weights once, in the storage type (2 or 4 bytes per parameter). `bf16` weights are widened panel by
/// panel while they are multiplied, so they cost half the memory and give the same bits as an `f32` copy of them.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    rope: Rope,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What all layers of one step share.
struct Step<'a> {
    chunks: &'a [Chunk<'a>],
    cache: &'a KvCache,
    angles: Angles,
}

impl Model {
    /// Loads a Hugging Face directory: `config.json`, `generation_config.json` if present, and the safetensors files
    /// that `model.safetensors.index.json` names, or `model.safetensors`.
    ///
    /// `dtype` is how the weights are kept in memory; `None` keeps what the configuration says.
    ///
    /// # Errors
    /// [`ModelError`] naming the file, and the field or tensor, for anything that is missing, damaged, not a Llama,
    /// or contradicts the configuration.
    pub fn load(dir: &Path, dtype: Option<Dtype>) -> Result<Self, ModelError> {
        let config = ModelConfig::load(dir)?;
        let mut weights = Weights::open(dir, dtype.unwrap_or(config.dtype))?;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = weights.load("model.embed_tokens.weight", &[vocab, hidden])?;
        let mut layers = Vec::new();
        for index in 0..config.layers {
            layers.push(Layer::load(&mut weights, &config, index)?);
        }
        let norm = RmsNorm::new(&weights.load("model.norm.weight", &[hidden])?, config.rms_norm_eps)?;
        let head = if config.tie_word_embeddings && !weights.contains("lm_head.weight") {
            embedding.clone()
        } else {
            weights.load("lm_head.weight", &[vocab, hidden])?
        };
        let rope = Rope::new(&config);
        Ok(Self { config, embedding, layers, norm, head: Linear::new(head, None), rope })
    }

    /// The model's numbers.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// One step: writes the keys and values of every token of every chunk into the cache and returns, for each chunk
    /// with `want_logits`, the logits of its last token.
    ///
    /// The bits of a token's logits depend on the tokens of its own sequence up to it, the weights and the cache's
    /// type, and on nothing else. Chunks of one step may belong to one sequence if they are in order.
    ///
    /// Cost: activations of `f32` for all tokens of the step, and each chunk's whole context once per layer.
    ///
    /// # Errors
    /// A request error ([`ModelError::is_request_error`]) for an empty chunk, a token outside the vocabulary or a
    /// position over the context limit; [`ModelError::TooFewBlocks`], [`ModelError::BlockOutOfRange`] or
    /// [`ModelError::Cache`] for a mistake of the engine. Nothing is written to the cache in these cases.
    pub fn forward(
        &self,
        chunks: &[Chunk<'_>],
        cache: &KvCache,
    ) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
        self.check(chunks, cache)?;
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let tokens: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens).copied().collect();
        let positions: Vec<usize> =
            chunks.iter().flat_map(|chunk| chunk.start..chunk.start + chunk.tokens.len()).collect();
        let step = Step { chunks, cache, angles: self.rope.angles(&positions)? };
        let tokens = Tensor::new(tokens, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&tokens, 0)?.to_dtype(candle_core::DType::F32)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(index, &x, &step, &self.config)?;
        }
        self.logits(&x, chunks)
    }

    /// The logits of the last token of each chunk that wants them.
    fn logits(&self, x: &Tensor, chunks: &[Chunk<'_>]) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
        let ends = chunks.iter().scan(0, |end, chunk| {
            *end += chunk.tokens.len();
            Some(*end - 1)
        });
        let rows: Vec<Tensor> = ends
            .zip(chunks)
            .filter(|(_, chunk)| chunk.want_logits)
            .map(|(last, _)| x.narrow(0, last, 1))
            .collect::<Result<_, _>>()?;
        let mut logits = if rows.is_empty() {
            Vec::new()
        } else {
            self.head.forward(&self.norm.forward(&Tensor::cat(&rows, 0)?)?)?.to_vec2::<f32>()?
        }
        .into_iter();
        Ok(chunks.iter().map(|chunk| if chunk.want_logits { logits.next() } else { None }).collect())
    }

    fn check(&self, chunks: &[Chunk<'_>], cache: &KvCache) -> Result<(), ModelError> {
        let layout = cache.layout();
        let expected = self.config.kv_layout(layout.block_size, layout.num_blocks, layout.dtype);
        if *layout != expected {
            let reason = format!("its layout is {layout:?}, this model needs {expected:?}");
            return Err(ModelError::Cache { reason });
        }
        let (vocab_size, max) = (self.config.vocab_size, self.config.max_position_embeddings);
        for (index, chunk) in chunks.iter().enumerate() {
            if chunk.tokens.is_empty() {
                return Err(ModelError::EmptyChunk { chunk: index });
            }
            let out_of_vocab = |token: &&u32| usize::try_from(**token).map_or(true, |id| id >= vocab_size);
            if let Some(&token) = chunk.tokens.iter().find(out_of_vocab) {
                return Err(ModelError::TokenOutOfVocab { chunk: index, token, vocab_size });
            }
            let end = chunk.start.saturating_add(chunk.tokens.len());
            if end > max {
                return Err(ModelError::ContextExceeded { chunk: index, end, max });
            }
            let needed = layout.blocks_for(end);
            let Some(blocks) = chunk.blocks.get(..needed) else {
                return Err(ModelError::TooFewBlocks { chunk: index, needed, given: chunk.blocks.len() });
            };
            let num_blocks = layout.num_blocks;
            let out_of_range = |block: &&u32| usize::try_from(**block).map_or(true, |id| id >= num_blocks);
            if let Some(&block) = blocks.iter().find(out_of_range) {
                return Err(ModelError::BlockOutOfRange { chunk: index, block, num_blocks });
            }
        }
        Ok(())
    }
}

impl Layer {
    fn load(weights: &mut Weights, config: &ModelConfig, index: usize) -> Result<Self, ModelError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_rows, kv_rows) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let norm = |weights: &mut Weights, name: &str| -> Result<RmsNorm, ModelError> {
            let weight = weights.load(&format!("model.layers.{index}.{name}.weight"), &[hidden])?;
            Ok(RmsNorm::new(&weight, config.rms_norm_eps)?)
        };
        let linear = |weights: &mut Weights, name: &str, rows: usize, width: usize, bias: bool| {
            let prefix = format!("model.layers.{index}.{name}");
            let weight = weights.load(&format!("{prefix}.weight"), &[rows, width])?;
            let bias = if bias {
                let bias = weights.load(&format!("{prefix}.bias"), &[rows])?;
                Some(bias.to_dtype(candle_core::DType::F32)?)
            } else {
                None
            };
            Ok::<_, ModelError>(Linear::new(weight, bias))
        };
        let (attention_bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        Ok(Self {
            attention_norm: norm(weights, "input_layernorm")?,
            q: linear(weights, "self_attn.q_proj", q_rows, hidden, attention_bias)?,
            k: linear(weights, "self_attn.k_proj", kv_rows, hidden, attention_bias)?,
            v: linear(weights, "self_attn.v_proj", kv_rows, hidden, attention_bias)?,
            o: linear(weights, "self_attn.o_proj", hidden, q_rows, attention_bias)?,
            mlp_norm: norm(weights, "post_attention_layernorm")?,
            gate: linear(weights, "mlp.gate_proj", inner, hidden, mlp_bias)?,
            up: linear(weights, "mlp.up_proj", inner, hidden, mlp_bias)?,
            down: linear(weights, "mlp.down_proj", hidden, inner, mlp_bias)?,
        })
    }

    fn forward(
        &self,
        index: usize,
        x: &Tensor,
        step: &Step<'_>,
        config: &ModelConfig,
    ) -> Result<Tensor, ModelError> {
        let attended = self.attend(index, &self.attention_norm.forward(x)?, step, config)?;
        let x = (x + self.o.forward(&attended)?)?;
        let h = self.mlp_norm.forward(&x)?;
        let h = (self.gate.forward(&h)?.silu()? * self.up.forward(&h)?)?;
        Ok((x + self.down.forward(&h)?)?)
    }

    /// Keys and values go through the cache even for the chunk's own tokens, so that they are rounded for everyone.
    fn attend(
        &self,
        index: usize,
        h: &Tensor,
        step: &Step<'_>,
        config: &ModelConfig,
    ) -> Result<Tensor, ModelError> {
        let shape = HeadShape { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim };
        let tokens = h.dim(0)?;
        let rotated = |linear: &Linear, heads: usize| -> Result<Vec<f32>, ModelError> {
            let split = linear.forward(h)?.reshape((tokens, heads, shape.head_dim))?;
            Ok(step.angles.rotate(&split)?.flatten_all()?.to_vec1()?)
        };
        let queries = rotated(&self.q, shape.heads)?;
        let keys = rotated(&self.k, shape.kv_heads)?;
        let values: Vec<f32> = self.v.forward(h)?.flatten_all()?.to_vec1()?;

        let (q_row, kv_row) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut out = vec![0.0; queries.len()];
        let mut work = Vec::new();
        let (mut queries_left, mut out_left, mut first) = (queries.as_slice(), out.as_mut_slice(), 0);
        for chunk in step.chunks {
            let count = chunk.tokens.len();
            let rows = first * kv_row..(first + count) * kv_row;
            step.cache.write_rows(index, Plane::Key, chunk.blocks, chunk.start, &keys[rows.clone()]);
            step.cache.write_rows(index, Plane::Value, chunk.blocks, chunk.start, &values[rows]);
            let (queries, next_queries) = queries_left.split_at(count * q_row);
            let (out, next_out) = out_left.split_at_mut(count * q_row);
            work.push((chunk, queries, out));
            (queries_left, out_left, first) = (next_queries, next_out, first + count);
        }
        work.into_par_iter().for_each(|(chunk, queries, out)| {
            let span = Span { layer: index, start: chunk.start, blocks: chunk.blocks };
            attend(step.cache, span, shape, queries, out);
        });
        Ok(Tensor::from_vec(out, (tokens, q_row), &Device::Cpu)?)
    }
}
