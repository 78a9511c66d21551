//! How a connection begins, until both sides know that they may talk.
//!
//! ```text
//! opener                                       acceptor
//! preamble (8) [, session hello (32)]  ───▶
//!                                      ◀───    preamble (8) [, challenge (16)]
//! [Noise: psk, e (48)]                 ───▶
//!                                      ◀───    [Noise: e, ee (48)]
//! ```
//!
//! The session hello comes on local and data connections, the rest in brackets with a key. The handshake is
//! `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s` (noiseprotocol.org), over all that was said in the clear before and, on
//! local and data connections, the word that the acceptor gave on the control connection. So neither side can be
//! talked into another version, kind or session, or out of the key. The challenge is new each time: a first message
//! that was recorded does not open, and an acceptor computes no Diffie-Hellman for somebody who has not just proven
//! the key.
//!
//! Every message has a fixed length, so nobody makes this side hold more than 48 bytes. Whatever is wrong with a
//! message is told as one thing, from checks in constant time.

use std::fmt;

use snow::{Builder, HandshakeState};
use transfer_proto::codec::DecodeError;
use transfer_proto::proto::preamble::{self, Flags, Kind, PREAMBLE_BYTES, PreambleError};
use transfer_proto::proto::session::{SESSION_HELLO_BYTES, SessionHello};

use super::key::Key;
use super::records::{Records, TAG_BYTES};
use crate::error::KeyMissing;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Length of what an acceptor asks to be proven afresh.
pub(crate) const CHALLENGE_BYTES: usize = 16;
/// Length of both messages: an ephemeral key, and the tag of an empty payload.
const NOISE_BYTES: usize = 32 + TAG_BYTES;

/// Why a handshake did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// No agent is there, or one of another version.
    #[error(transparent)]
    Preamble(#[from] PreambleError),
    /// One side has a key, and the other has none.
    #[error("{0}")]
    AuthRequired(KeyMissing),
    /// The keys differ, or somebody is in between.
    #[error("it does not have the same key")]
    AuthFailed,
    /// A further connection of a peer that is not known, or does not know the word.
    #[error("it belongs to no session")]
    NoSession,
}

/// What an agent asks of every connection.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    key: Option<Key>,
}

impl Terms {
    pub(crate) fn new(key: Option<Key>) -> Self {
        Self { key }
    }

    fn flags(&self) -> Flags {
        if self.key.is_some() { Flags::KEY } else { Flags::NONE }
    }

    fn check(&self, theirs: Flags) -> Result<(), HandshakeError> {
        match (&self.key, theirs.contains(Flags::KEY)) {
            (Some(_), false) => Err(HandshakeError::AuthRequired(KeyMissing::There)),
            (None, true) => Err(HandshakeError::AuthRequired(KeyMissing::Here)),
            _ => Ok(()),
        }
    }
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send these bytes; then as many of the other side's as wanted are taken.
    Exchange { send: Vec<u8>, want: usize },
    /// Say which word the peer of this session has to know; only on the accepting side.
    Find(SessionHello),
    /// Send the rest. The connection stands; it goes on in records where there is a key.
    Done { send: Vec<u8>, kind: Kind, records: Option<Records> },
    /// Send the rest, and end the connection.
    Refused { send: Vec<u8>, why: HandshakeError },
}

impl Step {
    fn refused(why: impl Into<HandshakeError>) -> Self {
        Self::Refused { send: Vec::new(), why: why.into() }
    }
}

/// Where either side is.
enum State {
    Preamble,
    Hello,
    Find(SessionHello),
    Challenge,
    Proof(Box<HandshakeState>),
    Over,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preamble => "Preamble",
            Self::Hello => "Hello",
            Self::Find(_) => "Find",
            Self::Challenge => "Challenge",
            Self::Proof(_) => "Proof",
            Self::Over => "Over",
        })
    }
}

/// The side that opens a connection.
#[derive(Debug)]
pub(crate) struct Initiating {
    terms: Terms,
    kind: Kind,
    /// What the acceptor gave for it on the control connection; zero on that.
    word: u64,
    /// All that was said in the clear.
    said: Vec<u8>,
    state: State,
}

impl Initiating {
    /// A control connection.
    pub(crate) fn control(terms: Terms) -> Self {
        Self::new(terms, Kind::Control, 0, &[])
    }

    /// A further connection to the peer whose `Hello` had the word of `hello`.
    pub(crate) fn further(terms: Terms, kind: Kind, hello: SessionHello) -> Self {
        let shown = if terms.key.is_some() { 0 } else { hello.token };
        let said = SessionHello::new(hello.incarnation, shown, hello.rail).encode();
        Self::new(terms, kind, hello.token, &said)
    }

    fn new(terms: Terms, kind: Kind, word: u64, hello: &[u8]) -> Self {
        let said = [&preamble::encode(kind, terms.flags())[..], hello].concat();
        Self { terms, kind, word, said, state: State::Preamble }
    }

    /// How it begins.
    pub(crate) fn start(&self) -> Step {
        Step::Exchange { send: self.said.clone(), want: PREAMBLE_BYTES }
    }

