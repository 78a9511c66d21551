//! Plain sockets between the two processes, for the roof of tcp.
//!
//! A burst starts with what is to be done: the direction, how to wait, the bytes of a round, and how many rounds. In a
//! round that writes, the bytes go and one byte comes back; in one that reads, one byte goes and the bytes come back.
#![expect(clippy::disallowed_methods, reason = "owns the clock of its measurement")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use transfer_bench::path::Op;
use transfer_bench::report::Wait;
use transfer_bench::stats::Histogram;

use crate::talk::SECRET_BYTES;

/// Direction and way of waiting, bytes, rounds.
const BURST_BYTES: usize = 1 + 8 + 8;
const READS: u8 = 1;
const POLLS: u8 = 2;
/// The most sockets of one measurement.
pub(crate) const STREAMS_MAX: usize = 64;
/// How long they may take to come, and each to say who it is.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
const SECRET_TIMEOUT: Duration = Duration::from_secs(1);
const ACCEPT_POLL: Duration = Duration::from_millis(1);

/// What is done between two looks at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Burst {
    pub(crate) op: Op,
    pub(crate) wait: Wait,
    /// Bytes of a round, over all sockets.
    pub(crate) bytes: u64,
    pub(crate) rounds: u64,
}

impl Burst {
    fn encode(self) -> [u8; BURST_BYTES] {
        let mut out = [0; BURST_BYTES];
        out[0] =
            if self.op == Op::Read { READS } else { 0 } | if self.wait == Wait::Poll { POLLS } else { 0 };
        out[1..9].copy_from_slice(&self.bytes.to_le_bytes());
        out[9..].copy_from_slice(&self.rounds.to_le_bytes());
        out
    }

    fn decode([flags, rest @ ..]: [u8; BURST_BYTES]) -> Self {
        let word = |at: usize| rest[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        Self {
            op: if flags & READS == 0 { Op::Write } else { Op::Read },
            wait: if flags & POLLS == 0 { Wait::Block } else { Wait::Poll },
            bytes: word(0),
            rounds: word(8),
        }
    }
}

// ---- the target's side

/// Accepts `streams` sockets that know the secret, on a thread of their own each, and serves bursts of at most
/// `bytes_max` bytes a round until they close.
pub(crate) fn listen(ip: IpAddr, streams: usize, secret: [u8; SECRET_BYTES], bytes_max: u64) -> Result<u16> {
    ensure!((1..=STREAMS_MAX).contains(&streams), "{streams} sockets; 1 to {STREAMS_MAX} are served");
    let listener = TcpListener::bind((ip, 0)).context("cannot listen for the bare sockets")?;
    let port = listener.local_addr()?.port();
    listener.set_nonblocking(true)?;
    std::thread::Builder::new().name("raw-listener".to_owned()).spawn(move || {
        let end = Instant::now() + ACCEPT_TIMEOUT;
        let mut accepted = 0;
        while accepted < streams && Instant::now() < end {
            match listener.accept() {
                Ok((stream, _)) => accepted += usize::from(admit(stream, secret, bytes_max).is_ok()),
                Err(_) => std::thread::sleep(ACCEPT_POLL),
            }
        }
    })?;
    Ok(port)
}

fn admit(mut stream: TcpStream, secret: [u8; SECRET_BYTES], bytes_max: u64) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SECRET_TIMEOUT))?;
    let mut shown = [0; SECRET_BYTES];
    stream.read_exact(&mut shown)?;
    ensure!(shown == secret, "somebody else's connection");
    stream.set_read_timeout(None)?;
    std::thread::Builder::new().name("raw".to_owned()).spawn(move || {
        // The other side notices when this one ends.
        let _ended = serve(stream, bytes_max);
    })?;
    Ok(())
}

fn serve(mut stream: TcpStream, bytes_max: u64) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut memory = Vec::new();
    loop {
        let mut burst = [0; BURST_BYTES];
        stream.set_nonblocking(false)?;
        stream.read_exact(&mut burst)?;
        let burst = Burst::decode(burst);
        ensure!(burst.bytes <= bytes_max, "{} bytes in a round", burst.bytes);
        memory.resize(usize::try_from(burst.bytes)?, 1);
        stream.set_nonblocking(burst.wait == Wait::Poll)?;
        for _ in 0..burst.rounds {
            match burst.op {
                Op::Write => {
                    receive(&mut stream, &mut memory)?;
                    send(&mut stream, &[1])?;
                }
                Op::Read => {
                    receive(&mut stream, &mut [0])?;
                    send(&mut stream, &memory)?;
                }
            }
        }
    }
}

// ---- both sides

