//! Damaged and hostile model directories, and requests that make no sense: typed errors, never a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{made, small_spec};
use engine_model::{
    BlockStore as _, Chunk, Dtype, KvCache, KvLayout, MemoryStore, Model, ModelError, ModelSpec, Tokenizer,
    make_model,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const SHARD: &str = "model-00001-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn directory() -> TempDir {
    made(&small_spec())
}

fn edit_json(dir: &Path, file: &str, edit: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Replaces the header of a safetensors file, keeping its data.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
    let mut header: Value = serde_json::from_slice(&rest[..length]).unwrap();
    edit(&mut header);
    let header = header.to_string().into_bytes();
    let parts = [&(header.len() as u64).to_le_bytes()[..], &header, &rest[length..]];
    fs::write(path, parts.concat()).unwrap();
}

fn load_error(dir: &TempDir) -> ModelError {
    let error = Model::load(dir.path(), None).unwrap_err();
    assert!(!error.is_request_error(), "{error}");
    error
}

/// The error names this file and says this.
fn assert_says(error: &ModelError, file: &str, text: &str) {
    let message = error.to_string();
    assert!(message.contains(file) && message.contains(text), "{message:?} lacks {file:?} or {text:?}");
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", SHARD] {
        let dir = directory();
        fs::remove_file(dir.path().join(file)).unwrap();
        let error = load_error(&dir);
        assert!(matches!(error, ModelError::Io { .. }), "{error:?}");
        assert_says(&error, file, "cannot access");
    }
    let dir = directory();
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    assert_says(&load_error(&dir), "model.safetensors", "cannot access");
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert_says(&Tokenizer::load(dir.path()).unwrap_err(), "tokenizer.json", "cannot access");
}

#[test]
fn files_cut_at_any_place_are_refused() {
    let dir = directory();
    let path = dir.path().join(SHARD);
    let bytes = fs::read(&path).unwrap();
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = load_error(&dir);
        assert!(matches!(error, ModelError::Malformed { .. } | ModelError::Tensor { .. }), "{error:?}");
        assert_says(&error, SHARD, "");
    }
    let config = fs::read(dir.path().join("config.json")).unwrap();
    fs::write(dir.path().join("config.json"), &config[..config.len() / 2]).unwrap();
    assert_says(&load_error(&dir), "config.json", "EOF");
}

#[test]
fn a_header_longer_than_its_file_is_refused_before_it_is_read() {
    for claimed in [u64::MAX, 1 << 40, 99_000_000] {
        let dir = directory();
        let mut bytes = fs::read(dir.path().join(SHARD)).unwrap();
        bytes[..8].copy_from_slice(&claimed.to_le_bytes());
        fs::write(dir.path().join(SHARD), bytes).unwrap();
        assert_says(&load_error(&dir), SHARD, "header of");
    }
}

#[test]
fn headers_whose_byte_ranges_lie_are_refused() {
    let end = 1u64 << 50;
    for offsets in [[0, 10], [10, 0], [end, end + 74_960], [0, u64::MAX], [2, 74_962]] {
        let dir = directory();
        edit_header(&dir.path().join(SHARD), |header| {
            header["model.embed_tokens.weight"]["data_offsets"] = json!(offsets);
        });
        let error = load_error(&dir);
        assert!(matches!(error, ModelError::Malformed { .. }), "{offsets:?}: {error:?}");
        assert_says(&error, SHARD, "bad header");
    }
}

#[test]
fn tensors_that_share_their_bytes_are_refused() {
    let dir = directory();
    edit_header(&dir.path().join(SHARD), |header| {
        let shared = header["model.layers.0.self_attn.k_proj.weight"]["data_offsets"].clone();
        header["model.layers.0.self_attn.v_proj.weight"]["data_offsets"] = shared;
    });
    assert_says(&load_error(&dir), SHARD, "bad header");
}

