//! Accepted connections, until they have said what they are for.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use transfer_proto::id::Incarnation;
use transfer_proto::proto::data::{DataHello, HELLO_BYTES};
use transfer_proto::proto::local::{LOCAL_BYTES, LocalMessage};
use transfer_proto::proto::preamble::{self, Kind, PREAMBLE_BYTES, PreambleError};
use transfer_proto::proto::time::Time;
use transfer_sys::{OsError, socket};

use super::local::EPROTO;
use super::{Conn, Driver, LISTEN_LOCAL, LISTEN_TCP, LocalConn, probe};
use crate::error::{Error, Result};
use crate::peer::LocalWay;
use crate::shared::Stream;

/// Connections that may be in this state at once; a flood of them ends here.
const FRESH_MAX: usize = 1024;

/// How long nothing is accepted after that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Data connections that one peer may open; its configuration allows no more either.
const DATA_CONNS_MAX: u64 = 64;

/// A connection that has not said what it is for.
pub(super) struct FreshConn {
    stream: Stream,
    have: Vec<u8>,
    /// A descriptor that came along, over a Unix socket.
    file: Option<OwnedFd>,
}

/// What is known after the bytes that have come.
enum Greeting {
    Incomplete,
    Control,
    Local { token: u64, probe: u64, incarnation: Incarnation },
    Data(DataHello),
    Refused(Option<PreambleError>),
}

impl FreshConn {
    /// How many bytes are still to come before the next decision. Never more, since what follows belongs to others.
    fn missing(&self) -> usize {
        let wanted = match self.have.first_chunk::<PREAMBLE_BYTES>().map(|bytes| preamble::decode(*bytes)) {
            Some(Ok(Kind::Local)) => PREAMBLE_BYTES + LOCAL_BYTES,
            Some(Ok(Kind::Data)) => PREAMBLE_BYTES + HELLO_BYTES,
            _ => PREAMBLE_BYTES,
        };
        wanted - self.have.len().min(wanted)
    }

    fn greeting(&self) -> Greeting {
        let Some((first, rest)) = self.have.split_first_chunk::<PREAMBLE_BYTES>() else {
            return Greeting::Incomplete;
        };
        match preamble::decode(*first) {
            Ok(Kind::Control) => Greeting::Control,
            Ok(Kind::Local) => {
                match rest.first_chunk::<LOCAL_BYTES>().map(|bytes| LocalMessage::decode(*bytes)) {
                    None => Greeting::Incomplete,
                    Some(Ok(LocalMessage::Hello { token, probe, incarnation })) => {
                        Greeting::Local { token, probe, incarnation }
                    }
                    Some(_) => Greeting::Refused(None),
                }
            }
            Ok(Kind::Data) => {
                match rest.first_chunk::<HELLO_BYTES>().map(|bytes| DataHello::decode(*bytes)) {
                    None => Greeting::Incomplete,
                    Some(Ok(hello)) => Greeting::Data(hello),
                    Some(Err(_)) => Greeting::Refused(None),
                }
            }
            Ok(_) => Greeting::Refused(None),
            Err(error) => Greeting::Refused(Some(error)),
        }
    }
}