    /// Takes as many bytes as were wanted.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Step {
        self.said.extend_from_slice(bytes);
        match std::mem::replace(&mut self.state, State::Over) {
            State::Preamble => self.preamble(bytes),
            State::Challenge => self.challenged(),
            State::Proof(mut noise) => match noise.read_message(bytes, &mut []) {
                Ok(_) => Step::Done { send: Vec::new(), kind: self.kind, records: Some(records(*noise)) },
                Err(_) => Step::refused(HandshakeError::AuthFailed),
            },
            State::Hello | State::Find(_) | State::Over => Step::refused(HandshakeError::AuthFailed),
        }
    }

    fn preamble(&mut self, bytes: &[u8]) -> Step {
        let theirs = match read_preamble(bytes, &self.terms) {
            Ok(theirs) => theirs,
            Err(why) => return Step::refused(why),
        };
        if theirs != self.kind {
            let error = DecodeError::Invalid { what: "connection kind", value: u64::from(bytes[5]) };
            return Step::refused(PreambleError::Malformed(error));
        }
        if self.terms.key.is_none() {
            return Step::Done { send: Vec::new(), kind: self.kind, records: None };
        }
        self.state = State::Challenge;
        Step::Exchange { send: Vec::new(), want: CHALLENGE_BYTES }
    }

    fn challenged(&mut self) -> Step {
        let Some(key) = &self.terms.key else { return Step::refused(HandshakeError::AuthFailed) };
        let mut noise = noise(key, &self.said, self.word, true);
        let send = say(&mut noise);
        self.state = State::Proof(noise);
        Step::Exchange { send, want: NOISE_BYTES }
    }
}

/// The side that accepts one.
#[derive(Debug)]
pub(crate) struct Responding {
    terms: Terms,
    challenge: [u8; CHALLENGE_BYTES],
    kind: Kind,
    said: Vec<u8>,
    state: State,
}

impl Responding {
    /// `challenge` is random, and never used again.
    pub(crate) fn new(terms: Terms, challenge: [u8; CHALLENGE_BYTES]) -> Self {
        Self { terms, challenge, kind: Kind::Control, said: Vec::new(), state: State::Preamble }
    }

    /// How many bytes it takes first.
    pub(crate) const FIRST: usize = PREAMBLE_BYTES;

    /// Takes as many bytes as were wanted.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Step {
        self.said.extend_from_slice(bytes);
        match std::mem::replace(&mut self.state, State::Over) {
            State::Preamble => match read_preamble(bytes, &self.terms) {
                Ok(Kind::Control) => self.answer(0),
                Ok(kind) => {
                    (self.kind, self.state) = (kind, State::Hello);
                    Step::Exchange { send: Vec::new(), want: SESSION_HELLO_BYTES }
                }
                // Our preamble tells the peer whom it met.
                Err(why) => Step::Refused { send: self.own_preamble(), why },
            },
            State::Hello => self.hello(bytes),
            State::Proof(noise) => self.proven(noise, bytes),
            State::Challenge | State::Find(_) | State::Over => Step::refused(HandshakeError::AuthFailed),
        }
    }

    fn own_preamble(&self) -> Vec<u8> {
        preamble::encode(self.kind, self.terms.flags()).to_vec()
    }

    fn hello(&mut self, bytes: &[u8]) -> Step {
        let Ok(bytes) = bytes.try_into() else { return Step::refused(HandshakeError::NoSession) };
        let hello = SessionHello::decode(bytes);
        self.state = State::Find(hello);
        Step::Find(hello)
    }

    /// Answers [`Step::Find`]; `None` where there is no such session.
    pub(crate) fn found(&mut self, word: Option<u64>) -> Step {
        let State::Find(hello) = std::mem::replace(&mut self.state, State::Over) else {
            return Step::refused(HandshakeError::NoSession);
        };
        let shown = |word: &u64| hello.token == if self.terms.key.is_some() { 0 } else { *word };
        match word.filter(shown) {
            Some(word) => self.answer(word),
            None => Step::refused(HandshakeError::NoSession),
        }
    }

    fn answer(&mut self, word: u64) -> Step {
        let mut send = self.own_preamble();
        let Some(key) = &self.terms.key else {
            return Step::Done { send, kind: self.kind, records: None };
        };
        send.extend_from_slice(&self.challenge);
        self.said.extend_from_slice(&send);
        self.state = State::Proof(noise(key, &self.said, word, false));
        Step::Exchange { send, want: NOISE_BYTES }
    }

    fn proven(&self, mut noise: Box<HandshakeState>, bytes: &[u8]) -> Step {
        if noise.read_message(bytes, &mut []).is_err() {
            // What cannot be an answer tells the peer that its proof did not hold.
            return Step::Refused { send: vec![0; NOISE_BYTES], why: HandshakeError::AuthFailed };
        }
        let send = say(&mut noise);
        Step::Done { send, kind: self.kind, records: Some(records(*noise)) }
    }
}

fn read_preamble(bytes: &[u8], terms: &Terms) -> Result<Kind, HandshakeError> {
    let bytes = bytes.try_into().map_err(|_| PreambleError::NotHeadrace)?;
    let theirs = preamble::decode(bytes)?;
    terms.check(theirs.flags)?;
    Ok(theirs.kind)
}

#[expect(clippy::expect_used, reason = "the pattern is a constant, and every part that it needs is given")]
fn noise(key: &Key, said: &[u8], word: u64, opener: bool) -> Box<HandshakeState> {
    let prologue = [said, &word.to_le_bytes()].concat();
    let builder = Builder::new(PATTERN.parse().expect("a pattern"));
    let builder = builder.psk(0, key.bytes()).and_then(|builder| builder.prologue(&prologue));
    let built = builder.and_then(|b| if opener { b.build_initiator() } else { b.build_responder() });
    Box::new(built.expect("complete"))
}

#[expect(clippy::expect_used, reason = "it is this side's turn, and the system's randomness does not dry up")]
fn say(noise: &mut HandshakeState) -> Vec<u8> {
    let mut out = vec![0; NOISE_BYTES];
    noise.write_message(&[], &mut out).expect("an ephemeral key and a tag");
    out
}

#[expect(clippy::expect_used, reason = "called after the second of two messages")]
fn records(noise: HandshakeState) -> Records {
    Records::new(noise.into_transport_mode().expect("the handshake is over"))
}

#[cfg(test)]
pub(super) mod tests;
