//! What passes, and how.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Act, Gateway, Mock, config, rest, say, stream};

const ODD: &str = "{ \"model\":\"\\u006d\",\n\t\"unknown_field\":{\"z\":1.0e+02,\"a\":[ ]}, \"prompt\" : \"\\u00e4\\/\\ud800\",\"temperature\":1.0,\
                   \"temperature\":0.50,\"n\":1 } \r\n";

#[tokio::test]
async fn bodies_are_byte_equal_both_ways() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"] {
        let odd = "{\"a\" :1.0,\"a\":\"\\u0061\" ,  \"b\":1e5}\n\n";
        worker.then(say(200, "application/json; charset=x", odd));
        let response = router.post(path, ODD).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/json; charset=x");
        assert_eq!(response.text().await.unwrap(), odd);
        let seen = worker.requests().pop().unwrap();
        assert_eq!((seen.path.as_str(), seen.body), (path, Bytes::from_static(ODD.as_bytes())));
    }
}

#[tokio::test]
async fn a_query_and_large_bodies_pass() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    let large = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(3 << 20));
    worker.then(say(200, "text/plain", &large));
    let response = router.post("/v1/completions?a=b%20c", large.clone()).await;
    assert!(response.text().await.unwrap() == large);
    let seen = worker.requests().pop().unwrap();
    assert_eq!(seen.path, "/v1/completions?a=b%20c");
    assert!(seen.body == large.as_bytes());
}

#[tokio::test]
async fn header_fields_pass_except_those_of_one_connection() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    let answer = Response::builder()
        .status(201)
        .header("x-answer", "1")
        .header("x-answer", "2")
        .header("keep-alive", "timeout=5")
        .header("x-request-id", "from-worker")
        .body(Full::new(Bytes::from_static(b"{}")))
        .unwrap();
    worker.then(Act::Say(answer));
    let request = router
        .client
        .post(format!("{}/v1/completions", router.url))
        .header("authorization", "Bearer key")
        .header("x-many", "1")
        .header("x-many", "2")
        .header("connection", "x-private")
        .header("x-private", "stops here")
        .header("x-request-id", "mine")
        .header("accept-encoding", "zstd");
    let response = request.body("{}").send().await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers().get_all("x-answer").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert!(!response.headers().contains_key("keep-alive"));
    assert_eq!(response.headers()["x-request-id"], "from-worker");
    let seen = worker.requests().pop().unwrap().headers;
    assert_eq!(seen["authorization"], "Bearer key");
    assert_eq!(seen.get_all("x-many").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(
        (&seen["x-request-id"], &seen["accept-encoding"]),
        (&"mine".parse().unwrap(), &"zstd".parse().unwrap())
    );
    assert_eq!(seen["host"].to_str().unwrap(), worker.url.strip_prefix("http://").unwrap());
    assert!(!seen.contains_key("x-private"));
}

#[tokio::test]
async fn a_request_id_is_made_if_there_is_none() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    let response = router.post("/v1/completions", "{}").await;
    let id = response.headers()["x-request-id"].clone();
    assert_eq!(id.len(), 32);
    assert_eq!(worker.requests()[0].headers["x-request-id"], id.to_str().unwrap());
    let other = router.post("/v1/completions", "not json").await;
    assert_ne!(other.headers()["x-request-id"], id);
}

#[tokio::test]
async fn a_stream_passes_chunk_by_chunk() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    let (act, sender) = stream("text/event-stream; charset=utf-8");
    worker.then(act);
    // The worker says the next chunk only when the client has the one before.
    sender.send(Some(Bytes::from_static(b"data: 0\n\n"))).await.unwrap();
    let mut response = router.post("/v1/chat/completions", r#"{"model":"m","stream":true}"#).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 0\n\n");
    for chunk in ["dat", "a: 1\n", "\ndata: [DONE]\n\n"] {
        sender.send(Some(Bytes::from_static(chunk.as_bytes()))).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), chunk);
    }
    drop(sender);
    assert_eq!(rest(&mut response).await, (String::new(), true));
    let (status, workers) = router.get("/workers").await;
    assert_eq!((status, &workers["workers"][0]["in_flight"]), (200, &json!(0)));
}

#[tokio::test]
async fn errors_of_a_worker_pass_verbatim() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    for status in [400, 401, 404, 422, 429] {
        let text = r#"{"error" : "too long" }"#;
        worker.then(say(status, "application/json", text));
        let response = router.post("/v1/completions", "{}").await;
        assert_eq!(response.status(), status);
        assert_eq!(response.text().await.unwrap(), text);
    }
    assert_eq!(worker.requests().len(), 5);
}

