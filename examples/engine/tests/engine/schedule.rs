//! Batching, chunking and preemption never change an answer, and nothing leaks.

use crate::harness::{Choose, Engine, completion, prompt, token_ids};
use futures_util::future::join_all;

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_room_gives_the_same_answers() {
    let roomy = Engine::start(&[]);
    // 24 blocks of 16 hold 384 tokens; the requests below want 8 x 120.
    let tight =
        Engine::start(&["--kv-blocks", "24", "--max-num-batched-tokens", "48", "--max-num-seqs", "6"]);
    let bodies: Vec<_> = (0..8).map(|n| completion(&prompt(80, n), Choose::Seeded, 40)).collect();
    let answers = join_all(bodies.iter().map(|body| tight.ok("/v1/completions", body))).await;
    assert!(tight.metric("vllm:num_preemptions_total").await > 0.0);
    for (body, answer) in bodies.iter().zip(&answers) {
        assert_eq!(token_ids(answer), token_ids(&roomy.ok("/v1/completions", body).await));
    }
    tight.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_full_says_so() {
    let engine = Engine::start(&["--max-num-requests", "1"]);
    let long = completion(&prompt(10, 0), Choose::Greedy, 2000);
    let mut stream = long.clone();
    stream["stream"] = true.into();
    let mut running = engine.request("/v1/completions").json(&stream).send().await.unwrap();
    running.chunk().await.unwrap().unwrap();
    let (status, code, _) = engine.error("/v1/completions", &long).await;
    assert_eq!((status, code.as_str()), (503, "engine_busy"));
    drop(running);
    engine.wait_no_blocks().await;
    engine.ok("/v1/completions", &completion(&prompt(10, 0), Choose::Greedy, 2)).await;
}
