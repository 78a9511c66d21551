//! Connecting to a peer, on the thread of the caller: the control connection, which the driver takes over at once,
//! then the Unix socket and the data connections that the peer's introduction leads to.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use transfer_proto::id::RailId;
use transfer_proto::plan::{Path, Reason};
use transfer_proto::proto::data::DataHello;
use transfer_proto::proto::local::{LOCAL_BYTES, LocalMessage};
use transfer_proto::proto::preamble::{self, Kind, PREAMBLE_BYTES};
use transfer_sys::{OsError, socket};

use crate::address::Address;
use crate::clock;
use crate::driver::probe;
use crate::error::{Error, ProtocolError, Result};
use crate::peer::{LocalWay, PeerCore, Ways};
use crate::shared::{Command, Meeting, Opened, Shared, Stream};

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
    let stream = dial.control()?;
    let (reply, meeting) = crossbeam_channel::bounded(2);
    agent.send(Command::Meet { stream, address: address.to_string(), reply });
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

    fn control(&mut self) -> Result<Stream> {
        if let Address::Local { name } = self.address {
            let stream = connect_local(name).map_err(|e| Error::unreachable(self.address, &e))?;
            return Ok(Stream::Local(stream));
        }
        let mut last = Error::unreachable(self.address, &"the name has no address");
        for address in self.address.resolve()? {
            match TcpStream::connect_timeout(&address, self.left()?) {
                Ok(stream) => {
                    self.reached = Some(address);
                    return Ok(Stream::Tcp(stream));
                }
                Err(e) => last = Error::unreachable(self.address, &e),
            }
        }
        Err(last)
    }

    fn open(&self, peer: &PeerCore, local_name: &str, addresses: &[String], token: u64) -> Result<Opened> {
        let (local, way) = self.local(peer, local_name, token)?;
        let data = self.data(addresses, token)?;
        let ways = Ways { local: way, tcp: !data.is_empty() };
        Ok(Opened { local, data, ways })
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
        let Ok(stream) = connect_local(name) else { return Ok((None, Err(Reason::OtherHost))) };
        match self.greet_local(&stream, peer, token) {
            Ok(way) => Ok((Some(stream), Ok(way))),
            // Another host may use the same name for another agent.
            Err(Error::Protocol { .. }) => Ok((None, Err(Reason::OtherHost))),
            Err(error) => Err(error),
        }
    }

    fn greet_local(&self, mut stream: &UnixStream, peer: &PeerCore, token: u64) -> Result<LocalWay> {
        let hello = LocalMessage::Hello {
            incarnation: self.agent.incarnation,
            token,
            probe: self.agent.probe_address(),
        };
        let greeting = [&preamble::encode(Kind::Local)[..], &hello.encode()[..]].concat();
        let mut answer = [0; PREAMBLE_BYTES + LOCAL_BYTES];
        stream.set_read_timeout(Some(self.left()?)).map_err(|e| self.lost("local", &e))?;
        // A fresh socket's buffer takes so few bytes whole.
        socket::send_with_fd(stream.as_fd(), &greeting, self.agent.ledger.file().as_fd())?;
        let (count, file) = socket::recv_with_fd(stream.as_fd(), &mut answer)?;
        stream.read_exact(&mut answer[count..]).map_err(|e| self.lost("local", &e))?;
        let mut message = [0; LOCAL_BYTES];
        message.copy_from_slice(&answer[PREAMBLE_BYTES..]);
        match LocalMessage::decode(message) {
            Ok(LocalMessage::Welcome { incarnation: theirs, probe: at }) if theirs == peer.incarnation => {
                let file = file.ok_or_else(|| self.refused("local"))?;
                let guest = self.agent.welcome(stream, &peer.name, theirs, &file)?;
                let ptrace = probe(&guest.process, at, theirs);
                Ok(LocalWay { guest, ptrace })
            }
            _ => Err(self.refused("local")),
        }
    }

    /// The data connections.
    fn data(&self, addresses: &[String], token: u64) -> Result<Vec<TcpStream>> {
        if !self.agent.config.paths.contains(Path::Tcp) {
            return Ok(Vec::new());
        }
        let Some(address) = self.data_address(addresses)? else { return Ok(Vec::new()) };
        // Both sides count them alike.
        let rails = (0..).map(|slot| RailId::new(slot, 0)).take(self.agent.config.tcp_streams);
        rails.map(|rail| self.data_connection(address, token, rail)).collect()
    }

    /// Where the peer was reached, else where it says that it listens.
    fn data_address(&self, addresses: &[String]) -> Result<Option<SocketAddr>> {
        if let Some(reached) = self.reached {
            return Ok(Some(reached));
        }
        let told = addresses.iter().filter_map(|text| text.parse::<Address>().ok());
        for address in told {
            if let Some(found) = address.resolve()?.first() {
                return Ok(Some(*found));
            }
        }
        Ok(None)
    }

    fn data_connection(&self, address: SocketAddr, token: u64, rail: RailId) -> Result<TcpStream> {
        let fail = |e: &std::io::Error| self.lost("data", e);
        let mut stream = TcpStream::connect_timeout(&address, self.left()?).map_err(|e| fail(&e))?;
        stream.set_nodelay(true).map_err(|e| fail(&e))?;
        stream.set_read_timeout(Some(self.left()?)).map_err(|e| fail(&e))?;
        if let Some(bytes) = self.agent.config.tcp_buffer_bytes {
            socket::set_buffers(stream.as_fd(), bytes)?;
        }
        let hello = DataHello::new(self.agent.incarnation, token, rail).encode();
        stream.write_all(&[&preamble::encode(Kind::Data)[..], &hello[..]].concat()).map_err(|e| fail(&e))?;
        // The peer answers with its preamble once it has taken the connection in.
        let mut answer = [0; PREAMBLE_BYTES];
        stream.read_exact(&mut answer).map_err(|e| fail(&e))?;
        match preamble::decode(answer) {
            Ok(Kind::Data) => Ok(stream),
            _ => Err(self.refused("data")),
        }
    }

    fn refused(&self, which: &'static str) -> Error {
        Error::Protocol { address: self.address.to_string(), source: ProtocolError::Refused(which) }
    }

    /// A connection that ends before it was accepted was refused; anything else is the way's fault.
    fn lost(&self, which: &'static str, error: &std::io::Error) -> Error {
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                self.refused(which)
            }
            _ => Error::unreachable(self.address, error),
        }
    }
}

fn connect_local(name: &str) -> Result<UnixStream> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)
        .map_err(|e| OsError::from_io("connect", name, &e))?;
    Ok(UnixStream::connect_addr(&address).map_err(|e| OsError::from_io("connect", name, &e))?)
}
