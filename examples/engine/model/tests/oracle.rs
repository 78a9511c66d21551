//! Agreement with an independent, naive implementation: plain loops, no cache, no paging.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{made, small_spec, tokens, whole};
use engine_model::{Dtype, Model};
use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

struct Naive {
    tensors: HashMap<String, (Vec<usize>, Vec<f64>)>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
    frequencies: Vec<f64>,
}

impl Naive {
    fn load(dir: &Path, frequencies: Vec<f64>) -> Self {
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        let field = |name: &str| usize::try_from(config[name].as_u64().unwrap()).unwrap();
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let bytes = std::fs::read(path).unwrap();
                for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                    tensors.insert(name, (view.shape().to_vec(), numbers(&view)));
                }
            }
        }
        Self {
            tensors,
            heads: field("num_attention_heads"),
            kv_heads: field("num_key_value_heads"),
            head_dim: field("head_dim"),
            layers: field("num_hidden_layers"),
            frequencies,
        }
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, w) = &self.tensors[&format!("{name}.weight")];
        let bias = self.tensors.get(&format!("{name}.bias"));
        (0..shape[0])
            .map(|row| {
                let dot: f64 = (0..shape[1]).map(|k| w[row * shape[1] + k] * x[k]).sum();
                dot + bias.map_or(0.0, |(_, bias)| bias[row])
            })
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean: f64 = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let weight = &self.tensors[&format!("{name}.weight")].1;
        x.iter().zip(weight).map(|(v, w)| v / (mean + 1e-5).sqrt() * w).collect()
    }

    fn rotate(&self, x: &mut [f64], position: usize) {
        let half = self.head_dim / 2;
        for head in x.chunks_mut(self.head_dim) {
            for i in 0..half {
                let (sin, cos) = (position as f64 * self.frequencies[i]).sin_cos();
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    }

    fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        let (shape, table) = &self.tensors["model.embed_tokens.weight"];
        let row = |token: u32| table[token as usize * shape[1]..(token as usize + 1) * shape[1]].to_vec();
        let mut xs: Vec<Vec<f64>> = tokens.iter().map(|&token| row(token)).collect();
        for layer in 0..self.layers {
            let p = format!("model.layers.{layer}");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in xs.iter_mut().enumerate() {
                let h = self.norm(&format!("{p}.input_layernorm"), x);
                let mut q = self.linear(&format!("{p}.self_attn.q_proj"), &h);
                let mut k = self.linear(&format!("{p}.self_attn.k_proj"), &h);
                self.rotate(&mut q, position);
                self.rotate(&mut k, position);
                keys.push(k);
                values.push(self.linear(&format!("{p}.self_attn.v_proj"), &h));
                let attended =
                    self.linear(&format!("{p}.self_attn.o_proj"), &self.attend(&q, &keys, &values));
                *x = x.iter().zip(attended).map(|(a, b)| a + b).collect();
                let h = self.norm(&format!("{p}.post_attention_layernorm"), x);
                let up = self.linear(&format!("{p}.mlp.up_proj"), &h);
                let gate = self.linear(&format!("{p}.mlp.gate_proj"), &h);
                let h: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let down = self.linear(&format!("{p}.mlp.down_proj"), &h);
                *x = x.iter().zip(down).map(|(a, b)| a + b).collect();
            }
        }
        let h = self.norm("model.norm", xs.last().unwrap());
        let tied = !self.tensors.contains_key("lm_head.weight");
        self.linear(if tied { "model.embed_tokens" } else { "lm_head" }, &h)
    }

    fn attend(&self, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let d = self.head_dim;
        let mut out = vec![0.0; q.len()];
        for head in 0..self.heads {
            let kv = head / (self.heads / self.kv_heads) * d;
            let weights: Vec<f64> = keys
                .iter()
                .map(|k| ((0..d).map(|i| q[head * d + i] * k[kv + i]).sum::<f64>() / (d as f64).sqrt()).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            for (weight, v) in weights.iter().zip(values) {
                for i in 0..d {
                    out[head * d + i] += weight / total * v[kv + i];
                }
            }
        }
        out
    }
}

fn numbers(view: &TensorView<'_>) -> Vec<f64> {
    match view.dtype() {
        safetensors::Dtype::BF16 => {
            view.data().chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
        }
        _ => view.data().chunks(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
    }
}

fn plain_frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

fn assert_agreement(dir: &Path, naive: &Naive) {
    let model = Model::load(dir, None).unwrap();
    for len in [1, 2, 17, 60] {
        let tokens = tokens(len, 7);
        let got = whole(&model, &tokens, Dtype::F32);
        let expected = naive.logits(&tokens);
        assert_eq!(got.len(), expected.len());
        let spread = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        for (id, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let error = (f64::from(*got) - expected).abs() / spread;
            assert!(error < 2e-5, "{len} tokens, logit {id}: {got} instead of {expected}");
        }
    }
}

#[test]
fn made_model_in_shards_of_bf16() {
    let dir = made(&small_spec());
    assert_agreement(dir.path(), &Naive::load(dir.path(), plain_frequencies(10_000.0, 10)));
}

/// Writes a checkpoint that uses what made models do not: one `f32` file, biases, a tied output layer.
fn write_checkpoint(dir: &Path, rope: &serde_json::Value) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 900,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "attention_bias": true,
        "mlp_bias": true, "rope_parameters": rope,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![900, 16]),
        ("model.norm.weight".to_owned(), vec![16]),
    ];
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            if shape.len() == 2 {
                tensors.push((format!("model.layers.{layer}.{name}.bias"), shape[..1].to_vec()));
            }
        };
        add("input_layernorm", &[16]);
        add("post_attention_layernorm", &[16]);
        for (name, rows) in [("q_proj", 32), ("k_proj", 8), ("v_proj", 8)] {
            add(&format!("self_attn.{name}"), &[rows, 16]);
        }
        add("self_attn.o_proj", &[16, 32]);
        add("mlp.gate_proj", &[20, 16]);
        add("mlp.up_proj", &[20, 16]);
        add("mlp.down_proj", &[16, 20]);
    }
    let mut state = 1u32;
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let bytes = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (f32::from_bits((state >> 9) | 0x3f80_0000) - 1.5).to_le_bytes()
            });
            let bytes = bytes.take(shape.iter().product()).flatten().collect();
            (name, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn single_file_with_biases_tied_head_and_llama3_rope() {
    let dir = tempfile::tempdir().unwrap();
    let rope = json!({"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    write_checkpoint(dir.path(), &rope);
    // Wavelengths 6, 30, 140 and 664 against 64 / 4 and 64 / 1: one kept, one on the ramp, two divided.
    let mut frequencies = plain_frequencies(500.0, 8);
    let smooth = (64.0 * frequencies[1] / std::f64::consts::TAU - 1.0) / 3.0;
    frequencies[1] = (1.0 - smooth) * frequencies[1] / 8.0 + smooth * frequencies[1];
    frequencies[2] /= 8.0;
    frequencies[3] /= 8.0;
    assert_agreement(dir.path(), &Naive::load(dir.path(), frequencies));
}

#[test]
fn linear_rope() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), &json!({"type": "linear", "factor": 4.0, "rope_theta": 100.0}));
    let frequencies = plain_frequencies(100.0, 8).into_iter().map(|f| f / 4.0).collect();
    assert_agreement(dir.path(), &Naive::load(dir.path(), frequencies));
}
