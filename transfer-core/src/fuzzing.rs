//! What `fuzz/` tries although nobody else may use it: how connections begin, what travels sealed on them, and names of
//! files.

use transfer_proto::id::{Incarnation, RailId};
use transfer_proto::proto::preamble::Kind;
use transfer_proto::proto::session::SessionHello;

pub use crate::directory::fuzzing::{file_of_name, name_of_file};
use crate::secure::{
    Initiating, Key, Keys, OPENED_ROOM, PLAIN_MAX, RECORD_MAX, Records, Responding, Seals, Step, Terms,
};

/// The word that the acceptor gave for further connections.
pub const WORD: u64 = 0x1122_3344_5566_7788;

/// What a side of a handshake says and wants.
#[derive(Debug)]
pub enum Said {
    /// These bytes go out, and it takes as many of the other side's as it wants, if it has not come to its end.
    Exchange(Vec<u8>, usize),
    /// The acceptor wants to know the word of a session.
    Find,
    /// These bytes go out, and the connection stands, with keys of its own where the sides have one.
    Done(Vec<u8>, Option<Standing>),
    /// These bytes go out, and the connection ends.
    Refused(Vec<u8>),
}

impl From<Step> for Said {
    fn from(step: Step) -> Self {
        match step {
            Step::Exchange { send, want } => Self::Exchange(send, want),
            Step::Find(_) => Self::Find,
            Step::Done { send, keys, .. } => Self::Done(send, keys.map(Standing)),
            Step::Refused { send, .. } => Self::Refused(send),
        }
    }
}

fn terms(key: Option<u8>, encrypt: bool) -> Terms {
    Terms::new(key.map(|key| Key::from_bytes([key; 32])), encrypt)
}

/// The side that opens a connection.
#[derive(Debug)]
pub struct Opener(Initiating);

impl Opener {
    /// With a key of that byte, or none; and whether it wants data connections encrypted.
    #[must_use]
    pub fn new(key: Option<u8>, encrypt: bool, kind: Kind) -> Self {
        let hello = SessionHello::new(Incarnation::from_bytes([5; 16]), WORD, RailId::new(1, 0));
        Self(match kind {
            Kind::Control => Initiating::control(terms(key, encrypt)),
            kind => Initiating::further(terms(key, encrypt), kind, hello),
        })
    }

    /// How it begins.
    pub fn start(&mut self) -> Said {
        self.0.start().into()
    }

    /// Takes as many bytes as it wanted.
    pub fn take(&mut self, bytes: &[u8]) -> Said {
        self.0.take(bytes).into()
    }
}

/// The side that accepts one.
#[derive(Debug)]
pub struct Acceptor(Responding);

impl Acceptor {
    /// How many bytes it wants first.
    pub const FIRST: usize = Responding::FIRST;

    /// The same.
    #[must_use]
    pub fn new(key: Option<u8>, encrypt: bool) -> Self {
        Self(Responding::new(terms(key, encrypt), [9; 16]))
    }

    /// Takes as many bytes as it wanted.
    pub fn take(&mut self, bytes: &[u8]) -> Said {
        self.0.take(bytes).into()
    }

    /// The word of the session that it asked for.
    pub fn found(&mut self, word: Option<u64>) -> Said {
        self.0.found(word).into()
    }
}

/// One end of a connection that stands.
#[derive(Debug)]
pub struct Standing(Keys);

impl Standing {
    /// As a control connection.
    #[must_use]
    pub fn control(self) -> Sealed {
        Sealed(End::Control(self.0.records()))
    }

    /// As a data connection; `None` where it is not encrypted.
    #[must_use]
    pub fn data(self) -> Option<Sealed> {
        self.0.seals().map(|seals| Sealed(End::Data(seals, Vec::new())))
    }
}

/// One end of a sealed connection.
#[derive(Debug)]
pub struct Sealed(End);

#[derive(Debug)]
enum End {
    Control(Records),
    /// And what has come of a record.
    Data(Seals, Vec<u8>),
}

impl Sealed {
    /// Seals the first bytes of `plain` into one record behind `out`; says how many that were.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> usize {
        match &mut self.0 {
            End::Control(records) => records.seal(plain, out),
            End::Data(seals, _) => {
                let plain = &plain[..plain.len().min(PLAIN_MAX)];
                let start = out.len();
                out.resize(start + RECORD_MAX, 0);
                let len = seals.seal(plain, &mut out[start..]);
                out.truncate(start + len);
                plain.len()
            }
        }
    }

    /// Takes bytes off the connection and appends what was sealed in them; false where one did not open.
    pub fn open(&mut self, bytes: &[u8], plain: &mut Vec<u8>) -> bool {
        match &mut self.0 {
            End::Control(records) => records.open(bytes, plain).is_ok(),
            End::Data(seals, held) => {
                held.extend_from_slice(bytes);
                open_whole(seals, held, plain)
            }
        }
    }
}

/// As on a data connection: whole records at the front of what is held.
fn open_whole(seals: &mut Seals, held: &mut Vec<u8>, plain: &mut Vec<u8>) -> bool {
    let mut room = vec![0; OPENED_ROOM];
    loop {
        let len = match seals.whole(held) {
            Ok(Some(len)) => len,
            Ok(None) => return true,
            Err(_) => return false,
        };
        let Ok(count) = seals.open(&held[..len], &mut room) else { return false };
        plain.extend_from_slice(&room[..count]);
        held.drain(..len);
    }
}
