//! One data connection: both directions, and the slices that wait for an answer on it.

use std::collections::HashMap;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use transfer_proto::codec::{DecodeError, Reader};
use transfer_proto::desc::DescList;
use transfer_proto::id::{Incarnation, RailId, XferId};
use transfer_proto::proto::data::{DESCS_BYTES_MAX, DataHeader, DataKind, HEADER_BYTES, PAYLOAD_MAX, Status};
use transfer_proto::proto::xfer::SliceError;
use transfer_sys::{OsError, RawRange, copy, socket};

use super::send::{Keeper, OutFrame, SendQueue};
use super::serve::{self, Served};
use crate::backend::shm::advance;
use crate::backend::{Completion, Slice};
use crate::mem::{Pass, RegionCore, RegionTable};
use crate::xfer::{Op, XferCore};

/// Bytes asked for at a time while a header is awaited: enough for a small slice with its payload, little enough
/// not to pull much of a large payload through this buffer.
const HEAD_READ: usize = 8 << 10;
/// A header with the longest descriptor list.
const BUFFER_BYTES: usize = HEADER_BYTES + DESCS_BYTES_MAX as usize;
/// Bytes taken from one connection before the others get their turn.
const TURN_BYTES: usize = 4 << 20;
/// Slices of ours that may wait for an answer on one connection.
const AWAITED_MAX: usize = 64;
/// Answers that may wait to be sent before nothing more is read. A peer that keeps to its own [`AWAITED_MAX`] never
/// comes near, so two agents that serve each other cannot both stop reading; one that does not keep to it, waits.
const ANSWERS_MAX: usize = 4 * AWAITED_MAX;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnError {
    /// The peer closed it.
    #[error("the peer closed it")]
    Closed,
    /// The system says so.
    #[error(transparent)]
    Os(OsError),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
}

/// What a slice of ours waits for.
enum Awaited {
    /// The answer that a write has landed.
    Ack { bytes: u64 },
    /// Data, for these ranges.
    Data { ranges: Vec<RawRange>, bytes: u64, core: Arc<XferCore> },
    /// Something that nobody wants any more.
    Nothing,
}

/// Where incoming bytes go.
enum Inbound {
    /// Into the buffer, until there is a header with its descriptors.
    Head,
    /// Into memory.
    Land { ranges: Vec<RawRange>, at: usize, left: u64, landing: Landing },
    /// Nowhere.
    Sink { left: u64, answer: Option<DataHeader> },
}

/// Whose memory it is.
enum Landing {
    /// A peer writes into our regions.
    Served { answer: DataHeader, _pass: Pass<RegionCore> },
    /// The answer to a read of ours.
    Own { slice: (XferId, u32), bytes: u64, _core: Arc<XferCore> },
}

/// One connection.
pub(super) struct Conn {
    pub(super) peer: Incarnation,
    rail: RailId,
    stream: TcpStream,
    pub(super) out: SendQueue,
    inbound: Inbound,
    buffer: Box<[u8]>,
    /// The part of the buffer that holds bytes.
    held: std::ops::Range<usize>,
    awaited: HashMap<(XferId, u32), Awaited>,
    pub(super) writable_watched: bool,
    pub(super) readable_watched: bool,
}

