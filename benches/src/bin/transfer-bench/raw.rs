//! Plain sockets between the two processes, for the roof of tcp.
//!
//! A burst starts with what is to be done: the direction, the bytes of a round, and how many rounds. In a round that
//! writes, the bytes go and one byte comes back; in one that reads, one byte goes and the bytes come back.
#![expect(clippy::disallowed_methods, reason = "owns the clock of its measurement")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use transfer_bench::path::Op;

/// Direction, bytes, rounds.
const BURST_BYTES: usize = 1 + 8 + 8;

fn encode(op: Op, bytes: usize, rounds: u64) -> [u8; BURST_BYTES] {
    let mut out = [0; BURST_BYTES];
    out[0] = u8::from(op == Op::Read);
    out[1..9].copy_from_slice(&(bytes as u64).to_le_bytes());
    out[9..].copy_from_slice(&rounds.to_le_bytes());
    out
}

fn decode(bytes: [u8; BURST_BYTES]) -> (Op, u64, u64) {
    let [op, rest @ ..] = bytes;
    let word = |at: usize| rest[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    (if op == 1 { Op::Read } else { Op::Write }, word(0), word(8))
}

/// Serves bursts of at most `bytes_max` bytes a round, on threads of their own, as long as the process lives.
pub(crate) fn listen(bytes_max: u64) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen for the raw sockets")?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("raw-listener".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = move || {
                // The other side notices when this one ends.
                let _ended = serve(stream, bytes_max);
            };
            let _thread = std::thread::Builder::new().name("raw".to_owned()).spawn(serve);
        }
    })?;
    Ok(address)
}

fn serve(mut stream: TcpStream, bytes_max: u64) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut memory = Vec::new();
    loop {
        let mut burst = [0; BURST_BYTES];
        stream.read_exact(&mut burst)?;
        let (op, bytes, rounds) = decode(burst);
        ensure!(bytes <= bytes_max, "{bytes} bytes in a round");
        memory.resize(usize::try_from(bytes)?, 1);
        for _ in 0..rounds {
            match op {
                Op::Write => {
                    stream.read_exact(&mut memory)?;
                    stream.write_all(&[1])?;
                }
                Op::Read => {
                    stream.read_exact(&mut [0])?;
                    stream.write_all(&memory)?;
                }
            }
        }
    }
}

/// One of the sockets, at the side that measures.
pub(crate) struct RawStream {
    stream: TcpStream,
    memory: Vec<u8>,
}

impl RawStream {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).context("cannot connect the raw sockets")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, memory: Vec::new() })
    }

    fn burst(&mut self, op: Op, rounds: u64) -> Result<()> {
        self.stream.write_all(&encode(op, self.memory.len(), rounds))?;
        for _ in 0..rounds {
            match op {
                Op::Write => {
                    self.stream.write_all(&self.memory)?;
                    self.stream.read_exact(&mut [0])?;
                }
                Op::Read => {
                    self.stream.write_all(&[1])?;
                    self.stream.read_exact(&mut self.memory)?;
                }
            }
        }
        Ok(())
    }
}

/// Moves `bytes` over all the streams at once, each its part, `rounds` times, and says how long that took.
pub(crate) fn burst(streams: &mut [RawStream], op: Op, bytes: u64, rounds: u64) -> Result<Duration> {
    let part = usize::try_from(bytes.div_ceil(streams.len() as u64))?;
    for stream in &mut *streams {
        stream.memory.resize(part, 1);
    }
    let Some((first, others)) = streams.split_first_mut() else { return Ok(Duration::ZERO) };
    let start = Barrier::new(others.len() + 1);
    std::thread::scope(|scope| {
        let start = &start;
        let run = |stream: &mut RawStream| {
            start.wait();
            stream.burst(op, rounds)
        };
        let threads: Vec<_> = others.iter_mut().map(|stream| scope.spawn(move || run(stream))).collect();
        start.wait();
        let begin = Instant::now();
        first.burst(op, rounds)?;
        for thread in threads {
            thread.join().map_err(|_panic| anyhow::anyhow!("a raw socket's thread panicked"))??;
        }
        Ok(begin.elapsed())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_are_read_as_they_are_written() {
        for burst in [(Op::Read, 7, 1 << 40), (Op::Write, 1 << 33, 3)] {
            assert_eq!(decode(encode(burst.0, usize::try_from(burst.1).unwrap(), burst.2)), burst);
        }
    }

    #[test]
    fn both_directions_move_over_several_sockets_and_greed_ends_the_connection() {
        let address = listen(100_000).unwrap();
        let connect = || RawStream::connect(address).unwrap();
        let mut streams = [connect(), connect()];
        for op in Op::ALL {
            assert!(burst(&mut streams, op, 200_000, 3).unwrap() > Duration::ZERO);
            assert!(burst(&mut streams[..1], op, 1, 10).unwrap() > Duration::ZERO);
        }
        burst(&mut streams[..1], Op::Read, 100_001, 1).unwrap_err();
    }
}
