//! A mock worker on loopback that speaks like vLLM, and a router in front of some.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use router_lite::{Config, Router};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// No wait in a test is longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Parameters that were issued and not yet used, shared by the workers of one pool.
pub type Ledger = Arc<Mutex<HashSet<String>>>;

/// One request as the worker got it.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Recorded {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the worker does with its next POST instead of answering as usual.
#[derive(Debug)]
pub enum Act {
    /// Answers this.
    Say(Response<Full<Bytes>>),
    /// Sends what comes through the channel; `None` breaks the connection.
    Stream(Response<()>, mpsc::Receiver<Option<Bytes>>),
    /// Closes the connection without an answer.
    Close,
    /// Never answers.
    Hang,
}

#[derive(Debug)]
pub struct Mock {
    pub url: String,
    pub inner: Arc<Inner>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
pub struct Inner {
    name: String,
    models: Vec<String>,
    pub ledger: Ledger,
    pub healthy: std::sync::atomic::AtomicBool,
    requests: Mutex<Vec<Recorded>>,
    acts: Mutex<VecDeque<Act>>,
    /// Answers that were dropped before their end, because the other side left.
    aborted: AtomicUsize,
    issued: AtomicUsize,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mock {
    pub async fn start(name: &str, models: &[&str]) -> Self {
        Self::start_with(name, models, Ledger::default(), "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_with(name: &str, models: &[&str], ledger: Ledger, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            models: models.iter().map(|&m| m.to_owned()).collect(),
            ledger,
            healthy: true.into(),
            requests: Mutex::default(),
            acts: Mutex::default(),
            aborted: AtomicUsize::new(0),
            issued: AtomicUsize::new(0),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&inner)));
        Self { url, inner, task }
    }

    /// A prefill and a decode worker that share their ledger.
    pub async fn pool() -> (Self, Self) {
        let ledger = Ledger::default();
        let any = "127.0.0.1:0".parse().unwrap();
        let prefill = Self::start_with("p", &["m"], Arc::clone(&ledger), any).await;
        let decode = Self::start_with("d", &["m"], ledger, any).await;
        (prefill, decode)
    }

    /// Ends the worker as a killed process ends: nobody listens, and its connections are closed.
    pub async fn kill(mut self) {
        self.task.abort();
        // Reports that the task was aborted.
        (&mut self.task).await.unwrap_err();
    }

    pub fn then(&self, act: Act) {
        self.inner.acts.lock().unwrap().push_back(act);
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.inner.requests.lock().unwrap().clone()
    }

    pub fn aborted(&self) -> usize {
        self.inner.aborted.load(Ordering::SeqCst)
    }
}

/// An answer that does not stream.
pub fn say(status: u16, content_type: &str, body: &str) -> Act {
    let response = Response::builder().status(status).header("content-type", content_type);
    Act::Say(response.body(Full::new(Bytes::from(body.to_owned()))).unwrap())
}

/// A stream under the test's control.
pub fn stream(content_type: &str) -> (Act, mpsc::Sender<Option<Bytes>>) {
    let (sender, receiver) = mpsc::channel(8);
    let head = Response::builder().header("content-type", content_type).body(()).unwrap();
    (Act::Stream(head, receiver), sender)
}

async fn accept(listener: TcpListener, inner: Arc<Inner>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let inner = Arc::clone(&inner);
        connections.spawn(async move {
            let service = service_fn(move |request| serve(Arc::clone(&inner), request));
            // Ends with an error whenever a test breaks the connection.
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.unwrap_or_default();
        });
    }
}

type MockBody = Either<Full<Bytes>, Channel>;

