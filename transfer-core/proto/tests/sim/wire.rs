//! A data connection of an agent, as its backend has it: the real headers, descriptors and checks, over simulated
//! sockets and memory.

use std::collections::{BTreeMap, VecDeque};

use transfer_proto::codec::Reader;
use transfer_proto::desc::DescList;
use transfer_proto::id::{RailId, RegionId, XferId};
use transfer_proto::plan::Piece;
use transfer_proto::proto::data::{DataHeader, DataKind, HEADER_BYTES, Status};
use transfer_proto::proto::serve::{self, Refusal};
use transfer_proto::proto::xfer::SliceError;

use crate::memory::{BLOCK, BlockId, Life, Op};
use crate::net::{Came, ConnId};
use crate::world::Outside;

/// Bytes of a region.
type Run = (RegionId, usize, usize);
/// A posting: the transfer, and the number of the posting.
pub(crate) type PostId = (XferId, u32);

/// What came of a posting.
#[derive(Clone)]
pub(crate) struct Completion {
    pub(crate) id: PostId,
    /// What carried it, and how many bytes it has.
    pub(crate) rail: Option<(RailId, u64)>,
    pub(crate) result: Result<u64, SliceError>,
}

/// A slice to be moved.
pub(crate) struct Slice {
    pub(crate) id: PostId,
    pub(crate) op: Op,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) bytes: u64,
}

/// A header with descriptors, and the payload behind it, which stays in memory until it is sent.
struct OutFrame {
    head: Vec<u8>,
    runs: Vec<Run>,
    sent: usize,
    /// Whose transfer it is for.
    whose: (Life, XferId),
    /// Which of our own postings it is.
    own: Option<PostId>,
}

enum Awaited {
    Ack {
        bytes: u64,
    },
    Data {
        runs: Vec<Run>,
        bytes: u64,
    },
    /// Something that nobody wants any more.
    Nothing {
        bytes: u64,
    },
}

enum Landing {
    Served(DataHeader),
    Own(PostId, u64),
}

enum Inbound {
    Head,
    Land { runs: Vec<Run>, done: usize, whose: (Life, XferId), landing: Landing },
    Sink { left: usize, answer: Option<DataHeader> },
}

/// How a turn with a connection ended.
pub(crate) enum Turn {
    Idle,
    /// There may be more.
    Moved,
    Broken,
}

pub(crate) struct DataConn {
    pub(crate) net: ConnId,
    pub(crate) end: usize,
    pub(crate) rail: RailId,
    me: Life,
    peer: Life,
    out: VecDeque<OutFrame>,
    inbound: Inbound,
    held: Vec<u8>,
    awaited: BTreeMap<PostId, Awaited>,
    /// Bytes of slices that the rail carries no more, without having completed them.
    pub(crate) taken_back: Vec<u64>,
}

/// The part of some runs between two positions.
fn part(runs: &[Run], from: usize, max: usize) -> Option<Run> {
    let mut skipped = 0;
    for (id, offset, len) in runs {
        if from < skipped + len {
            let at = from - skipped;
            return Some((*id, offset + at, (len - at).min(max)));
        }
        skipped += len;
    }
    None
}

fn total(runs: &[Run]) -> usize {
    runs.iter().map(|(_, _, len)| len).sum()
}

fn run(list: &DescList, (desc, offset): (u32, u64), len: u64) -> Run {
    let region = list.descs()[desc as usize].region();
    (region, usize::try_from(offset).unwrap(), usize::try_from(len).unwrap())
}

impl DataConn {
    pub(crate) fn new((net, end): (ConnId, usize), rail: RailId, (me, peer): (Life, Life)) -> Self {
        let (out, inbound, awaited, taken_back) =
            (VecDeque::new(), Inbound::Head, BTreeMap::new(), Vec::new());
        Self { net, end, rail, me, peer, out, inbound, held: Vec::new(), awaited, taken_back }
    }

