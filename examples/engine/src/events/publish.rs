//! The sockets: a PUB that everyone may follow, and a ROUTER from which a follower gets what it missed.

use super::wire::encode_batch;
use crate::error::StartError;
use crate::sched::CacheEvent;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::mpsc;
use zeromq::{PubSocket, RouterSocket, Socket as _, SocketRecv as _, SocketSend as _, ZmqError, ZmqMessage};

/// Batches that may wait to be published; what comes beyond is lost and shows as a gap.
const QUEUE_MAX: usize = 10_000;
/// Batches kept for replay.
const REPLAY_MAX: usize = 10_000;
/// The sequence number that ends a replay.
const END: [u8; 8] = [0xff; 8];

/// Where events go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct EventSettings {
    pub(crate) endpoint: String,
    pub(crate) replay_endpoint: Option<String>,
    pub(crate) topic: String,
    pub(crate) block_size: usize,
}

/// The endpoints as they turned out, for `/headrace/info`.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct EventEndpoints {
    pub(crate) endpoint: String,
    pub(crate) replay_endpoint: Option<String>,
    pub(crate) topic: String,
}

/// The engine thread's end: numbers batches and passes them on without waiting.
#[derive(Debug)]
pub(crate) struct EventSink {
    sender: mpsc::Sender<(u64, Vec<CacheEvent>)>,
    next: u64,
}

impl EventSink {
    /// Publishes a batch, if it has anything in it.
    pub(crate) fn publish(&mut self, events: Vec<CacheEvent>) {
        if events.is_empty() {
            return;
        }
        if self.sender.try_send((self.next, events)).is_err() {
            tracing::warn!(
                batch = self.next,
                "a batch of KV events was lost: the publisher does not keep up"
            );
        }
        self.next += 1;
    }
}

type Ring = Arc<Mutex<VecDeque<(u64, Bytes)>>>;

/// Opens the sockets and starts publishing.
pub(crate) async fn bind(settings: EventSettings) -> Result<(EventSink, EventEndpoints), StartError> {
    let mut publisher = PubSocket::new();
    let endpoint = open(&mut publisher, &settings.endpoint).await?;
    let ring = Ring::default();
    let replay_endpoint = match &settings.replay_endpoint {
        None => None,
        Some(address) => {
            let mut router = RouterSocket::new();
            let bound = router.bind(&wildcard(address)).await.map_err(failed(address))?;
            let topic = Bytes::from(settings.topic.clone());
            tokio::spawn(replay(router, topic, Arc::clone(&ring)));
            Some(bound.to_string())
        }
    };
    let endpoints = EventEndpoints { endpoint, replay_endpoint, topic: settings.topic.clone() };
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(publish(publisher, receiver, settings, ring));
    Ok((EventSink { sender, next: 0 }, endpoints))
}

/// Binds or connects as vLLM does: a wildcard or a local transport is bound. So is port 0, which nobody can reach
/// by connecting.
async fn open(publisher: &mut PubSocket, endpoint: &str) -> Result<String, StartError> {
    if binds(endpoint) {
        let bound = publisher.bind(&wildcard(endpoint)).await.map_err(failed(endpoint))?;
        Ok(bound.to_string())
    } else {
        publisher.connect(endpoint).await.map_err(failed(endpoint))?;
        Ok(endpoint.to_owned())
    }
}

fn failed(endpoint: &str) -> impl FnOnce(ZmqError) -> StartError {
    let endpoint = endpoint.to_owned();
    move |error| StartError::Events { endpoint, reason: error.to_string() }
}

fn binds(endpoint: &str) -> bool {
    endpoint.contains('*')
        || endpoint.contains("::")
        || endpoint.starts_with("ipc://")
        || endpoint.ends_with(":0")
}

fn wildcard(endpoint: &str) -> String {
    endpoint.replace("//*:", "//0.0.0.0:")
}

async fn publish(
    mut socket: PubSocket,
    mut batches: mpsc::Receiver<(u64, Vec<CacheEvent>)>,
    settings: EventSettings,
    ring: Ring,
) {
    let topic = Bytes::from(settings.topic.into_bytes());
    while let Some((sequence, events)) = batches.recv().await {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let payload = Bytes::from(encode_batch(now.as_secs_f64(), events, settings.block_size));
        {
            let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
            if ring.len() == REPLAY_MAX {
                ring.pop_front();
            }
            ring.push_back((sequence, payload.clone()));
        }
        let number = Bytes::copy_from_slice(&sequence.to_be_bytes());
        if let Err(error) = socket.send(message([topic.clone(), number, payload])).await {
            tracing::warn!(%error, sequence, "a batch of KV events was not published");
        }
    }
}

/// Answers `[empty, first sequence number]` with every batch from there on, as it was published but behind an empty
/// frame, and an end marker without a topic.
async fn replay(mut socket: RouterSocket, topic: Bytes, ring: Ring) {
    loop {
        let request = match socket.recv().await {
            Ok(request) => request.into_vec(),
            Err(error) => {
                tracing::warn!(%error, "the KV event replay endpoint has failed");
                return;
            }
        };
        let [peer, empty, first] = &request[..] else {
            tracing::warn!(frames = request.len(), "a replay request has two frames behind the identity");
            continue;
        };
        let Ok(first) = <[u8; 8]>::try_from(&first[..]).map(u64::from_be_bytes) else {
            tracing::warn!(bytes = first.len(), "a replay request names its first batch in eight bytes");
            continue;
        };
        let batches: Vec<_> = {
            let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.iter().filter(|(sequence, _)| *sequence >= first).cloned().collect()
        };
        let answers = batches
            .into_iter()
            .map(|(sequence, payload)| {
                (topic.clone(), Bytes::copy_from_slice(&sequence.to_be_bytes()), payload)
            })
            .chain([(Bytes::new(), Bytes::from_static(&END), Bytes::new())]);
        for (topic, number, payload) in answers {
            let answer = message([peer.clone(), empty.clone(), topic, number, payload]);
            if let Err(error) = socket.send(answer).await {
                tracing::warn!(%error, "a replay of KV events broke off");
                break;
            }
        }
    }
}

fn message<const N: usize>(frames: [Bytes; N]) -> ZmqMessage {
    let mut frames = VecDeque::from(frames);
    let mut message = ZmqMessage::from(frames.pop_front().unwrap_or_default());
    frames.into_iter().for_each(|frame| message.push_back(frame));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_local_transports_and_free_ports_are_bound() {
        for endpoint in ["tcp://*:5557", "tcp://[::]:5557", "ipc:///tmp/x", "tcp://127.0.0.1:0"] {
            assert!(binds(endpoint), "{endpoint}");
        }
        assert!(!binds("tcp://127.0.0.1:5557"));
        assert_eq!(wildcard("tcp://*:5557"), "tcp://0.0.0.0:5557");
    }
}
