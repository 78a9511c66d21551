//! Requests to etcd: which endpoint, which token, how long, how much.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::error::CertificateProblem;
use super::super::{DirectoryError, Result};
use super::EtcdConfig;
use super::http::{Answer, Http};
use super::wire::{Failure, Token};

/// The longest answer that is read: a page of a listing of entries at etcd's own limit.
pub(super) const ANSWER_MAX: usize = 96 << 20;
/// How etcd begins when it refuses a certificate for its common name.
const NAMED_CLIENT: &str = "CommonName of client sending a request against gateway";
/// The longest complaint that is read.
const COMPLAINT_MAX: usize = 64 << 10;

pub(super) struct Client {
    http: Http,
    endpoints: Vec<String>,
    user: Option<(String, String)>,
    /// For one request to one endpoint.
    pub(super) attempt: Duration,
    /// Index of the endpoint that answered last.
    preferred: AtomicUsize,
    token: Mutex<Option<String>>,
}

impl fmt::Debug for Client {
    /// Without password and token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// Why one endpoint gave no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    /// etcd said why.
    Failed(Failure, String),
    /// It was not reached, or is no etcd.
    Other(DirectoryError),
}

impl From<DirectoryError> for Refusal {
    fn from(error: DirectoryError) -> Self {
        Self::Other(error)
    }
}

impl From<Refusal> for DirectoryError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Failed(failure, place) => failure.sort(&place),
            Refusal::Other(error) => error,
        }
    }
}

impl Client {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self> {
        let many = u32::try_from(config.endpoints.len()).unwrap_or(u32::MAX);
        Ok(Self {
            http: Http::new(config.tls.as_ref())?,
            endpoints: config.endpoints.iter().map(|url| url.trim_end_matches('/').to_owned()).collect(),
            user: config.user.clone(),
            attempt: config.timeout / many,
            preferred: AtomicUsize::new(0),
            token: Mutex::default(),
        })
    }

    pub(super) fn place(&self) -> String {
        self.endpoints.join(", ")
    }

    /// Asks one endpoint after the other, from the one that answered last.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Refusal> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for index in (0..self.endpoints.len()).map(|step| (first + step) % self.endpoints.len()) {
            let endpoint = &self.endpoints[index];
            let answer = async { read_json(endpoint, self.send(endpoint, path, body).await?).await };
            let refusal = match tokio::time::timeout(self.attempt, answer).await {
                Ok(Ok(answer)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(refusal)) if !refusal.elsewhere() => return Err(refusal),
                Ok(Err(refusal)) => refusal,
                Err(_) => Refusal::Other(self.timeout(endpoint)),
            };
            last = Some(refusal);
        }
        Err(last.unwrap_or_else(|| Refusal::Other(self.timeout("no endpoint"))))
    }

    /// A stream from the endpoint that answered last; which one that is.
    pub(super) async fn stream(&self, path: &str, body: &Value) -> Result<(&str, Answer), Refusal> {
        let endpoint = &self.endpoints[self.preferred.load(Ordering::Relaxed)];
        match tokio::time::timeout(self.attempt, self.send(endpoint, path, body)).await {
            Ok(answer) => Ok((endpoint, answer?)),
            Err(_) => Err(Refusal::Other(self.timeout(endpoint))),
        }
    }

    /// Asks one endpoint and no other.
    pub(super) async fn post_to<T: DeserializeOwned>(
        &self,
        endpoint: &str,
        path: &str,
        body: &Value,
    ) -> Result<T> {
        let answer = async { read_json(endpoint, self.send(endpoint, path, body).await?).await };
        match tokio::time::timeout(self.attempt, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(self.timeout(endpoint)),
        }
    }

    fn timeout(&self, place: &str) -> DirectoryError {
        DirectoryError::Timeout { place: place.to_owned(), waited: self.attempt }
    }

    /// Sends, and logs in before that where it has to be.
    async fn send(&self, endpoint: &str, path: &str, body: &Value) -> Result<Answer, Refusal> {
        let before = self.current_token();
        match self.send_with(endpoint, path, body, before.as_deref()).await {
            Err(Refusal::Failed(failure, _))
                if self.user.is_some() && (failure.wants_login() || before.is_none()) =>
            {
                let token = self.log_in(endpoint).await?;
                self.send_with(endpoint, path, body, Some(&token)).await
            }
            answer => answer,
        }
    }

    pub(super) fn current_token(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn log_in(&self, endpoint: &str) -> Result<String, Refusal> {
        let (name, password) = self.user.as_ref().map_or(("", ""), |(name, password)| (name, password));
        let body = json!({ "name": name, "password": password });
        let response = self.send_with(endpoint, "auth/authenticate", &body, None).await?;
        let Token { token } = read_json(endpoint, response).await?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(token)
    }

    async fn send_with(
        &self,
        endpoint: &str,
        path: &str,
        body: &Value,
        token: Option<&str>,
    ) -> Result<Answer, Refusal> {
        let answer = self.http.post(endpoint, path, token, body.to_string()).await?;
        let status = answer.status;
        if status.is_success() {
            return Ok(answer);
        }
        let complaint = read(endpoint, answer, COMPLAINT_MAX).await?;
        Err(complained(endpoint, status, &complaint))
    }
}

impl Refusal {
    /// Whether another endpoint may do better.
    fn elsewhere(&self) -> bool {
        match self {
            Self::Failed(failure, place) => failure.clone().sort(place).is_retryable(),
            Self::Other(error) => !matches!(error, DirectoryError::TooLarge { .. }),
        }
    }
}

/// An answer that is an error: etcd's own, or that of whatever else listens there.
fn complained(place: &str, status: StatusCode, complaint: &[u8]) -> Refusal {
    match serde_json::from_slice::<Failure>(complaint) {
        Ok(failure) if !failure.message.is_empty() => Refusal::Failed(failure, place.to_owned()),
        _ if complaint.starts_with(NAMED_CLIENT.as_bytes()) => {
            let problem = CertificateProblem::ClientNamed;
            Refusal::Other(DirectoryError::Certificate { place: place.to_owned(), problem })
        }
        // A proxy in front of an etcd that is away.
        _ if status.is_server_error() => {
            Refusal::Other(DirectoryError::Unreachable { place: place.to_owned(), cause: status.to_string() })
        }
        _ => Refusal::Other(DirectoryError::Protocol { place: place.to_owned(), cause: status.to_string() }),
    }
}

async fn read(place: &str, mut answer: Answer, max: usize) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if bytes.len() + chunk.len() > max {
            let (what, limit) = (format!("an answer of {place}"), format!("{max} bytes are read"));
            return Err(Refusal::Other(DirectoryError::TooLarge { what, limit }));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn read_json<T: DeserializeOwned>(place: &str, answer: Answer) -> Result<T, Refusal> {
    let bytes = read(place, answer, ANSWER_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|e| Refusal::Other(foreign(place, &e)))
}

/// What answers is no etcd.
pub(super) fn foreign(place: &str, error: &serde_json::Error) -> DirectoryError {
    DirectoryError::Protocol { place: place.to_owned(), cause: error.to_string() }
}
