//! The HTTP interface: OpenAI's shapes, vLLM's probes, clear errors.

use crate::harness::{Choose, Engine, completion, prompt, token_ids};
use serde_json::{Value, json};

/// The chunks of a streamed answer, without the end marker.
async fn chunks(engine: &Engine, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = engine.request(path).json(&body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let mut lines: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(lines.pop(), Some("data: [DONE]"));
    lines
        .into_iter()
        .map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

fn joined(chunks: &[Value], field: impl Fn(&Value) -> Option<&str>) -> String {
    chunks.iter().filter_map(|chunk| field(&chunk["choices"][0])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_in_all_forms() {
    let engine = Engine::start(&[]);
    let body = json!({"model": "tiny", "prompt": "The river carries", "max_tokens": 12, "temperature": 0});
    let plain = engine.ok("/v1/completions", &body).await;
    assert_eq!(plain["object"], "text_completion");
    assert_eq!(plain["choices"][0]["finish_reason"], "length");
    assert_eq!(plain["kv_transfer_params"], Value::Null);
    assert_eq!(plain["usage"]["completion_tokens"], 12);
    let text = plain["choices"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty());

    let tokens = engine.ok("/tokenize", &json!({"prompt": "The river carries"})).await;
    assert_eq!(tokens["count"], plain["usage"]["prompt_tokens"]);
    assert_eq!(tokens["max_model_len"], 2048);
    assert_eq!(tokens["token_strs"], Value::Null);
    let strings =
        engine.ok("/tokenize", &json!({"prompt": "The river carries", "return_token_strs": true})).await;
    let strings = strings["token_strs"].as_array().unwrap();
    assert_eq!(strings.len(), tokens["tokens"].as_array().unwrap().len());
    assert!(strings.iter().any(|token| token.as_str().unwrap().contains("ri")), "{strings:?}");
    let by_ids =
        json!({"prompt": tokens["tokens"], "max_tokens": 12, "temperature": 0, "return_token_ids": true});
    let by_ids = engine.ok("/v1/completions", &by_ids).await;
    assert_eq!(by_ids["choices"][0]["text"], text);
    assert_eq!(by_ids["choices"][0]["prompt_token_ids"], tokens["tokens"]);
    let back = engine.ok("/detokenize", &json!({"tokens": by_ids["choices"][0]["token_ids"]})).await;
    assert_eq!(back["prompt"], text);

    let batch = json!({"prompt": ["The river carries", "A wheel"], "max_tokens": 12, "temperature": 0});
    let batch = engine.ok("/v1/completions", &batch).await;
    assert_eq!(batch["choices"][0]["text"], text);
    assert_eq!(batch["choices"][1]["index"], 1);
    assert_eq!(batch["usage"]["completion_tokens"], 24);

    let mut streamed = body.clone();
    streamed["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    streamed["return_token_ids"] = json!(true);
    let streamed = chunks(&engine, "/v1/completions", &streamed).await;
    assert_eq!(joined(&streamed, |choice| choice["text"].as_str()), text);
    assert_eq!(streamed.last().unwrap()["usage"]["completion_tokens"], 12);
    assert_eq!(streamed[0]["choices"][0]["prompt_token_ids"], tokens["tokens"]);
    assert_eq!(streamed.len(), 13, "one chunk for each token and one for the usage");
    for (index, chunk) in streamed[..12].iter().enumerate() {
        assert_eq!(chunk["usage"]["completion_tokens"], index + 1);
        assert_eq!(chunk["usage"]["prompt_tokens"], tokens["count"]);
        let reason = if index == 11 { json!("length") } else { Value::Null };
        assert_eq!(chunk["choices"][0]["finish_reason"], reason, "{chunk}");
    }
    let ids: Vec<&Value> =
        streamed.iter().filter_map(|chunk| chunk["choices"][0]["token_ids"].as_array()).flatten().collect();
    assert_eq!(json!(ids), by_ids["choices"][0]["token_ids"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_plain_and_streamed() {
    let engine = Engine::start(&[]);
    let messages = json!([
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "text", "text": "What does a headrace do?"}]},
    ]);
    let body = json!({"messages": messages, "max_completion_tokens": 10, "temperature": 0.7, "seed": 3});
    let plain = engine.ok("/v1/chat/completions", &body).await;
    assert_eq!(plain["object"], "chat.completion");
    assert_eq!(plain["choices"][0]["message"]["role"], "assistant");
    let text = plain["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(plain["usage"]["completion_tokens"], 10);
    let streamed = chunks(&engine, "/v1/chat/completions", &body).await;
    assert_eq!(streamed[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(streamed[1]["choices"][0]["delta"]["role"], Value::Null);
    assert_eq!(joined(&streamed, |choice| choice["delta"]["content"].as_str()), text);
    assert_eq!(streamed.last().unwrap()["choices"][0]["finish_reason"], "length");
    let tokens = engine.ok("/tokenize", &json!({"messages": messages})).await;
    assert_eq!(tokens["count"], plain["usage"]["prompt_tokens"]);

    // The prompt is told once, beside the choices.
    let mut with_ids = body.clone();
    with_ids["return_token_ids"] = json!(true);
    let plain = engine.ok("/v1/chat/completions", &with_ids).await;
    let streamed = chunks(&engine, "/v1/chat/completions", &with_ids).await;
    for answer in [&plain, &streamed[0]] {
        assert_eq!(answer["prompt_token_ids"], tokens["tokens"]);
        assert_eq!(answer["choices"][0].get("prompt_token_ids"), None);
    }
    assert_eq!(streamed[0]["choices"][0].get("token_ids"), None);
    assert!(streamed[1..].iter().all(|chunk| chunk.get("prompt_token_ids").is_none()));
    assert_eq!(streamed.len(), 11, "the role, and one chunk for each token");
    assert_eq!(streamed[1]["choices"][0]["token_ids"][0], plain["choices"][0]["token_ids"][0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_with_the_context_and_a_stream_hands_nothing_over() {
    let engine = Engine::start(&["--max-model-len", "100"]);
    let path = "/v1/completions";
    let mut body = completion(&prompt(90, 0), Choose::Greedy, 50);
    body["min_tokens"] = json!(20);
    let answer = engine.ok(path, &body).await;
    assert_eq!(answer["usage"]["completion_tokens"], 10);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");

    let mut give = completion(&prompt(90, 0), Choose::Greedy, 1);
    give["kv_transfer_params"] = json!({"do_remote_decode": true});
    let whole = engine.ok(path, &give).await;
    assert_eq!(whole["kv_transfer_params"]["remote_prefill_cached_tokens"], 80);
    let streamed = chunks(&engine, path, &give).await;
    assert_eq!(streamed.len(), 1);
    assert_eq!(streamed[0].get("kv_transfer_params"), None);
    assert_eq!(engine.metric("headrace_kv_leased_blocks").await, 6.0, "those of the whole answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_and_stop_tokens_end_an_answer() {
    let engine = Engine::start(&[]);
    let body = completion(&prompt(30, 0), Choose::Greedy, 30);
    let free = engine.ok("/v1/completions", &body).await;
    let text = free["choices"][0]["text"].as_str().unwrap().to_owned();
    let characters: Vec<char> = text.chars().collect();
    // A stop string that spans tokens, out of the middle of the answer.
    let stop: String = characters[characters.len() / 2..][..4].iter().collect();
    let expected = &text[..text.find(&stop).unwrap()];
    let mut stopped = body.clone();
    stopped["stop"] = json!([stop]);
    let answer = engine.ok("/v1/completions", &stopped).await;
    assert_eq!(answer["choices"][0]["text"], expected);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["stop_reason"], stop);
    let streamed = chunks(&engine, "/v1/completions", &stopped).await;
    assert_eq!(joined(&streamed, |choice| choice["text"].as_str()), expected);

    let ids = token_ids(&free);
    let token =
        *ids.iter().enumerate().find(|(index, id)| *index > 3 && !ids[..*index].contains(id)).unwrap().1;
    let position = ids.iter().position(|id| *id == token).unwrap();
    let mut stopped = body.clone();
    stopped["stop_token_ids"] = json!([token]);
    let answer = engine.ok("/v1/completions", &stopped).await;
    assert_eq!(token_ids(&answer), ids[..=position]);
    assert_eq!(answer["choices"][0]["stop_reason"], token);
    stopped["min_tokens"] = json!(position + 3);
    let longer = token_ids(&engine.ok("/v1/completions", &stopped).await);
    assert!(longer.len() > position + 1 && !longer[..=position].contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_of_an_answer_that_is_complete_has_no_params() {
    let engine = Engine::start(&[]);
    let body = completion(&prompt(30, 0), Choose::Greedy, 1);
    let first = token_ids(&engine.ok("/v1/completions", &body).await)[0];
    let mut give = body.clone();
    give["stop_token_ids"] = json!([first]);
    give["kv_transfer_params"] = json!({"do_remote_decode": true});
    let answer = engine.ok("/v1/completions", &give).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["kv_transfer_params"], Value::Null);
    engine.wait_no_blocks().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_answered_with_what_is_wrong() {
    let engine = Engine::start(&["--max-model-len", "100"]);
    let path = "/v1/completions";
    for body in [json!({"prompt": ""}), json!({"prompt": []}), json!({"prompt": [[1], []]}), json!({})] {
        let (status, _, message) = engine.error(path, &body).await;
        assert_eq!(status, 400);
        assert!(message.contains("prompt is"), "{message}");
    }
    let (status, _, message) = engine.error("/v1/chat/completions", &json!({"messages": []})).await;
    assert_eq!(status, 400);
    assert!(message.contains("messages is empty"), "{message}");

    let (status, code, message) = engine.error(path, &completion(&prompt(150, 0), Choose::Greedy, 1)).await;
    assert_eq!((status, code.as_str()), (400, "context_length_exceeded"));
    assert!(message.contains("100") && message.contains("150"), "{message}");
    for (length, max_tokens, what) in [(100, 1, "the prompt has 100"), (10, 101, "max_tokens is 101")] {
        let body = completion(&prompt(length, 0), Choose::Greedy, max_tokens);
        let (_, code, message) = engine.error(path, &body).await;
        assert_eq!(code, "context_length_exceeded");
        assert!(message.contains(what), "{message}");
    }

    for (bad, position) in
        [("{\"prompt\": \"x\",", "column 15"), ("{\"prompt\"\n: nonsense}", "line 2 column 4")]
    {
        let answer = engine.request(path).body(bad).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["error"]["kind"], "invalid_json");
        assert!(answer["error"]["message"].as_str().unwrap().contains(position), "{answer}");
    }

    let (status, code, message) = engine.error(path, &json!({"model": "gpt", "prompt": "x"})).await;
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
    assert!(message.contains("gpt") && message.contains("tiny"), "{message}");
    for (field, value, code) in [
        ("n", json!(2), "unsupported"),
        ("echo", json!(true), "unsupported"),
        ("logprobs", json!(1), "unsupported"),
        ("temperature", json!(-1), "invalid_value"),
        ("top_p", json!(2), "invalid_value"),
        ("max_tokens", json!(0), "invalid_value"),
        ("max_tokens", json!("ten"), "invalid_value"),
        ("max_tokens", json!(-1), "invalid_value"),
        ("prompt", json!({"text": "x"}), "invalid_value"),
        ("prompt", json!([1_000_000]), "invalid_value"),
    ] {
        let mut body = json!({"prompt": "x"});
        body[field] = value;
        let (status, answer) = engine.post(path, &body).await;
        let error = &answer["error"];
        assert_eq!((status.as_u16(), error["kind"].as_str()), (400, Some(code)), "{field}: {answer}");
        assert_eq!((error["param"].as_str(), error["code"].as_u64()), (Some(field), Some(400)), "{answer}");
        assert_eq!(error["type"], "BadRequestError");
    }
    assert_eq!(engine.error("/v1/nothing", &json!({})).await.0, 404);
    assert_eq!(engine.error("/detokenize", &json!({})).await.0, 400);
    assert!(engine.error(path, &json!(["x"])).await.2.contains("must be a JSON object"));
    assert_eq!(engine.error("/v1/models", &json!({})).await.0, 405);
    engine.ok(path, &json!({"prompt": "x", "max_tokens": 1, "never_heard_of": [1]})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_blocks() {
    let engine = Engine::start(&[]);
    let mut body = completion(&prompt(500, 0), Choose::Greedy, 1500);
    body["stream"] = json!(true);
    let mut streamed = engine.request("/v1/completions").json(&body).send().await.unwrap();
    streamed.chunk().await.unwrap().unwrap();
    assert!(engine.metric("headrace_kv_blocks_used").await >= 32.0);
    drop(streamed);
    engine.wait_metric("vllm:num_requests_running", |running| running == 0.0).await;
    engine.wait_no_blocks().await;
    assert_eq!(engine.aborted().await, 1);

    body["stream"] = json!(false);
    let waiting = tokio::spawn(engine.request("/v1/completions").json(&body).send());
    engine.wait_metric("vllm:num_requests_running", |running| running == 1.0).await;
    waiting.abort();
    drop(waiting.await);
    engine.wait_no_blocks().await;
    assert_eq!(engine.aborted().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_answer_and_a_signal_ends_the_process() {
    let mut engine = Engine::start(&[]);
    engine.get("/health").await;
    engine.get("/ping").await;
    let models: Value = serde_json::from_str(&engine.get("/v1/models").await).unwrap();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["max_model_len"], 2048);
    assert!(engine.get("/version").await.contains("version"));
    let shared = completion(&prompt(100, 0), Choose::Greedy, 2);
    engine.ok("/v1/completions", &shared).await;
    let again = engine.ok("/v1/completions", &shared).await;
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 96);
    assert_eq!(engine.metric("vllm:prefix_cache_queries_total").await, 200.0);
    assert_eq!(engine.metric("vllm:prefix_cache_hits_total").await, 96.0);
    assert_eq!(engine.metric("vllm:num_requests_waiting").await, 0.0);
    assert_eq!(engine.metric("vllm:kv_cache_usage_perc").await, 0.0);
    assert_eq!(engine.metric("vllm:time_to_first_token_seconds_count").await, 2.0);
    assert_eq!(engine.terminate().await, Some(0));
}
