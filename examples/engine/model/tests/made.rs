//! Made models: the same bytes every time, complete, and with readable answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{cache, made, small_spec};
use engine_model::{Chunk, Dtype, Model, ModelSpec, Sampler, SamplingParams, Tokenizer};

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}

#[test]
fn the_same_spec_gives_the_same_bytes_and_another_seed_other_weights() {
    let (first, again) = (files(made(&small_spec()).path()), files(made(&small_spec()).path()));
    assert!(first == again);
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let other = files(made(&ModelSpec { seed: 1, ..small_spec() }).path());
    let changed: Vec<&str> = names.into_iter().filter(|name| first[*name] != other[*name]).collect();
    assert_eq!(changed, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
}

#[test]
fn the_number_of_shards_does_not_change_the_model() {
    let [one, five] = [1, 5].map(|shards| {
        let dir = made(&ModelSpec { shards, ..small_spec() });
        let count = files(dir.path()).keys().filter(|name| name.ends_with(".safetensors")).count();
        assert!(count <= shards && count >= shards.min(3), "{count} of {shards}");
        Model::load(dir.path(), None).unwrap()
    });
    let tokens = common::tokens(30, 2);
    assert_eq!(common::whole(&one, &tokens, Dtype::Bf16), common::whole(&five, &tokens, Dtype::Bf16));
}

#[test]
fn the_configuration_is_what_was_asked_for() {
    let dir = made(&ModelSpec::default());
    let model = Model::load(dir.path(), None).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let config = model.config();
    assert_eq!((config.hidden_size, config.layers, config.heads, config.kv_heads), (256, 4, 8, 4));
    assert_eq!((config.head_dim, config.intermediate_size, config.max_position_embeddings), (32, 688, 4096));
    assert_eq!(config.dtype, Dtype::Bf16);
    assert_eq!(config.vocab_size, tokenizer.vocab_size());
    assert_eq!(config.bos_token_id, tokenizer.token_id("<|bos|>"));
    let ends: Vec<u32> = ["<|eos|>", "<|end|>"].iter().filter_map(|name| tokenizer.token_id(name)).collect();
    assert_eq!(config.eos_token_ids, ends);
}

/// Samples an answer of at most 300 tokens.
fn answer(spec: &ModelSpec, seed: u64) -> (String, bool) {
    let dir = made(spec);
    let model = Model::load(dir.path(), None).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let cache = cache(&model, 16, 32, Dtype::Bf16);
    let blocks: Vec<u32> = (0..32).collect();
    let sampler = Sampler::new(SamplingParams::default(), seed).unwrap();
    let mut tokens = tokenizer.encode("What is a good town?", true).unwrap();
    let prompt = tokens.len();
    let mut start = 0;
    for index in 0..300 {
        let chunk = Chunk { tokens: &tokens[start..], start, blocks: &blocks, want_logits: true };
        let logits = model.forward(&[chunk], &cache).unwrap().pop().unwrap().unwrap();
        start = tokens.len();
        let token = sampler.sample(index, &logits).unwrap();
        if model.config().eos_token_ids.contains(&token) {
            return (tokenizer.decode(&tokens[prompt..]).unwrap(), true);
        }
        tokens.push(token);
    }
    (tokenizer.decode(&tokens[prompt..]).unwrap(), false)
}

#[test]
fn answers_are_readable_and_end_only_if_they_may() {
    let (text, ended) = answer(&ModelSpec { eos_bias: -100.0, ..ModelSpec::default() }, 1);
    assert!(!ended);
    assert!(text.is_ascii(), "{text}");
    let words = text.split_whitespace().count();
    assert!(words > 200, "{words} words in {text}");
    let (text, ended) = answer(&ModelSpec { eos_bias: 20.0, ..ModelSpec::default() }, 1);
    assert!(ended && text.len() < 50, "{text}");
}
