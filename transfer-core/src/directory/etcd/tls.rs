//! TLS to etcd: whom this side trusts, who it is itself, and what it means that a certificate is refused.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::super::error::CertificateProblem;
use super::super::{DirectoryError, Result};
use crate::clock;

/// The longest PEM that is read.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Certificates or a key in PEM, the text form that begins with `-----BEGIN`. Keys are wiped from memory when the last
/// clone is dropped, and never shown.
#[derive(Clone)]
pub struct Pem(Source);

#[derive(Clone)]
enum Source {
    File(PathBuf),
    Bytes(Zeroizing<Vec<u8>>),
}

impl Pem {
    /// What stands in a file of at most 1 MiB, which is read when the directory is made, and not again.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }

    /// What is in memory already.
    #[must_use]
    pub fn bytes(pem: impl Into<Vec<u8>>) -> Self {
        Self(Source::Bytes(Zeroizing::new(pem.into())))
    }

    fn read(&self, field: &'static str) -> Result<Zeroizing<Vec<u8>>> {
        let path = match &self.0 {
            Source::Bytes(bytes) => return Ok(bytes.clone()),
            Source::File(path) => path,
        };
        let mut bytes = Zeroizing::new(Vec::new());
        let read = File::open(path).and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut bytes));
        let unreadable = |e| invalid(field, format!("cannot be read from {}: {e}", path.display()));
        read.map(|_| bytes).map_err(unreadable)
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::File(path) => write!(f, "Pem({})", path.display()),
            Source::Bytes(bytes) => write!(f, "Pem({} bytes)", bytes.len()),
        }
    }
}

/// How to speak TLS (1.2 or 1.3) to etcd. Start from [`EtcdTls::new`].
///
/// A member's certificate must name the host that its endpoint names. Where members ask for client certificates, etcd's
/// gateway also shows theirs to itself, so those must be for clients as well as for servers. Over the gateway a
/// certificate lets in and nothing more: who has which rights is [`super::EtcdConfig::user`]'s, and with authentication
/// enabled the client's certificate must have no common name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EtcdTls {
    /// The authorities that sign the members' certificates. Those of the system are not asked.
    pub ca: Pem,
    /// This client's certificate, those between it and its authority behind it, and its private key; where etcd runs with
    /// `--client-cert-auth`.
    pub identity: Option<(Pem, Pem)>,
}

impl EtcdTls {
    /// Trusts members that `ca` vouches for, and shows no certificate.
    #[must_use]
    pub fn new(ca: Pem) -> Self {
        Self { ca, identity: None }
    }

    /// Shows `certificate`, whose private key is `key`.
    #[must_use]
    pub fn identity(mut self, certificate: Pem, key: Pem) -> Self {
        self.identity = Some((certificate, key));
        self
    }
}

fn invalid(field: &'static str, problem: String) -> DirectoryError {
    DirectoryError::InvalidConfig { field, problem }
}

fn certificates(pem: &Pem, field: &'static str) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = pem.read(field)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(invalid(field, format!("has no certificate in it ({pem:?}); give PEM"))),
        Err(e) => Err(invalid(field, format!("cannot be understood ({pem:?}): {e}; give PEM"))),
    }
}

/// What was configured, ready to be used.
#[derive(Debug)]
pub(super) struct Trust {
    config: ClientConfig,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    /// Our own certificate and those behind it.
    own: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// Without `tls` nobody is trusted, and no endpoint needs it.
    pub(super) fn new(tls: Option<&EtcdTls>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in tls.map_or(Ok(Vec::new()), |tls| certificates(&tls.ca, "tls.ca"))? {
            roots.add(certificate).map_err(|e| invalid("tls.ca", format!("cannot be trusted: {e}")))?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| invalid("tls", e.to_string()))?
            .with_root_certificates(Arc::clone(&roots));
        let Some((certificate, key)) = tls.and_then(|tls| tls.identity.as_ref()) else {
            return Ok(Self { config: builder.with_no_client_auth(), provider, roots, own: Vec::new() });
        };
        let own = certificates(certificate, "tls.identity")?;
        let der = PrivateKeyDer::from_pem_slice(&key.read("tls.identity")?)
            .map_err(|e| invalid("tls.identity", format!("has no private key in {key:?}: {e}; give PEM")))?;
        let config = builder.with_client_auth_cert(own.clone(), der).map_err(|e| {
            invalid("tls.identity", format!("{certificate:?} and {key:?} do not belong together: {e}"))
        })?;
        Ok(Self { config, provider, roots, own })
    }

    pub(super) fn config(&self) -> ClientConfig {
        self.config.clone()
    }

    /// Which certificate was refused, and why, if `error` comes of that.
    pub(super) fn problem(&self, error: &(dyn Error + 'static)) -> Option<CertificateProblem> {
        match cause(error)? {
            rustls::Error::InvalidCertificate(why) => Some(match why {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    CertificateProblem::ServerExpired
                }
                CertificateError::UnknownIssuer => CertificateProblem::ServerUntrusted,
                other => CertificateProblem::ServerRefused(other.to_string()),
            }),
            rustls::Error::AlertReceived(alert) => self.alerted(*alert),
            _ => None,
        }
    }

    /// What the server means. Many say "bad certificate" to whatever is wrong, so ours is looked at, too.
    fn alerted(&self, alert: AlertDescription) -> Option<CertificateProblem> {
        use AlertDescription as A;
        let certificate = matches!(
            alert,
            A::BadCertificate
                | A::CertificateRequired
                | A::CertificateExpired
                | A::CertificateUnknown
                | A::CertificateRevoked
                | A::UnsupportedCertificate
                | A::UnknownCA
                | A::AccessDenied
        );
        match (alert, self.own_fault()) {
            _ if !certificate => None,
            _ if self.own.is_empty() => Some(CertificateProblem::ClientMissing),
            (A::CertificateExpired, _) | (_, Some(CertificateError::Expired)) => {
                Some(CertificateProblem::ClientExpired)
            }
            (A::UnknownCA, _) | (_, Some(CertificateError::UnknownIssuer)) => {
                Some(CertificateProblem::ClientUntrusted)
            }
            _ => Some(CertificateProblem::ClientRefused(format!("{alert:?}"))),
        }
    }

    /// What is wrong with our own certificate, as a server sees it that trusts whom we trust.
    fn own_fault(&self) -> Option<CertificateError> {
        let (leaf, between) = self.own.split_first()?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider));
        let since = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let now = UnixTime::since_unix_epoch(since);
        match verifier.build().ok()?.verify_client_cert(leaf, between, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. })) => {
                Some(CertificateError::Expired)
            }
            Err(rustls::Error::InvalidCertificate(fault)) => Some(fault),
            _ => None,
        }
    }
}

/// What TLS said, wherever in the chain it is.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An error of I/O names the source of what is in it, not what is in it.
        let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match within {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}
