//! Watching keys: a stream from one endpoint, taken up again at another where it ends, from the revision that was told
//! last. Where etcd has forgotten that revision, or never had it because it lost its data, everything is listed again.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::entry::VALUE_MAX;
use super::super::watch::{Feed, News, Revision};
use super::super::{DirectoryError, Result};
use super::client::{Client, foreign};
use super::engine::Engine;
use super::http::Answer;
use super::keys::Keys;
use super::wire::{Done, Happened, Streamed, Watched, encode};

/// News that wait for the watch. When it is full, etcd keeps what follows.
const NEWS_MAX: usize = 64;
/// The longest message of a stream. etcd puts the changes of one transaction into one.
const MESSAGE_MAX: usize = 8 * VALUE_MAX;
/// Between two streams, so that a server that ends each at once is not asked without end.
const RETRY: Duration = Duration::from_millis(200);
/// A stream that is silent for this long may have lost its server; that is asked.
const SILENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct EtcdFeed {
    engine: Arc<Engine>,
    news: Arc<tokio::sync::Mutex<mpsc::Receiver<Result<News>>>>,
    following: JoinHandle<()>,
}

impl EtcdFeed {
    pub(super) fn start(engine: Arc<Engine>, keys: Keys, prefix: &str, since: Revision) -> Self {
        let (sender, news) = mpsc::channel(NEWS_MAX);
        let since = Some(since.number()).filter(|&number| number > 0);
        let mut follower =
            Follower { client: engine.client(), keys, prefix: prefix.to_owned(), since, sender, told: None };
        let following = engine.spawn(async move { follower.run().await });
        Self { engine, news: Arc::new(tokio::sync::Mutex::new(news)), following }
    }
}

impl Drop for EtcdFeed {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Feed for EtcdFeed {
    fn next(&mut self, timeout: Duration) -> Result<Option<News>> {
        let news = Arc::clone(&self.news);
        // Nothing is lost: what was taken out is sent on, and whoever waits here outwaits it.
        let next = async move {
            let mut news = news.lock().await;
            if let Ok(ready) = news.try_recv() {
                return Some(ready);
            }
            tokio::time::timeout(timeout, news.recv()).await.ok().flatten()
        };
        self.engine.wait(timeout, next).flatten().transpose()
    }
}

struct Follower {
    client: Arc<Client>,
    keys: Keys,
    prefix: String,
    /// What was told last; `None`: nothing that can be gone on from.
    since: Option<u64>,
    sender: mpsc::Sender<Result<News>>,
    /// The failure that was told last, since the last news.
    told: Option<DirectoryError>,
}

/// Messages of a stream, one a line.
struct Messages {
    answer: Answer,
    place: String,
    bytes: Vec<u8>,
}

impl Follower {
    async fn run(&mut self) {
        while !self.sender.is_closed() {
            if let Err(error) = self.follow().await {
                self.fail(error).await;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn tell(&mut self, news: News) {
        self.told = None;
        // Nobody is there to take it any more; `run` looks.
        let _gone = self.sender.send(Ok(news)).await;
    }

    /// Tells of an outage once.
    async fn fail(&mut self, error: DirectoryError) {
        if self.told.as_ref().map(std::mem::discriminant) != Some(std::mem::discriminant(&error)) {
            self.told = Some(error.clone());
            let _gone = self.sender.send(Err(error)).await;
        }
    }

    /// Follows one stream to its end. `Ok`: it has to be listed again.
    async fn follow(&mut self) -> Result<()> {
        let since = match self.since {
            Some(since) => since,
            None => {
                let listing = self.keys.list(&self.client, &self.prefix).await?;
                let since = listing.revision.number();
                self.since = Some(since);
                self.tell(News::All(listing)).await;
                since
            }
        };
        let client = Arc::clone(&self.client);
        let create = json!({ "create_request": {
            "key": encode(self.keys.key(&self.prefix)), "range_end": encode(self.keys.end(&self.prefix)),
            "start_revision": (since + 1).to_string() } });
        let (endpoint, answer) = client.stream("watch", &create).await?;
        let mut messages = Messages { answer, place: endpoint.to_owned(), bytes: Vec::new() };
        loop {
            let message = match tokio::time::timeout(SILENCE, messages.next()).await {
                Ok(message) => message?,
                Err(_) => {
                    self.ask(endpoint).await?;
                    continue;
                }
            };
            if !self.hear(message, endpoint).await? {
                self.since = None;
                return Ok(());
            }
        }
    }

    /// Whether the server of a silent stream is there and part of its cluster.
    async fn ask(&self, endpoint: &str) -> Result<()> {
        let request = json!({ "key": encode(self.keys.key(&self.prefix)), "keys_only": true });
        self.client.post_to::<Done>(endpoint, "kv/range", &request).await.map(|_| ())
    }

    /// etcd gave the watch up for want of permission, which it also says of a token that it has forgotten.
    async fn cancelled(&self, reason: &str, place: &str) -> Result<bool> {
        let before = self.client.current_token();
        self.ask(place).await?;
        if self.client.current_token() != before {
            return Ok(false);
        }
        let cause = format!("the watch was cancelled: {reason}");
        Err(DirectoryError::Denied { place: place.to_owned(), cause })
    }

    /// Takes a message in. `false`: what is known cannot be gone on from.
    async fn hear(&mut self, message: Streamed<Watched>, place: &str) -> Result<bool> {
        let watched = match message {
            Streamed { error: Some(failure), .. } => return Err(failure.sort(place)),
            Streamed { result: Some(watched), .. } => watched,
            Streamed { .. } => return Ok(true),
        };
        // A server that lost its data counts from the beginning, and would be silent until it has caught up.
        let behind = watched.created && self.since.is_some_and(|since| watched.header.revision < since);
        if behind || watched.compact_revision > 0 {
            return Ok(false);
        }
        if watched.canceled {
            return self.cancelled(&watched.cancel_reason, place).await;
        }
        for Happened { kind, kv } in watched.events {
            let revision = Revision::new(kv.mod_revision);
            self.since = self.since.max(Some(kv.mod_revision));
            let news = match (kind.as_str(), self.keys.name(&kv.key)) {
                (_, Err(corrupt)) => News::Put(revision, Err(corrupt)),
                ("DELETE", Ok(name)) => News::Gone(revision, name),
                (_, Ok(_)) => News::Put(revision, self.keys.entry(&kv)),
            };
            self.tell(news).await;
        }
        Ok(true)
    }
}

impl Messages {
    /// The next message. May be dropped before it is ready, and then goes on where it was.
    async fn next(&mut self) -> Result<Streamed<Watched>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.bytes[searched..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=searched + at).collect();
                return serde_json::from_slice(&line).map_err(|e| foreign(&self.place, &e));
            }
            searched = self.bytes.len();
            let chunk = self.answer.chunk().await?;
            let Some(chunk) = chunk else {
                let cause = "the stream ended".to_owned();
                return Err(DirectoryError::Unreachable { place: self.place.clone(), cause });
            };
            if self.bytes.len() + chunk.len() > MESSAGE_MAX {
                let (what, limit) =
                    (format!("a message of {}", self.place), format!("{MESSAGE_MAX} bytes are read"));
                return Err(DirectoryError::TooLarge { what, limit });
            }
            self.bytes.extend_from_slice(&chunk);
        }
    }
}
