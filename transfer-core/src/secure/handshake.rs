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
//! A data connection of which either side's preamble asks for encryption is encrypted, and its handshake is the same with
//! AESGCM, for which processors have instructions: whoever asks, wins, and since both preambles are in the proof, nobody
//! on the way can take the wish out of one.
//!
//! Every message has a fixed length, so nobody makes this side hold more than 48 bytes. Whatever is wrong with a
//! message is told as one thing, from checks in constant time.

use std::fmt;

use snow::{Builder, HandshakeState, TransportState};
use transfer_proto::codec::DecodeError;
use transfer_proto::proto::preamble::{self, Flags, Kind, PREAMBLE_BYTES, Preamble, PreambleError};
use transfer_proto::proto::session::{SESSION_HELLO_BYTES, SessionHello};

use super::key::Key;
use super::records::{Records, TAG_BYTES};
use super::seals::Seals;
use crate::error::KeyMissing;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// The same for data connections that are encrypted.
const PATTERN_ENCRYPTED: &str = "Noise_NNpsk0_25519_AESGCM_BLAKE2s";
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
    /// Data connections are encrypted, whatever the peer asks for. Nothing without a key.
    encrypt: bool,
}

impl Terms {
    pub(crate) fn new(key: Option<Key>, encrypt: bool) -> Self {
        let encrypt = encrypt && key.is_some();
        Self { key, encrypt }
    }

    fn flags(&self) -> Flags {
        let key = if self.key.is_some() { Flags::KEY } else { Flags::NONE };
        if self.encrypt { key.union(Flags::ENCRYPT) } else { key }
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
    /// Send the rest. The connection stands; with a key, it has keys of its own.
    Done { send: Vec<u8>, kind: Kind, keys: Option<Keys> },
    /// Send the rest, and end the connection.
    Refused { send: Vec<u8>, why: HandshakeError },
}

impl Step {
    fn refused(why: impl Into<HandshakeError>) -> Self {
        Self::Refused { send: Vec::new(), why: why.into() }
    }
}

/// What the two ends of a connection, and nobody else, have after a handshake with a key.
pub(crate) struct Keys {
    noise: TransportState,
    encrypted: bool,
}

impl Keys {
    /// For a control connection.
    pub(crate) fn records(self) -> Records {
        Records::new(self.noise)
    }

    /// For a data connection; `None` where neither side asked for encryption.
    pub(crate) fn seals(self) -> Option<Seals> {
        self.encrypted.then(|| Seals::new(self.noise))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("encrypted", &self.encrypted).finish_non_exhaustive()
    }
}

/// A handshake that is under way, and what it is for.
struct Proof {
    noise: Box<HandshakeState>,
    encrypted: bool,
}

/// Where either side is.
enum State {
    Preamble,
    Hello,
    Find(SessionHello),
    Challenge,
    Proof(Proof),
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
    /// The acceptor asks for encryption.
    asked: bool,
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
        Self { terms, kind, word, said, asked: false, state: State::Preamble }
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
            State::Proof(mut proof) => match proof.noise.read_message(bytes, &mut []) {
                Ok(_) => Step::Done { send: Vec::new(), kind: self.kind, keys: Some(proof.keys()) },
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
        if theirs.kind != self.kind {
            let error = DecodeError::Invalid { what: "connection kind", value: u64::from(bytes[5]) };
            return Step::refused(PreambleError::Malformed(error));
        }
        if self.terms.key.is_none() {
            return Step::Done { send: Vec::new(), kind: self.kind, keys: None };
        }
        self.asked = theirs.flags.contains(Flags::ENCRYPT);
        self.state = State::Challenge;
        Step::Exchange { send: Vec::new(), want: CHALLENGE_BYTES }
    }

