//! What etcd says over its JSON gateway (etcd.io, "gRPC gateway"): numbers of 64 bits are texts, bytes are base64, and
//! whatever is zero or empty is left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::super::error::DirectoryError;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub(super) revision: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Lease {
    #[serde(default, rename = "ID", deserialize_with = "number")]
    pub(super) id: u64,
    /// Seconds; zero for a lease that is over.
    #[serde(default, rename = "TTL", deserialize_with = "number")]
    pub(super) ttl: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Pair {
    #[serde(deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    #[serde(default, deserialize_with = "number")]
    pub(super) mod_revision: u64,
    /// Zero: none.
    #[serde(default, deserialize_with = "number")]
    pub(super) lease: u64,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Range {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<Pair>,
    /// There is more than the limit let through.
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Txn {
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    pub(super) responses: Vec<TxnResponse>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TxnResponse {
    pub(super) response_range: Option<Range>,
    pub(super) response_put: Option<Put>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Put {
    /// What stood there, where that was asked for.
    pub(super) prev_kv: Option<Pair>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Token {
    pub(super) token: String,
}

/// An answer that nobody looks into.
#[derive(Debug, Deserialize)]
pub(super) struct Done(IgnoredAny);

/// One message of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Watched {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) created: bool,
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(default)]
    pub(super) cancel_reason: String,
    /// Not zero: what was asked for is forgotten.
    #[serde(default, deserialize_with = "number")]
    pub(super) compact_revision: u64,
    #[serde(default)]
    pub(super) events: Vec<Happened>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Happened {
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    pub(super) kv: Pair,
}

/// What etcd says instead of an answer.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Failure {
    /// A code of gRPC.
    #[serde(default, alias = "grpc_code")]
    pub(super) code: u32,
    #[serde(default)]
    pub(super) message: String,
}

impl Failure {
    /// The token has expired, or there was none where one is needed.
    pub(super) fn wants_login(&self) -> bool {
        self.code == 16 || self.message.contains("invalid auth token")
    }

    /// The lease is over.
    pub(super) fn no_lease(&self) -> bool {
        self.message.contains("requested lease not found")
    }

    /// The revision was compacted away.
    pub(super) fn compacted(&self) -> bool {
        self.message.contains("revision has been compacted")
    }

    /// What it means for the caller. The texts are etcd's own, which its clients compare as well.
    pub(super) fn sort(self, place: &str) -> DirectoryError {
        let place = place.to_owned();
        let says = |text: &str| self.message.contains(text);
        if says("database space exceeded") {
            return DirectoryError::Full { place, cause: self.message };
        }
        if says("request is too large") || says("message larger than max") {
            let limit = format!("{place} says {:?}", self.message);
            return DirectoryError::TooLarge { what: "what was sent".to_owned(), limit };
        }
        let login = says("user name is empty") || says("authentication failed") || self.wants_login();
        match self.code {
            // Permission denied.
            7 => DirectoryError::Denied { place, cause: self.message },
            _ if login => DirectoryError::Denied { place, cause: self.message },
            // Cancelled, deadline exceeded, resource exhausted (too many requests), aborted, unavailable.
            1 | 4 | 8 | 10 | 14 => DirectoryError::Unreachable { place, cause: self.message },
            _ => DirectoryError::Protocol { place, cause: self.message },
        }
    }
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Plain(u64),
    }
    match Number::deserialize(deserializer)? {
        Number::Text(text) => text.parse().map_err(D::Error::custom),
        Number::Plain(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_what_is_left_out() {
        let text = r#"{"header":{"revision":"7"},"kvs":[{"key":"YQ==","mod_revision":"3"}],"count":"1"}"#;
        let range: Range = serde_json::from_str(text).unwrap();
        let pair = &range.kvs[0];
        assert_eq!(
            (range.header.revision, &*pair.key, &*pair.value, pair.mod_revision),
            (7, &b"a"[..], &b""[..], 3)
        );
        assert!(!range.more && pair.lease == 0);
        let over: Streamed<Lease> = serde_json::from_str(r#"{"result":{"ID":"5"}}"#).unwrap();
        assert!(matches!(over, Streamed { result: Some(Lease { id: 5, ttl: 0 }), error: None }));
        for hostile in
            [r#"{"kvs":[{"key":"!"}]}"#, r#"{"header":{"revision":"-1"}}"#, r#"{"kvs":7}"#, "[]x", ""]
        {
            assert!(serde_json::from_str::<Range>(hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn failures_are_read_from_answers_and_streams() {
        let answer = r#"{"error":"no","message":"no","code":5}"#;
        let failure: Failure = serde_json::from_str(answer).unwrap();
        assert_eq!((failure.code, failure.message.as_str()), (5, "no"));
        let stream = r#"{"error":{"grpc_code":14,"http_code":503,"message":"no","http_status":"x"}}"#;
        let failure = serde_json::from_str::<Streamed<Watched>>(stream).unwrap().error.unwrap();
        assert_eq!((failure.code, failure.message.as_str()), (14, "no"));
    }

    #[test]
    fn failures_are_sorted_by_what_can_be_done() {
        let sort = |code, message: &str| Failure { code, message: message.to_owned() }.sort("x");
        assert!(matches!(sort(3, "etcdserver: request is too large"), DirectoryError::TooLarge { .. }));
        assert!(matches!(sort(8, "grpc: received message larger than max"), DirectoryError::TooLarge { .. }));
        assert!(matches!(sort(8, "etcdserver: mvcc: database space exceeded"), DirectoryError::Full { .. }));
        assert!(matches!(sort(3, "etcdserver: user name is empty"), DirectoryError::Denied { .. }));
        assert!(matches!(sort(7, "etcdserver: permission denied"), DirectoryError::Denied { .. }));
        assert!(sort(14, "etcdserver: no leader").is_retryable());
        assert!(matches!(sort(12, "unknown"), DirectoryError::Protocol { .. }));
    }
}
