//! Where an agent listens.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::error::{Error, Result};

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// `tcp://HOST:PORT`.
    Tcp {
        /// Name or number.
        host: String,
        /// Port.
        port: u16,
    },
    /// `unix:@NAME`: an abstract Unix socket of this host (unix(7)).
    Local {
        /// The name.
        name: String,
    },
}

impl Address {
    /// The socket addresses behind a TCP address. Asks the resolver where the host is a name.
    pub(crate) fn resolve(&self) -> Result<Vec<SocketAddr>> {
        match self {
            Self::Tcp { host, port } => {
                let found = (host.as_str(), *port).to_socket_addrs();
                Ok(found.map_err(|e| Error::unreachable(self, &e))?.collect())
            }
            Self::Local { .. } => Ok(Vec::new()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Local { name } => write!(f, "unix:@{name}"),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::InvalidAddress { text: text.to_owned() };
        if let Some(name) = text.strip_prefix("unix:@") {
            return Ok(Self::Local { name: name.to_owned() });
        }
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        // Further brackets would be lost when it is written.
        if host.is_empty() || host.contains(['[', ']']) {
            return Err(invalid());
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| invalid())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["tcp://127.0.0.1:4000", "tcp://[::1]:4000", "tcp://worker-3:9", "unix:@headrace-1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("localhost:80".parse::<Address>().unwrap().to_string(), "tcp://localhost:80");
        for text in ["", "tcp://", "tcp://host", "host:port", ":80", "tcp://h:70000", "tcp://[[h]]:1", "[h:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