    /// Puts a slice on the wire.
    pub(crate) fn submit(&mut self, slice: Slice, local: &DescList, remote: &DescList) {
        let mut descs = DescList::new();
        for piece in &slice.pieces {
            descs.push_span(&remote.descs()[piece.remote.0 as usize], piece.remote.1, piece.len);
        }
        let runs: Vec<_> = slice.pieces.iter().map(|piece| run(local, piece.local, piece.len)).collect();
        let (xfer, number) = slice.id;
        let (kind, awaited, payload) = match slice.op {
            Op::Write => (DataKind::Write, Awaited::Ack { bytes: slice.bytes }, runs),
            Op::Read => (DataKind::ReadRequest, Awaited::Data { runs, bytes: slice.bytes }, Vec::new()),
        };
        let mut head = vec![0; HEADER_BYTES];
        descs.encode(&mut head);
        let mut header = DataHeader::new(kind, xfer, number);
        header.descs_len = u32::try_from(head.len() - HEADER_BYTES).unwrap();
        header.payload_len = total(&payload) as u64;
        head[..HEADER_BYTES].copy_from_slice(&header.encode());
        self.awaited.insert(slice.id, awaited);
        let own = Some(slice.id);
        self.out.push_back(OutFrame { head, runs: payload, sent: 0, whose: (self.me, xfer), own });
    }

    fn answer(&mut self, header: DataHeader, runs: Vec<Run>) {
        let whose = (self.peer, header.xfer);
        self.out.push_back(OutFrame { head: header.encode().to_vec(), runs, sent: 0, whose, own: None });
    }

    /// Sends what the connection takes.
    pub(crate) fn flush(&mut self, outside: &mut Outside) -> Turn {
        while let Some(frame) = self.out.front_mut() {
            let bytes = match part(&frame.runs, frame.sent.saturating_sub(frame.head.len()), 1000) {
                _ if frame.sent < frame.head.len() => frame.head[frame.sent..].to_vec(),
                Some((id, offset, len)) => {
                    let read = outside.memory.read((self.me, id, offset), len, frame.whose);
                    let Some(bytes) = outside.judge(read) else { return Turn::Broken };
                    bytes
                }
                None => {
                    self.out.pop_front();
                    continue;
                }
            };
            match outside.send(self.net, self.end, &bytes) {
                None => return Turn::Broken,
                Some(0) => return Turn::Idle,
                Some(taken) => frame.sent += taken,
            }
        }
        Turn::Idle
    }

    /// Takes in what has come, up to a turn's worth.
    pub(crate) fn receive(&mut self, max: usize, outside: &mut Outside, done: &mut Vec<Completion>) -> Turn {
        match outside.receive(self.net, self.end, max) {
            Came::Nothing => return Turn::Idle,
            Came::End => return Turn::Broken,
            Came::Bytes(bytes) => self.held.extend(bytes),
        }
        self.take_in(outside, done)
    }

    /// Goes through what was received.
    pub(crate) fn take_in(&mut self, outside: &mut Outside, done: &mut Vec<Completion>) -> Turn {
        loop {
            let went_on = match &mut self.inbound {
                Inbound::Head => self.parse(outside, done),
                Inbound::Land { .. } => self.land(outside, done),
                Inbound::Sink { left, answer } => {
                    let came = self.held.len().min(*left);
                    self.held.drain(..came);
                    *left -= came;
                    if *left == 0 {
                        let answer = answer.take();
                        self.inbound = Inbound::Head;
                        answer.into_iter().for_each(|answer| self.answer(answer, Vec::new()));
                        continue;
                    }
                    Some(false)
                }
            };
            match went_on {
                None => return Turn::Broken,
                Some(false) => return Turn::Moved,
                Some(true) => {}
            }
        }
    }