#[test]
fn tensors_of_another_shape_or_type_are_named() {
    const NAME: &str = "model.embed_tokens.weight";
    let edits = [("shape", json!([40, 937]), "shape"), ("dtype", json!("U16"), "type is U16")];
    for (field, value, text) in edits {
        let dir = directory();
        edit_header(&dir.path().join(SHARD), |header| header[NAME][field] = value);
        let error = load_error(&dir);
        assert!(matches!(&error, ModelError::Tensor { tensor, .. } if tensor == NAME), "{error:?}");
        assert_says(&error, SHARD, text);
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = directory();
    let name = "model.layers.1.mlp.up_proj.weight";
    edit_json(dir.path(), INDEX, |index| {
        index["weight_map"].as_object_mut().unwrap().remove(name);
    });
    let error = load_error(&dir);
    assert_says(&error, INDEX, name);
    let dir = directory();
    edit_json(dir.path(), INDEX, |index| index["weight_map"]["lm_head.weight"] = json!(SHARD));
    assert_says(&load_error(&dir), SHARD, "lm_head.weight");
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    let outside = directory();
    let secret = outside.path().join(SHARD);
    let names =
        ["../x.safetensors", "a/b.safetensors", "..", ".", "", "./m.safetensors", secret.to_str().unwrap()];
    for name in names {
        let dir = directory();
        edit_json(dir.path(), INDEX, |index| index["weight_map"]["model.norm.weight"] = json!(name));
        let error = load_error(&dir);
        assert!(matches!(error, ModelError::Malformed { .. }), "{name}: {error:?}");
        assert_says(&error, INDEX, "not a file of this directory");
    }
}

#[test]
fn what_is_not_a_file_is_not_opened() {
    for name in ["config.json", SHARD, "tokenizer.json"] {
        let dir = directory();
        fs::remove_file(dir.path().join(name)).unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        let error = if name == "tokenizer.json" {
            Tokenizer::load(dir.path()).unwrap_err()
        } else {
            load_error(&dir)
        };
        assert_says(&error, name, "not a regular file");
    }
}

#[test]
fn absurd_configurations_are_refused_without_allocating() {
    let huge = json!(1u64 << 60);
    let edits = [
        ("hidden_size", json!(0), "hidden_size is 0"),
        ("hidden_size", huge.clone(), "hidden_size"),
        ("vocab_size", huge.clone(), "vocab_size"),
        ("num_hidden_layers", huge.clone(), "num_hidden_layers"),
        ("max_position_embeddings", huge.clone(), "max_position_embeddings"),
        ("num_attention_heads", json!(-1), "invalid value"),
        ("num_key_value_heads", json!(0), "does not divide"),
        ("num_key_value_heads", json!(4), "does not divide"),
        ("head_dim", json!(7), "even"),
        ("head_dim", huge, "head_dim"),
        ("rms_norm_eps", json!(-1.0), "rms_norm_eps"),
        ("rope_theta", json!(0.0), "rope_theta"),
        ("rope_scaling", json!({"rope_type": "linear"}), "factor is missing"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0}), "yarn"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("architectures", json!(["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
        ("eos_token_id", json!("no"), ""),
    ];
    for (field, value, text) in edits {
        let dir = directory();
        edit_json(dir.path(), "config.json", |config| config[field] = value);
        assert_says(&load_error(&dir), "config.json", text);
    }
    let dir = directory();
    edit_json(dir.path(), "config.json", |config| config["vocab_size"] = json!(1 << 22));
    assert_says(&load_error(&dir), SHARD, "shape");
}

#[test]
fn broken_tokenizers_and_templates_are_named() {
    let dir = directory();
    edit_json(dir.path(), "tokenizer_config.json", |config| config["chat_template"] = json!("{% for %}"));
    assert_says(&Tokenizer::load(dir.path()).unwrap_err(), "tokenizer_config.json", "chat template");
    fs::write(dir.path().join("tokenizer_config.json"), [0xff]).unwrap();
    assert_says(&Tokenizer::load(dir.path()).unwrap_err(), "tokenizer_config.json", "");
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert_says(&Tokenizer::load(dir.path()).unwrap_err(), "tokenizer.json", "");
}

#[test]
fn senseless_steps_are_typed_errors_and_write_nothing() {
    let dir = directory();
    let model = Model::load(dir.path(), None).unwrap();
    let layout = model.config().kv_layout(16, 4, Dtype::F32);
    let store = Arc::new(MemoryStore::new(layout.total_bytes()));
    let cache = KvCache::new(layout, store.clone()).unwrap();
    let good = Chunk { tokens: &[1, 2], start: 0, blocks: &[0], want_logits: true };
    let step = |bad: Chunk<'_>| model.forward(&[good, bad], &cache).unwrap_err();

    let error = step(Chunk { tokens: &[], ..good });
    assert!(matches!(error, ModelError::EmptyChunk { chunk: 1 }) && error.is_request_error());
    let error = step(Chunk { tokens: &[5, 937], ..good });
    assert!(
        matches!(error, ModelError::TokenOutOfVocab { chunk: 1, token: 937, vocab_size: 937 }),
        "{error:?}"
    );
    let error = step(Chunk { tokens: &[u32::MAX], ..good });
    assert!(matches!(error, ModelError::TokenOutOfVocab { .. }) && error.is_request_error());
    for start in [255, usize::MAX] {
        let error = step(Chunk { start, ..good });
        assert!(matches!(error, ModelError::ContextExceeded { chunk: 1, max: 256, .. }), "{error:?}");
    }
    let error = step(Chunk { start: 15, ..good });
    assert!(matches!(error, ModelError::TooFewBlocks { chunk: 1, needed: 2, given: 1 }), "{error:?}");
    let error = step(Chunk { start: 15, blocks: &[0, 4], ..good });
    assert!(matches!(error, ModelError::BlockOutOfRange { chunk: 1, block: 4, num_blocks: 4 }), "{error:?}");
    assert!(!error.is_request_error());

    let mut bytes = vec![1; cache.layout().total_bytes()];
    store.read(0, &mut bytes);
    assert!(bytes.iter().all(|&byte| byte == 0));
    assert_eq!(model.forward(&[], &cache).unwrap(), Vec::<Option<Vec<f32>>>::new());
}

#[test]
fn caches_that_do_not_fit_are_refused() {
    let dir = directory();
    let model = Model::load(dir.path(), None).unwrap();
    let layout = model.config().kv_layout(16, 4, Dtype::F32);
    let store = Arc::new(MemoryStore::new(layout.total_bytes() - 1));
    assert!(matches!(KvCache::new(layout, store).unwrap_err(), ModelError::Cache { .. }));
    let wrong = [
        KvLayout { block_size: 0, ..layout },
        KvLayout { block_size: 1 << 20, ..layout },
        KvLayout { num_blocks: usize::MAX / 2, ..layout },
    ];
    for layout in wrong {
        assert!(matches!(KvCache::in_memory(layout).unwrap_err(), ModelError::Cache { .. }), "{layout:?}");
    }
    let other = KvCache::in_memory(KvLayout { head_dim: 12, ..layout }).unwrap();
    let chunk = Chunk { tokens: &[1], start: 0, blocks: &[0], want_logits: true };
    assert!(matches!(model.forward(&[chunk], &other).unwrap_err(), ModelError::Cache { .. }));
}

#[test]
fn specs_of_no_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let specs = [
        ModelSpec { hidden_size: 0, ..small_spec() },
        ModelSpec { kv_heads: 4, ..small_spec() },
        ModelSpec { shards: 0, ..small_spec() },
        ModelSpec { eos_bias: f32::NAN, ..small_spec() },
        ModelSpec { hidden_size: 1 << 17, intermediate_size: 1 << 19, ..small_spec() },
    ];
    for spec in specs {
        let error = make_model(dir.path(), &spec).unwrap_err();
        assert!(matches!(error, ModelError::Spec { .. }), "{error:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
