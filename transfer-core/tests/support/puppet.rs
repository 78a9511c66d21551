//! A peer that the test plays by hand over real sockets: it follows the protocol as far as the test likes, and says
//! whatever the test likes from there on.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "waits with a bound")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use transfer_core::{Access, Address, Agent, Generations, Incarnation, Peer, RailId, RegionId};
use transfer_core::{RegionInfo, RegionKind};
use transfer_proto::proto::control::{Deframer, Frame};
use transfer_proto::proto::data::{DataHeader, HEADER_BYTES, Head};
use transfer_proto::proto::metadata::AgentMetadata;
use transfer_proto::proto::preamble::{self, Flags, Kind, PREAMBLE_BYTES};
use transfer_proto::proto::session::SessionHello;

use crate::support::WAIT;

/// Its only region, of which nothing is true but what it answers.
pub const BAIT: RegionId = RegionId::new(0, 0);
pub const BAIT_BYTES: u64 = 1 << 20;

static LIVES: AtomicU64 = AtomicU64::new(1);

pub struct Puppet {
    pub incarnation: Incarnation,
    /// Where the agent listens.
    target: SocketAddr,
    control: TcpStream,
    deframer: Deframer,
    /// What the agent said of itself.
    pub theirs: AgentMetadata,
    token: u64,
}

fn connect(target: SocketAddr, kind: Kind, further: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(target).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(&[&preamble::encode(kind, Flags::NONE)[..], further].concat()).unwrap();
    let mut answer = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut answer).unwrap();
    preamble::decode(answer).unwrap();
    stream
}

/// What it says of itself.
pub fn introduction() -> AgentMetadata {
    let mut incarnation = [0xAA; 16];
    incarnation[..8].copy_from_slice(&LIVES.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let mut metadata = AgentMetadata::new("puppet".to_owned(), Incarnation::from_bytes(incarnation));
    metadata.regions.push(bait(BAIT));
    metadata
}

pub fn bait(id: RegionId) -> RegionInfo {
    let generations = Generations::new(0, BAIT_BYTES, 0);
    let (label, place) = ("bait".to_owned(), (4096, BAIT_BYTES));
    RegionInfo::new(id, place, label, RegionKind::Foreign, Access::ReadWrite, generations)
}

impl Puppet {
    /// Comes as far as the agent's preamble on a new control connection; the introduction is up to the caller.
    pub fn greet(agent: &Agent) -> (SocketAddr, TcpStream) {
        let Some(Address::Tcp { port, .. }) = agent.address() else { panic!("it listens") };
        let target = ([127, 0, 0, 1], port).into();
        (target, connect(target, Kind::Control, &[]))
    }

    /// Introduces itself, so that all but `Ready` is said.
    pub fn introduce(agent: &Agent) -> Self {
        let (target, control) = Self::greet(agent);
        let metadata = introduction();
        let (incarnation, theirs) = (metadata.incarnation, metadata.clone());
        let mut puppet =
            Self { incarnation, target, control, deframer: Deframer::default(), theirs, token: 0 };
        puppet.say(&Frame::Hello { metadata, token: 7 });
        let Some(Frame::Hello { metadata, token }) = puppet.hear() else { panic!("an introduction") };
        (puppet.theirs, puppet.token) = (metadata, token);
        puppet
    }

    /// A peer with one rail.
    pub fn meet(agent: &Agent) -> (Self, Rail) {
        let mut puppet = Self::introduce(agent);
        let rail = puppet.open(RailId::new(0, 0));
        puppet.say(&Frame::Ready);
        puppet.sync();
        (puppet, rail)
    }

    /// A data connection.
    pub fn open(&self, id: RailId) -> Rail {
        let hello = SessionHello::new(self.incarnation, self.token, id);
        let stream = connect(self.target, Kind::Data, &hello.encode());
        Rail::new(id, stream)
    }

    pub fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.control.write_all(&bytes).unwrap();
    }

    /// Bytes on the control connection; it may be closed already.
    pub fn blurt(&mut self, bytes: &[u8]) {
        let _sent = self.control.write_all(bytes);
    }

    /// What comes next on the control connection but heartbeats; `None` at its end.
    pub fn hear(&mut self) -> Option<Frame> {
        loop {
            match self.deframer.next_frame().unwrap() {
                Some(Frame::Ping) => continue,
                Some(frame) => return Some(frame),
                None => {}
            }
            let mut part = [0; 4096];
            let came = read(&mut self.control, &mut part);
            if came == 0 {
                return None;
            }
            self.deframer.push(&part[..came]);
        }
    }

    /// Returns when the agent has taken in what was said. What it says meanwhile is passed over.
    pub fn sync(&mut self) {
        self.say(&Frame::Sync);
        while self.hear().expect("the connection stands") != Frame::Synced {}
    }

    /// Says no more, and returns when the agent has ended the connection too.
    pub fn finish(mut self) {
        let _ended = self.control.shutdown(Shutdown::Write);
        while self.hear().is_some() {}
    }

    /// The agent has given this rail up; so does the puppet, and opens the next one in its place.
    pub fn replace(&mut self, rail: Rail) -> Rail {
        let id = rail.id;
        drop(rail);
        while self.hear().expect("only the rail was lost") != Frame::RailClosed(id) {}
        self.say(&Frame::RailClosed(id));
        self.sync();
        self.open(RailId::new(id.slot(), id.generation() + 1))
    }

    /// The same agent's view of it.
    pub fn seen_by(&self, agent: &Agent) -> Option<Peer> {
        agent.peers().into_iter().find(|peer| peer.incarnation() == self.incarnation)
    }
}

