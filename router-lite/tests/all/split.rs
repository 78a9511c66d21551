//! The hand-off between prefill and decode.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::{Act, Gateway, Ledger, Mock, config, params_text, rest, say, stream};

const KEEP: &str = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;

fn text(answer: &Value) -> &Value {
    &answer["choices"][0]["text"]
}

#[tokio::test]
async fn both_legs_are_exact() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    let body = "{ \"model\": \"m\", \"messages\":[{\"role\":\"user\",\"content\":\"\\u00e4\"}],\n\"stream\" : true, \"stream_options\":{\"include_usage\":true},\
                \"max_tokens\": 64, \"max_completion_tokens\":32,\"min_tokens\":3, \"unknown\":1.0 }";
    let (act, sender) = stream("text/event-stream");
    decode.then(act);
    sender.send(Some(Bytes::from_static(b"data: 1\n\n"))).await.unwrap();
    drop(sender);
    let mut response = router.post("/v1/chat/completions?x=1", body).await;
    assert_eq!(rest(&mut response).await, ("data: 1\n\n".to_owned(), true));
    let (p, d) = (prefill.requests(), decode.requests());
    assert_eq!((p.len(), d.len()), (1, 1));
    let leg1 = format!(
        "{{ \"model\": \"m\", \"messages\":[{{\"role\":\"user\",\"content\":\"\\u00e4\"}}],\n\"stream\" : false,\
         \"max_tokens\": 1, \"max_completion_tokens\":1, \"unknown\":1.0,\"kv_transfer_params\":{KEEP} }}"
    );
    assert_eq!(p[0].body, leg1);
    let spliced = format!(r#""unknown":1.0,"kv_transfer_params":{} }}"#, params_text("p-0"));
    assert_eq!(d[0].body, body.replace("\"unknown\":1.0 }", &spliced));
    assert_eq!(
        (p[0].path.as_str(), d[0].path.as_str()),
        ("/v1/chat/completions?x=1", "/v1/chat/completions?x=1")
    );
    assert_eq!(p[0].headers["x-request-id"], d[0].headers["x-request-id"]);
    assert!(!p[0].headers.contains_key("accept-encoding"));
    assert_eq!(p[0].headers["content-length"], leg1.len().to_string().as_str());
}

