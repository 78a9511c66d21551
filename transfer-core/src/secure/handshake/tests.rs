use transfer_proto::id::{Incarnation, RailId};

use super::*;

const WORD: u64 = 0x1122_3344_5566_7788;

/// Keys from here on belong to agents that ask for encryption as well.
const ASKS: u8 = 128;

fn terms(key: u8) -> Terms {
    Terms::new((key > 0).then(|| Key::from_bytes([key % ASKS; 32])), key > ASKS)
}

fn opener(key: u8, kind: Kind) -> Initiating {
    match kind {
        Kind::Control => Initiating::control(terms(key)),
        kind => {
            let hello = SessionHello::new(Incarnation::from_bytes([5; 16]), WORD, RailId::new(1, 0));
            Initiating::further(terms(key), kind, hello)
        }
    }
}

fn acceptor(key: u8) -> Responding {
    Responding::new(terms(key), [9; CHALLENGE_BYTES])
}

/// How a side ended.
type End = Result<Option<Keys>, HandshakeError>;

fn end(step: Step) -> Option<End> {
    match step {
        Step::Done { keys, .. } => Some(Ok(keys)),
        Step::Refused { why, .. } => Some(Err(why)),
        _ => None,
    }
}

/// Bytes of one direction on their way, and how many of them the taker wants next.
struct Way {
    sent: Vec<u8>,
    taken: usize,
    want: usize,
}

impl Way {
    fn next(&mut self) -> Option<Vec<u8>> {
        let next = self.sent.get(self.taken..self.taken + self.want)?.to_vec();
        self.taken += self.want;
        Some(next)
    }
}

/// What became of a handshake: both ends, where they came to one, and all that was sent in each direction.
struct Outcome {
    opener: Option<End>,
    acceptor: Option<End>,
    sent: [Vec<u8>; 2],
}

/// Runs two sides against each other. `change` sees what is sent, with the direction (0 from the opener) and how
/// many bytes went there before. A side whose peer has ended gets no more bytes, as on a connection that was closed.
fn run(
    mut a: Initiating,
    mut b: Responding,
    word: Option<u64>,
    change: impl Fn(usize, usize, &mut [u8]),
) -> Outcome {
    let mut to_b = Way { sent: Vec::new(), taken: 0, want: Responding::FIRST };
    let mut to_a = Way { sent: Vec::new(), taken: 0, want: 0 };
    let (mut end_a, mut end_b) = (None, None);
    let put = |direction: usize, own: &mut Way, other: &mut Way, step: Step| {
        let (send, want) = match step {
            Step::Exchange { ref send, want } => (send.clone(), want),
            Step::Done { ref send, .. } | Step::Refused { ref send, .. } => (send.clone(), 0),
            Step::Find(_) => unreachable!("answered at once"),
        };
        let at = other.sent.len();
        other.sent.extend_from_slice(&send);
        change(direction, at, &mut other.sent[at..]);
        own.want = want;
        end(step)
    };
    put(0, &mut to_a, &mut to_b, a.start());
    loop {
        let mut moved = false;
        while let Some(bytes) = to_b.next().filter(|_| end_b.is_none()) {
            let mut step = b.take(&bytes);
            if let Step::Find(_) = step {
                step = b.found(word);
            }
            end_b = put(1, &mut to_b, &mut to_a, step);
            moved = true;
        }
        while let Some(bytes) = to_a.next().filter(|_| end_a.is_none()) {
            end_a = put(0, &mut to_a, &mut to_b, a.take(&bytes));
            moved = true;
        }
        if !moved {
            return Outcome { opener: end_a, acceptor: end_b, sent: [to_b.sent, to_a.sent] };
        }
    }
}

fn unchanged(_: usize, _: usize, _: &mut [u8]) {}

/// Both ends of a connection that stands.
pub(in crate::secure) fn sealed_pair() -> (Records, Records) {
    let outcome = run(opener(1, Kind::Control), acceptor(1), None, unchanged);
    let [Some(Ok(Some(a))), Some(Ok(Some(b)))] = [outcome.opener, outcome.acceptor] else {
        panic!("both stand")
    };
    (a.records(), b.records())
}

/// Both ends of a data connection that is encrypted.
pub(crate) fn encrypted_pair() -> (Seals, Seals) {
    let outcome = run(opener(1, Kind::Data), acceptor(ASKS + 1), Some(WORD), unchanged);
    let [Some(Ok(Some(a))), Some(Ok(Some(b)))] = [outcome.opener, outcome.acceptor] else {
        panic!("both stand")
    };
    (a.seals().expect("encrypted"), b.seals().expect("encrypted"))
}

