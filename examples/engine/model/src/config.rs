//! `config.json` and `generation_config.json`: parsed once into numbers that the rest may trust.

use std::path::Path;

use serde::Deserialize;

use crate::cache::KvLayout;
use crate::error::ModelError;
use crate::files::{CONFIG_BYTES_MAX, parse_json, read_optional, read_required};

/// Largest accepted value of each size field. Generous for any real model, small enough that no product of the
/// fields overflows and nothing is allocated before a file of matching length was seen.
const SIZE_LIMITS: [(&str, usize); 7] = [
    ("hidden_size", 1 << 17),
    ("intermediate_size", 1 << 19),
    ("num_hidden_layers", 1 << 10),
    ("num_attention_heads", 1 << 11),
    ("head_dim", 1 << 10),
    ("vocab_size", 1 << 22),
    ("max_position_embeddings", 1 << 24),
];

/// How numbers are stored. Computation is always in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// Two bytes: the upper half of an `f32`.
    Bf16,
    /// Four bytes.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name that Hugging Face and vLLM use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }
}

/// How rotary frequencies are stretched for contexts longer than the ones trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    #[non_exhaustive]
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a ramp in between.
    #[non_exhaustive]
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f32,
        /// Wavelengths over `original_max_position / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths under `original_max_position / high_freq_factor` are high frequencies.
        high_freq_factor: f32,
        /// The context that the model was first trained on.
        original_max_position: f32,
    },
}

/// The model's numbers, checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head; even.
    pub head_dim: usize,
    /// Token ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square before its root.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Long-context stretching.
    pub rope_scaling: RopeScaling,
    /// Whether the output layer is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Beginning of a text.
    pub bos_token_id: Option<u32>,
    /// Ids that end a generation: those of `config.json` and those of `generation_config.json`.
    pub eos_token_ids: Vec<u32>,
    /// How the checkpoint says that it is stored; `f16` counts as `f32`.
    pub dtype: Dtype,
}

