use std::net::TcpListener;

use transfer_sys::socket;

use super::*;
use crate::secure::{BadRecord, encrypted_pair};

/// A stream to a listener of this host, and its other end.
fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// Both ends of an encrypted connection that do not block.
fn pair() -> (Sealed, Sealed) {
    let ((a, b), (left, right)) = (connected(), encrypted_pair());
    for stream in [&a, &b] {
        stream.set_nonblocking(true).unwrap();
    }
    (Sealed::new(a, left), Sealed::new(b, right))
}

/// What goes over the wire for these messages, each written at once.
fn recorded(messages: &[&[u8]]) -> (Vec<Vec<u8>>, Sealed, TcpStream) {
    let (left, right) = encrypted_pair();
    let ((a, mut tap), (victim, wire)) = (connected(), connected());
    let mut sender = Sealed::new(a, left);
    let mut records = Vec::new();
    for message in messages {
        assert_eq!(write(&mut sender, &mut message.to_vec(), usize::MAX).unwrap(), message.len());
        let mut len = [0; 2];
        tap.read_exact(&mut len).unwrap();
        let mut body = vec![0; usize::from(u16::from_le_bytes(len))];
        tap.read_exact(&mut body).unwrap();
        records.push([&len[..], &body].concat());
    }
    (records, Sealed::new(victim, right), wire)
}

/// Cuts bytes into ranges of `step`.
fn ranges(bytes: &mut [u8], step: usize) -> Vec<RawRange> {
    bytes.chunks_mut(step.min(1 << 30)).map(|part| RawRange::new(part.as_mut_ptr(), part.len())).collect()
}

#[allow(unsafe_code, reason = "memory of the test")]
fn write(sealed: &mut Sealed, bytes: &mut [u8], step: usize) -> OsResult<usize> {
    let ranges = ranges(bytes, step);
    // SAFETY: S1. The ranges are of a slice that is borrowed through the call.
    unsafe { sealed.write(&ranges) }
}

#[allow(unsafe_code, reason = "memory of the test")]
fn read(sealed: &mut Sealed, bytes: &mut [u8], step: usize) -> Result<Came, ConnError> {
    let ranges = ranges(bytes, step);
    // SAFETY: S1. The ranges are of a slice that is borrowed mutably through the call.
    unsafe { sealed.read(&ranges) }
}

fn message(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29).to_le_bytes()[0]).collect()
}

#[test]
fn a_stream_comes_as_it_was_written_however_it_is_cut_and_however_full_the_way_is() {
    for (out, into, room) in [(1000, 77, None), (PLAIN_MAX, 1 << 20, None), (1 << 20, 33, Some(32 << 10))] {
        let (mut a, mut b) = pair();
        if let Some(bytes) = room {
            for end in [&a, &b] {
                socket::set_buffers(std::os::fd::AsFd::as_fd(end.stream()), bytes).unwrap();
            }
        }
        let sent = message(400_001);
        let mut source = sent.clone();
        let (mut got, mut part) = (Vec::new(), vec![0; 300_000]);
        let (mut at, mut was_full) = (0, false);
        while got.len() < sent.len() {
            match write(&mut a, &mut source[at..], out) {
                Ok(taken) => {
                    // Taken is taken: what happens to the memory then does not matter.
                    source[at..at + taken].fill(0);
                    at += taken;
                }
                Err(error) => {
                    assert!(error.would_block(), "{error}");
                    was_full = true;
                }
            }
            a.flush().unwrap();
            let came = read(&mut b, &mut part, into).unwrap();
            got.extend_from_slice(&part[..came.bytes]);
            assert!(!came.drained || !b.is_holding(), "whoever waits for the socket waits for something");
        }
        assert!(got == sent && at == sent.len() && !a.has_unsent());
        assert!(was_full || room.is_none(), "the way was full");
        drop(a);
        assert!(matches!(read(&mut b, &mut part, into), Err(ConnError::Closed)));
    }
}

#[test]
fn what_is_held_is_told_and_not_waited_for() {
    let (mut a, mut b) = pair();
    let mut sent = message(10_000);
    assert_eq!(write(&mut a, &mut sent, usize::MAX).unwrap(), 10_000);
    let mut head = [0; 32];
    while read(&mut b, &mut head, 32).unwrap().bytes == 0 {}
    assert!(b.is_holding(), "the rest of its record is here");
    assert_eq!(b.due(9_968), 0, "nothing of it is still to come");
    assert_eq!(b.due(20_000), 20_000 - 9_968);
}

#[test]
fn records_that_are_not_the_peers_next_are_told_and_nothing_of_them_lands() {
    type Change = fn(&mut Vec<Vec<u8>>);
    let changes: [(&str, Change, BadRecord); 7] = [
        ("flipped in its text", |r| r[1][50] ^= 1, BadRecord::Tampered { number: 1 }),
        ("flipped in its tag", |r| *r[1].last_mut().unwrap() ^= 0x80, BadRecord::Tampered { number: 1 }),
        ("repeated", |r| r[1] = r[0].clone(), BadRecord::Tampered { number: 1 }),
        ("left out", |r| drop(r.remove(1)), BadRecord::Tampered { number: 1 }),
        ("moved", |r| r.swap(1, 2), BadRecord::Tampered { number: 1 }),
        (
            "without a byte in it",
            |r| r[1] = [&[16, 0][..], &[0; 16]].concat(),
            BadRecord::Tampered { number: 1 },
        ),
        ("cut short", |r| r.truncate(2), BadRecord::Truncated { number: 1 }),
    ];
    for (what, change, wanted) in changes {
        let parts: Vec<_> = (1..=3).map(|n| vec![n; 100]).collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let (mut records, mut victim, mut wire) = recorded(&parts);
        change(&mut records);
        let mut bytes = records.concat();
        if matches!(wanted, BadRecord::Truncated { .. }) {
            bytes.truncate(bytes.len() - 1);
        }
        wire.write_all(&bytes).unwrap();
        drop(wire);
        let mut memory = vec![0xEE; 300];
        let mut landed = 0;
        let error = loop {
            match read(&mut victim, &mut memory[landed..], 7) {
                Ok(came) => landed += came.bytes,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ConnError::Sealed(bad) if bad == wanted), "{what}: {error:?}");
        assert!(memory[..100].iter().all(|byte| [1, 0xEE].contains(byte)), "{what}");
        assert!(memory[100..].iter().all(|byte| *byte == 0xEE), "{what}: something landed");
        assert!(error.to_string().contains("encrypted record 1"), "{error}");
    }
}
