//! The one configuration. Command line, TOML file and library users all build a [`Config`]; `Checked` is what it
//! becomes when every value in it has been looked at, and the only form the router works with.

use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};

use crate::health::Policy;
use crate::select::Role;

/// Workers accepted in one configuration; selection looks at each of them for each request.
pub const WORKERS_MAX: usize = 1024;

/// Everything that can be set. [`Config::default`] is complete but for the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Address to listen on. Default `127.0.0.1`.
    pub host: String,
    /// Port to listen on; 0 takes a free one. Default 8000.
    pub port: u16,
    /// Workers that take whole requests, as `http://HOST:PORT`.
    pub worker: Vec<String>,
    /// Prefill workers; they need at least one decode worker.
    pub prefill: Vec<String>,
    /// Decode workers; they need at least one prefill worker.
    pub decode: Vec<String>,
    /// Longest request body; a longer one is answered 413. Default 32 MiB.
    pub body_bytes_max: usize,
    /// Request bodies held at one time, all together; above it requests are answered 429. Default 1 GiB.
    pub buffered_bytes_max: usize,
    /// Longest answer of a prefill worker. Default 16 MiB.
    pub prefill_answer_bytes_max: usize,
    /// Requests in flight; above it requests are answered 429. Default 4096.
    pub inflight_max: usize,
    /// Open client connections; further ones wait to be accepted. Default 8192.
    pub connections_max: usize,
    /// How often a request is sent again after a worker failed before its first byte. Default 2.
    pub retries_max: u32,
    /// Opening a connection to a worker. Default 2 s.
    pub connect_timeout: Duration,
    /// A client sending its request. Default 60 s.
    pub request_timeout: Duration,
    /// A prefill worker's whole answer. Default 300 s.
    pub prefill_timeout: Duration,
    /// From dispatch to the first byte of an answer's body. An answer that does not stream is complete by then, so
    /// this covers its whole generation. Default 600 s.
    pub first_byte_timeout: Duration,
    /// Between two chunks of an answer. Default 120 s.
    pub idle_timeout: Duration,
    /// Streams still running this long after a shutdown was asked for are cut. Default 30 s.
    pub drain_timeout: Duration,
    /// Idle connections to workers are closed after this. Shorter than the workers' own limit, or requests race
    /// against their close (5 s in vLLM). Default 4 s.
    pub pool_idle_timeout: Duration,
    /// Between health checks of a worker that is up. Default 2 s.
    pub health_interval: Duration,
    /// Between health checks of a worker that is not. Default 500 ms.
    pub health_recheck: Duration,
    /// One health check. Default 5 s.
    pub health_timeout: Duration,
    /// Failed checks in a row that bring a worker down. Default 2.
    pub health_down_after: u32,
    /// Passed checks in a row that bring it up again. Default 1.
    pub health_up_after: u32,
}

impl Default for Config {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            worker: Vec::new(),
            prefill: Vec::new(),
            decode: Vec::new(),
            body_bytes_max: 32 * MIB,
            buffered_bytes_max: 1024 * MIB,
            prefill_answer_bytes_max: 16 * MIB,
            inflight_max: 4096,
            connections_max: 8192,
            retries_max: 2,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(60),
            prefill_timeout: Duration::from_secs(300),
            first_byte_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(30),
            pool_idle_timeout: Duration::from_secs(4),
            health_interval: Duration::from_secs(2),
            health_recheck: Duration::from_millis(500),
            health_timeout: Duration::from_secs(5),
            health_down_after: 2,
            health_up_after: 1,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No worker at all.
    #[error("no worker is configured: give --worker URL, or --prefill URL and --decode URL")]
    NoWorkers,
    /// Prefill without decode, or the other way round.
    #[error("--{present} is configured without --{missing}: a split request needs both")]
    HalfPool {
        /// The role that is there.
        present: &'static str,
        /// The role that is not.
        missing: &'static str,
    },
    /// More workers than [`WORKERS_MAX`].
    #[error("{count} workers are configured, at most {WORKERS_MAX} are supported")]
    TooManyWorkers {
        /// How many there are.
        count: usize,
    },
    /// A worker's URL cannot be used.
    #[error("--{role} {url:?} cannot be used: {reason}")]
    BadUrl {
        /// Role it was given for.
        role: &'static str,
        /// The URL as it was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The same worker twice.
    #[error("worker {url} is configured twice; each process has one role")]
    Duplicate {
        /// Its URL.
        url: String,
    },
    /// A value that must not be zero.
    #[error("{name} must be more than zero")]
    Zero {
        /// The setting's name.
        name: &'static str,
    },
}

/// One worker's address, checked.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) role: Role,
    pub(crate) authority: Authority,
    /// Path put before every request's path; empty, or `/like/this`.
    pub(crate) base: String,
    /// The canonical form, used as the worker's name everywhere.
    pub(crate) url: String,
}

