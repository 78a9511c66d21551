//! The beginning of a connection, with somebody on the way who changes, adds and takes away what he likes.

use std::collections::VecDeque;

use transfer_core::fuzzing::{Acceptor, Opener, Said, Sealed, Standing, WORD};
use transfer_proto::proto::preamble::Kind;

use crate::steps::Steps;

/// Length of the longest message: an ephemeral key and a tag.
const WANT_MAX: usize = 48;
/// More than either side ever says.
const SAID_MAX: usize = 256;

/// One direction.
#[derive(Default)]
struct Way {
    /// What its sender said.
    said: Vec<u8>,
    /// What is on the way to its taker, and what that took.
    coming: VecDeque<u8>,
    taken: Vec<u8>,
    /// How much the taker wants next; nothing after its end.
    want: usize,
}

impl Way {
    /// What the taker wants, once it has come.
    fn next(&mut self) -> Option<Vec<u8>> {
        if self.want == 0 || self.coming.len() < self.want {
            return None;
        }
        let next: Vec<u8> = self.coming.drain(..self.want).collect();
        self.taken.extend_from_slice(&next);
        Some(next)
    }
}

/// How a side ended: with what a connection that stands has, or refused.
type End = Option<Result<Option<Standing>, ()>>;

/// Both sides and both ways: 0 is the opener and the way to it.
struct Meeting {
    opener: Opener,
    acceptor: Acceptor,
    keys: [Option<u8>; 2],
    kind: Kind,
    word: Option<u64>,
    ways: [Way; 2],
    ends: [End; 2],
}

impl Meeting {
    fn new(kind: Kind, keys: [Option<u8>; 2], encrypt: [bool; 2], word: Option<u64>) -> Self {
        let opener = Opener::new(keys[0], encrypt[0], kind);
        let acceptor = Acceptor::new(keys[1], encrypt[1]);
        let ways = [Way::default(), Way { want: Acceptor::FIRST, ..Way::default() }];
        Self { opener, acceptor, keys, kind, word, ways, ends: [None, None] }
    }

    /// What one side says goes on its way to the other, changed by `meddle`.
    fn says(&mut self, side: usize, said: Said, meddle: &mut impl FnMut(Vec<u8>) -> Vec<u8>) {
        let (send, want, end) = match said {
            Said::Exchange(send, want) => {
                assert!((1..=WANT_MAX).contains(&want), "it wants {want} bytes");
                (send, want, None)
            }
            Said::Find => {
                let said = self.acceptor.found(self.word);
                assert!(!matches!(said, Said::Find), "it asks twice");
                return self.says(side, said, meddle);
            }
            Said::Done(send, sealed) => (send, 0, Some(Ok(sealed))),
            Said::Refused(send) => (send, 0, Some(Err(()))),
        };
        if let Some(Ok(sealed)) = &end {
            self.stands(side, sealed.is_some());
        }
        self.ways[side].want = want;
        self.ends[side] = end;
        let other = &mut self.ways[1 - side];
        other.said.extend_from_slice(&send);
        assert!(other.said.len() <= SAID_MAX, "it says {} bytes", other.said.len());
        other.coming.extend(meddle(send));
    }

    /// A side with a key takes a connection for standing only if the other has the same key, and each byte of both arrived
    /// as it was said.
    fn stands(&self, side: usize, sealed: bool) {
        assert_eq!(sealed, self.keys[side].is_some(), "sealed with a key, and only then");
        if !sealed {
            return;
        }
        assert_eq!(self.keys[0], self.keys[1], "it does not have the key");
        assert!(self.kind == Kind::Control || self.word == Some(WORD), "it does not know the word");
        for way in &self.ways {
            assert_eq!(way.taken, way.said, "it was changed on the way");
        }
    }

