//! The tokens of a divided engine are those of an undivided one.

use crate::harness::{Choose, Engine, completion, prefill, prompt, token_ids, with_params};
use serde_json::Value;

const LENGTHS: [usize; 5] = [1, 31, 32, 33, 1500];
const ANSWER: usize = 8;

struct Trio {
    whole: Engine,
    prefill: Engine,
    decode: Engine,
    block_size: usize,
    path: &'static str,
}

impl Trio {
    fn start(block_size: usize, path: &'static str) -> Self {
        let size = block_size.to_string();
        let start = |role| Engine::start(&["--block-size", &size, "--paths", path, "--role", role]);
        Self { whole: start("both"), prefill: start("prefill"), decode: start("decode"), block_size, path }
    }

    /// Both ways; the pull's record. `have`: full blocks that the decode side has already.
    async fn compare(&self, tokens: &[u32], choose: Choose, have: usize, request_id: &str) {
        let body = completion(tokens, choose, ANSWER);
        let whole = self.whole.ok("/v1/completions", &body).await;
        let params = prefill(&self.prefill, &body).await;
        let request = self.decode.request("/v1/completions").header("x-request-id", request_id);
        let answer: Value =
            request.json(&with_params(&body, &params)).send().await.unwrap().json().await.unwrap();
        let context =
            format!("{} tokens, {choose:?}, blocks of {}, {}", tokens.len(), self.block_size, self.path);
        assert_eq!(answer["error"], Value::Null, "{context}: {answer}");
        assert_eq!(token_ids(&whole).len(), ANSWER, "{context}");
        assert_eq!(token_ids(&answer), token_ids(&whole), "{context}");
        assert_eq!(answer["choices"][0]["text"], whole["choices"][0]["text"], "{context}");

        let needed = (tokens.len() - 1).div_ceil(self.block_size) - have;
        let pull = self.decode.pull_of(request_id).await;
        if needed == 0 {
            assert_eq!(pull, Value::Null, "{context}: nothing had to move");
        } else {
            assert_eq!(pull["blocks"], needed, "{context}: {pull}");
            assert_eq!(pull["local_blocks"], have, "{context}: {pull}");
            assert_eq!(pull["error"], Value::Null, "{context}: {pull}");
            assert!(pull["path"].as_str().unwrap().starts_with(self.path), "{context}: {pull}");
            let block_bytes = self.decode.info().await["kv_block_bytes"].as_u64().unwrap();
            assert_eq!(pull["bytes"], needed as u64 * block_bytes, "{context}: {pull}");
        }
    }
}

async fn run(block_size: usize, path: &'static str) {
    let trio = Trio::start(block_size, path);
    for (index, length) in LENGTHS.into_iter().enumerate() {
        let full = (length - 1) / block_size;
        // The second request finds its full blocks in the caches of both sides.
        trio.compare(&prompt(length, index), Choose::Greedy, 0, &format!("greedy-{length}")).await;
        trio.compare(&prompt(length, index), Choose::Seeded, full, &format!("seeded-{length}")).await;
    }
    // A prompt that shares its first half with one that is known, and one that shares nothing.
    let mut half = prompt(1500, 4);
    half.truncate(700);
    half.extend(prompt(300, 99));
    trio.compare(&half, Choose::Seeded, 700 / block_size, "half").await;
    trio.compare(&prompt(1000, 77), Choose::Seeded, 0, "miss").await;

    let many: Vec<Vec<u32>> = (0..8).map(|n| prompt(60 + 13 * n, 100 + n)).collect();
    let at_once = many.iter().enumerate().map(|(n, tokens)| {
        let trio = &trio;
        async move { trio.compare(tokens, Choose::Seeded, 0, &format!("at-once-{n}")).await }
    });
    futures_util::future::join_all(at_once).await;
    trio.prefill.wait_no_blocks().await;
    trio.decode.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_16_over_shared_memory() {
    run(16, "shm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_16_over_tcp() {
    run(16, "tcp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_32_over_shared_memory() {
    run(32, "shm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_32_over_tcp() {
    run(32, "tcp").await;
}
