//! The weights of a made model.
//!
//! Element 0 of the residual stream is the same number for every token and no layer writes to it, so column 0 of
//! the output layer acts as a bias per token: it makes fragments, odd bytes and role markers unlikely. The other
//! columns of the output layer remember pairs of words: the row of a word points towards the embeddings of the words
//! before it. The layers in between are plain noise, strong enough that the choice between several possible next
//! words depends on the whole context.

use std::collections::{BTreeMap, BTreeSet};

use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::ModelSpec;
use super::bpe::{self, Vocab};

/// Element 0 of every token's embedding.
const CONSTANT: f32 = 4.0;
/// Strength of the remembered pairs, and of pairs that end an answer.
const PAIR: f32 = 16.0;
const PAIR_END: f32 = 9.0;
/// Bias of what is not a word of the text, and of special tokens that no answer should contain.
const FRAGMENT: f32 = -6.0;
const FORBIDDEN: f32 = -30.0;
/// What attention and feed-forward blocks add to the stream per layer, relative to an embedding.
const ATTENTION_OUT: f32 = 0.8;
const MLP_OUT: f32 = 0.65;

/// One tensor of the model: what it is called, its shape, and how it is filled.
pub(super) struct TensorSpec {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
}

#[derive(Clone, Copy)]
enum Fill {
    Ones,
    /// Uniform numbers with this standard deviation.
    Random(f32),
    /// The same with row 0 zeroed, so that element 0 of the stream stays constant.
    RandomToStream(f32),
    Embedding,
    Output,
}

impl TensorSpec {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn len(&self) -> usize {
        self.shape.iter().copied().fold(1, usize::saturating_mul)
    }
}

/// All tensors of a model, made one at a time.
pub(super) struct Tensors<'a> {
    spec: &'a ModelSpec,
    vocab: &'a Vocab,
    list: Vec<TensorSpec>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(spec: &'a ModelSpec, vocab: &'a Vocab) -> Self {
        let hidden = spec.hidden_size;
        let mut list = vec![TensorSpec {
            name: "model.embed_tokens.weight".to_owned(),
            shape: vec![vocab.len(), hidden],
            fill: Fill::Embedding,
        }];
        for layer in 0..spec.layers {
            list.extend(layer_tensors(spec, layer));
        }
        list.push(TensorSpec { name: "model.norm.weight".to_owned(), shape: vec![hidden], fill: Fill::Ones });
        let shape = vec![vocab.len(), hidden];
        list.push(TensorSpec { name: "lm_head.weight".to_owned(), shape, fill: Fill::Output });
        Self { spec, vocab, list }
    }

    pub(super) fn list(&self) -> &[TensorSpec] {
        &self.list
    }

    /// The tensor's numbers as little-endian `bf16`.
    pub(super) fn bytes(&self, tensor: &TensorSpec) -> Vec<u8> {
        let values = match tensor.fill {
            Fill::Ones => vec![1.0; tensor.len()],
            Fill::Random(deviation) => self.uniform(tensor, deviation),
            Fill::RandomToStream(deviation) => {
                let mut values = self.uniform(tensor, deviation);
                values[..tensor.shape[1]].fill(0.0);
                values
            }
            Fill::Embedding => self.embedding(tensor),
            Fill::Output => self.output(tensor),
        };
        values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
    }

    fn embedding(&self, tensor: &TensorSpec) -> Vec<f32> {
        let mut values = self.uniform(tensor, 1.0);
        for row in values.chunks_exact_mut(self.spec.hidden_size) {
            row[0] = CONSTANT;
        }
        values
    }

    fn output(&self, tensor: &TensorSpec) -> Vec<f32> {
        let hidden = self.spec.hidden_size;
        let embedding = self.embedding(&self.list[0]);
        let mut values = self.uniform(tensor, inverse_root(hidden));
        for (&(before, after), &strength) in &self.pairs() {
            let from = &embedding[before * hidden..(before + 1) * hidden];
            let to = &mut values[after * hidden..(after + 1) * hidden];
            for (to, from) in to.iter_mut().zip(from) {
                *to += strength * from / as_f32(hidden);
            }
        }
        let ends = [self.vocab.special(bpe::EOS), self.vocab.special(bpe::END)];
        let words = self.vocab.words();
        for (id, row) in values.chunks_exact_mut(hidden).enumerate() {
            let bias = if ends.contains(&id) { self.spec.eos_bias } else { self.bias(id, &words) };
            row[0] = bias / CONSTANT;
        }
        values
    }

    fn bias(&self, id: usize, words: &BTreeSet<usize>) -> f32 {
        if words.contains(&id) {
            0.0
        } else if bpe::SPECIAL.iter().any(|name| self.vocab.special(name) == id)
            || (0x80..=0xff).contains(&id)
        {
            FORBIDDEN
        } else {
            FRAGMENT
        }
    }

    /// Which word followed which, and that an answer may begin with a line's first word and end after a full stop.
    fn pairs(&self) -> BTreeMap<(usize, usize), f32> {
        let mut pairs: BTreeMap<(usize, usize), f32> =
            self.vocab.text().windows(2).map(|pair| ((pair[0], pair[1]), PAIR)).collect();
        let stop = Vocab::byte(b'.');
        pairs.insert((stop, self.vocab.special(bpe::END)), PAIR_END);
        pairs
    }

    /// Uniform numbers from the stream that belongs to this tensor.
    #[expect(clippy::cast_precision_loss, reason = "24 bits are exact in an f32")]
    fn uniform(&self, tensor: &TensorSpec, deviation: f32) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.spec.seed);
        let stream = self.list.iter().position(|other| other.name == tensor.name).unwrap_or(0);
        rng.set_stream(stream as u64);
        let half_width = deviation * 3f32.sqrt();
        std::iter::repeat_with(|| {
            let unit = (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
            (2.0 * unit - 1.0) * half_width
        })
        .take(tensor.len())
        .collect()
    }
}

fn layer_tensors(spec: &ModelSpec, layer: usize) -> Vec<TensorSpec> {
    let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
    let (q_rows, kv_rows) =
        (spec.heads.saturating_mul(spec.head_dim), spec.kv_heads.saturating_mul(spec.head_dim));
    let into = inverse_root(hidden);
    let tensor = |name: &str, shape: &[usize], fill: Fill| TensorSpec {
        name: format!("model.layers.{layer}.{name}.weight"),
        shape: shape.to_vec(),
        fill,
    };
    vec![
        tensor("input_layernorm", &[hidden], Fill::Ones),
        tensor("self_attn.q_proj", &[q_rows, hidden], Fill::Random(1.5 * into)),
        tensor("self_attn.k_proj", &[kv_rows, hidden], Fill::Random(1.5 * into)),
        tensor("self_attn.v_proj", &[kv_rows, hidden], Fill::Random(into)),
        tensor(
            "self_attn.o_proj",
            &[hidden, q_rows],
            Fill::RandomToStream(ATTENTION_OUT * inverse_root(q_rows)),
        ),
        tensor("post_attention_layernorm", &[hidden], Fill::Ones),
        tensor("mlp.gate_proj", &[inner, hidden], Fill::Random(into)),
        tensor("mlp.up_proj", &[inner, hidden], Fill::Random(into)),
        tensor("mlp.down_proj", &[hidden, inner], Fill::RandomToStream(MLP_OUT * inverse_root(inner))),
    ]
}

fn inverse_root(width: usize) -> f32 {
    1.0 / as_f32(width).sqrt()
}

#[expect(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
const fn as_f32(width: usize) -> f32 {
    width as f32
}
