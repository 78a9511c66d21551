//! Accepted connections, until they have shown what they are for and that they may.
//!
//! Whoever is at their other end is a stranger: he gets a fixed number of bytes, some time, and a share of the places
//! for strangers, and what he sends is told in the log at most once a second.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use transfer_proto::id::{Incarnation, RailId};
use transfer_proto::plan::Reason;
use transfer_proto::proto::local::{LOCAL_BYTES, LocalMessage};
use transfer_proto::proto::preamble::Kind;
use transfer_proto::proto::time::Time;
use transfer_sys::process::Process;
use transfer_sys::{OsError, socket};

use super::local::EPROTO;
use super::strangers::{Source, out_of_room};
use super::{Conn, Driver, LISTEN_LOCAL, LISTEN_TCP, LocalConn, Wire, probe};
use crate::agent::random;
use crate::error::{Error, Result};
use crate::peer::LocalWay;
use crate::secure::{Keys, Responding, Step};
use crate::shared::{DataStream, Stream};

/// Connections accepted before the others get their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// How long nothing is accepted after that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Data connections that one peer may open; its configuration allows no more either.
const DATA_CONNS_MAX: u64 = 64;

/// A connection that has not shown what it is for.
pub(super) struct FreshConn {
    stream: Stream,
    pub(super) source: Source,
    stage: Stage,
    /// What has come of what is wanted.
    have: Vec<u8>,
    /// A descriptor that came along, over a Unix socket.
    file: Option<OwnedFd>,
    want: usize,
    /// Whose it says it is.
    session: Option<Session>,
}

/// The control connection that another one belongs to, and the name of that other one.
#[derive(Clone, Copy)]
struct Session {
    peer: Incarnation,
    /// What tells it from others with the same peer.
    word: u64,
    rail: RailId,
}

enum Stage {
    Handshake(Responding),
    /// A local connection stands; it has yet to say where its process can be probed.
    Introduction,
}

impl FreshConn {
    /// Takes in what has come, never more than is wanted, since what follows belongs to others.
    fn receive(&mut self) -> Result<Received, OsError> {
        let mut part = [0; 64];
        let missing = (self.want - self.have.len()).min(part.len());
        match self.stream.receive_with_file(&mut part[..missing])? {
            Some(([], _)) => return Ok(Received::End),
            Some((came, file)) => {
                self.have.extend_from_slice(came);
                self.file = file.or_else(|| self.file.take());
            }
            None => return Ok(Received::Nothing),
        }
        if self.have.len() < self.want {
            return Ok(Received::Part);
        }
        Ok(Received::All(std::mem::take(&mut self.have)))
    }

    /// Sends the few bytes of a handshake, which the buffer of a new connection always takes.
    fn send(&mut self, bytes: &[u8]) -> bool {
        send_all(&mut self.stream, bytes)
    }
}

fn send_all(stream: &mut Stream, bytes: &[u8]) -> bool {
    stream.send(bytes).is_ok_and(|sent| sent == bytes.len())
}

enum Received {
    Nothing,
    Part,
    All(Vec<u8>),
    End,
}