async fn serve(inner: Arc<Inner>, request: Request<Incoming>) -> Result<Response<MockBody>, std::io::Error> {
    let path = request.uri().path_and_query().unwrap().to_string();
    match path.as_str() {
        "/health" => {
            let code = if inner.healthy.load(Ordering::SeqCst) { 200 } else { 503 };
            return Ok(full(code, String::new()));
        }
        "/v1/models" => {
            let all: Vec<String> = inner
                .models
                .iter()
                .map(|m| format!(r#"{{"id": "{m}","object":"model","owned_by":"{}"}}"#, inner.name))
                .collect();
            return Ok(full(200, format!(r#"{{"object":"list","data":[{}]}}"#, all.join(","))));
        }
        _ => {}
    }
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let recorded = Recorded { path, headers, body };
    inner.requests.lock().unwrap().push(recorded.clone());
    let act = inner.acts.lock().unwrap().pop_front();
    match act {
        None => Ok(inner.usual(&recorded)),
        Some(Act::Say(response)) => Ok(response.map(Either::Left)),
        Some(Act::Close) => Err(std::io::Error::other("closed by the test")),
        Some(Act::Hang) => {
            let guard = Abort { inner, armed: true };
            std::future::pending::<()>().await;
            drop(guard);
            unreachable!()
        }
        Some(Act::Stream(head, receiver)) => {
            let channel = Channel { receiver, abort: Abort { inner, armed: true } };
            Ok(head.map(|()| Either::Right(channel)))
        }
    }
}

impl Inner {
    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// What vLLM does with a completion, as far as it shows.
    fn usual(&self, request: &Recorded) -> Response<MockBody> {
        let body = request.json();
        let params = &body["kv_transfer_params"];
        if params["do_remote_decode"] == true {
            let id = format!("{}-{}", self.name, self.issued.fetch_add(1, Ordering::SeqCst));
            self.ledger.lock().unwrap().insert(id.clone());
            let raw = params_text(&id);
            return full(
                200,
                format!(
                    r#"{{"id":"x","choices":[{{"finish_reason":"length","text":"a"}}],"kv_transfer_params":{raw}}}"#
                ),
            );
        }
        if params["do_remote_prefill"] == true
            && !self.ledger.lock().unwrap().remove(params["remote_request_id"].as_str().unwrap())
        {
            return full(500, r#"{"error":{"message":"params used twice","code":500}}"#.to_owned());
        }
        full(200, format!(r#"{{"choices":[{{"finish_reason":"stop","text":"from {}"}}]}}"#, self.name))
    }
}

/// Parameters as prefill `id` writes them: with spaces and numbers that a JSON library would write differently.
pub fn params_text(id: &str) -> String {
    format!(
        r#"{{"do_remote_prefill" : true,  "remote_block_ids":[[1, 2]],"remote_request_id":"{id}","expiry":1.50,"host":"\u0061"}}"#
    )
}

fn full(status: u16, body: String) -> Response<MockBody> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

#[derive(Debug)]
struct Abort {
    inner: Arc<Inner>,
    armed: bool,
}

impl Drop for Abort {
    fn drop(&mut self) {
        if self.armed {
            self.inner.aborted.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[derive(Debug)]
pub struct Channel {
    receiver: mpsc::Receiver<Option<Bytes>>,
    abort: Abort,
}

impl Body for Channel {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = ready!(self.receiver.poll_recv(cx));
        if !matches!(next, Some(Some(_))) {
            self.abort.armed = false;
        }
        Poll::Ready(match next {
            Some(Some(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(None) => Some(Err(std::io::Error::other("broken by the test"))),
            None => None,
        })
    }
}

/// A running router.
#[derive(Debug)]
pub struct Gateway {
    pub url: String,
    pub client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Gateway {
    /// Starts a router and waits until it knows that all its workers are up.
    pub async fn start(config: Config) -> Self {
        let count = config.worker.len() + config.prefill.len() + config.decode.len();
        let gateway = Self::start_blind(config).await;
        gateway.wait_up(count).await;
        gateway
    }

    pub async fn start_blind(config: Config) -> Self {
        let router = Router::bind(config).await.unwrap();
        let url = format!("http://{}", router.local_addr());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            router.run(async { stopped.await.unwrap_or_default() }).await.unwrap();
        });
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        Self { url, client, stop: Some(stop), task }
    }

    pub async fn wait_up(&self, count: usize) {
        until("workers are up", || async {
            let workers = self.get("/workers").await.1;
            workers["workers"].as_array().unwrap().iter().filter(|w| w["state"] == "up").count() == count
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn metrics(&self) -> String {
        self.client.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap()
    }

    /// Waits until `/metrics` has this line: books are closed just after the last byte has left.
    pub async fn wait_metric(&self, line: &str) {
        until(line, || async { self.metrics().await.lines().any(|l| l == line) }).await;
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let request = self.client.post(format!("{}{path}", self.url));
        request.header("content-type", "application/json").body(body).send().await.unwrap()
    }

    /// Posts and returns the status and the answer as JSON.
    pub async fn ask(&self, path: &str, body: &str) -> (u16, Value) {
        let response = self.post(path, body.to_owned()).await;
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub fn shut_down(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub async fn ended(&mut self) {
        tokio::time::timeout(DEADLINE, &mut self.task).await.expect("the router ends").unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A configuration on a free port with quick checks.
pub fn config(worker: &[&Mock], prefill: &[&Mock], decode: &[&Mock]) -> Config {
    let urls = |mocks: &[&Mock]| mocks.iter().map(|m| m.url.clone()).collect();
    let mut config = Config::default();
    config.port = 0;
    config.worker = urls(worker);
    config.prefill = urls(prefill);
    config.decode = urls(decode);
    config.health_interval = Duration::from_millis(50);
    config.health_recheck = Duration::from_millis(50);
    config
}

/// Polls until `condition` holds.
pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let end = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Everything a stream still brings, and whether it ended properly.
pub async fn rest(response: &mut reqwest::Response) -> (String, bool) {
    let mut all = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => all.extend_from_slice(&chunk),
            Ok(None) => return (String::from_utf8(all).unwrap(), true),
            Err(_) => return (String::from_utf8(all).unwrap(), false),
        }
    }
}

/// An address nobody listens on.
pub async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
