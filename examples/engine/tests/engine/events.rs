//! KV events as a follower sees them: stored, removed, replayed.

use crate::harness::{Choose, Engine, PATIENCE, completion, prompt};
use bytes::Bytes;
use rmpv::Value;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket as _, SocketRecv as _, SocketSend as _, SubSocket, ZmqMessage};

/// A batch as it came.
#[derive(Clone, PartialEq, Debug)]
struct Batch {
    sequence: u64,
    events: Vec<Value>,
}

fn decode(sequence: &[u8], payload: &[u8]) -> Batch {
    let sequence = u64::from_be_bytes(sequence.try_into().unwrap());
    let value = rmpv::decode::read_value(&mut &payload[..]).unwrap();
    let [timestamp, events, rank] = &value.as_array().unwrap()[..] else { panic!("{value}") };
    assert!(timestamp.as_f64().unwrap() > 1e9);
    assert_eq!(rank.as_u64(), Some(0));
    Batch { sequence, events: events.as_array().unwrap().clone() }
}

/// A field of an event, which is there even if it is nil.
fn field<'a>(event: &'a Value, name: &str) -> &'a Value {
    let fields = event.as_map().unwrap();
    &fields
        .iter()
        .find(|(key, _)| key.as_str() == Some(name))
        .unwrap_or_else(|| panic!("no {name}: {event}"))
        .1
}

async fn next(socket: &mut SubSocket) -> Batch {
    let message = timeout(PATIENCE, socket.recv()).await.unwrap().unwrap().into_vec();
    let [topic, sequence, payload] = &message[..] else { panic!("{message:?}") };
    assert_eq!(&topic[..], b"kv@test");
    decode(sequence, payload)
}

/// Asks for every batch from `first` on.
async fn replay(endpoint: &str, first: u64) -> Vec<Batch> {
    let mut socket = DealerSocket::new();
    socket.connect(endpoint).await.unwrap();
    let mut request = ZmqMessage::from(Bytes::new());
    request.push_back(Bytes::copy_from_slice(&first.to_be_bytes()));
    socket.send(request).await.unwrap();
    let mut batches = Vec::new();
    loop {
        let message = timeout(PATIENCE, socket.recv()).await.unwrap().unwrap().into_vec();
        let [empty, topic, sequence, payload] = &message[..] else { panic!("{message:?}") };
        assert!(empty.is_empty());
        if sequence[..] == [0xff; 8] {
            assert!(topic.is_empty() && payload.is_empty());
            return batches;
        }
        assert_eq!(&topic[..], b"kv@test");
        batches.push(decode(sequence, payload));
    }
}