impl Conn {
    pub(super) fn new(stream: TcpStream, peer: Incarnation, rail: RailId) -> Self {
        Self {
            peer,
            rail,
            stream,
            out: SendQueue::default(),
            inbound: Inbound::Head,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            held: 0..0,
            awaited: HashMap::new(),
            writable_watched: false,
            readable_watched: true,
        }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether enough waits to be sent that no more requests should be taken in.
    pub(super) fn is_congested(&self) -> bool {
        self.out.answers() > ANSWERS_MAX
    }

    /// How many more slices it takes.
    pub(super) fn room(&self) -> usize {
        AWAITED_MAX.saturating_sub(self.awaited.len())
    }

    /// Puts a slice on the wire.
    pub(super) fn submit(&mut self, slice: Slice) -> Result<(), Completion> {
        let core = &slice.core;
        let remote = &core.remote.core.list;
        let mut descs = DescList::new();
        let mut ranges = Vec::with_capacity(slice.pieces.len());
        for piece in &slice.pieces {
            descs.push_span(&remote.descs()[piece.remote.0 as usize], piece.remote.1, piece.len);
            // Pieces are made from the list, so they lie in it.
            let range = core.local.core.range(piece);
            ranges.push(range.ok_or_else(|| slice.failed(SliceError::WrongReply))?);
        }
        let (bytes, id) = (slice.bytes, (slice.xfer, slice.slice));
        let keeper = Keeper::Own { _core: Arc::clone(core) };
        let frame = match core.op {
            Op::Write => {
                self.awaited.insert(id, Awaited::Ack { bytes });
                OutFrame::new(head(DataKind::Write, id, &descs, bytes), ranges, keeper)
            }
            Op::Read => {
                let core = Arc::clone(core);
                self.awaited.insert(id, Awaited::Data { ranges, bytes, core });
                OutFrame::new(head(DataKind::ReadRequest, id, &descs, 0), Vec::new(), keeper)
            }
        };
        self.out.push(frame.for_slice(id.0, id.1));
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), ConnError> {
        self.out.flush(self.stream.as_fd()).map_err(ConnError::Os)
    }

    /// Takes in what has come, up to a turn's worth.
    pub(super) fn receive(
        &mut self,
        regions: &RegionTable,
        done: &mut Vec<Completion>,
    ) -> Result<(), ConnError> {
        let mut turn = TURN_BYTES;
        while turn > 0 && !self.is_congested() {
            let came = match &mut self.inbound {
                Inbound::Head => {
                    if self.parse(regions, done)? {
                        continue;
                    }
                    self.read_head()?
                }
                Inbound::Land { .. } => self.land(done)?,
                Inbound::Sink { .. } => self.sink()?,
            };
            let Some(came) = came else { return Ok(()) };
            turn = turn.saturating_sub(came);
        }
        Ok(())
    }

    /// Reads into the buffer. `None` where nothing has come.
    fn read_head(&mut self) -> Result<Option<usize>, ConnError> {
        if self.held.start > 0 {
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        let missing = self.head_len().saturating_sub(self.held.len()).max(1);
        let end = (self.held.end + missing.max(HEAD_READ)).min(self.buffer.len());
        let came = self.read(self.held.end..end)?;
        self.held.end += came.unwrap_or(0);
        Ok(came)
    }

    /// Bytes of the header and descriptors that come next, as far as is known.
    fn head_len(&self) -> usize {
        let head = &self.buffer[self.held.clone()];
        let descs_len = head.get(4..8).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        HEADER_BYTES + (descs_len.min(DESCS_BYTES_MAX)) as usize
    }

    fn read(&mut self, to: std::ops::Range<usize>) -> Result<Option<usize>, ConnError> {
        match (&self.stream).read(&mut self.buffer[to]) {
            Ok(0) => Err(ConnError::Closed),
            Ok(came) => Ok(Some(came)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(Some(0)),
            Err(e) => Err(ConnError::Os(OsError::from_io("read", "data connection", &e))),
        }
    }

    /// Takes a complete header off the buffer and acts on it. False where there is none.
    fn parse(&mut self, regions: &RegionTable, done: &mut Vec<Completion>) -> Result<bool, ConnError> {
        let held = &self.buffer[self.held.clone()];
        let Some((raw, rest)) = held.split_first_chunk::<HEADER_BYTES>() else { return Ok(false) };
        let header = DataHeader::decode(*raw)?;
        let Some(descs) = rest.get(..header.descs_len as usize) else { return Ok(false) };
        self.held.start += HEADER_BYTES + descs.len();
        match header.kind {
            DataKind::Write | DataKind::ReadRequest => {
                let mut reader = Reader::new(descs);
                let list = DescList::decode(&mut reader)?;
                reader.end()?;
                self.serve(header, &list, regions);
            }
            DataKind::ReadReply => self.replied(header, done)?,
            DataKind::Ack => self.acked(header, done)?,
        }
        Ok(true)
    }

    /// A peer wants something of our regions.
    fn serve(&mut self, header: DataHeader, list: &DescList, regions: &RegionTable) {
        let wanted = if header.kind == DataKind::Write { Some(header.payload_len) } else { None };
        let served = serve::resolve(list, regions, wanted);
        let kind = if wanted.is_some() { DataKind::Ack } else { DataKind::ReadReply };
        let mut answer = DataHeader::new(kind, header.xfer, header.slice);
        match (served, header.kind) {
            (Ok(Served { ranges, bytes, pass }), DataKind::Write) => {
                let landing = Landing::Served { answer, _pass: pass };
                self.inbound = Inbound::Land { ranges, at: 0, left: bytes, landing };
            }
            (Ok(Served { ranges, bytes, pass }), _) => {
                answer.payload_len = bytes;
                self.out.push(OutFrame::new(
                    answer.encode().to_vec(),
                    ranges,
                    Keeper::Served { _pass: pass },
                ));
            }
            (Err(refusal), DataKind::Write) => {
                (answer.status, answer.span) = (refusal.status, refusal.span);
                self.inbound = Inbound::Sink { left: header.payload_len, answer: Some(answer) };
            }
            (Err(refusal), _) => {
                (answer.status, answer.span) = (refusal.status, refusal.span);
                self.out.push(OutFrame::new(answer.encode().to_vec(), Vec::new(), Keeper::None));
            }
        }
    }

    /// A read of ours is answered.
    fn replied(&mut self, header: DataHeader, done: &mut Vec<Completion>) -> Result<(), ConnError> {
        let slice = (header.xfer, header.slice);
        let left = header.payload_len;
        match self.awaited.remove(&slice) {
            Some(Awaited::Data { .. }) if header.status != Status::Ok && left == 0 => {
                done.push(self.completion(slice, Err(refused(header))));
            }
            Some(Awaited::Data { ranges, bytes, core }) if left == bytes && header.status == Status::Ok => {
                let landing = Landing::Own { slice, bytes, _core: core };
                self.inbound = Inbound::Land { ranges, at: 0, left, landing };
            }
            Some(Awaited::Data { .. }) => {
                done.push(self.completion(slice, Err(SliceError::WrongReply)));
                self.inbound = Inbound::Sink { left, answer: None };
            }
            Some(Awaited::Nothing) => self.inbound = Inbound::Sink { left, answer: None },
            Some(Awaited::Ack { .. }) | None => return Err(unasked(header)),
        }
        Ok(())
    }

    /// A write of ours is answered.
    fn acked(&mut self, header: DataHeader, done: &mut Vec<Completion>) -> Result<(), ConnError> {
        let slice = (header.xfer, header.slice);
        match (self.awaited.remove(&slice), header.status) {
            (Some(Awaited::Ack { bytes }), Status::Ok) => done.push(self.completion(slice, Ok(bytes))),
            (Some(Awaited::Ack { .. }), _) => done.push(self.completion(slice, Err(refused(header)))),
            (Some(Awaited::Nothing), _) => {}
            (Some(Awaited::Data { .. }) | None, _) => return Err(unasked(header)),
        }
        Ok(())
    }

    /// Brings payload into memory: what the buffer holds of it, then straight from the socket.
    fn land(&mut self, done: &mut Vec<Completion>) -> Result<Option<usize>, ConnError> {
        let Inbound::Land { ranges, at, left, .. } = &mut self.inbound else { return Ok(Some(0)) };
        let mut came = 0;
        while *left > 0 && !self.held.is_empty() {
            let range = ranges[*at];
            let len = range.len().min(self.held.len());
            let bytes = &self.buffer[self.held.start..self.held.start + len];
            let target = range.sub(0, len).unwrap_or(range);
            #[allow(unsafe_code, reason = "lands bytes in registered memory")]
            // SAFETY: I1. The landing keeps the memory; the ranges were checked against their regions.
            unsafe {
                copy::copy_in(target, bytes);
            }
            self.held.start += len;
            came += len;
            *left -= len as u64;
            *at += advance(&mut ranges[*at..], len);
        }
        if *left > 0 {
            #[allow(unsafe_code, reason = "reads into registered memory")]
            // SAFETY: I1, as above.
            match unsafe { socket::read_ranges(self.stream.as_fd(), &ranges[*at..]) } {
                Ok(0) => return Err(ConnError::Closed),
                Ok(read) => {
                    came += read;
                    *left -= read as u64;
                    *at += advance(&mut ranges[*at..], read);
                }
                Err(error) if error.would_block() => return Ok(None),
                Err(error) => return Err(ConnError::Os(error)),
            }
        }
        if *left == 0 {
            self.landed(done);
        }
        Ok(Some(came))
    }

    fn landed(&mut self, done: &mut Vec<Completion>) {
        let Inbound::Land { landing, .. } = std::mem::replace(&mut self.inbound, Inbound::Head) else {
            return;
        };
        match landing {
            Landing::Served { answer, .. } => {
                self.out.push(OutFrame::new(answer.encode().to_vec(), Vec::new(), Keeper::None));
            }
            Landing::Own { slice, bytes, .. } => done.push(self.completion(slice, Ok(bytes))),
        }
    }

    /// Takes payload that has no place off the connection.
    fn sink(&mut self) -> Result<Option<usize>, ConnError> {
        let Inbound::Sink { left, answer } = &mut self.inbound else { return Ok(Some(0)) };
        let held = usize::try_from(*left).unwrap_or(usize::MAX).min(self.held.len());
        self.held.start += held;
        *left -= held as u64;
        if *left == 0 {
            if let Some(answer) = answer.take() {
                self.out.push(OutFrame::new(answer.encode().to_vec(), Vec::new(), Keeper::None));
            }
            self.inbound = Inbound::Head;
            return Ok(Some(held));
        }
        self.held = 0..0;
        let end = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
        let came = self.read(0..end)?;
        self.held = 0..came.unwrap_or(0);
        Ok(came)
    }

    /// Leaves off with the slices of a transfer. Returns whether one of them is half on the wire, so that only the
    /// end of the connection would stop it.
    pub(super) fn abandon(&mut self, xfer: XferId, done: &mut Vec<Completion>) -> bool {
        let (taken_back, begun) = self.out.take_back(xfer);
        let rail = Some(self.rail);
        let mut end = |(xfer, slice)| {
            done.push(Completion { xfer, slice, rail, result: Err(SliceError::Abandoned) });
        };
        for slice in taken_back {
            self.awaited.remove(&slice);
            end(slice);
        }
        let sending = if begun { self.out.front_slice() } else { None };
        for (slice, awaited) in &mut self.awaited {
            let wanted = slice.0 == xfer && Some(*slice) != sending && !matches!(awaited, Awaited::Nothing);
            if wanted {
                *awaited = Awaited::Nothing;
                end(*slice);
            }
        }
        if let Inbound::Land { landing: Landing::Own { slice, .. }, left, .. } = &self.inbound
            && slice.0 == xfer
        {
            end(*slice);
            self.inbound = Inbound::Sink { left: *left, answer: None };
        }
        begun
    }

    fn completion(&self, (xfer, slice): (XferId, u32), result: Result<u64, SliceError>) -> Completion {
        Completion { xfer, slice, rail: Some(self.rail), result }
    }

    /// The connection is over: so are the slices on it.
    pub(super) fn end(self, done: &mut Vec<Completion>) {
        let rail = Some(self.rail);
        let mut end = |(xfer, slice)| {
            done.push(Completion { xfer, slice, rail, result: Err(SliceError::RailLost) });
        };
        for (slice, awaited) in self.awaited {
            if !matches!(awaited, Awaited::Nothing) {
                end(slice);
            }
        }
        if let Inbound::Land { landing: Landing::Own { slice, .. }, .. } = self.inbound {
            end(slice);
        }
    }
}

fn head(kind: DataKind, (xfer, slice): (XferId, u32), descs: &DescList, payload_len: u64) -> Vec<u8> {
    debug_assert!(payload_len <= PAYLOAD_MAX, "slices are smaller");
    let mut out = vec![0; HEADER_BYTES];
    descs.encode(&mut out);
    let mut header = DataHeader::new(kind, xfer, slice);
    header.descs_len = u32::try_from(out.len() - HEADER_BYTES).unwrap_or(u32::MAX);
    header.payload_len = payload_len;
    out[..HEADER_BYTES].copy_from_slice(&header.encode());
    out
}

fn refused(header: DataHeader) -> SliceError {
    SliceError::Refused { status: header.status, span: header.span }
}

fn unasked(header: DataHeader) -> ConnError {
    let value = header.xfer.to_u64();
    ConnError::Protocol(DecodeError::Invalid { what: "transfer of an answer that nobody asked for", value })
}