#[tokio::test]
async fn params_are_never_used_twice() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    let error = "data: {\"error\":{\"message\":\"kv load failed\",\"code\":500}}\n\ndata: [DONE]\n\n";
    // Four ways to fail before the first byte of an answer.
    for act in [Act::Close, say(500, "application/json", "{}"), say(200, "text/event-stream", error), {
        let (act, sender) = stream("text/event-stream");
        sender.send(None).await.unwrap();
        act
    }] {
        let before = decode.requests().len();
        decode.then(act);
        let (status, answer) = router.ask("/v1/completions", r#"{"prompt":"x"}"#).await;
        assert_eq!((status, text(&answer)), (200, &json!("from d")));
        let (p, d) = (prefill.requests(), decode.requests());
        assert_eq!((p.len(), d.len()), (before + 2, before + 2));
        let id = |r: &crate::support::Recorded| r.json()["kv_transfer_params"]["remote_request_id"].clone();
        let issued = [before, before + 1].map(|n| json!(format!("p-{n}")));
        assert_eq!([id(&d[before]), id(&d[before + 1])], issued);
        assert_eq!(p[before + 1].headers["x-request-id"], d[before + 1].headers["x-request-id"]);
        assert_ne!(p[before].headers["x-request-id"], p[before + 1].headers["x-request-id"]);
    }
    router.wait_metric(r#"router_retries_total{route="/v1/completions"} 4"#).await;
}

#[tokio::test]
async fn retries_are_bounded_and_decodes_own_words_pass() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    for n in 0..4 {
        decode.then(say(500, "text/plain", &format!("broken {n}")));
    }
    let response = router.post("/v1/completions", r#"{"prompt":"x"}"#).await;
    assert_eq!((response.status().as_u16(), response.text().await.unwrap()), (500, "broken 2".to_owned()));
    assert_eq!((prefill.requests().len(), decode.requests().len()), (3, 3));
}

#[tokio::test]
async fn a_failing_prefill_worker_is_replaced() {
    let ledger = Ledger::default();
    let any = "127.0.0.1:0".parse().unwrap();
    let one = Mock::start_with("p1", &["m"], ledger.clone(), any).await;
    let two = Mock::start_with("p2", &["m"], ledger.clone(), any).await;
    let decode = Mock::start_with("d", &["m"], ledger, any).await;
    let router = Gateway::start(config(&[], &[&one, &two], &[&decode])).await;
    for bad in [r#"{"kv_transfer_params":[]}"#, "<html>", r#"{"choices":[{"finish_reason":"abort"}]}"#] {
        let before = one.requests().len() + two.requests().len();
        one.then(say(200, "application/json", bad));
        two.then(say(500, "application/json", bad));
        let (status, answer) = router.ask("/v1/completions", r#"{"prompt":"x"}"#).await;
        assert_eq!((status, text(&answer)), (200, &json!("from d")));
        assert_eq!(one.requests().len() + two.requests().len(), before + 3);
    }
}

#[tokio::test]
async fn prefill_that_only_fails_is_a_typed_error() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    for _ in 0..3 {
        prefill.then(say(500, "text/plain", "EngineDeadError"));
    }
    let (status, answer) = router.ask("/v1/completions", r#"{"prompt":"x"}"#).await;
    let error = &answer["error"];
    assert_eq!(
        (status, &error["code"], &error["type"]),
        (502, &json!("prefill_failed"), &json!("BadGatewayError"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains(&prefill.url) && message.contains("500") && message.contains("EngineDeadError"),
        "{message}"
    );
    assert!(decode.requests().is_empty());
}

#[tokio::test]
async fn what_prefill_refuses_the_client_gets_verbatim() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    prefill.then(say(400, "application/json", r#"{"error" :"context too long"}"#));
    let response = router.post("/v1/completions", r#"{"prompt":"x"}"#).await;
    assert_eq!(
        (response.status().as_u16(), response.text().await.unwrap()),
        (400, r#"{"error" :"context too long"}"#.to_owned())
    );
    assert!(decode.requests().is_empty());
}

#[tokio::test]
async fn a_prefill_worker_that_kept_nothing_leaves_all_to_decode() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    let body = r#"{"prompt":"x", "kv_transfer_params":{"remote_host":"evil"}}"#;
    prefill.then(say(
        200,
        "application/json",
        r#"{"choices":[{"finish_reason":"stop"}],"kv_transfer_params":null}"#,
    ));
    assert_eq!(router.ask("/v1/completions", body).await.0, 200);
    assert_eq!(decode.requests()[0].body, r#"{"prompt":"x"}"#);
    let line =
        format!(r#"router_legs_total{{leg="prefill",outcome="no_params",worker="{}"}} 1"#, prefill.url);
    router.wait_metric(&line).await;
}

#[tokio::test]
async fn requests_that_cannot_be_split_stay_whole() {
    let (prefill, decode) = Mock::pool().await;
    let batch = r#"{"prompt":["x","y"]}"#;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    assert_eq!(text(&router.ask("/v1/completions", batch).await.1), "from d");
    assert_eq!(decode.requests()[0].body, batch);
    let plain = Mock::start("w", &["m", "other"]).await;
    let router = Gateway::start(config(&[&plain], &[&prefill], &[&decode])).await;
    assert_eq!(text(&router.ask("/v1/completions", batch).await.1), "from w");
    assert_eq!(text(&router.ask("/v1/completions", r#"{"prompt":"x","model":"other"}"#).await.1), "from w");
    assert!(prefill.requests().is_empty());
    assert_eq!(text(&router.ask("/v1/completions", r#"{"prompt":"x","model":"m"}"#).await.1), "from d");
    assert_eq!(prefill.requests().len(), 1);
}

#[tokio::test]
async fn a_dead_prefill_worker_is_an_error_that_names_it() {
    let (prefill, decode) = Mock::pool().await;
    let mut slow = config(&[], &[&prefill], &[&decode]);
    slow.health_interval = std::time::Duration::from_secs(600);
    slow.health_recheck = std::time::Duration::from_secs(600);
    let router = Gateway::start(slow).await;
    let url = prefill.url.clone();
    prefill.kill().await;
    // The connection that the last check left in the pool may still be there for the first attempt; in the end
    // nobody can connect.
    let (status, answer) = router.ask("/v1/completions", r#"{"prompt":"x"}"#).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!((status, &answer["error"]["code"]), (502, &json!("worker_unreachable")), "{message}");
    assert!(message.contains(&url) && message.contains("refused"), "{message}");
    // Now it is known to be down, and nothing is sent.
    let (status, answer) = router.ask("/v1/completions", r#"{"prompt":"x"}"#).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("no_worker")));
    assert!(message.contains(&format!("prefill {url} is down")) && message.contains("refused"), "{message}");
    assert!(decode.requests().is_empty());
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_event_or_is_cut() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    for (content_type, sent, event) in [
        ("text/event-stream", "data: 1\n\n", true),
        ("text/event-stream", "data: 1\n\ndata: {\"cho", false),
        ("application/json", "{\"choices\":\n\n", false),
    ] {
        let (act, sender) = stream(content_type);
        decode.then(act);
        sender.send(Some(Bytes::from_static(sent.as_bytes()))).await.unwrap();
        let mut response = router.post("/v1/completions", r#"{"prompt":"x","stream":true}"#).await;
        let mut got = String::new();
        while got != sent {
            got.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
        }
        sender.send(None).await.unwrap();
        let (after, complete) = rest(&mut response).await;
        assert_eq!(complete, event, "{content_type} {sent}");
        if event {
            let error: Value = serde_json::from_str(after.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(error["error"]["code"], "worker_lost");
            assert!(error["error"]["message"].as_str().unwrap().contains(&decode.url));
            assert!(after.ends_with("}\n\n") && !after.contains("[DONE]"));
        } else {
            assert_eq!(after, "");
        }
    }
    let line = format!(r#"router_stream_cuts_total{{reason="worker_lost",worker="{}"}} 3"#, decode.url);
    router.wait_metric(&line).await;
    router.wait_metric("router_requests_in_flight 0").await;
}