impl Driver {
    pub(super) fn accept_tcp(&mut self) {
        while let Some(accepted) = self.tcp_listener.as_ref().map(std::net::TcpListener::accept) {
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => return self.accept_failed(&error),
            };
            if !self.shared.config.allow_remote && !from.ip().is_loopback() {
                tracing::warn!(%from, "refused: not this host, and allow_remote is off");
                continue;
            }
            self.add_fresh(Stream::Tcp(stream));
        }
    }

    pub(super) fn accept_local(&mut self) {
        while let Some(accepted) = self.local_listener.as_ref().map(std::os::unix::net::UnixListener::accept)
        {
            match accepted {
                Ok((stream, _)) => self.add_fresh(Stream::Local(stream)),
                Err(error) => return self.accept_failed(&error),
            }
        }
    }

    /// Nobody waits, or no descriptor is left for who does (accept(2)). A listener that stays ready would spin, so
    /// it is not watched for a while.
    fn accept_failed(&mut self, error: &std::io::Error) {
        if error.kind() == ErrorKind::WouldBlock {
            return;
        }
        tracing::warn!(%error, "cannot accept connections; trying again in {} ms", ACCEPT_PAUSE.as_millis());
        self.accept_again = Some(self.shared.clock.now() + ACCEPT_PAUSE);
        self.watch_listeners(false);
    }

    /// Accepts again after a pause.
    pub(super) fn resume_accepting(&mut self, now: Time) {
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.watch_listeners(true);
        }
    }

    fn watch_listeners(&self, watched: bool) {
        let tcp = self.tcp_listener.as_ref().map(|l| (l.as_fd(), LISTEN_TCP));
        let local = self.local_listener.as_ref().map(|l| (l.as_fd(), LISTEN_LOCAL));
        for (fd, token) in tcp.into_iter().chain(local) {
            if let Err(error) = self.epoll().modify(fd, token, watched, false) {
                tracing::error!(%error, "cannot watch a listener");
            }
        }
    }

    fn add_fresh(&mut self, stream: Stream) {
        let fresh = self.conns.values().filter(|conn| matches!(conn, Conn::Fresh(_))).count();
        if fresh >= FRESH_MAX {
            tracing::warn!("refused: {FRESH_MAX} connections have not introduced themselves yet");
            return;
        }
        let token = self.new_token();
        let added =
            stream.set_nonblocking().and_then(|()| self.epoll().add(stream.as_fd(), token, true, false));
        if let Err(error) = added {
            tracing::warn!(%error, "cannot watch an accepted connection");
            return;
        }
        let ends = self.shared.clock.now() + self.shared.config.connect_timeout;
        self.conn_timers.set(token, ends);
        self.conns.insert(token, Conn::Fresh(FreshConn { stream, have: Vec::new(), file: None }));
    }

    pub(super) fn read_fresh(&mut self, token: u64) {
        loop {
            let Some(Conn::Fresh(conn)) = self.conns.get_mut(&token) else { return };
            let mut part = [0; PREAMBLE_BYTES + LOCAL_BYTES];
            let missing = conn.missing();
            match conn.stream.receive_with_file(&mut part[..missing]) {
                Ok(Some(([], _))) | Err(_) => return self.drop_conn(token),
                Ok(Some((came, file))) => {
                    conn.have.extend_from_slice(came);
                    conn.file = file.or_else(|| conn.file.take());
                }
                Ok(None) => return,
            }
            let greeting = conn.greeting();
            if !matches!(greeting, Greeting::Incomplete) {
                return self.introduced(token, greeting);
            }
        }
    }

    fn introduced(&mut self, token: u64, greeting: Greeting) {
        let Some(Conn::Fresh(FreshConn { mut stream, file, .. })) = self.conns.remove(&token) else { return };
        self.conn_timers.remove(token);
        if let Greeting::Refused(error) = greeting {
            // Our preamble tells the peer which version it met.
            let _told = stream.send(&preamble::encode(Kind::Control));
            tracing::warn!(?error, "refused a connection");
            return;
        }
        match (greeting, stream) {
            (Greeting::Control, stream) => self.met(token, stream),
            (Greeting::Local { token: secret, probe, incarnation }, Stream::Local(stream)) => {
                if let Err(error) = self.welcome_local(token, (stream, file), (secret, probe, incarnation)) {
                    tracing::warn!(%error, peer = %incarnation, "cannot use the local connection");
                }
            }
            (Greeting::Data(hello), Stream::Tcp(stream)) => {
                if let Err(error) = self.welcome_data(token, stream, hello) {
                    tracing::warn!(%error, peer = %hello.incarnation, "cannot use a data connection");
                }
            }
            _ => tracing::warn!("refused a connection over the wrong kind of socket"),
        }
    }

    fn welcome_local(
        &mut self,
        token: u64,
        (stream, file): (UnixStream, Option<OwnedFd>),
        (secret, address, incarnation): (u64, u64, Incarnation),
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some((peer, entry)) = self.peer_of_secret(secret) else { return Ok(()) };
        let Some(file) = file else {
            return Err(OsError::new("recvmsg", "no ledger came with the greeting", EPROTO).into());
        };
        let guest = shared.welcome(&stream, &entry.core.name, incarnation, &file)?;
        let ptrace = probe(&guest.process, address, incarnation);
        entry.local = Some(token);
        entry.local_way = Some(LocalWay { guest, ptrace });
        let welcome = LocalMessage::Welcome {
            incarnation: self.shared.incarnation,
            probe: self.shared.probe_address(),
        };
        let answer = [&preamble::encode(Kind::Local)[..], &welcome.encode()[..]].concat();
        // A fresh socket's buffer takes so few bytes whole.
        socket::send_with_fd(stream.as_fd(), &answer, shared.ledger.file().as_fd())?;
        self.conns.insert(token, Conn::Local(LocalConn::new(stream, peer)));
        Ok(())
    }

    fn welcome_data(&mut self, token: u64, stream: TcpStream, hello: DataHello) -> Result<()> {
        let Some((peer, _)) = self.peer_of_secret(hello.token) else { return Ok(()) };
        let count = self.tcp.count(peer) as u64;
        if count >= DATA_CONNS_MAX {
            let (what, value, max) = ("data connections of a peer", count + 1, DATA_CONNS_MAX);
            return Err(Error::TooLarge { what, value, max });
        }
        if let Some(bytes) = self.shared.config.tcp_buffer_bytes {
            socket::set_buffers(stream.as_fd(), bytes)?;
        }
        let mut stream = Stream::Tcp(stream);
        // The buffer of a connection that has just been opened takes so few bytes.
        stream.send(&preamble::encode(Kind::Data))?;
        if let Stream::Tcp(stream) = stream {
            // It was watched as a fresh connection; the backend goes on under the same token.
            self.tcp.adopt(token, stream, peer, hello.rail);
        }
        Ok(())
    }
}