/// Like `read_exact`, and on a socket that does not block it looks again at once.
fn receive(stream: &mut TcpStream, mut into: &mut [u8]) -> std::io::Result<()> {
    while !into.is_empty() {
        match stream.read(into) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => into = &mut into[n..],
            Err(error) if again(&error) => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Like `write_all`, and on a socket that does not block it tries again at once.
fn send(stream: &mut TcpStream, mut from: &[u8]) -> std::io::Result<()> {
    while !from.is_empty() {
        match stream.write(from) {
            Ok(n) => from = &from[n..],
            Err(error) if again(&error) => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn again(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

// ---- the measuring side

/// One of the sockets, at the side that measures.
pub(crate) struct RawStream {
    stream: TcpStream,
    memory: Vec<u8>,
}

impl RawStream {
    pub(crate) fn connect(address: SocketAddr, secret: [u8; SECRET_BYTES]) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("cannot connect the bare sockets")?;
        stream.set_nodelay(true)?;
        stream.write_all(&secret)?;
        Ok(Self { stream, memory: Vec::new() })
    }

    fn burst(&mut self, burst: Burst, mut each: impl FnMut(Duration)) -> Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.write_all(&burst.encode())?;
        self.stream.set_nonblocking(burst.wait == Wait::Poll)?;
        for _ in 0..burst.rounds {
            let begin = Instant::now();
            match burst.op {
                Op::Write => {
                    send(&mut self.stream, &self.memory)?;
                    receive(&mut self.stream, &mut [0])?;
                }
                Op::Read => {
                    send(&mut self.stream, &[1])?;
                    receive(&mut self.stream, &mut self.memory)?;
                }
            }
            each(begin.elapsed());
        }
        Ok(())
    }
}

/// Moves the bytes over all the streams at once, each its part, and says how long all rounds took. With one stream
/// each round is also recorded, in nanoseconds.
pub(crate) fn burst(streams: &mut [RawStream], burst: Burst, rounds: &mut Histogram) -> Result<Duration> {
    let part = burst.bytes.div_ceil(streams.len().max(1) as u64);
    let alone = streams.len() == 1;
    for stream in &mut *streams {
        stream.memory.resize(usize::try_from(part)?, 1);
    }
    let Some((first, others)) = streams.split_first_mut() else { return Ok(Duration::ZERO) };
    let burst = Burst { bytes: part, ..burst };
    let start = Barrier::new(others.len() + 1);
    std::thread::scope(|scope| {
        let start = &start;
        let run = |stream: &mut RawStream| {
            start.wait();
            stream.burst(burst, |_| ())
        };
        let threads: Vec<_> = others.iter_mut().map(|stream| scope.spawn(move || run(stream))).collect();
        start.wait();
        let begin = Instant::now();
        first.burst(burst, |round| {
            if alone {
                rounds.record(u64::try_from(round.as_nanos()).unwrap_or(u64::MAX));
            }
        })?;
        for thread in threads {
            thread.join().map_err(|_panic| anyhow::anyhow!("a bare socket's thread panicked"))??;
        }
        Ok(begin.elapsed())
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const SECRET: [u8; SECRET_BYTES] = [7; SECRET_BYTES];

    fn burst_of(op: Op, wait: Wait, bytes: u64, rounds: u64) -> Burst {
        Burst { op, wait, bytes, rounds }
    }

    #[test]
    fn bursts_are_read_as_they_are_written() {
        for burst in
            [burst_of(Op::Read, Wait::Poll, 7, 1 << 40), burst_of(Op::Write, Wait::Block, 1 << 33, 3)]
        {
            assert_eq!(Burst::decode(burst.encode()), burst);
        }
    }

    #[test]
    fn both_directions_move_over_several_sockets_and_greed_ends_the_connection() {
        let port = listen(LOOPBACK, 2, SECRET, 100_000).unwrap();
        let connect = || RawStream::connect(SocketAddr::new(LOOPBACK, port), SECRET).unwrap();
        let mut streams = [connect(), connect()];
        let mut rounds = Histogram::default();
        for wait in [Wait::Block, Wait::Poll] {
            for op in Op::ALL {
                let big = burst_of(op, wait, 200_000, 3);
                assert!(burst(&mut streams, big, &mut rounds).unwrap() > Duration::ZERO);
                let small = burst_of(op, wait, 1, 10);
                assert!(burst(&mut streams[..1], small, &mut rounds).unwrap() > Duration::ZERO);
            }
        }
        assert_eq!(rounds.count(), 40, "rounds of one socket alone");
        let greedy = burst_of(Op::Read, Wait::Block, 100_001, 1);
        burst(&mut streams[..1], greedy, &mut rounds).unwrap_err();
    }

    #[test]
    fn a_connection_without_the_secret_is_not_served_and_does_not_count() {
        let port = listen(LOOPBACK, 1, SECRET, 100).unwrap();
        let address = SocketAddr::new(LOOPBACK, port);
        let round = burst_of(Op::Read, Wait::Block, 1, 1);
        let mut wrong = [RawStream::connect(address, [0; SECRET_BYTES]).unwrap()];
        burst(&mut wrong, round, &mut Histogram::default()).unwrap_err();
        let mut right = [RawStream::connect(address, SECRET).unwrap()];
        burst(&mut right, round, &mut Histogram::default()).unwrap();
        assert!(listen(LOOPBACK, STREAMS_MAX + 1, SECRET, 1).is_err());
    }
}