/// A data connection of a puppet.
pub struct Rail {
    pub id: RailId,
    pub stream: TcpStream,
    /// Bytes that came and were not asked for yet.
    held: Vec<u8>,
}

impl Rail {
    pub fn new(id: RailId, stream: TcpStream) -> Self {
        Self { id, stream, held: Vec::new() }
    }

    /// Sends bytes; the agent may have closed the connection already.
    pub fn blurt(&mut self, bytes: &[u8]) {
        let _sent = self.stream.write_all(bytes);
    }

    /// Says no more.
    pub fn shut(&self) {
        let _ended = self.stream.shutdown(Shutdown::Write);
    }

    /// All that comes until the agent closes it.
    pub fn drain(&mut self) -> Vec<u8> {
        let mut part = [0; 4096];
        loop {
            match read(&mut self.stream, &mut part) {
                0 => return std::mem::take(&mut self.held),
                came => self.held.extend_from_slice(&part[..came]),
            }
        }
    }

    fn head(&mut self) -> Option<DataHeader> {
        match Head::decode(&self.held).unwrap() {
            Head::Whole { header, len, .. } => {
                self.held.drain(..len);
                Some(header)
            }
            Head::Missing(_) => None,
        }
    }

    /// The next header, with its payload behind it; `None` where `gives_up` says so first.
    pub fn take_unless(&mut self, gives_up: impl Fn() -> bool) -> Option<(DataHeader, Vec<u8>)> {
        self.stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let header = loop {
            if let Some(header) = self.head() {
                break header;
            }
            if gives_up() {
                return None;
            }
            self.more();
        };
        let len = usize::try_from(header.payload_len).unwrap();
        while self.held.len() < len {
            assert!(!gives_up(), "the payload in time");
            self.more();
        }
        self.stream.set_read_timeout(Some(WAIT)).unwrap();
        Some((header, self.held.drain(..len).collect()))
    }

    /// The next header with its payload.
    pub fn take(&mut self) -> (DataHeader, Vec<u8>) {
        let from = Instant::now();
        self.take_unless(|| from.elapsed() > WAIT).expect("a header in time")
    }

    fn more(&mut self) {
        let mut part = [0; 4096];
        match self.stream.read(&mut part) {
            Ok(0) => panic!("the agent closed the rail"),
            Ok(came) => self.held.extend_from_slice(&part[..came]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

/// A connection that is reset has ended as well: its other end was closed with bytes unread.
fn read(stream: &mut TcpStream, part: &mut [u8]) -> usize {
    match stream.read(part) {
        Ok(came) => came,
        Err(e) if e.kind() == ErrorKind::ConnectionReset => 0,
        Err(e) => panic!("the agent did not end the connection in time: {e}"),
    }
}

/// The headers in what was sent without payloads.
pub fn headers(bytes: &[u8]) -> Vec<DataHeader> {
    let whole = bytes.chunks_exact(HEADER_BYTES);
    whole.map(|raw| DataHeader::decode(raw.try_into().unwrap()).unwrap()).collect()
}