impl ModelConfig {
    /// Reads `config.json` and, if there is one, `generation_config.json`.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Malformed`] or [`ModelError::Unsupported`], naming the file and the field.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let mut config = Self::parse(&path, &read_required(&path, CONFIG_BYTES_MAX)?)?;
        let path = dir.join("generation_config.json");
        if let Some(bytes) = read_optional(&path, CONFIG_BYTES_MAX)? {
            let generation: RawGeneration = parse_json(&path, &bytes)?;
            config.eos_token_ids.extend(Ids::flatten(generation.eos_token_id));
            config.eos_token_ids.sort_unstable();
            config.eos_token_ids.dedup();
        }
        Ok(config)
    }

    /// Parses and checks the contents of a `config.json`.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        parse_json::<RawConfig>(path, bytes)?.check(path)
    }

    /// The cache layout of this model.
    #[must_use]
    pub const fn kv_layout(&self, block_size: usize, num_blocks: usize, dtype: Dtype) -> KvLayout {
        KvLayout {
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            block_size,
            num_blocks,
            dtype,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn flatten(ids: Option<Self>) -> Vec<u32> {
        match ids {
            None => Vec::new(),
            Some(Self::One(id)) => vec![id],
            Some(Self::Many(ids)) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RawGeneration {
    #[serde(default)]
    eos_token_id: Option<Ids>,
}

/// The file as it is written: the fields of `LlamaConfig` that matter, in both of the spellings in use.
#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    hidden_act: Option<String>,
    rope_theta: Option<f32>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<Ids>,
    torch_dtype: Option<String>,
    dtype: Option<String>,
    quantization_config: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

impl RawConfig {
    fn check(self, path: &Path) -> Result<ModelConfig, ModelError> {
        self.check_supported(path)?;
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None => self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0),
        };
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        self.check_sizes(path, head_dim, kv_heads)?;
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let rope_theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        for (name, value) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", rope_theta)] {
            positive(path, name, Some(value))?;
        }
        let rope_scaling = rope.map_or(Ok(RopeScaling::None), |rope| rope.check(path))?;
        Ok(ModelConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads,
            head_dim,
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: self.tie_word_embeddings,
            attention_bias: self.attention_bias,
            mlp_bias: self.mlp_bias,
            bos_token_id: self.bos_token_id,
            eos_token_ids: Ids::flatten(self.eos_token_id),
            dtype: match self.torch_dtype.as_deref().or(self.dtype.as_deref()) {
                Some("bfloat16") => Dtype::Bf16,
                _ => Dtype::F32,
            },
        })
    }

    fn check_supported(&self, path: &Path) -> Result<(), ModelError> {
        let unsupported = |what: String| Err(ModelError::Unsupported { path: path.to_owned(), what });
        let llama = if self.architectures.is_empty() {
            self.model_type == "llama"
        } else {
            self.architectures.iter().any(|name| name == "LlamaForCausalLM")
        };
        if !llama {
            let found = format!("architectures {:?}, model_type {:?}", self.architectures, self.model_type);
            return unsupported(format!("{found}; only LlamaForCausalLM is known"));
        }
        match self.hidden_act.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return unsupported(format!("hidden_act {other:?}; only silu is known")),
        }
        if self.quantization_config.is_some() {
            return unsupported("quantization_config; use an unquantised checkpoint".to_owned());
        }
        Ok(())
    }

    fn check_sizes(&self, path: &Path, head_dim: usize, kv_heads: usize) -> Result<(), ModelError> {
        let malformed = |reason: String| Err(ModelError::Malformed { path: path.to_owned(), reason });
        let values = [
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            head_dim,
            self.vocab_size,
            self.max_position_embeddings,
        ];
        for ((name, max), value) in SIZE_LIMITS.into_iter().zip(values) {
            if value == 0 || value > max {
                return malformed(format!("{name} is {value}; it has to be between 1 and {max}"));
            }
        }
        if kv_heads == 0 || !self.num_attention_heads.is_multiple_of(kv_heads) {
            let heads = self.num_attention_heads;
            return malformed(format!(
                "num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}"
            ));
        }
        if !head_dim.is_multiple_of(2) {
            return malformed(format!("head_dim is {head_dim}; rotary embedding needs an even one"));
        }
        Ok(())
    }
}

impl RawRope {
    fn check(&self, path: &Path) -> Result<RopeScaling, ModelError> {
        match self.rope_type.as_deref().or(self.r#type.as_deref()) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => {
                Ok(RopeScaling::Linear { factor: positive(path, "rope_scaling.factor", self.factor)? })
            }
            Some("llama3") => self.check_llama3(path),
            Some(other) => Err(ModelError::Unsupported {
                path: path.to_owned(),
                what: format!("rope type {other:?}; default, linear and llama3 are known"),
            }),
        }
    }

    fn check_llama3(&self, path: &Path) -> Result<RopeScaling, ModelError> {
        let low_freq_factor = positive(path, "rope_scaling.low_freq_factor", self.low_freq_factor)?;
        let high_freq_factor = positive(path, "rope_scaling.high_freq_factor", self.high_freq_factor)?;
        if high_freq_factor <= low_freq_factor {
            let reason = format!(
                "rope_scaling.high_freq_factor {high_freq_factor} is not over low_freq_factor {low_freq_factor}"
            );
            return Err(ModelError::Malformed { path: path.to_owned(), reason });
        }
        Ok(RopeScaling::Llama3 {
            factor: positive(path, "rope_scaling.factor", self.factor)?,
            low_freq_factor,
            high_freq_factor,
            original_max_position: positive(
                path,
                "rope_scaling.original_max_position_embeddings",
                self.original_max_position_embeddings,
            )?,
        })
    }
}

fn positive(path: &Path, name: &str, value: Option<f32>) -> Result<f32, ModelError> {
    match value {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        other => {
            let shown = other.map_or_else(|| "missing".to_owned(), |value| value.to_string());
            let reason = format!("{name} is {shown}; it has to be a positive number");
            Err(ModelError::Malformed { path: path.to_owned(), reason })
        }
    }
}
