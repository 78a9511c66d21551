//! Clients, workers and requests at their worst.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::support::{Act, Gateway, Ledger, Mock, config, free_address, rest, stream, until};

#[tokio::test]
async fn a_client_that_leaves_ends_the_work_on_both_legs() {
    let (prefill, decode) = Mock::pool().await;
    let router = Arc::new(Gateway::start(config(&[], &[&prefill], &[&decode])).await);
    let body = r#"{"prompt":"x","stream":true}"#;
    let leave = |worker: &Mock, before: usize| {
        let (router, inner) = (Arc::clone(&router), Arc::clone(&worker.inner));
        let task = tokio::spawn(async move { drop(router.post("/v1/completions", body).await) });
        async move {
            until("the worker is busy", || async { inner.count() > before }).await;
            task.abort();
        }
    };
    // While prefill computes.
    prefill.then(Act::Hang);
    leave(&prefill, 0).await;
    until("prefill sees it", || async { prefill.aborted() == 1 }).await;
    assert!(decode.requests().is_empty());
    // While decode has not begun.
    decode.then(Act::Hang);
    leave(&decode, 0).await;
    until("decode sees it", || async { decode.aborted() == 1 }).await;
    // In mid-stream.
    let (act, sender) = stream("text/event-stream");
    decode.then(act);
    sender.send(Some(Bytes::from_static(b"data: 1\n\n"))).await.unwrap();
    let mut response = router.post("/v1/completions", body).await;
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 1\n\n");
    drop(response);
    until("decode sees it again", || async { decode.aborted() == 2 }).await;
    drop(sender);
    router.wait_metric("router_requests_in_flight 0").await;
    let decode_line =
        format!(r#"router_requests_total{{route="/v1/completions",status="499",worker="{}"}} 1"#, decode.url);
    router.wait_metric(&decode_line).await;
    router
        .wait_metric(r#"router_requests_total{route="/v1/completions",status="499",worker="none"} 2"#)
        .await;
    let (_, workers) = router.get("/workers").await;
    assert!(workers["workers"].as_array().unwrap().iter().all(|w| w["in_flight"] == 0), "{workers}");
}

#[tokio::test]
async fn malformed_requests_are_refused_with_the_place() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    for (body, place) in [
        (&b"{\"prompt\": tru}"[..], "byte 1"),
        (b"", "byte 0"),
        (b"[1]", "must be a JSON object"),
        (b"{\"prompt\":\"\xff\"}", "UTF-8 at byte 11"),
        (b"{\"a\":1}{", "line 1"),
    ] {
        let response = router.post("/v1/completions", body).await;
        assert_eq!(response.status(), 400);
        let error: serde_json::Value = response.json().await.unwrap();
        let error = &error["error"];
        assert_eq!(
            (&error["code"], &error["type"], &error["param"]),
            (&json!("invalid_json"), &json!("BadRequestError"), &json!(null))
        );
        assert!(error["message"].as_str().unwrap().contains(place), "{error}");
    }
    let gzip =
        router.client.post(format!("{}/tokenize", router.url)).header("content-encoding", "gzip").body("{}");
    assert_eq!(gzip.send().await.unwrap().status(), 415);
    assert!(worker.requests().is_empty());
}

#[tokio::test]
async fn unknown_models_paths_and_methods() {
    let worker = Mock::start("w", &["b", "a"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    let (status, answer) = router.ask("/v1/completions", r#"{"model":"x"}"#).await;
    assert_eq!(
        (status, &answer["error"]["code"], &answer["error"]["param"]),
        (404, &json!("model_not_found"), &json!("model"))
    );
    assert!(answer["error"]["message"].as_str().unwrap().ends_with("there is: a, b"), "{answer}");
    let (status, answer) = router.ask("/v1/nothing", "{}").await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("unknown_route")));
    let (status, answer) = router.get("/v1/completions").await;
    assert_eq!((status, &answer["error"]["code"]), (405, &json!("method_not_allowed")));
    let wrong = router.post("/health", "{}").await;
    assert_eq!((wrong.status().as_u16(), wrong.headers()["allow"].to_str().unwrap()), (405, "GET"));
    assert!(worker.requests().is_empty());
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused() {
    let worker = Mock::start("w", &["m"]).await;
    let mut small = config(&[&worker], &[], &[]);
    small.body_bytes_max = 100;
    small.buffered_bytes_max = 150;
    let router = Gateway::start(small).await;
    let body = |length: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(length - 8));
    assert_eq!(router.ask("/v1/completions", &body(100)).await.0, 200);
    let (status, answer) = router.ask("/v1/completions", &body(101)).await;
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("request_too_large")));
    assert_eq!(router.ask("/v1/completions", &body(1 << 20)).await.0, 413);
    // Two that fit alone, but not together.
    worker.then(Act::Hang);
    let first = router.client.post(format!("{}/v1/completions", router.url)).body(body(100));
    let first = tokio::spawn(first.send());
    until("the first is held", || async { worker.requests().len() == 2 }).await;
    let (status, answer) = router.ask("/v1/completions", &body(100)).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("overloaded")));
    first.abort();
    router.wait_metric("router_requests_in_flight 0").await;
    assert_eq!(router.ask("/v1/completions", &body(100)).await.0, 200);
}