impl Driver {
    pub(super) fn accept_tcp(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &self.tcp_listener else { return };
            match listener.accept() {
                Ok((_, from)) if !self.shared.config.meets(from) => {
                    self.refused(&from, &"it is on another host, and there is no key");
                }
                Ok((stream, from)) => self.add_fresh(Stream::Tcp(stream), Source::host(from.ip())),
                Err(error) => return self.accept_failed(&error),
            }
        }
    }

    pub(super) fn accept_local(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &self.local_listener else { return };
            match listener.accept() {
                Ok((stream, _)) => match socket::peer_credentials(stream.as_fd()) {
                    Ok(peer) => self.add_fresh(Stream::Local(stream), Source::Process(peer.pid)),
                    Err(error) => tracing::warn!(%error, "cannot tell who connected"),
                },
                Err(error) => return self.accept_failed(&error),
            }
        }
    }

    /// Nobody waits, or no descriptor is left for who does (accept(2)). Strangers give theirs back first; where there
    /// are none, a listener that stays ready would spin, so it is not watched for a while.
    fn accept_failed(&mut self, error: &std::io::Error) {
        if error.kind() == ErrorKind::WouldBlock || (out_of_room(error) && self.drop_some_strangers()) {
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

    fn add_fresh(&mut self, stream: Stream, source: Source) {
        self.make_room_for_stranger();
        let token = self.new_token();
        let added = stream
            .set_nonblocking()
            .and_then(|()| self.epoll().add(stream.as_fd(), token, true, false))
            .map_err(Error::from)
            .and_then(|()| random());
        let challenge = match added {
            Ok(challenge) => challenge,
            Err(error) => return tracing::warn!(%error, "cannot take an accepted connection in"),
        };
        let ends = self.shared.clock.now() + self.shared.config.connect_timeout;
        let stage = Stage::Handshake(Responding::new(self.shared.config.terms(), challenge));
        let (have, file, want, session) = (Vec::new(), None, Responding::FIRST, None);
        self.conn_timers.set(token, ends);
        self.conns.insert(token, Conn::Fresh(FreshConn { stream, source, stage, have, file, want, session }));
    }

    fn fresh(&mut self, token: u64) -> Option<&mut FreshConn> {
        match self.conns.get_mut(&token) {
            Some(Conn::Fresh(conn)) => Some(conn),
            _ => None,
        }
    }

    /// Takes a connection out that is going to be another one, or none.
    fn take_fresh(&mut self, token: u64) -> Option<FreshConn> {
        self.conn_timers.remove(token);
        match self.conns.remove(&token) {
            Some(Conn::Fresh(conn)) => Some(conn),
            _ => None,
        }
    }

    pub(super) fn read_fresh(&mut self, token: u64) {
        while let Some(conn) = self.fresh(token) {
            let bytes = match conn.receive() {
                Ok(Received::All(bytes)) => bytes,
                Ok(Received::Part) => continue,
                Ok(Received::Nothing) => return,
                Ok(Received::End) | Err(_) => return self.drop_conn(token),
            };
            match &mut conn.stage {
                Stage::Handshake(handshake) => {
                    let step = handshake.take(&bytes);
                    self.take_step(token, step);
                }
                Stage::Introduction => self.introduced(token, &bytes),
            }
        }
    }

    fn take_step(&mut self, token: u64, mut step: Step) {
        if let Step::Find(hello) = step {
            let session = self.session(hello.incarnation);
            let Some(conn) = self.fresh(token) else { return };
            conn.session = session.map(|(peer, word)| Session { peer, word, rail: hello.rail });
            let Stage::Handshake(handshake) = &mut conn.stage else { return };
            step = handshake.found(session.map(|(_, word)| word));
        }
        let Some(conn) = self.fresh(token) else { return };
        match step {
            Step::Exchange { send, want } => {
                conn.want = want;
                if !conn.send(&send) {
                    self.drop_conn(token);
                }
            }
            Step::Done { send, kind, keys } => self.established(token, kind, &send, keys),
            Step::Refused { send, why } => {
                let (source, _told) = (conn.source, conn.send(&send));
                self.drop_conn(token);
                self.refused(&source, &why);
            }
            Step::Find(_) => {}
        }
    }

    /// Whether a session has not given way to another one meanwhile, since two agents may connect to each other at
    /// once: what belongs to the one must not come to the other, with which it would end.
    fn stands(&self, session: &Session) -> bool {
        self.session_word(session.peer) == Some(session.word)
    }

    /// The handshake is over, but for its last bytes, which go out once the connection has its place.
    fn established(&mut self, token: u64, kind: Kind, last: &[u8], keys: Option<Keys>) {
        let Some(conn) = self.fresh(token) else { return };
        if let (Kind::Local, Some(_), Stream::Local(_)) = (kind, conn.session, &conn.stream) {
            (conn.stage, conn.want) = (Stage::Introduction, LOCAL_BYTES);
            if !conn.send(last) {
                self.drop_conn(token);
            }
            return;
        }
        let Some(conn) = self.take_fresh(token) else { return };
        let source = conn.source;
        match (kind, conn.session, conn.stream) {
            (Kind::Control, _, mut stream) => {
                if send_all(&mut stream, last) {
                    self.met(token, Wire::new(stream, keys.map(Keys::records)), source);
                }
            }
            (Kind::Data, Some(session), Stream::Tcp(stream)) if self.stands(&session) => {
                let place = (session.peer, session.rail);
                let data = DataStream { stream, seals: keys.and_then(Keys::seals) };
                if let Err(error) = self.welcome_data(token, data, last, place) {
                    self.refused(&source, &error);
                }
            }
            _ => self.refused(&source, &"it came too late, or over the wrong kind of socket"),
        }
    }

    fn introduced(&mut self, token: u64, bytes: &[u8]) {
        let Some(conn) = self.take_fresh(token) else { return };
        let (Stream::Local(stream), Some(session)) = (conn.stream, conn.session) else { return };
        if !self.stands(&session) {
            return self.refused(&conn.source, &"it came too late");
        }
        let peer = session.peer;
        let message = bytes.try_into().ok().map(LocalMessage::decode);
        let Some(Ok(LocalMessage::Hello { probe, incarnation })) = message else {
            return self.refused(&conn.source, &"it does not introduce itself");
        };
        if let Err(error) = self.welcome_local(token, (stream, conn.file), peer, (probe, incarnation)) {
            tracing::warn!(%error, %peer, "cannot use the local connection");
        }
    }

    fn welcome_local(
        &mut self,
        token: u64,
        (stream, file): (UnixStream, Option<OwnedFd>),
        peer: Incarnation,
        (address, incarnation): (u64, Incarnation),
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(entry) = self.peers.get_mut(&peer) else { return Ok(()) };
        if incarnation != entry.core.incarnation {
            return Err(OsError::new("recvmsg", "the greeting names another agent", EPROTO).into());
        }
        let Some(file) = file else {
            return Err(OsError::new("recvmsg", "no ledger came with the greeting", EPROTO).into());
        };
        let process = Process::open(socket::peer_credentials(stream.as_fd())?.pid);
        if process.is_err() {
            entry.local_way = Err(Reason::NoPidfd);
        }
        let guest = shared.welcome(process?, &entry.core.name, incarnation, &file)?;
        let ptrace = probe(&guest.process, address, incarnation);
        entry.local = Some(token);
        entry.local_way = Ok(LocalWay { guest, ptrace });
        let welcome = LocalMessage::Welcome {
            incarnation: self.shared.incarnation,
            probe: self.shared.probe_address(),
        };
        // A fresh socket's buffer takes so few bytes whole.
        socket::send_with_fd(stream.as_fd(), &welcome.encode(), shared.ledger.file().as_fd())?;
        self.conns.insert(token, Conn::Local(LocalConn::new(stream, peer)));
        Ok(())
    }

    fn welcome_data(
        &mut self,
        token: u64,
        DataStream { stream, seals }: DataStream,
        last: &[u8],
        (peer, rail): (Incarnation, RailId),
    ) -> Result<()> {
        let count = self.tcp.count(peer) as u64;
        if count >= DATA_CONNS_MAX {
            let (what, value, max) = ("data connections of a peer", count + 1, DATA_CONNS_MAX);
            return Err(Error::TooLarge { what, value, max });
        }
        let mut stream = Stream::Tcp(stream);
        let sent = send_all(&mut stream, last);
        if let (true, Stream::Tcp(stream)) = (sent, stream) {
            // It was watched as a fresh connection; the backend goes on under the same token.
            self.tcp.adopt(token, DataStream { stream, seals }, (peer, rail), false);
        }
        Ok(())
    }
}