    fn challenged(&mut self) -> Step {
        let Some(key) = &self.terms.key else { return Step::refused(HandshakeError::AuthFailed) };
        let encrypted = self.kind == Kind::Data && (self.terms.encrypt || self.asked);
        let mut proof = Proof::new(key, (&self.said, self.word), true, encrypted);
        let send = proof.say();
        self.state = State::Proof(proof);
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
    /// The opener asks for encryption.
    asked: bool,
    state: State,
}

impl Responding {
    /// `challenge` is random, and never used again.
    pub(crate) fn new(terms: Terms, challenge: [u8; CHALLENGE_BYTES]) -> Self {
        let (kind, said, asked) = (Kind::Control, Vec::new(), false);
        Self { terms, challenge, kind, said, asked, state: State::Preamble }
    }

    /// How many bytes it takes first.
    pub(crate) const FIRST: usize = PREAMBLE_BYTES;

    /// Takes as many bytes as were wanted.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Step {
        self.said.extend_from_slice(bytes);
        match std::mem::replace(&mut self.state, State::Over) {
            State::Preamble => match read_preamble(bytes, &self.terms) {
                Ok(theirs) if theirs.kind == Kind::Control => self.answer(0),
                Ok(theirs) => {
                    (self.kind, self.asked) = (theirs.kind, theirs.flags.contains(Flags::ENCRYPT));
                    self.state = State::Hello;
                    Step::Exchange { send: Vec::new(), want: SESSION_HELLO_BYTES }
                }
                // Our preamble tells the peer whom it met.
                Err(why) => Step::Refused { send: self.own_preamble(), why },
            },
            State::Hello => self.hello(bytes),
            State::Proof(proof) => self.proven(proof, bytes),
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
            return Step::Done { send, kind: self.kind, keys: None };
        };
        send.extend_from_slice(&self.challenge);
        self.said.extend_from_slice(&send);
        let encrypted = self.kind == Kind::Data && (self.terms.encrypt || self.asked);
        self.state = State::Proof(Proof::new(key, (&self.said, word), false, encrypted));
        Step::Exchange { send, want: NOISE_BYTES }
    }

    fn proven(&self, mut proof: Proof, bytes: &[u8]) -> Step {
        if proof.noise.read_message(bytes, &mut []).is_err() {
            // What cannot be an answer tells the peer that its proof did not hold.
            return Step::Refused { send: vec![0; NOISE_BYTES], why: HandshakeError::AuthFailed };
        }
        let send = proof.say();
        Step::Done { send, kind: self.kind, keys: Some(proof.keys()) }
    }
}

fn read_preamble(bytes: &[u8], terms: &Terms) -> Result<Preamble, HandshakeError> {
    let bytes = bytes.try_into().map_err(|_| PreambleError::NotHeadrace)?;
    let theirs = preamble::decode(bytes)?;
    terms.check(theirs.flags)?;
    Ok(theirs)
}

impl Proof {
    /// `over`: what was said, and the word.
    #[expect(
        clippy::expect_used,
        reason = "the pattern is a constant, and every part that it needs is given"
    )]
    fn new(key: &Key, over: (&[u8], u64), opener: bool, encrypted: bool) -> Self {
        let prologue = [over.0, &over.1.to_le_bytes()].concat();
        let pattern = if encrypted { PATTERN_ENCRYPTED } else { PATTERN };
        let builder = Builder::new(pattern.parse().expect("a pattern"));
        let builder = builder.psk(0, key.bytes()).and_then(|builder| builder.prologue(&prologue));
        let built = builder.and_then(|b| if opener { b.build_initiator() } else { b.build_responder() });
        Self { noise: Box::new(built.expect("complete")), encrypted }
    }

    #[expect(
        clippy::expect_used,
        reason = "it is this side's turn, and the system's randomness does not dry up"
    )]
    fn say(&mut self) -> Vec<u8> {
        let mut out = vec![0; NOISE_BYTES];
        self.noise.write_message(&[], &mut out).expect("an ephemeral key and a tag");
        out
    }

    #[expect(clippy::expect_used, reason = "called after the second of two messages")]
    fn keys(self) -> Keys {
        let noise = self.noise.into_transport_mode().expect("the handshake is over");
        Keys { noise, encrypted: self.encrypted }
    }
}

#[cfg(test)]
pub(crate) mod tests;