const KINDS: [Kind; 3] = [Kind::Control, Kind::Local, Kind::Data];

#[test]
fn both_sides_stand_with_the_same_key_or_with_none() {
    for kind in KINDS {
        for key in [0, 1] {
            let outcome = run(opener(key, kind), acceptor(key), Some(WORD), unchanged);
            for end in [outcome.opener, outcome.acceptor] {
                let keys = end.expect("an end").expect("a good one");
                assert_eq!(keys.is_some(), key > 0, "sealed with a key, and only then");
            }
            if key > 0 {
                let shown = outcome.sent.concat();
                assert!(!shown.windows(8).any(|w| w == WORD.to_le_bytes()), "the word is never shown");
            }
        }
    }
}

#[test]
fn data_is_encrypted_where_either_side_asks_for_it() {
    for kind in KINDS {
        for (ours, theirs) in [(1, 1), (1, ASKS + 1), (ASKS + 1, 1), (ASKS + 1, ASKS + 1)] {
            let outcome = run(opener(ours, kind), acceptor(theirs), Some(WORD), unchanged);
            let asked = ours > ASKS || theirs > ASKS;
            for end in [outcome.opener, outcome.acceptor] {
                let keys = end.expect("an end").expect("a good one").expect("keys");
                let encrypted = keys.seals().is_some();
                assert_eq!(encrypted, asked && kind == Kind::Data, "{kind:?}: {ours}, {theirs}");
            }
        }
    }
    assert!(!Terms::new(None, true).flags().contains(Flags::ENCRYPT), "nobody asks for it without a key");
}

#[test]
fn nobody_on_the_way_takes_a_wish_for_encryption_away_or_adds_one() {
    for (ours, theirs) in [(1, 1), (1, ASKS + 1), (ASKS + 1, 1), (ASKS + 1, ASKS + 1)] {
        for direction in [0, 1] {
            let change = |to: usize, sent: usize, bytes: &mut [u8]| {
                if to == direction && sent == 0 && !bytes.is_empty() {
                    bytes[7] ^= 2;
                }
            };
            let outcome = run(opener(ours, Kind::Data), acceptor(theirs), Some(WORD), change);
            let told = [outcome.opener, outcome.acceptor].map(|end| end.and_then(Result::err));
            assert!(told.contains(&Some(HandshakeError::AuthFailed)), "{ours}, {theirs}: {told:?}");
            assert!(told.iter().all(Option::is_some), "neither stands");
        }
    }
}

#[test]
fn a_key_on_one_side_only_is_told_to_both() {
    let required = |missing| Some(HandshakeError::AuthRequired(missing));
    let outcome = run(opener(1, Kind::Control), acceptor(0), None, unchanged);
    assert_eq!(outcome.opener.unwrap().err(), required(KeyMissing::There));
    assert_eq!(outcome.acceptor.unwrap().err(), required(KeyMissing::Here));
    let outcome = run(opener(0, Kind::Control), acceptor(1), None, unchanged);
    assert_eq!(outcome.opener.unwrap().err(), required(KeyMissing::Here));
    assert_eq!(outcome.acceptor.unwrap().err(), required(KeyMissing::There));
}

#[test]
fn another_key_is_told_to_both() {
    for kind in KINDS {
        let outcome = run(opener(1, kind), acceptor(2), Some(WORD), unchanged);
        assert_eq!(outcome.opener.unwrap().err(), Some(HandshakeError::AuthFailed));
        assert_eq!(outcome.acceptor.unwrap().err(), Some(HandshakeError::AuthFailed));
    }
}

#[test]
fn a_connection_of_no_session_is_refused() {
    for kind in [Kind::Local, Kind::Data] {
        for key in [0, 1] {
            let outcome = run(opener(key, kind), acceptor(key), None, unchanged);
            assert_eq!(outcome.acceptor.unwrap().err(), Some(HandshakeError::NoSession));
            assert!(outcome.opener.is_none(), "it was not answered");
            let outcome = run(opener(key, kind), acceptor(key), Some(WORD + 1), unchanged);
            let why = outcome.acceptor.unwrap().err();
            let expected = if key > 0 { HandshakeError::AuthFailed } else { HandshakeError::NoSession };
            assert_eq!(why, Some(expected), "the wrong word");
        }
    }
}

