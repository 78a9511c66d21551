//! HTTP/1.1 to one endpoint, over TLS where that is configured. Nothing comes from the environment: no proxy and no store
//! of certificates; and no redirect is followed to where nobody was sent.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::super::{DirectoryError, Result};
use super::tls::{EtcdTls, Trust};

/// Between two signs of life on a connection that is silent.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long a connection is kept that nobody uses.
const IDLE_MAX: Duration = Duration::from_secs(90);

pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    trust: Arc<Trust>,
}

/// An answer whose head has come.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    place: String,
    body: Incoming,
    trust: Arc<Trust>,
}

impl Http {
    pub(super) fn new(tls: Option<&EtcdTls>) -> Result<Self> {
        let trust = Trust::new(tls)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        let connector = HttpsConnectorBuilder::new().with_tls_config(trust.config());
        let connector = connector.https_or_http().enable_http1().wrap_connector(tcp);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_MAX);
        Ok(Self { client: builder.build(connector), trust: Arc::new(trust) })
    }

    /// Whether an endpoint can be spoken to by that name.
    pub(super) fn is_endpoint(endpoint: &str) -> bool {
        endpoint.parse::<Uri>().is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
    }

    pub(super) async fn post(
        &self,
        endpoint: &str,
        path: &str,
        token: Option<&str>,
        body: String,
    ) -> Result<Answer> {
        let failed = |e: &(dyn Error + 'static)| failed(&self.trust, endpoint, e);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = token {
            let token = HeaderValue::from_str(token).map_err(|e| failed(&e))?;
            headers.insert(AUTHORIZATION, token);
        }
        let mut request = Request::post(format!("{endpoint}/v3/{path}"))
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| failed(&e))?;
        *request.headers_mut() = headers;
        let (head, body) = self.client.request(request).await.map_err(|e| failed(&e))?.into_parts();
        let (place, trust) = (endpoint.to_owned(), Arc::clone(&self.trust));
        Ok(Answer { status: head.status, place, body, trust })
    }
}

impl Answer {
    /// The next bytes of it. May be dropped before it is ready.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|e| failed(&self.trust, &self.place, &e))?;
            // What is no data is a trailer.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// What it means that a request or an answer broke off.
fn failed(trust: &Trust, place: &str, error: &(dyn Error + 'static)) -> DirectoryError {
    let place = place.to_owned();
    match trust.problem(error) {
        Some(problem) => DirectoryError::Certificate { place, problem },
        None => DirectoryError::Unreachable { place, cause: chain(error) },
    }
}

/// An error with all that it came from; the first alone says only that sending failed.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
