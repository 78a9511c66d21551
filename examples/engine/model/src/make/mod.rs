//! Writes a small random Llama as a Hugging Face directory, so that nothing has to be downloaded.
//!
//! The same spec gives the same bytes on every machine: the random numbers are uniform ones from a counter-mode
//! generator, without any function whose last bit depends on a maths library.

mod bpe;
mod random;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::config::ModelConfig;
use crate::error::ModelError;
use bpe::Vocab;
use random::{TensorSpec, Tensors};

const TEXT: &str = include_str!("corpus.txt");
/// Most parameters of a made model; at two bytes each they are held in memory a shard at a time.
const PARAMETERS_MAX: usize = 1 << 31;
/// Most shards; their number is written with five digits.
const SHARDS_MAX: usize = 1000;

const CHAT_TEMPLATE: &str = "\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('unknown role ' + message['role']) }}
{%- endif %}
{{- '<|' + message['role'] + '|>\\n' + (message['content'] | trim) + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}
";

/// What kind of model to write. The default has about 3.5 million parameters and loads in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "parameters that callers build by field over a default")]
pub struct ModelSpec {
    /// Seed of all weights.
    pub seed: u64,
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
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// Number of safetensors files; there are fewer where a tensor is larger than an equal share.
    pub shards: usize,
    /// Added to the logits of the tokens that end an answer: 0 ends one now and then at a full stop, -100 never.
    pub eos_bias: f32,
}

impl Default for ModelSpec {
    fn default() -> Self {
        Self {
            seed: 0,
            hidden_size: 256,
            intermediate_size: 688,
            layers: 4,
            heads: 8,
            kv_heads: 4,
            head_dim: 32,
            max_position_embeddings: 4096,
            shards: 2,
            eos_bias: 0.0,
        }
    }
}

/// Writes the model that `spec` describes into `dir`, creating it; files of the same names are overwritten.
/// `config.json` comes last, so a directory that has one is complete.
///
/// The weights are random, but the output layer also remembers which word followed which in a short built-in text:
/// answers are word salad in that text's style, and fragments and odd bytes are very unlikely.
///
/// # Errors
/// [`ModelError::Spec`] if the spec is no model, [`ModelError::Io`] if a file cannot be written.
pub fn make_model(dir: &Path, spec: &ModelSpec) -> Result<(), ModelError> {
    let vocab = Vocab::train(TEXT);
    let config = serde_json::to_vec_pretty(&config_json(spec, &vocab)).map_err(spec_error)?;
    ModelConfig::parse(&dir.join("config.json"), &config).map_err(spec_error)?;
    if spec.shards == 0 || spec.shards > SHARDS_MAX {
        return Err(spec_error(format!(
            "shards is {}; it has to be between 1 and {SHARDS_MAX}",
            spec.shards
        )));
    }
    if !spec.eos_bias.is_finite() {
        return Err(spec_error(format!("eos_bias is {}; it has to be a number", spec.eos_bias)));
    }
    let tensors = Tensors::new(spec, &vocab);
    let parameters = tensors.list().iter().map(TensorSpec::len).fold(0, usize::saturating_add);
    if parameters > PARAMETERS_MAX {
        return Err(spec_error(format!("{parameters} parameters; at most {PARAMETERS_MAX} are written")));
    }
    std::fs::create_dir_all(dir).map_err(|source| ModelError::Io { path: dir.to_owned(), source })?;
    write_shards(dir, spec.shards, &tensors)?;
    write_json(dir, "tokenizer.json", &vocab.tokenizer_json())?;
    write_json(dir, "tokenizer_config.json", &tokenizer_config_json(spec))?;
    let (bos, eos) = (vocab.special(bpe::BOS), [vocab.special(bpe::EOS), vocab.special(bpe::END)]);
    write_json(dir, "generation_config.json", &json!({"bos_token_id": bos, "eos_token_id": eos}))?;
    write(dir, "config.json", &config)
}

fn config_json(spec: &ModelSpec, vocab: &Vocab) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": vocab.len(),
        "max_position_embeddings": spec.max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": null,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": false,
        "bos_token_id": vocab.special(bpe::BOS),
        "eos_token_id": vocab.special(bpe::EOS),
        "torch_dtype": "bfloat16",
    })
}

fn tokenizer_config_json(spec: &ModelSpec) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bpe::BOS,
        "eos_token": bpe::EOS,
        "clean_up_tokenization_spaces": false,
        "model_max_length": spec.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    })
}

/// Cuts the list of tensors into runs of about equal size, one file each, and writes the index.
fn write_shards(dir: &Path, shards: usize, tensors: &Tensors<'_>) -> Result<(), ModelError> {
    let list = tensors.list();
    let total: usize = list.iter().map(TensorSpec::len).sum();
    let mut before = 0;
    let mut parts: Vec<Vec<&TensorSpec>> = vec![Vec::new(); shards.min(list.len())];
    let last = parts.len() - 1;
    for tensor in list {
        parts[(before * shards / total.max(1)).min(last)].push(tensor);
        before += tensor.len();
    }
    parts.retain(|part| !part.is_empty());
    let count = parts.len();
    let mut weight_map = BTreeMap::new();
    for (index, part) in parts.iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        let path = dir.join(&name);
        let data: Vec<Vec<u8>> = part.iter().map(|tensor| tensors.bytes(tensor)).collect();
        let views: Vec<(&str, TensorView<'_>)> = part
            .iter()
            .zip(&data)
            .map(|(tensor, data)| {
                let view = TensorView::new(safetensors::Dtype::BF16, tensor.shape().to_vec(), data);
                Ok((tensor.name(), view.map_err(spec_error)?))
            })
            .collect::<Result<_, ModelError>>()?;
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors::serialize(views, Some(format)).map_err(spec_error)?;
        std::fs::write(&path, bytes).map_err(|source| ModelError::Io { path, source })?;
        weight_map.extend(part.iter().map(|tensor| (tensor.name().to_owned(), name.clone())));
    }
    let index = json!({"metadata": {"total_size": total * 2}, "weight_map": weight_map});
    write_json(dir, "model.safetensors.index.json", &index)
}

fn write_json(dir: &Path, name: &str, value: &Value) -> Result<(), ModelError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(spec_error)?;
    bytes.push(b'\n');
    write(dir, name, &bytes)
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), ModelError> {
    let path = dir.join(name);
    std::fs::write(&path, bytes).map_err(|source| ModelError::Io { path, source })
}

#[expect(clippy::needless_pass_by_value, reason = "it ends chains of map_err")]
fn spec_error(error: impl ToString) -> ModelError {
    ModelError::Spec { reason: error.to_string() }
}