    /// A complete header, if there is one. `None` where the peer broke the protocol.
    fn parse(&mut self, outside: &mut Outside, done: &mut Vec<Completion>) -> Option<bool> {
        let Some((raw, rest)) = self.held.split_first_chunk::<HEADER_BYTES>() else { return Some(false) };
        let header = outside.judge(DataHeader::decode(*raw).map_err(|error| error.to_string()))?;
        let Some(descs) = rest.get(..header.descs_len as usize) else { return Some(false) };
        let list = DescList::decode(&mut Reader::new(descs));
        self.held.drain(..HEADER_BYTES + header.descs_len as usize);
        match header.kind {
            DataKind::Write | DataKind::ReadRequest => {
                let list = outside.judge(list.map_err(|error| error.to_string()))?;
                self.serve(header, &list, outside);
            }
            DataKind::ReadReply | DataKind::Ack => self.answered(header, outside, done)?,
            // Targets here send at once, so nothing is revoked meanwhile and nobody waits for a verdict.
            DataKind::Verdict => return outside.judge(Err("a verdict on nothing".to_owned())),
        }
        Some(true)
    }

    fn admit(&self, list: &DescList, payload: Option<u64>, outside: &Outside) -> Result<Vec<Run>, Refusal> {
        serve::check(list, payload, |id| outside.memory.region_len(self.me, id))?;
        (0..list.count())
            .map(|index| {
                let span = list.span(index).unwrap();
                let desc = &list.descs()[span.desc as usize];
                let bytes = (span.offset, span.len);
                if !outside.memory.admits(self.me, desc.region(), desc.generation(), bytes) {
                    return Err(Refusal::new(Status::Stale, u32::try_from(index).unwrap()));
                }
                Ok(run(list, (span.desc, span.offset), span.len))
            })
            .collect()
    }

    fn serve(&mut self, header: DataHeader, list: &DescList, outside: &mut Outside) {
        let is_write = header.kind == DataKind::Write;
        let admitted = self.admit(list, is_write.then_some(header.payload_len), outside);
        let kind = if is_write { DataKind::Ack } else { DataKind::ReadReply };
        let mut answer = DataHeader::new(kind, header.xfer, header.slice);
        match admitted {
            Ok(runs) if is_write => {
                let (whose, landing) = ((self.peer, header.xfer), Landing::Served(answer));
                self.inbound = Inbound::Land { runs, done: 0, whose, landing };
            }
            Ok(runs) => {
                answer.payload_len = total(&runs) as u64;
                self.answer(answer, runs);
            }
            Err(refusal) => {
                (answer.status, answer.span) = (refusal.status, refusal.span);
                let left = usize::try_from(header.payload_len).unwrap();
                self.inbound = Inbound::Sink { left, answer: Some(answer) };
            }
        }
    }

    fn answered(
        &mut self,
        header: DataHeader,
        outside: &mut Outside,
        done: &mut Vec<Completion>,
    ) -> Option<()> {
        let id = (header.xfer, header.slice);
        let left = usize::try_from(header.payload_len).unwrap();
        let awaited = outside
            .judge(self.awaited.remove(&id).ok_or_else(|| "an answer that nobody asked for".to_owned()))?;
        let refused = Err(SliceError::Refused { status: header.status, span: header.span });
        match awaited {
            Awaited::Ack { bytes } => {
                let rail = Some((self.rail, bytes));
                let result = if header.status == Status::Ok { Ok(bytes) } else { refused };
                done.push(Completion { id, rail, result });
            }
            Awaited::Data { bytes, .. } if header.status != Status::Ok => {
                done.push(Completion { id, rail: Some((self.rail, bytes)), result: refused });
            }
            Awaited::Data { runs, bytes } => {
                let (whose, landing) = ((self.me, id.0), Landing::Own(id, bytes));
                self.inbound = Inbound::Land { runs, done: 0, whose, landing };
            }
            Awaited::Nothing { bytes } => {
                self.taken_back.push(bytes);
                self.inbound = Inbound::Sink { left, answer: None };
            }
        }
        Some(())
    }

