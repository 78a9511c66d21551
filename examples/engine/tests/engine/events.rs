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
    events: Vec<Vec<Value>>,
}

fn decode(sequence: &[u8], payload: &[u8]) -> Batch {
    let sequence = u64::from_be_bytes(sequence.try_into().unwrap());
    let value = rmpv::decode::read_value(&mut &payload[..]).unwrap();
    let [timestamp, events, rank] = &value.as_array().unwrap()[..] else { panic!("{value}") };
    assert!(timestamp.as_f64().unwrap() > 1e9);
    assert_eq!(rank.as_u64(), Some(0));
    let events = events.as_array().unwrap().iter().map(|event| event.as_array().unwrap().clone()).collect();
    Batch { sequence, events }
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
        let [empty, sequence, payload] = &message[..] else { panic!("{message:?}") };
        assert!(empty.is_empty());
        if sequence[..] == [0xff; 8] {
            assert!(payload.is_empty());
            return batches;
        }
        batches.push(decode(sequence, payload));
    }
}

fn kinds(batches: &[Batch]) -> Vec<&str> {
    batches.iter().flat_map(|batch| &batch.events).map(|event| event[0].as_str().unwrap()).collect()
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
    let missed = replay(&endpoint("replay_endpoint"), 0).await;
    assert_eq!(kinds(&missed), ["AllBlocksCleared", "BlockStored"]);
    assert_eq!(missed.iter().map(|batch| batch.sequence).collect::<Vec<_>>(), [0, 1]);
    let stored = &missed[1].events[0];
    let hashes = stored[1].as_array().unwrap();
    assert_eq!(hashes.len(), 2);
    assert!(stored[2].is_nil());
    let tokens: Vec<u32> =
        stored[3].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    assert_eq!(tokens, prompt(40, 0)[..32]);
    assert_eq!(stored[4].as_u64(), Some(16));
    assert_eq!(stored[6].as_str(), Some("GPU"));

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
    assert!(first.sequence >= 2, "the batches before were missed: a gap");
    let gap = replay(&endpoint("replay_endpoint"), 2).await;
    assert_eq!(gap.first().map(|batch| batch.sequence), Some(2));
    assert!(gap.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence), "{gap:?}");
    assert!(gap.contains(&first), "what was published is what is replayed");

    // Six blocks do not hold two prompts of three: the first prompt's blocks were removed by name.
    engine.ok("/v1/completions", &completion(&prompt(90, 150), Choose::Greedy, 1)).await;
    let all = replay(&endpoint("replay_endpoint"), 0).await;
    let events: Vec<_> = all.iter().flat_map(|batch| &batch.events).collect();
    for hash in hashes {
        let removed = |event: &&&Vec<Value>| {
            event[0].as_str() == Some("BlockRemoved") && event[1].as_array().unwrap().contains(hash)
        };
        assert!(events.iter().any(|event| removed(&event)), "{hash} was not removed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_block_names_its_parent() {
    let any = "tcp://127.0.0.1:0";
    let engine = Engine::start(&[
        "--kv-events-endpoint",
        any,
        "--kv-events-replay-endpoint",
        any,
        "--block-size",
        "8",
    ]);
    let info = engine.info().await;
    let endpoint = info["kv_events"]["replay_endpoint"].as_str().unwrap().to_owned();
    engine.ok("/v1/completions", &completion(&prompt(9, 0), Choose::Greedy, 1)).await;
    engine.ok("/v1/completions", &completion(&prompt(17, 0), Choose::Greedy, 1)).await;
    let batches = replay(&endpoint, 1).await;
    assert_eq!(kinds(&batches), ["BlockStored", "BlockStored"]);
    assert_eq!(batches[1].events[0][2], batches[0].events[0][1].as_array().unwrap()[0]);
}
