//! Connecting to a peer, on the thread of the caller: the control connection, which the driver takes over at once,
//! then the Unix socket and the data connections that the peer's introduction leads to.

use std::io::{ErrorKind, Read, Result as IoResult, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use transfer_proto::id::RailId;
use transfer_proto::plan::{Path, Reason};
use transfer_proto::proto::local::{LOCAL_BYTES, LocalMessage};
use transfer_proto::proto::preamble::Kind;
use transfer_proto::proto::session::SessionHello;
use transfer_sys::process::{PIDFD_OPEN, Process};
use transfer_sys::{OsError, socket};

use crate::address::Address;
use crate::clock;
use crate::driver::{Wire, probe};
use crate::error::{Error, KeyMissing, ProtocolError, Result};
use crate::peer::{LocalWay, PeerCore, Ways};
use crate::secure::{HandshakeError, Initiating, Keys, Step};
use crate::shared::{Command, DataEnd, DataStream, Meeting, Opened, Shared, Stream};

/// A call to connect.
pub(crate) struct Dial<'a> {
    agent: &'a Arc<Shared>,
    address: &'a Address,
    end: Option<Instant>,
    /// The address that answered.
    reached: Option<SocketAddr>,
}

/// Connects, or finds the connection that stands.
pub(crate) fn dial(agent: &Arc<Shared>, address: &Address) -> Result<Arc<PeerCore>> {
    let end = clock::end_of_wait(agent.config.connect_timeout);
    let mut dial = Dial { agent, address, end, reached: None };
    let wire = dial.control()?;
    let (reply, meeting) = crossbeam_channel::bounded(2);
    agent.send(Command::Meet { wire, address: address.to_string(), reply });
    loop {
        match dial.next(&meeting)? {
            Meeting::Up(peer) => return Ok(peer),
            Meeting::Failed(error) => return Err(error),
            Meeting::Hello { peer, local_name, addresses, token } => {
                // On failure the driver knows whether a connection that the peer opened has taken the place of this
                // one meanwhile, and answers accordingly.
                agent.send(match dial.open(&peer, &local_name, &addresses, token) {
                    Ok(opened) => Command::Opened { peer, opened },
                    Err(error) => Command::GiveUp { peer, error },
                });
            }
        }
    }
}

/// Opens a further data connection to a peer that was met.
pub(crate) fn open_rail(agent: &Arc<Shared>, end: DataEnd, rail: RailId) -> Result<DataStream> {
    let address = Address::from(end.address);
    let until = clock::end_of_wait(agent.config.connect_timeout);
    Dial { agent, address: &address, end: until, reached: Some(end.address) }.data_connection(end, rail)
}