#[tokio::test]
async fn requests_above_the_limit_are_refused_at_once() {
    let worker = Mock::start("w", &["m"]).await;
    let mut one = config(&[&worker], &[], &[]);
    one.inflight_max = 1;
    let router = Gateway::start(one).await;
    let (act, sender) = stream("text/event-stream");
    worker.then(act);
    sender.send(Some(Bytes::from_static(b"data: 1\n\n"))).await.unwrap();
    let mut running = router.post("/v1/completions", "{}").await;
    let refused = router.post("/v1/completions", "{}").await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    drop(sender);
    assert!(rest(&mut running).await.1);
    router.wait_metric("router_requests_in_flight 0").await;
    assert_eq!(router.ask("/v1/completions", "{}").await.0, 200);
}

#[tokio::test]
async fn a_slow_worker_is_a_timeout_on_either_leg() {
    let (prefill, decode) = Mock::pool().await;
    let mut quick = config(&[], &[&prefill], &[&decode]);
    quick.prefill_timeout = Duration::from_secs(1);
    quick.first_byte_timeout = Duration::from_secs(1);
    let router = Gateway::start(quick).await;
    for slow in [&prefill, &decode] {
        slow.then(Act::Hang);
        let (status, answer) = router.ask("/v1/completions", r#"{"prompt":"x"}"#).await;
        assert_eq!((status, &answer["error"]["code"]), (504, &json!("worker_timeout")));
        assert!(answer["error"]["message"].as_str().unwrap().contains(&slow.url), "{answer}");
        until("the call is given up", || async { slow.aborted() == 1 }).await;
    }
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_ended() {
    let worker = Mock::start("w", &["m"]).await;
    let mut quick = config(&[&worker], &[], &[]);
    quick.idle_timeout = Duration::from_millis(200);
    let router = Gateway::start(quick).await;
    let (act, sender) = stream("text/event-stream");
    worker.then(act);
    sender.send(Some(Bytes::from_static(b"data: 1\n\n"))).await.unwrap();
    let mut response = router.post("/v1/completions", "{}").await;
    let (all, complete) = rest(&mut response).await;
    assert!(
        complete && all.starts_with("data: 1\n\ndata: {\"error\":") && all.contains("idle_timeout"),
        "{all}"
    );
    until("the call is given up", || async { worker.aborted() == 1 }).await;
}

#[tokio::test]
async fn a_worker_that_starts_late_is_found_and_one_that_returns_too() {
    let address = free_address().await;
    let mut late = config(&[], &[], &[]);
    late.worker = vec![format!("http://{address}")];
    let router = Gateway::start_blind(late).await;
    let response = router.post("/v1/completions", "{}").await;
    assert!(matches!(response.status().as_u16(), 502 | 503));
    assert!(response.text().await.unwrap().contains(&address.to_string()));
    until("the worker is known to be down", || async { router.get("/health").await.0 == 503 }).await;
    let response = router.post("/v1/completions", "{}").await;
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(router.get("/v1/models").await.0, 503);
    for _ in 0..2 {
        let worker = Mock::start_with("w", &["m"], Ledger::default(), address).await;
        router.wait_up(1).await;
        assert_eq!(router.ask("/v1/completions", "{}").await.0, 200);
        worker.kill().await;
        router.wait_up(0).await;
    }
}

#[tokio::test]
async fn a_dead_worker_costs_its_clients_nothing_while_another_lives() {
    let one = Mock::start("one", &["m"]).await;
    let two = Mock::start("two", &["m"]).await;
    let mut blind = config(&[&one, &two], &[], &[]);
    blind.health_interval = Duration::from_secs(600);
    let router = Gateway::start(blind).await;
    one.kill().await;
    for _ in 0..8 {
        assert_eq!(router.ask("/v1/completions", r#"{"model":"m"}"#).await.0, 200);
    }
    assert_eq!(two.requests().len(), 8);
}

#[tokio::test]
async fn shutdown_lets_streams_end_and_cuts_those_that_do_not() {
    let worker = Mock::start("w", &["m"]).await;
    for ends in [true, false] {
        let mut drain = config(&[&worker], &[], &[]);
        drain.drain_timeout = if ends { crate::support::DEADLINE } else { Duration::from_millis(200) };
        let mut router = Gateway::start(drain).await;
        let (act, sender) = stream("text/event-stream");
        worker.then(act);
        sender.send(Some(Bytes::from_static(b"data: 1\n\n"))).await.unwrap();
        let mut response = router.post("/v1/completions", "{}").await;
        assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 1\n\n");
        router.shut_down();
        let address = router.url.strip_prefix("http://").unwrap();
        until("nobody listens", || async { tokio::net::TcpStream::connect(address).await.is_err() }).await;
        if ends {
            sender.send(Some(Bytes::from_static(b"data: 2\n\n"))).await.unwrap();
            drop(sender);
            assert_eq!(rest(&mut response).await, ("data: 2\n\n".to_owned(), true));
        } else {
            assert_eq!(rest(&mut response).await, (String::new(), false));
        }
        router.ended().await;
    }
}