    /// Until nobody has anything to take.
    fn go_on(&mut self, meddle: &mut impl FnMut(Vec<u8>) -> Vec<u8>) {
        loop {
            if let Some(bytes) = self.ways[1].next() {
                let said = self.acceptor.take(&bytes);
                self.says(1, said, meddle);
            } else if let Some(bytes) = self.ways[0].next() {
                let said = self.opener.take(&bytes);
                self.says(0, said, meddle);
            } else {
                return;
            }
        }
    }

    fn start(&mut self, meddle: &mut impl FnMut(Vec<u8>) -> Vec<u8>) {
        let said = self.opener.start();
        self.says(0, said, meddle);
    }
}

/// Both ends of a control connection with a key, or of a data connection that is encrypted.
pub(crate) fn sealed_pair(kind: Kind) -> (Sealed, Sealed) {
    let mut meeting = Meeting::new(kind, [Some(1), Some(1)], [true, false], Some(WORD));
    let mut pass = |said| said;
    meeting.start(&mut pass);
    meeting.go_on(&mut pass);
    let [Some(Ok(Some(opener))), Some(Ok(Some(acceptor)))] = meeting.ends else {
        panic!("nobody was on the way")
    };
    match kind {
        Kind::Data => (opener.data().expect("encrypted"), acceptor.data().expect("encrypted")),
        _ => (opener.control(), acceptor.control()),
    }
}

/// What happens to a message on its way.
fn meddle(steps: &mut Steps<'_>, mut message: Vec<u8>) -> Vec<u8> {
    let at = |steps: &mut Steps<'_>, len: usize| usize::from(steps.byte()) % len.max(1);
    match steps.byte() % 8 {
        0..=2 => {}
        3 => {
            let (at, flip) = (at(steps, message.len()), steps.byte());
            if let Some(byte) = message.get_mut(at) {
                *byte ^= flip;
            }
        }
        4 => {
            let len = usize::from(steps.byte());
            message = steps.bytes(len).to_vec();
        }
        5 => {
            let (at, len) = (at(steps, message.len()), usize::from(steps.byte()));
            message.splice(at..at, steps.bytes(len).iter().copied());
        }
        6 => message.truncate(at(steps, message.len())),
        _ => message.extend_from_within(..),
    }
    message
}

/// The first two bytes say who meets whom; then come what happens to each message, and what else is put on the ways.
pub fn check(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let kind = [Kind::Control, Kind::Local, Kind::Data][usize::from(steps.byte() % 3)];
    let how = steps.byte();
    let key = |bits: u8| [None, Some(1), Some(1), Some(2)][usize::from(bits % 4)];
    let word = match how >> 6 {
        0 | 1 => Some(WORD),
        2 => Some(WORD + 1),
        _ => None,
    };
    let encrypt = [how & 16 != 0, how & 32 != 0];
    let mut meeting = Meeting::new(kind, [key(how), key(how >> 2)], encrypt, word);
    meeting.start(&mut |said| meddle(&mut steps, said));
    meeting.go_on(&mut |said| meddle(&mut steps, said));
    while let Some(step) = steps.next_step() {
        let len = usize::from(steps.byte());
        meeting.ways[usize::from(step % 2)].coming.extend(steps.bytes(len));
        meeting.go_on(&mut |said| meddle(&mut steps, said));
    }
    let [Some(Ok(Some(opener))), Some(Ok(Some(acceptor)))] = meeting.ends else { return };
    let encrypted = kind == Kind::Data && (encrypt[0] || encrypt[1]);
    let ends = match kind {
        Kind::Data => opener.data().zip(acceptor.data()),
        _ => Some((opener.control(), acceptor.control())),
    };
    assert_eq!(
        ends.is_some(),
        encrypted || kind != Kind::Data,
        "encrypted where either asks for it, and only then"
    );
    if let Some((mut opener, mut acceptor)) = ends {
        let (mut wire, mut got) = (vec![], vec![]);
        opener.seal(b"first", &mut wire);
        assert!(acceptor.open(&wire, &mut got) && got == b"first", "they do not understand each other");
    }
}