#[test]
fn a_flipped_bit_in_any_message_leaves_no_connection() {
    for (kind, key) in KINDS.map(|kind| (kind, 1)).into_iter().chain([(Kind::Data, ASKS + 1)]) {
        let whole = run(opener(key, kind), acceptor(1), Some(WORD), unchanged).sent;
        for direction in [0, 1] {
            for flipped in 0..whole[direction].len() * 8 {
                let (at, bit) = (flipped / 8, flipped % 8);
                let flip = |to: usize, sent: usize, bytes: &mut [u8]| {
                    if to == direction && (sent..sent + bytes.len()).contains(&at) {
                        bytes[at - sent] ^= 1 << bit;
                    }
                };
                let outcome = run(opener(key, kind), acceptor(1), Some(WORD), flip);
                // The session is found by what is in the clear, which the proof then covers.
                let opener = outcome.opener.is_some_and(|end| end.is_ok());
                assert!(!opener, "{kind:?}: direction {direction}, byte {at}, bit {bit}");
                // The last message is the acceptor's: what it takes for standing, nobody talks to.
                let acceptor = outcome.acceptor.is_some_and(|end| end.is_ok());
                let last = direction == 1 && at >= whole[1].len() - NOISE_BYTES;
                assert!(!acceptor || last, "{kind:?}: direction {direction}, byte {at}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_message_cut_short_leaves_both_sides_waiting() {
    let whole = run(opener(1, Kind::Data), acceptor(1), Some(WORD), unchanged).sent;
    let mut b = acceptor(1);
    let (mut at, mut want) = (0, Responding::FIRST);
    while at + want < whole[0].len() {
        let mut step = b.take(&whole[0][at..at + want]);
        at += want;
        if let Step::Find(_) = step {
            step = b.found(Some(WORD));
        }
        let Step::Exchange { want: next, .. } = step else { panic!("{step:?} after {at} bytes") };
        assert!(next > 0 && next <= NOISE_BYTES, "it holds no more than one message");
        want = next;
    }
    assert_eq!(at + want, whole[0].len());
}

#[test]
fn a_recorded_handshake_does_not_open_a_second_time() {
    for kind in KINDS {
        let recorded = run(opener(1, kind), acceptor(1), Some(WORD), unchanged).sent;
        let mut b = Responding::new(terms(1), [10; CHALLENGE_BYTES]);
        let (mut rest, mut want) = (recorded[0].as_slice(), Responding::FIRST);
        let why = loop {
            let (bytes, later) = rest.split_at(want);
            rest = later;
            let mut step = b.take(bytes);
            if let Step::Find(_) = step {
                step = b.found(Some(WORD));
            }
            match step {
                Step::Exchange { want: next, .. } => want = next,
                Step::Refused { why, .. } => break why,
                step => panic!("{step:?}"),
            }
        };
        assert_eq!(why, HandshakeError::AuthFailed, "{kind:?}");
        // Nor do the acceptor's answers, to an opener with an ephemeral key of its own.
        let mut a = opener(1, kind);
        let (mut rest, mut step) = (recorded[1].as_slice(), a.start());
        while let Step::Exchange { want, .. } = step {
            let (bytes, later) = rest.split_at(want);
            rest = later;
            step = a.take(bytes);
        }
        assert_eq!(end(step).unwrap().err(), Some(HandshakeError::AuthFailed), "{kind:?}");
    }
}

#[test]
fn versions_above_and_below_are_told_to_both() {
    for (highest, lowest) in [(1, 0), (1, 1), (9, 5)] {
        let other_version = |to: usize, sent: usize, bytes: &mut [u8]| {
            if to == 1 && sent == 0 && !bytes.is_empty() {
                (bytes[4], bytes[6]) = (highest, lowest);
            }
        };
        let outcome = run(opener(1, Kind::Control), acceptor(1), None, other_version);
        let why = outcome.opener.unwrap().err();
        assert!(matches!(why, Some(HandshakeError::Preamble(PreambleError::Version { .. }))), "{why:?}");
        let mut theirs = preamble::encode(Kind::Control, Flags::KEY);
        (theirs[4], theirs[6]) = (highest, lowest);
        let Step::Refused { send, why } = acceptor(1).take(&theirs) else { panic!("refused") };
        assert!(matches!(why, HandshakeError::Preamble(PreambleError::Version { .. })), "{why:?}");
        assert_eq!(send, preamble::encode(Kind::Control, Flags::KEY), "so that they see whom they met");
    }
}

#[test]
fn an_acceptor_that_answers_for_another_kind_is_refused() {
    let mut a = opener(0, Kind::Data);
    let answer = preamble::encode(Kind::Local, Flags::NONE);
    let Step::Refused { why, .. } = a.take(&answer) else { panic!("refused") };
    assert!(why.to_string().contains("connection kind"), "{why}");
}
