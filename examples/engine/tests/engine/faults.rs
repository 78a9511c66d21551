//! Every fault of the hand-off: a clear error, no hang, no leak.

use crate::harness::{
    Choose, Engine, completion, model, prefill, prompt, serve_args, token_ids, with_params,
};
use crate::proxy::Proxy;
use engine_model::{ModelSpec, make_model};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PREFILL: &[&str] = &["--role", "prefill", "--paths", "tcp"];
const DECODE: &[&str] = &["--role", "decode", "--paths", "tcp"];

async fn pull_error(decode: &Engine, body: &Value, params: &Value) -> (u16, String, String) {
    decode.error("/v1/completions", &with_params(body, params)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn params_are_used_once_and_only_for_their_prompt() {
    let source = Engine::start(&["--role", "prefill"]);
    let (decode, other) = (Engine::start(&["--role", "decode"]), Engine::start(&["--role", "decode"]));
    let body = completion(&prompt(100, 0), Choose::Greedy, 4);
    let params = prefill(&source, &body).await;

    // Another prompt, an unknown request, damaged params: refused without using the params up.
    let wrong = completion(&prompt(100, 1), Choose::Greedy, 4);
    let (status, code, _) = pull_error(&decode, &wrong, &params).await;
    assert_eq!((status, code.as_str()), (409, "kv_params_mismatch"));
    let longer = completion(&prompt(101, 0), Choose::Greedy, 4);
    let (status, code, message) = pull_error(&decode, &longer, &params).await;
    assert_eq!((status, code.as_str()), (409, "kv_params_mismatch"));
    assert!(message.contains("100") && message.contains("101"), "{message}");
    let mut unknown = params.clone();
    unknown["remote_request_id"] = json!("never-heard-of");
    let (status, code, message) = pull_error(&decode, &body, &unknown).await;
    assert_eq!((status, code.as_str()), (410, "kv_unknown_request"));
    assert!(message.contains("never-heard-of"), "{message}");
    let mut swapped = params.clone();
    swapped["remote_block_ids"][0][0] = params["remote_block_ids"][0][1].clone();
    assert_eq!(pull_error(&decode, &body, &swapped).await.1, "kv_params_mismatch");
    let mut incomplete = params.clone();
    incomplete["remote_host"] = Value::Null;
    let (status, code, message) = pull_error(&decode, &body, &incomplete).await;
    assert_eq!((status, code.as_str()), (400, "kv_params_invalid"));
    assert!(message.contains("remote_host"), "{message}");
    let mut damaged = params.clone();
    damaged["remote_port"] = json!("here");
    let (status, kind, message) = pull_error(&decode, &body, &damaged).await;
    assert_eq!((status, kind.as_str()), (400, "kv_params_invalid"));
    assert_eq!(message, "kv_transfer_params.remote_port must be a number from 0 to 65535");

    decode.ok("/v1/completions", &with_params(&body, &params)).await;
    for engine in [&decode, &other] {
        let (status, code, message) = pull_error(engine, &body, &params).await;
        assert_eq!((status, code.as_str()), (409, "kv_params_used"), "{message}");
    }
    source.wait_no_blocks().await;
    decode.wait_no_blocks().await;
    other.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_use_the_same_params_one_succeeds() {
    let source = Engine::start(&["--role", "prefill"]);
    let decode = Engine::start(&["--role", "decode"]);
    let body = completion(&prompt(300, 0), Choose::Greedy, 4);
    let reference = token_ids(&source.ok("/v1/completions", &body).await);
    let params = prefill(&source, &body).await;
    let body = with_params(&body, &params);
    let all = futures_util::future::join_all((0..6).map(|_| decode.post("/v1/completions", &body))).await;
    let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(|(status, _)| status.is_success());
    assert_eq!(good.len(), 1);
    assert_eq!(token_ids(&good[0].1), reference);
    assert!(bad.iter().all(|(_, answer)| answer["error"]["kind"] == "kv_params_used"), "{bad:?}");
    source.wait_no_blocks().await;
    decode.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn params_end_with_their_lease() {
    let source = Engine::start(&["--role", "prefill", "--kv-lease-seconds", "0.2"]);
    let decode = Engine::start(&["--role", "decode"]);
    let body = completion(&prompt(100, 0), Choose::Greedy, 4);
    let params = prefill(&source, &body).await;
    source.wait_no_blocks().await;
    let (status, code, message) = pull_error(&decode, &body, &params).await;
    assert_eq!((status, code.as_str()), (410, "kv_lease_expired"), "{message}");
    decode.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_prefill_engine_is_an_error_or_computed_here() {
    let mut source = Engine::start(&["--role", "prefill"]);
    let decode = Engine::start(&["--role", "decode"]);
    let stubborn = Engine::start(&["--role", "decode", "--kv-load-failure-policy", "recompute"]);
    let body = completion(&prompt(100, 0), Choose::Seeded, 6);
    let reference = token_ids(&source.ok("/v1/completions", &body).await);
    let params = prefill(&source, &body).await;
    // One engine knows the prefill engine already, the other has never met it.
    decode.ok("/v1/completions", &with_params(&body, &prefill(&source, &body).await)).await;
    let other = completion(&prompt(120, 3), Choose::Seeded, 6);
    let other_params = prefill(&source, &other).await;
    source.kill();

    let (status, code, message) = pull_error(&decode, &other, &other_params).await;
    assert_eq!((status, code.as_str()), (502, "kv_peer_lost"), "{message}");
    let answer = stubborn.ok("/v1/completions", &with_params(&body, &params)).await;
    assert_eq!(token_ids(&answer), reference);
    decode.wait_no_blocks().await;
    stubborn.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn params_of_an_earlier_life_are_refused() {
    let mut source = Engine::start(&["--role", "prefill"]);
    let decode = Engine::start(&["--role", "decode"]);
    let body = completion(&prompt(100, 0), Choose::Greedy, 4);
    let params = prefill(&source, &body).await;
    let address = format!("127.0.0.1:{}", params["remote_port"]);
    source.kill();
    let reborn = Engine::start(&["--role", "prefill", "--transfer-listen", &address]);
    assert_eq!(reborn.info().await["agent_address"], format!("tcp://{address}"));
    let (status, code, message) = pull_error(&decode, &body, &params).await;
    assert_eq!((status, code.as_str()), (410, "kv_engine_restarted"), "{message}");
    let fresh = prefill(&reborn, &body).await;
    decode.ok("/v1/completions", &with_params(&body, &fresh)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_that_do_not_fit_are_named() {
    let source = Engine::start(&["--role", "prefill"]);
    let body = completion(&prompt(100, 0), Choose::Greedy, 4);
    let coarse = Engine::start(&["--role", "decode", "--block-size", "32"]);
    let params = prefill(&source, &body).await;
    let (status, code, message) = pull_error(&coarse, &body, &params).await;
    assert_eq!((status, code.as_str()), (409, "kv_layout_mismatch"));
    assert!(message.contains("16 on the prefill side, 32 on the decode side"), "{message}");

    let dir = tempfile::tempdir().unwrap();
    make_model(dir.path(), &ModelSpec { seed: 1, ..small_spec() }).unwrap();
    let stranger = Engine::start_with(&serve_args(dir.path(), &["--role", "decode"]));
    let (status, code, message) = pull_error(&stranger, &body, &params).await;
    assert_eq!((status, code.as_str()), (409, "kv_layout_mismatch"));
    assert!(message.contains("the model differs"), "{message}");
}

/// The spec of the test model, as far as its cache is concerned.
fn small_spec() -> ModelSpec {
    ModelSpec {
        hidden_size: 64,
        intermediate_size: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        max_position_embeddings: 2048,
        ..ModelSpec::default()
    }
}

/// A prefill and a decode engine with a relay between them, and a pull that is held in the middle of its bytes.
struct Held {
    source: Engine,
    decode: Engine,
    proxy: Proxy,
    body: Value,
    params: Value,
    pulling: tokio::task::JoinHandle<reqwest::Result<reqwest::Response>>,
}

impl Held {
    async fn start(decode_flags: &[&str]) -> Self {
        let source = Engine::start(&[PREFILL, &["--kv-pull-seconds", "600"]].concat());
        let decode = Engine::start(&[DECODE, decode_flags].concat());
        let body = completion(&prompt(1500, 7), Choose::Greedy, 4);
        let mut params = prefill(&source, &body).await;
        let port = u16::try_from(params["remote_port"].as_u64().unwrap()).unwrap();
        let proxy = Proxy::start(port).await;
        params["remote_port"] = json!(proxy.port);
        // A first hand-off through the relay, so that only the second one's bytes count.
        let short = completion(&prompt(40, 8), Choose::Greedy, 1);
        let mut first = prefill(&source, &short).await;
        first["remote_port"] = json!(proxy.port);
        decode.ok("/v1/completions", &with_params(&short, &first)).await;
        proxy.stall_after(64 << 10);
        let request = decode.request("/v1/completions").json(&with_params(&body, &params));
        let pulling = tokio::spawn(request.send());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !proxy.stalled() {
            assert!(Instant::now() < deadline, "the pull does not go through the relay");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(source.metric("headrace_kv_claims").await, 1.0);
        assert_eq!(decode.metric("headrace_kv_pulls_active").await, 1.0);
        Self { source, decode, proxy, body, params, pulling }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_engine_that_dies_while_pulling_leaves_nothing_behind() {
    let mut held = Held::start(&[]).await;
    held.decode.kill();
    held.source.wait_no_blocks().await;
    assert!(held.pulling.await.unwrap().is_err());
    // Its params are used up all the same.
    let decode = Engine::start(DECODE);
    let port =
        held.source.info().await["agent_address"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    held.params["remote_port"] = json!(port.parse::<u16>().unwrap());
    assert_eq!(pull_error(&decode, &held.body, &held.params).await.1, "kv_params_used");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_engine_that_dies_while_being_read_is_named() {
    let Held { mut source, decode, proxy, pulling, .. } = Held::start(&[]).await;
    // Another request goes on while the pull is stuck.
    decode.ok("/v1/completions", &completion(&prompt(20, 50), Choose::Greedy, 4)).await;
    source.kill();
    drop(proxy);
    let response = pulling.await.unwrap().unwrap();
    assert_eq!(response.status(), 502);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["error"]["kind"], "kv_peer_lost", "{answer}");
    decode.wait_no_blocks().await;
    decode.ok("/v1/completions", &completion(&prompt(20, 51), Choose::Greedy, 4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_does_not_get_on_ends_at_its_deadline() {
    let Held { source, decode, pulling, proxy, .. } = Held::start(&["--kv-pull-seconds", "0.5"]).await;
    let response = pulling.await.unwrap().unwrap();
    assert_eq!(response.status(), 504);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["error"]["kind"], "kv_pull_timeout", "{answer}");
    decode.wait_no_blocks().await;
    proxy.stall_after(u64::MAX);
    source.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_a_pull_frees_both_sides() {
    let Held { source, decode, proxy, pulling, .. } = Held::start(&[]).await;
    pulling.abort();
    drop(pulling.await);
    decode.wait_no_blocks().await;
    assert_eq!(decode.aborted().await, 1);
    proxy.stall_after(u64::MAX);
    source.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_kept() {
    let (source, decode) = (Engine::start(&["--role", "prefill"]), Engine::start(&["--role", "decode"]));
    let body = completion(&prompt(20, 0), Choose::Greedy, 4);
    let params = prefill(&source, &body).await;
    let (status, _, message) = pull_error(&source, &body, &params).await;
    assert_eq!(status, 400);
    assert!(message.contains("prefill engine"), "{message}");
    let give = with_params(&body, &json!({"do_remote_decode": true}));
    let (status, _, message) = decode.error("/v1/completions", &give).await;
    assert_eq!(status, 400);
    assert!(message.contains("decode engine"), "{message}");
    // A prompt without a hand-off is answered by either.
    let answers = [source.ok("/v1/completions", &body).await, decode.ok("/v1/completions", &body).await];
    assert_eq!(token_ids(&answers[0]), token_ids(&answers[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_warms_its_weights_from_another() {
    let first = Engine::start(&["--serve-weights"]);
    let address = first.info().await["weights_address"].as_str().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("warmed");
    let second = Engine::start_with(&serve_args(&target, &["--weights", &address]));
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        let copy = std::fs::read(target.join(entry.file_name())).unwrap();
        assert!(copy == std::fs::read(entry.path()).unwrap(), "{}", entry.path().display());
    }
    let body = completion(&prompt(50, 0), Choose::Seeded, 8);
    let answers = [first.ok("/v1/completions", &body).await, second.ok("/v1/completions", &body).await];
    assert_eq!(token_ids(&answers[0]), token_ids(&answers[1]));
}
