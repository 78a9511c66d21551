//! Calls to workers: a pool of HTTP/1.1 connections and the timeouts around it.
//!
//! Dropping a call before its answer's last byte closes its connection, which is how an engine learns that nobody
//! wants the answer any more and frees its blocks. hyper does this for answers that are under way and for ones that
//! have not begun; nothing here may spawn a call off on its own, or that would be lost.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Frame, Incoming};
use hyper::http::response::Parts;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::config::Config;

/// Idle connections kept per worker; more are closed when their answer ends.
const POOL_IDLE_MAX: usize = 256;

/// Why a call gave no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// No connection: nobody has seen the request.
    Connect(String),
    /// The connection ended before the first byte of the answer's body.
    Lost(String),
    /// Nothing came in time.
    Timeout(Duration),
    /// The answer is longer than it may be.
    TooLong(usize),
}

/// An answer whose first bytes have come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) parts: Parts,
    /// The first frame of the body; `None` if the body is empty.
    pub(crate) first: Option<Frame<Bytes>>,
    pub(crate) rest: Incoming,
}

/// The connections to all workers.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Upstream {
    pub(crate) fn new(config: &Config) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.connect_timeout));
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.pool_idle_timeout)
            .pool_max_idle_per_host(POOL_IDLE_MAX)
            .build(connector);
        Self { client }
    }

    /// Sends `request` and waits for the head of the answer and the first bytes of its body. Engines answer 200
    /// before they start to work, so only the first bytes show that the request has not failed.
    pub(crate) async fn open(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Answer, CallError> {
        let opening = async {
            let (parts, mut rest) = self.head(request).await?.into_parts();
            let first = match rest.frame().await {
                Some(frame) => Some(frame.map_err(|e| CallError::Lost(chain(&e)))?),
                None => None,
            };
            Ok(Answer { parts, first, rest })
        };
        tokio::time::timeout(within, opening).await.unwrap_or(Err(CallError::Timeout(within)))
    }

    /// Sends `request` and reads the whole answer.
    pub(crate) async fn fetch(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
        bytes_max: usize,
    ) -> Result<(Parts, Bytes), CallError> {
        let fetching = async {
            let (parts, body) = self.head(request).await?.into_parts();
            let bytes = Limited::new(body, bytes_max).collect().await.map_err(|e| {
                if e.is::<LengthLimitError>() {
                    CallError::TooLong(bytes_max)
                } else {
                    CallError::Lost(chain(&*e))
                }
            })?;
            Ok((parts, bytes.to_bytes()))
        };
        tokio::time::timeout(within, fetching).await.unwrap_or(Err(CallError::Timeout(within)))
    }

    async fn head(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, CallError> {
        self.client.request(request).await.map_err(|e| {
            if e.is_connect() { CallError::Connect(chain(&e)) } else { CallError::Lost(chain(&e)) }
        })
    }
}

/// An error with its causes in one line: hyper's own message names only the stage.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            // Writing to a String does not fail.
            write!(text, ": {cause_text}").unwrap_or_default();
        }
        source = cause.source();
    }
    text
}