/// The same, once they are as they should be: an answer may overtake the events of its step.
async fn replay_when(endpoint: &str, first: u64, ready: impl Fn(&[Batch]) -> bool) -> Vec<Batch> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let batches = replay(endpoint, first).await;
        if ready(&batches) {
            return batches;
        }
        assert!(std::time::Instant::now() < deadline, "not as it should be: {batches:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn kinds(batches: &[Batch]) -> Vec<&str> {
    batches
        .iter()
        .flat_map(|batch| &batch.events)
        .map(|event| field(event, "type").as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sees_blocks_come_and_go_and_replays_what_it_missed() {
    let any = "tcp://127.0.0.1:0";
    let flags =
        ["--kv-events-endpoint", any, "--kv-events-replay-endpoint", any, "--kv-events-topic", "kv@test"];
    let engine = Engine::start(&[&flags[..], &["--kv-blocks", "6"]].concat());
    let info = engine.info().await;
    let endpoint = |name: &str| info["kv_events"][name].as_str().unwrap().to_owned();

    // A prompt whose events nobody hears.
    engine.ok("/v1/completions", &completion(&prompt(40, 0), Choose::Greedy, 1)).await;
    let missed = replay_when(&endpoint("replay_endpoint"), 0, |batches| !batches.is_empty()).await;
    assert_eq!(kinds(&missed), ["BlockStored"]);
    assert_eq!(missed.iter().map(|batch| batch.sequence).collect::<Vec<_>>(), [0]);
    let stored = &missed[0].events[0];
    let hashes = field(stored, "block_hashes").as_array().unwrap();
    assert_eq!(hashes.len(), 2);
    assert!(field(stored, "parent_block_hash").is_nil());
    let tokens: Vec<u32> =
        field(stored, "token_ids").as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    assert_eq!(tokens, prompt(40, 0)[..32]);
    assert_eq!(field(stored, "block_size").as_u64(), Some(16));
    assert_eq!(field(stored, "medium").as_str(), Some("GPU"));

    // A follower that subscribes now; requests go on until it hears the first of them.
    let mut socket = SubSocket::new();
    socket.connect(&endpoint("endpoint")).await.unwrap();
    socket.subscribe("kv@test").await.unwrap();
    let mut first = None;
    for salt in 1..100 {
        engine.ok("/v1/completions", &completion(&prompt(40, salt), Choose::Greedy, 1)).await;
        if let Ok(batch) = timeout(std::time::Duration::from_millis(50), next(&mut socket)).await {
            first = Some(batch);
            break;
        }
    }
    let first = first.expect("a subscriber hears events");
    assert!(first.sequence >= 1, "the batches before were missed: a gap");
    let gap = replay_when(&endpoint("replay_endpoint"), 1, |batches| batches.contains(&first)).await;
    assert_eq!(gap.first().map(|batch| batch.sequence), Some(1));
    assert!(gap.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence), "{gap:?}");

    // Six blocks do not hold two prompts of three: the first prompt's blocks were removed by name.
    engine.ok("/v1/completions", &completion(&prompt(90, 150), Choose::Greedy, 1)).await;
    let removed = |batches: &[Batch], hash: &Value| {
        batches.iter().flat_map(|batch| &batch.events).any(|event| {
            field(event, "type").as_str() == Some("BlockRemoved")
                && field(event, "block_hashes").as_array().unwrap().contains(hash)
        })
    };
    let all_removed = |batches: &[Batch]| hashes.iter().all(|hash| removed(batches, hash));
    replay_when(&endpoint("replay_endpoint"), 0, all_removed).await;
}

/// An engine with blocks of 8 and its replay endpoint.
async fn with_replay() -> (Engine, String) {
    let any = "tcp://127.0.0.1:0";
    let events =
        ["--kv-events-endpoint", any, "--kv-events-replay-endpoint", any, "--kv-events-topic", "kv@test"];
    let engine = Engine::start(&[&events[..], &["--block-size", "8"]].concat());
    let info = engine.info().await;
    let endpoint = info["kv_events"]["replay_endpoint"].as_str().unwrap().to_owned();
    (engine, endpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_block_names_its_parent() {
    let (engine, endpoint) = with_replay().await;
    engine.ok("/v1/completions", &completion(&prompt(9, 0), Choose::Greedy, 1)).await;
    engine.ok("/v1/completions", &completion(&prompt(17, 0), Choose::Greedy, 1)).await;
    let batches = replay_when(&endpoint, 0, |batches| batches.len() >= 2).await;
    assert_eq!(kinds(&batches), ["BlockStored", "BlockStored"]);
    let parent = &field(&batches[0].events[0], "block_hashes").as_array().unwrap()[0];
    assert_eq!(field(&batches[1].events[0], "parent_block_hash"), parent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salt_keeps_prefixes_apart_and_shows_in_the_first_block() {
    let (engine, endpoint) = with_replay().await;
    let salted = |salt: &str| {
        let mut body = completion(&prompt(17, 0), Choose::Greedy, 1);
        body["cache_salt"] = salt.into();
        body
    };
    let plain = completion(&prompt(17, 0), Choose::Greedy, 1);
    for (body, cached) in
        [(&plain, 0), (&salted("a"), 0), (&salted("b"), 0), (&salted("a"), 16), (&plain, 16)]
    {
        let answer = engine.ok("/v1/completions", body).await;
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], cached, "{body}");
    }
    let batches = replay_when(&endpoint, 0, |batches| batches.len() >= 3).await;
    assert_eq!(kinds(&batches), ["BlockStored"; 3]);
    let keys: Vec<String> =
        batches.iter().map(|batch| field(&batch.events[0], "extra_keys").to_string()).collect();
    assert_eq!(keys, ["[nil, nil]", "[[\"a\"], nil]", "[[\"b\"], nil]"]);
    assert!(batches.iter().all(|batch| field(&batch.events[0], "parent_block_hash").is_nil()));
}