    /// Brings payload into memory.
    fn land(&mut self, outside: &mut Outside, done: &mut Vec<Completion>) -> Option<bool> {
        let Inbound::Land { runs, done: landed, whose, .. } = &mut self.inbound else { return Some(true) };
        while let Some((id, offset, len)) = part(runs, *landed, self.held.len()) {
            if len == 0 {
                return Some(false);
            }
            let bytes: Vec<u8> = self.held.drain(..len).collect();
            let written = outside.memory.land((self.me, id, offset), &bytes, *whose);
            outside.judge(written)?;
            *landed += len;
        }
        match std::mem::replace(&mut self.inbound, Inbound::Head) {
            Inbound::Land { landing: Landing::Served(answer), .. } => self.answer(answer, Vec::new()),
            Inbound::Land { landing: Landing::Own(id, bytes), .. } => {
                done.push(Completion { id, rail: Some((self.rail, bytes)), result: Ok(bytes) });
            }
            _ => {}
        }
        Some(true)
    }

    /// Leaves off with the slices of a transfer. Those that are not sent yet are taken back, answers to reads will
    /// be thrown away; a write that was begun goes on, since the peer may be taking it in. Whether there is one.
    pub(crate) fn abandon(&mut self, xfer: XferId, done: &mut Vec<Completion>) -> bool {
        let mut end = |id| done.push(Completion { id, rail: None, result: Err(SliceError::Abandoned) });
        self.out.retain(|frame| match frame.own {
            Some(id) if id.0 == xfer && frame.sent == 0 => {
                if let Some(Awaited::Ack { bytes } | Awaited::Data { bytes, .. }) = self.awaited.remove(&id) {
                    self.taken_back.push(bytes);
                    end(id);
                }
                false
            }
            _ => true,
        });
        for (id, awaited) in self.awaited.iter_mut().filter(|(id, _)| id.0 == xfer) {
            if let Awaited::Data { bytes, .. } = *awaited {
                *awaited = Awaited::Nothing { bytes };
                end(*id);
            }
        }
        if let Inbound::Land { landing: Landing::Own(id, bytes), done, .. } = &self.inbound
            && id.0 == xfer
        {
            end(*id);
            self.taken_back.push(*bytes);
            self.inbound = Inbound::Sink { left: usize::try_from(*bytes).unwrap() - done, answer: None };
        }
        self.awaited.iter().any(|(id, awaited)| id.0 == xfer && matches!(awaited, Awaited::Ack { .. }))
    }

    /// The connection is over: so are the slices on it.
    pub(crate) fn end(self, done: &mut Vec<Completion>) {
        let rail = Some((self.rail, 0));
        let mut end = |id| done.push(Completion { id, rail, result: Err(SliceError::RailLost) });
        for (id, awaited) in self.awaited {
            if !matches!(awaited, Awaited::Nothing { .. }) {
                end(id);
            }
        }
        if let Inbound::Land { landing: Landing::Own(id, _), .. } = self.inbound {
            end(id);
        }
    }

    /// Whether a peer is being served from or into this block now.
    pub(crate) fn is_inside(&self, (_, region, block): BlockId) -> bool {
        let touches = |(id, offset, len): &Run| {
            *id == region && *len > 0 && offset / BLOCK <= block && block <= (offset + len - 1) / BLOCK
        };
        let landing = match &self.inbound {
            Inbound::Land { runs, landing: Landing::Served(_), .. } => runs.iter().any(touches),
            _ => false,
        };
        landing || self.out.iter().any(|frame| frame.own.is_none() && frame.runs.iter().any(touches))
    }

    /// What is left on it: empty, once everything is over.
    pub(crate) fn left(&self) -> String {
        let inbound = match self.inbound {
            Inbound::Head if self.held.is_empty() => "",
            Inbound::Head => " half a header",
            Inbound::Land { .. } | Inbound::Sink { .. } => " half a payload",
        };
        let (out, awaited) = (self.out.len(), self.awaited.len());
        let frames =
            if out + awaited > 0 { format!(" {out} frames, {awaited} answers") } else { String::new() };
        format!("{inbound}{frames}")
    }
}