#[tokio::test]
async fn a_server_error_is_tried_elsewhere_and_relayed_if_all_agree() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    worker.then(say(503, "text/plain", "busy"));
    assert_eq!(router.ask("/v1/completions", "{}").await.0, 200);
    for n in 0..3 {
        worker.then(say(500 + n, "text/plain", &format!("broken {n}")));
    }
    let response = router.post("/v1/completions", "{}").await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.text().await.unwrap(), "broken 2");
    let ids: Vec<_> = worker.requests()[2..].iter().map(|r| r.headers["x-request-id"].clone()).collect();
    assert_eq!(ids.len(), 3);
    assert!(
        ids[1].to_str().unwrap().ends_with("-r1") && ids[2].to_str().unwrap().ends_with("-r2"),
        "{ids:?}"
    );
}

#[tokio::test]
async fn models_are_merged() {
    let one = Mock::start("one", &["a", "b"]).await;
    let two = Mock::start("two", &["b", "c"]).await;
    let router = Gateway::start(config(&[&one, &two], &[], &[])).await;
    let text =
        router.client.get(format!("{}/v1/models", router.url)).send().await.unwrap().text().await.unwrap();
    let model = |id: &str, owner: &str| format!(r#"{{"id": "{id}","object":"model","owned_by":"{owner}"}}"#);
    let all = [model("a", "one"), model("b", "one"), model("c", "two")].join(",");
    assert_eq!(text, format!(r#"{{"object":"list","data":[{all}]}}"#));
    for (name, answer) in [("a", "from one"), ("c", "from two")] {
        for _ in 0..3 {
            let (_, body) = router.ask("/v1/completions", &format!(r#"{{"model":"{name}"}}"#)).await;
            assert_eq!(body["choices"][0]["text"], answer);
        }
    }
}

#[tokio::test]
async fn health_says_what_can_be_served() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    let (status, body) = router.get("/health").await;
    assert_eq!((status, &body["prefill_decode"], &body["worker"]), (200, &json!(true), &json!(false)));
    decode.inner.healthy.store(false, std::sync::atomic::Ordering::SeqCst);
    router.wait_up(1).await;
    let (status, body) = router.get("/health").await;
    assert_eq!((status, &body["status"], &body["up"]["prefill"]), (503, &json!("no_worker"), &json!(1)));
    let (_, workers) = router.get("/workers").await;
    let decode = &workers["workers"][1];
    assert_eq!((&decode["role"], &decode["state"]), (&json!("decode"), &json!("down")));
    assert_eq!(decode["last_error"], "GET /health answered 503 Service Unavailable");
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let (prefill, decode) = Mock::pool().await;
    let router = Gateway::start(config(&[], &[&prefill], &[&decode])).await;
    let body = r#"{"model":"m","prompt":"x"}"#;
    let response = router.post("/v1/completions", body).await;
    let out = response.bytes().await.unwrap().len();
    let (p, d) = (&prefill.url, &decode.url);
    for line in [
        format!(r#"router_requests_total{{route="/v1/completions",status="200",worker="{d}"}} 1"#),
        format!(r#"router_legs_total{{leg="prefill",outcome="ok",worker="{p}"}} 1"#),
        format!(r#"router_legs_total{{leg="decode",outcome="ok",worker="{d}"}} 1"#),
        format!(r#"router_worker_up{{worker="{p}",role="prefill"}} 1"#),
        format!(r#"router_worker_requests_in_flight{{worker="{d}",role="decode"}} 0"#),
        format!(r#"router_body_bytes_total{{direction="in"}} {}"#, body.len()),
        format!(r#"router_body_bytes_total{{direction="out"}} {out}"#),
        r#"router_request_duration_seconds_count{route="/v1/completions"} 1"#.to_owned(),
        r#"router_time_to_first_byte_seconds_count{route="/v1/completions"} 1"#.to_owned(),
        "router_requests_in_flight 0".to_owned(),
    ] {
        router.wait_metric(&line).await;
    }
}

#[tokio::test]
async fn connections_are_reused_by_raw_clients() {
    let worker = Mock::start("w", &["m"]).await;
    let router = Gateway::start(config(&[&worker], &[], &[])).await;
    let mut stream =
        tokio::net::TcpStream::connect(router.url.strip_prefix("http://").unwrap()).await.unwrap();
    for _ in 0..3 {
        let request = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("]}") {
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "closed after {answer:?}");
            answer.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let seen = worker.requests();
    assert!(seen.iter().all(|r| &r.body[..] == b"{}" && r.headers["content-length"] == "2"), "{seen:?}");
}
