//! A directory in etcd (version 3.4 or later), over its JSON gateway: plain HTTP, without generated code.
//!
//! Each registration has a lease, and its key hangs on it. Whoever takes a name puts the key under a lease of his own,
//! so whatever an old registration does to its lease, late or not, no longer reaches the key; and what it writes is
//! written by a transaction that compares the lease first. One thread runs everything that waits.

mod client;
mod engine;
mod feed;
mod hold;
mod http;
mod keys;
mod tls;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use self::client::Client;
use self::engine::Engine;
use self::feed::EtcdFeed;
use self::hold::{EtcdHold, Own};
use self::http::Http;
use self::keys::Keys;
pub use self::tls::{EtcdTls, Pem};
use super::entry::{Entry, check_name};
use super::watch::{Listing, Watch};
use super::{Directory, DirectoryError, Registration, Result};

/// Where an etcd is and how to speak to it. Start from [`EtcdConfig::new`] and change what you need; it is checked when
/// the directory is made.
#[derive(Clone)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// The members, as `http://HOST:PORT`, or all as `https://HOST:PORT` with [`EtcdConfig::tls`]. Each call goes to the one
    /// that answered last, and on to the next where that does not answer. 1 to 16.
    pub endpoints: Vec<String>,
    /// Keys are `NAMESPACE/agents/NAME` and `NAMESPACE/lives/NAME`. Default `headrace`; 1 to 255 bytes.
    pub namespace: String,
    /// Whom to trust and who this client is, for `https` endpoints. Default: none.
    pub tls: Option<EtcdTls>,
    /// Name and password, where authentication is enabled. They travel as the endpoints do: in clear over `http`.
    pub user: Option<(String, String)>,
    /// How long a call may take, with all endpoints together. Default 5 s; 10 ms to 1 minute.
    pub timeout: Duration,
    /// The longest metadata that is published. Default 1 MiB, below what etcd takes by default (1.5 MiB,
    /// `--max-request-bytes`). At most 16 MiB.
    pub blob_bytes_max: usize,
}

impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("namespace", &self.namespace)
            .field("tls", &self.tls)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("timeout", &self.timeout)
            .field("blob_bytes_max", &self.blob_bytes_max)
            .finish()
    }
}

impl EtcdConfig {
    /// The defaults, for these members.
    #[must_use]
    pub fn new<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            namespace: "headrace".to_owned(),
            tls: None,
            user: None,
            timeout: Duration::from_secs(5),
            blob_bytes_max: 1 << 20,
        }
    }

    fn check(&self) -> Result<()> {
        let invalid = |field, problem: String| Err(DirectoryError::InvalidConfig { field, problem });
        if !(1..=16).contains(&self.endpoints.len()) {
            return invalid("endpoints", format!("has {}; 1 to 16 are allowed", self.endpoints.len()));
        }
        let (scheme, other) = if self.tls.is_some() { ("https", "http") } else { ("http", "https") };
        for url in &self.endpoints {
            if url.starts_with(&format!("{other}://")) {
                let what = if self.tls.is_some() { "take tls away, or" } else { "set tls, or" };
                return invalid("endpoints", format!("has {url:?}; {what} write {scheme}://HOST:PORT"));
            }
            let host = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
            let host = host.unwrap_or_default().trim_end_matches('/');
            if host.is_empty() || host.contains(['/', '@', '?', '#']) || !Http::is_endpoint(url) {
                return invalid("endpoints", format!("has {url:?}; write {scheme}://HOST:PORT"));
            }
        }
        if !(1..=255).contains(&self.namespace.len())
            || ["/agents", "/lives"].iter().any(|own| self.namespace.contains(own))
        {
            let problem = "must have 1 to 255 bytes, and neither \"/agents\" nor \"/lives\" in it";
            return invalid("namespace", problem.to_owned());
        }
        let (min, max) = (Duration::from_millis(10), Duration::from_mins(1));
        if !(min..=max).contains(&self.timeout) {
            return invalid(
                "timeout",
                format!("is {} ms; 10 ms to 1 minute are allowed", self.timeout.as_millis()),
            );
        }
        if self.blob_bytes_max > 16 << 20 {
            return invalid(
                "blob_bytes_max",
                format!("is {}; at most 16 MiB are allowed", self.blob_bytes_max),
            );
        }
        Ok(())
    }
}

/// A directory in etcd. Clones share its thread, which sleeps when nothing happens and ends with the last clone,
/// registration and watch.
///
/// Every call ends within [`EtcdConfig::timeout`]; making one does not wait for the server. etcd counts in whole
/// seconds: times to live are rounded up, and it may lengthen short ones. When etcd is away, entries outlive their time:
/// it counts again from the start when it comes back. What etcd says is held to limits and checked like everything that
/// comes from outside.
///
/// # Example
/// ```no_run
/// use std::time::Duration;
/// use transfer_core::directory::{Directory, EtcdConfig, EtcdDirectory};
/// use transfer_core::{Agent, Config};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let members = ["http://10.0.0.1:2379", "http://10.0.0.2:2379", "http://10.0.0.3:2379"];
/// let directory = EtcdDirectory::new(EtcdConfig::new(members))?;
/// let agent = Agent::new(Config::new("prefill-0"))?;
/// let registration = directory.publish(&agent.metadata(), Duration::from_secs(10))?;
/// # drop(registration);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct EtcdDirectory {
    engine: Arc<Engine>,
    keys: Keys,
    blob_bytes_max: usize,
}

