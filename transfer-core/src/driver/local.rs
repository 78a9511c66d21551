//! The Unix socket between two agents of one host: it passes the files behind regions.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crossbeam_channel::Sender;
use transfer_proto::id::{Incarnation, RegionId};
use transfer_proto::proto::local::{LOCAL_BYTES, LocalMessage};
use transfer_sys::process::Process;
use transfer_sys::{OsError, RawRange, socket};

use crate::error::{Error, Result};
use crate::mem::{RegionCore, RegionTable};

/// Answers that may wait to be sent; a peer that asks without taking them is cut off.
const ANSWERS_MAX: usize = 4096;

/// One such connection.
pub(super) struct LocalConn {
    pub(super) stream: UnixStream,
    pub(super) peer: Incarnation,
    have: Vec<u8>,
    /// The descriptor that came with the message being read.
    file: Option<OwnedFd>,
    /// What waits to be sent, with the region whose file goes with it: a copy of that would want a descriptor.
    out: VecDeque<(LocalMessage, Option<Arc<RegionCore>>)>,
    waiting: VecDeque<(RegionId, Sender<Result<OwnedFd>>)>,
}

impl LocalConn {
    pub(super) fn new(stream: UnixStream, peer: Incarnation) -> Self {
        Self { stream, peer, have: Vec::new(), file: None, out: VecDeque::new(), waiting: VecDeque::new() }
    }

    pub(super) fn say(&mut self, message: LocalMessage) {
        self.out.push_back((message, None));
    }

    /// Asks for the file of a region.
    pub(super) fn map(&mut self, region: RegionId, reply: Sender<Result<OwnedFd>>) {
        self.say(LocalMessage::Map(region));
        self.waiting.push_back((region, reply));
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Takes in what has come. An error ends the connection.
    pub(super) fn receive(&mut self, regions: &RegionTable) -> Result<(), OsError> {
        loop {
            let mut part = [0; LOCAL_BYTES];
            let missing = LOCAL_BYTES - self.have.len();
            let (count, file) = match socket::recv_with_fd(self.stream.as_fd(), &mut part[..missing]) {
                Ok((0, _)) => return Err(broken("the peer closed it")),
                Ok(came) => came,
                Err(error) if error.would_block() => return Ok(()),
                Err(error) => return Err(error),
            };
            self.have.extend_from_slice(&part[..count]);
            self.file = file.or_else(|| self.file.take());
            if let Ok(message) = <[u8; LOCAL_BYTES]>::try_from(self.have.as_slice()) {
                self.have.clear();
                let message = LocalMessage::decode(message).map_err(|e| broken(&e.to_string()))?;
                let file = self.file.take();
                self.handle(message, file, regions)?;
            }
        }
    }

    fn handle(
        &mut self,
        message: LocalMessage,
        file: Option<OwnedFd>,
        regions: &RegionTable,
    ) -> Result<(), OsError> {
        match message {
            LocalMessage::Map(id) => {
                if self.out.len() >= ANSWERS_MAX {
                    return Err(broken("the peer asks and does not take the answers"));
                }
                let region = regions.find(id).filter(|region| region.file().is_some());
                let answer =
                    if region.is_some() { LocalMessage::Mapped(id) } else { LocalMessage::NotMapped(id) };
                self.out.push_back((answer, region));
                Ok(())
            }
            LocalMessage::Mapped(id) => {
                // The kernel drops it where this process has no place for it (unix(7)).
                let file = file.ok_or_else(|| OsError::new("recvmsg", "the file of a region", libc::EMFILE));
                self.answered(id, file.map_err(Error::Os))
            }
            LocalMessage::NotMapped(id) => self.answered(id, Err(Error::RegionClosed { region: id })),
            _ => Err(broken("a greeting in mid-connection")),
        }
    }

    fn answered(&mut self, id: RegionId, answer: Result<OwnedFd>) -> Result<(), OsError> {
        match self.waiting.pop_front() {
            Some((asked, reply)) if asked == id => {
                // Who asked may have stopped waiting.
                let _sent = reply.send(answer);
                Ok(())
            }
            _ => Err(broken("an answer that nobody asked for")),
        }
    }

    /// Sends what waits, as far as it goes.
    pub(super) fn flush(&mut self) -> Result<(), OsError> {
        while let Some((message, region)) = self.out.front() {
            let bytes = message.encode();
            let sent = match region.as_ref().and_then(|region| region.file()) {
                Some(file) => socket::send_with_fd(self.stream.as_fd(), &bytes, file.as_fd()),
                None => send_plain(&self.stream, &bytes),
            };
            match sent {
                // A Unix socket takes so short a message whole or not at all (unix(7): sends are atomic below the
                // buffer's size).
                Ok(LOCAL_BYTES) => drop(self.out.pop_front()),
                Ok(_) => return Err(broken("the kernel took part of a message")),
                Err(error) if error.would_block() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// "Protocol error" (errno(3)).
pub(super) const EPROTO: i32 = 71;

fn broken(how: &str) -> OsError {
    OsError::new("recvmsg", format!("local connection: {how}"), EPROTO)
}

/// Sends bytes without a descriptor.
pub(crate) fn send_plain(stream: &UnixStream, bytes: &[u8]) -> Result<usize, OsError> {
    let range = RawRange::new(bytes.as_ptr().cast_mut(), bytes.len());
    #[allow(unsafe_code, reason = "a borrowed buffer")]
    // SAFETY: S1. `bytes` is borrowed through the call and only read.
    unsafe {
        socket::write_ranges(stream.as_fd(), &[range])
    }
}

/// Whether the kernel lets us at that process's memory, found out by reading what must stand there.
pub(crate) fn probe(process: &Process, address: u64, expected: Incarnation) -> bool {
    let mut found = [0_u8; 16];
    let local = RawRange::new(found.as_mut_ptr(), found.len());
    let Ok(address) = usize::try_from(address) else { return false };
    let remote = RawRange::new(std::ptr::without_provenance_mut(address), found.len());
    #[allow(unsafe_code, reason = "reads another process's memory")]
    // SAFETY: S1. `found` lives through the call; the kernel checks the other side.
    let moved = unsafe { process.read(&[local], &[remote]) };
    moved.is_ok_and(|count| count == found.len()) && Incarnation::from_bytes(found) == expected
}