/// A configuration in which every value has been checked.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) config: Config,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) policy: Policy,
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError`] for the first value that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        Checked::new(self.clone()).map(|_| ())
    }
}

impl Checked {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        check_numbers(&config)?;
        let endpoints = endpoints(&config)?;
        let policy = Policy::new(
            config.health_interval,
            config.health_recheck,
            config.health_down_after,
            config.health_up_after,
        );
        Ok(Self { config, endpoints, policy })
    }
}

fn check_numbers(config: &Config) -> Result<(), ConfigError> {
    let zero = [
        ("body_bytes_max", config.body_bytes_max == 0),
        ("buffered_bytes_max", config.buffered_bytes_max == 0),
        ("prefill_answer_bytes_max", config.prefill_answer_bytes_max == 0),
        ("inflight_max", config.inflight_max == 0),
        ("connections_max", config.connections_max == 0),
        ("connect_timeout_ms", config.connect_timeout.is_zero()),
        ("request_timeout_ms", config.request_timeout.is_zero()),
        ("prefill_timeout_ms", config.prefill_timeout.is_zero()),
        ("first_byte_timeout_ms", config.first_byte_timeout.is_zero()),
        ("idle_timeout_ms", config.idle_timeout.is_zero()),
        ("health_interval_ms", config.health_interval.is_zero()),
        ("health_recheck_ms", config.health_recheck.is_zero()),
        ("health_timeout_ms", config.health_timeout.is_zero()),
        ("health_down_after", config.health_down_after == 0),
        ("health_up_after", config.health_up_after == 0),
    ];
    match zero.into_iter().find(|(_, is_zero)| *is_zero) {
        Some((name, _)) => Err(ConfigError::Zero { name }),
        None => Ok(()),
    }
}

fn endpoints(config: &Config) -> Result<Vec<Endpoint>, ConfigError> {
    let roles =
        [(Role::Worker, &config.worker), (Role::Prefill, &config.prefill), (Role::Decode, &config.decode)];
    let count = roles.iter().map(|(_, urls)| urls.len()).sum();
    if count == 0 {
        return Err(ConfigError::NoWorkers);
    }
    if count > WORKERS_MAX {
        return Err(ConfigError::TooManyWorkers { count });
    }
    match (config.prefill.is_empty(), config.decode.is_empty()) {
        (false, true) => return Err(ConfigError::HalfPool { present: "prefill", missing: "decode" }),
        (true, false) => return Err(ConfigError::HalfPool { present: "decode", missing: "prefill" }),
        _ => {}
    }
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(count);
    for (role, url) in roles.into_iter().flat_map(|(role, urls)| urls.iter().map(move |url| (role, url))) {
        let endpoint = parse_url(role, url)?;
        if endpoints.iter().any(|e| e.url == endpoint.url) {
            return Err(ConfigError::Duplicate { url: endpoint.url });
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn parse_url(role: Role, url: &str) -> Result<Endpoint, ConfigError> {
    let bad = |reason| ConfigError::BadUrl { role: role.as_str(), url: url.to_owned(), reason };
    let uri: Uri = url.parse().map_err(|_| bad("it is not a URL; write http://HOST:PORT"))?;
    let parts = uri.into_parts();
    match parts.scheme {
        Some(scheme) if scheme == Scheme::HTTP => {}
        Some(scheme) if scheme == Scheme::HTTPS => {
            return Err(bad("https to workers is not supported; put a TLS proxy beside the worker"));
        }
        _ => return Err(bad("it must start with http://")),
    }
    let authority = parts.authority.ok_or_else(|| bad("it names no host"))?;
    if authority.as_str().contains('@') {
        return Err(bad("a user name in the URL is not supported; send an Authorization header"));
    }
    let path = parts.path_and_query.as_ref();
    if path.is_some_and(|p| p.query().is_some()) {
        return Err(bad("a query is not supported"));
    }
    let base = path.map_or("", |p| p.path()).trim_end_matches('/').to_owned();
    let url = format!("http://{authority}{base}");
    Ok(Endpoint { role, authority, base, url })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(worker: &[&str], prefill: &[&str], decode: &[&str]) -> Config {
        let own = |urls: &[&str]| urls.iter().map(|&u| u.to_owned()).collect();
        Config { worker: own(worker), prefill: own(prefill), decode: own(decode), ..Config::default() }
    }

    #[test]
    fn accepts_plain_urls_and_makes_them_canonical() {
        let checked =
            Checked::new(config(&["http://a:1/", "http://[::1]:2/base/"], &["http://p:3"], &["http://d"]))
                .unwrap();
        let urls: Vec<_> = checked.endpoints.iter().map(|e| (e.role.as_str(), e.url.as_str())).collect();
        let expected = [
            ("worker", "http://a:1"),
            ("worker", "http://[::1]:2/base"),
            ("prefill", "http://p:3"),
            ("decode", "http://d"),
        ];
        assert_eq!(urls, expected);
    }

    #[test]
    fn refuses_what_cannot_work_and_says_why() {
        let refused = |c: Config| c.check().unwrap_err().to_string();
        assert!(refused(config(&[], &[], &[])).contains("--worker URL"));
        assert!(refused(config(&[], &["http://p"], &[])).contains("without --decode"));
        assert!(refused(config(&[], &[], &["http://d"])).contains("without --prefill"));
        assert!(refused(config(&["http://a", "http://a/"], &[], &[])).contains("twice"));
        for (url, reason) in [
            ("https://a", "https"),
            ("a:1", "http://"),
            ("ftp://a", "http://"),
            ("/path", "http://"),
            ("http://u:p@a", "user name"),
            ("http://a/?x=1", "query"),
            ("http://a b", "not a URL"),
        ] {
            assert!(refused(config(&[url], &[], &[])).contains(reason), "{url}");
        }
        let zero = Config { idle_timeout: Duration::ZERO, ..config(&["http://a"], &[], &[]) };
        assert!(refused(zero).contains("idle_timeout_ms"));
    }
}