impl EtcdDirectory {
    /// A client of that etcd. Starts a thread; nothing is sent yet.
    ///
    /// # Errors
    /// [`DirectoryError::InvalidConfig`]; [`DirectoryError::Os`] where a resource is short.
    pub fn new(config: EtcdConfig) -> Result<Self> {
        config.check()?;
        let engine = Engine::start(Client::new(&config)?, config.timeout)?;
        let keys = Keys::new(&config.namespace);
        Ok(Self { engine: Arc::new(engine), keys, blob_bytes_max: config.blob_bytes_max })
    }
}

impl Directory for EtcdDirectory {
    fn publish(&self, blob: &[u8], ttl: Duration) -> Result<Registration> {
        let entry = self.checked(blob, ttl)?;
        let (client, keys, first) = (self.engine.client(), self.keys.clone(), entry.clone());
        let own = self.engine.call(async move { Own::publish(client, keys, first).await })?;
        let hold = EtcdHold::start(Arc::clone(&self.engine), own, self.blob_bytes_max);
        Ok(Registration::new(entry, Box::new(hold)))
    }

    fn lookup(&self, name: &str) -> Result<Entry> {
        check_name(name)?;
        let (client, keys, name) = (self.engine.client(), self.keys.clone(), name.to_owned());
        self.engine.call(async move {
            let place = client.place();
            match keys.get(&client, &name).await? {
                Some(pair) => Ok(keys.entry(&pair)?),
                None => Err(DirectoryError::NotFound { name, place }),
            }
        })
    }

    fn list(&self, prefix: &str) -> Result<Listing> {
        let (client, keys, prefix) = (self.engine.client(), self.keys.clone(), prefix.to_owned());
        self.engine.call(async move { keys.list(&client, &prefix).await })
    }

    fn watch(&self, prefix: &str, since: &Listing) -> Result<Watch> {
        let feed = EtcdFeed::start(Arc::clone(&self.engine), self.keys.clone(), prefix, since.revision);
        Ok(Watch::new(Box::new(feed), since))
    }
}

impl EtcdDirectory {
    fn checked(&self, blob: &[u8], ttl: Duration) -> Result<Entry> {
        check_size(blob, self.blob_bytes_max)?;
        Entry::new(blob, ttl)
    }
}

fn check_size(blob: &[u8], max: usize) -> Result<()> {
    if blob.len() <= max {
        return Ok(());
    }
    let what = format!("metadata of {} bytes", blob.len());
    Err(DirectoryError::TooLarge { what, limit: format!("blob_bytes_max is {max}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut EtcdConfig)) -> String {
        let mut config = EtcdConfig::new(["http://127.0.0.1:2379"]);
        change(&mut config);
        EtcdDirectory::new(config).unwrap_err().to_string()
    }

    #[test]
    fn nonsense_is_named() {
        assert!(refused(|c| c.endpoints.clear()).contains("endpoints has 0"));
        for nonsense in
            ["https://a:1", "http://a:1/x", "a:1", "http://", "http:///", "http://a b", "http://u@a:1"]
        {
            let told = refused(|c| c.endpoints[0] = nonsense.to_owned());
            assert!(told.contains("write http://HOST:PORT"), "{nonsense}: {told}");
        }
        assert!(refused(|c| c.namespace.clear()).contains("namespace"));
        assert!(refused(|c| c.timeout = Duration::ZERO).contains("timeout is 0 ms"));
    }

    #[test]
    fn nonsense_in_tls_is_named() {
        let tls = |tls: EtcdTls| move |config: &mut EtcdConfig| config.tls = Some(tls);
        let https = |tls: EtcdTls| {
            move |config: &mut EtcdConfig| {
                config.endpoints[0] = "https://127.0.0.1:2379".to_owned();
                config.tls = Some(tls);
            }
        };
        assert!(
            refused(tls(EtcdTls::new(Pem::bytes("x")))).contains("take tls away, or write https://HOST:PORT")
        );
        assert!(refused(https(EtcdTls::new(Pem::bytes("x")))).contains("tls.ca has no certificate in it"));
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(refused(https(EtcdTls::new(Pem::bytes(cut)))).contains("tls.ca cannot be understood"));
        let missing = refused(https(EtcdTls::new(Pem::file("/nowhere/ca.pem"))));
        assert!(missing.contains("tls.ca cannot be read from /nowhere/ca.pem"), "{missing}");
    }

    #[test]
    fn a_password_and_a_key_are_not_told() {
        let mut config = EtcdConfig::new(["http://127.0.0.1:2379"]);
        config.user = Some(("root".to_owned(), "secret".to_owned()));
        config.tls =
            Some(EtcdTls::new(Pem::bytes("ca")).identity(Pem::file("cert.pem"), Pem::bytes("secret")));
        assert!(!format!("{config:?}").contains("secret"));
        config.tls = None;
        assert!(!format!("{:?}", EtcdDirectory::new(config)).contains("secret"));
    }
}