impl Dial<'_> {
    fn left(&self) -> Result<Duration> {
        clock::left(self.end).ok_or_else(|| Error::unreachable(self.address, &"no answer in time"))
    }

    fn next(&self, meeting: &Receiver<Meeting>) -> Result<Meeting> {
        Shared::answer(meeting, self.left()?).map_err(|error| match error {
            Error::WaitTimedOut(_) => {
                Error::unreachable(self.address, &"the handshake did not finish in time")
            }
            other => other,
        })
    }

    /// The control connection, past its handshake.
    fn control(&mut self) -> Result<Wire> {
        let handshake = Initiating::control(self.agent.config.terms());
        let (stream, shaken) = if let Address::Local { name } = self.address {
            let stream = connect_local(name).map_err(|e| Error::unreachable(self.address, &e))?;
            let shaken = self.shake(&stream, UnixStream::set_read_timeout, handshake);
            (Stream::Local(stream), shaken)
        } else {
            let stream = self.reach()?;
            let shaken = self.shake(&stream, TcpStream::set_read_timeout, handshake);
            (Stream::Tcp(stream), shaken)
        };
        let keys = shaken.map_err(|failed| match failed {
            ShakeError::Io(e) if is_end(&e) => {
                Error::unreachable(self.address, &"it closed the connection in mid-handshake")
            }
            ShakeError::Io(e) => Error::unreachable(self.address, &e),
            ShakeError::Late(error) => error,
            ShakeError::Refused(why) => Error::from_handshake(self.address.to_string(), why),
        })?;
        Ok(Wire::new(stream, keys.map(Keys::records)))
    }

    /// The first of the peer's addresses that answers.
    fn reach(&mut self) -> Result<TcpStream> {
        let mut last = Error::unreachable(self.address, &"the name has no address");
        for address in self.address.resolve()? {
            if !self.agent.config.meets(address) {
                let (address, missing) = (self.address.to_string(), KeyMissing::Beyond);
                last = Error::AuthRequired { address, missing };
                continue;
            }
            match TcpStream::connect_timeout(&address, self.left()?) {
                Ok(stream) => {
                    self.reached = Some(address);
                    stream.set_nodelay(true).map_err(|e| Error::unreachable(self.address, &e))?;
                    return Ok(stream);
                }
                Err(e) => last = Error::unreachable(self.address, &e),
            }
        }
        Err(last)
    }

    /// Runs the opening side of a handshake over a connection that blocks.
    fn shake<S>(
        &self,
        stream: &S,
        set_timeout: SetTimeout<S>,
        mut handshake: Initiating,
    ) -> Result<Option<Keys>, ShakeError>
    where
        for<'a> &'a S: Read + Write,
    {
        let mut step = handshake.start();
        loop {
            step = match step {
                Step::Exchange { send, want } => {
                    (&mut &*stream).write_all(&send)?;
                    let mut answer = vec![0; want];
                    self.read(stream, set_timeout, &mut answer)?;
                    handshake.take(&answer)
                }
                Step::Done { keys, .. } => return Ok(keys),
                Step::Refused { why, .. } => return Err(ShakeError::Refused(why)),
                Step::Find(_) => return Err(ShakeError::Refused(HandshakeError::NoSession)),
            }
        }
    }

    /// Reads all of `into`, within what is left of the time, however slowly it comes.
    fn read<S>(&self, stream: &S, set_timeout: SetTimeout<S>, mut into: &mut [u8]) -> Result<(), ShakeError>
    where
        for<'a> &'a S: Read,
    {
        while !into.is_empty() {
            set_timeout(stream, Some(self.left().map_err(ShakeError::Late)?))?;
            match (&mut &*stream).read(into) {
                Ok(0) => return Err(ShakeError::Io(ErrorKind::UnexpectedEof.into())),
                Ok(came) => into = &mut into[came..],
                // The time is up when `left` says so.
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// The handshake of a further connection.
    fn prove<S>(
        &self,
        stream: &S,
        set_timeout: SetTimeout<S>,
        kind: Kind,
        (token, rail): (u64, RailId),
    ) -> Result<Option<Keys>, ShakeError>
    where
        for<'a> &'a S: Read + Write,
    {
        let hello = SessionHello::new(self.agent.incarnation, token, rail);
        self.shake(stream, set_timeout, Initiating::further(self.agent.config.terms(), kind, hello))
    }

    fn open(&self, peer: &PeerCore, local_name: &str, addresses: &[String], token: u64) -> Result<Opened> {
        let (local, way) = self.local(peer, local_name, token)?;
        let end = self.data_end(addresses, token)?;
        let data = self.data(end.as_ref())?;
        let encrypted = data.iter().any(|data| data.seals.is_some());
        let ways = Ways { local: way, tcp: !data.is_empty(), encrypted };
        Ok(Opened { local, data, ways, end })
    }

    /// The Unix socket, or why there is none.
    fn local(
        &self,
        peer: &PeerCore,
        name: &str,
        token: u64,
    ) -> Result<(Option<UnixStream>, Result<LocalWay, Reason>)> {
        let paths = self.agent.config.paths;
        if !paths.contains(Path::SharedMemory) && !paths.contains(Path::ProcessMemory) {
            return Ok((None, Err(Reason::NotAllowed)));
        }
        if name.is_empty() {
            return Ok((None, Err(Reason::Refused)));
        }
        // Being short of descriptors says nothing of where the peer is, and nobody is to end on a slower path for it.
        let is_short = |os: &OsError| matches!(os.errno, libc::EMFILE | libc::ENFILE);
        let stream = match connect_local(name) {
            Ok(stream) => stream,
            Err(Error::Os(os)) if is_short(&os) => return Err(os.into()),
            Err(_) => return Ok((None, Err(Reason::OtherHost))),
        };
        match self.greet_local(&stream, peer, token) {
            Ok(way) => Ok((Some(stream), Ok(way))),
            Err(Error::Os(os)) if is_short(&os) => Err(os.into()),
            // One that has just ended is no such case, and shows elsewhere.
            Err(Error::Os(os)) if os.op == PIDFD_OPEN && os.errno != libc::ESRCH => {
                Ok((None, Err(Reason::NoPidfd)))
            }
            // It may be another agent's: of another host that uses the same name, say.
            Err(Error::Protocol { .. }) => Ok((None, Err(Reason::NotWelcome))),
            Err(error) => Err(error),
        }
    }

    fn greet_local(&self, stream: &UnixStream, peer: &PeerCore, token: u64) -> Result<LocalWay> {
        // Before the peer knows of this connection: once it does, its end is the end of the peer.
        let process = Process::open(socket::peer_credentials(stream.as_fd())?.pid)?;
        let set_timeout = UnixStream::set_read_timeout;
        let fail = |failed| self.lost("local", failed);
        // Who may connect is what is proven here; what comes over a Unix socket nobody else can change.
        let _keys = self.prove(stream, set_timeout, Kind::Local, (token, RailId::new(0, 0))).map_err(fail)?;
        let (incarnation, probe_here) = (self.agent.incarnation, self.agent.probe_address());
        let hello = LocalMessage::Hello { incarnation, probe: probe_here };
        // A fresh socket's buffer takes so few bytes whole.
        socket::send_with_fd(stream.as_fd(), &hello.encode(), self.agent.ledger.file().as_fd())?;
        let mut answer = [0; LOCAL_BYTES];
        stream.set_read_timeout(Some(self.left()?)).map_err(|e| fail(e.into()))?;
        let (count, file) = socket::recv_with_fd(stream.as_fd(), &mut answer)?;
        self.read(stream, set_timeout, &mut answer[count..]).map_err(fail)?;
        match LocalMessage::decode(answer) {
            Ok(LocalMessage::Welcome { incarnation: theirs, probe: at }) if theirs == peer.incarnation => {
                // It always comes; the kernel drops it where this process has no place for it (unix(7)).
                let file = file.ok_or_else(|| OsError::new("recvmsg", "the peer's ledger", libc::EMFILE))?;
                let guest = self.agent.welcome(process, &peer.name, theirs, &file)?;
                let ptrace = probe(&guest.process, at, theirs);
                Ok(LocalWay { guest, ptrace })
            }
            _ => Err(self.refused("local")),
        }
    }

    /// The data connections.
    fn data(&self, end: Option<&DataEnd>) -> Result<Vec<DataStream>> {
        let Some(end) = end else { return Ok(Vec::new()) };
        // Both sides count them alike.
        let rails = (0..).map(|slot| RailId::new(slot, 0)).take(self.agent.config.tcp_streams);
        rails.map(|rail| self.data_connection(*end, rail)).collect()
    }

    /// Where data connections lead, unless there are to be none.
    fn data_end(&self, addresses: &[String], token: u64) -> Result<Option<DataEnd>> {
        if !self.agent.config.paths.contains(Path::Tcp) {
            return Ok(None);
        }
        Ok(self.data_address(addresses)?.map(|address| DataEnd { address, token }))
    }

    /// Where the peer was reached, else where it says that it listens.
    fn data_address(&self, addresses: &[String]) -> Result<Option<SocketAddr>> {
        if let Some(reached) = self.reached {
            return Ok(Some(reached));
        }
        let told = addresses.iter().filter_map(|text| text.parse::<Address>().ok());
        for address in told {
            let found = address.resolve()?.into_iter().find(|found| self.agent.config.meets(*found));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn data_connection(&self, DataEnd { address, token }: DataEnd, rail: RailId) -> Result<DataStream> {
        let fail = |failed| self.lost("data", failed);
        let broken = |e: std::io::Error| fail(e.into());
        let stream = TcpStream::connect_timeout(&address, self.left()?).map_err(broken)?;
        stream.set_nodelay(true).map_err(broken)?;
        let keys =
            self.prove(&stream, TcpStream::set_read_timeout, Kind::Data, (token, rail)).map_err(fail)?;
        Ok(DataStream { stream, seals: keys.and_then(Keys::seals) })
    }

    fn refused(&self, which: &'static str) -> Error {
        Error::Protocol { address: self.address.to_string(), source: ProtocolError::Refused(which) }
    }

    /// A connection that ends before it was accepted was refused, as was one whose proof did not hold; anything else
    /// is the way's fault.
    fn lost(&self, which: &'static str, failed: ShakeError) -> Error {
        match failed {
            ShakeError::Io(e) if !is_end(&e) => Error::unreachable(self.address, &e),
            ShakeError::Io(_) | ShakeError::Refused(_) => self.refused(which),
            ShakeError::Late(error) => error,
        }
    }
}

/// How the time to wait for bytes is set on a connection of either family.
type SetTimeout<S> = fn(&S, Option<Duration>) -> IoResult<()>;

/// Why a handshake did not come to its end.
enum ShakeError {
    Io(std::io::Error),
    /// The time for connecting is over.
    Late(Error),
    Refused(HandshakeError),
}

impl From<std::io::Error> for ShakeError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn connect_local(name: &str) -> Result<UnixStream> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)
        .map_err(|e| OsError::from_io("connect", name.to_owned(), &e))?;
    Ok(UnixStream::connect_addr(&address).map_err(|e| OsError::from_io("connect", name.to_owned(), &e))?)
}
