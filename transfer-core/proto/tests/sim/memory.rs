//! The simulated memories, and the one who knows whose each block is.
//!
//! Every byte that any agent reads or writes for a transfer goes through here, and is held against what the
//! transfer may touch at that moment. This is the judge: it sees all sides, and trusts none.

use std::collections::{BTreeMap, BTreeSet};

use transfer_proto::desc::DescList;
use transfer_proto::id::{Incarnation, RegionId, XferId};
use transfer_proto::proto::data::Status;
use transfer_proto::proto::metadata::Generations;
use transfer_proto::proto::xfer::{Outcome, SliceError};

use crate::net::ConnId;
use crate::rng::Rng;

/// Bytes of a block, which is what has a generation, and what a transfer is given.
pub(crate) const BLOCK: usize = 256;
pub(crate) const BLOCKS: usize = 24;
pub(crate) const REGIONS: u32 = 2;
/// The generation at which every region is registered.
pub(crate) const BORN: u64 = 1;

/// One life of a node.
pub(crate) type Life = (usize, u32);
/// A block: whose, which region, which one.
pub(crate) type BlockId = (Life, RegionId, usize);
/// A transfer, counted over the whole schedule.
pub(crate) type Seq = usize;

pub(crate) fn incarnation((node, life): Life) -> Incarnation {
    let mut bytes = [u8::try_from(node).unwrap(); 16];
    bytes[..4].copy_from_slice(&life.to_be_bytes());
    Incarnation::from_bytes(bytes)
}

struct Region {
    bytes: Vec<u8>,
    /// What the free blocks hold, which nobody may change.
    shadow: Vec<u8>,
    holders: Vec<Option<Seq>>,
    revoked_at: Vec<u64>,
    generation: u64,
    closed: bool,
}

impl Region {
    fn new() -> Self {
        let len = BLOCK * BLOCKS;
        let (bytes, shadow) = (vec![0; len], vec![0; len]);
        let (holders, revoked_at) = (vec![None; BLOCKS], vec![BORN; BLOCKS]);
        Self { bytes, shadow, holders, revoked_at, generation: BORN, closed: false }
    }
}

/// Which way the bytes go, seen from the initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
}

/// What is known of a transfer from outside.
pub(crate) struct Record {
    pub(crate) op: Op,
    pub(crate) initiator: Life,
    pub(crate) target: Life,
    /// The control connection of the two.
    pub(crate) session: ConnId,
    pub(crate) local: DescList,
    pub(crate) remote: DescList,
    pub(crate) notifies: bool,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) notified: u32,
    /// Nothing may be written for it any more.
    quiet: bool,
    /// Its notification will come, or not any more.
    pub(crate) notif_over: bool,
}

impl Record {
    pub(crate) fn new(
        op: Op,
        (initiator, target): (Life, Life),
        session: ConnId,
        (local, remote): (DescList, DescList),
        notifies: bool,
    ) -> Self {
        let (outcome, notified, quiet, notif_over) = (None, 0, false, false);
        Self { op, initiator, target, session, local, remote, notifies, outcome, notified, quiet, notif_over }
    }

    fn source(&self) -> (Life, &DescList) {
        match self.op {
            Op::Read => (self.target, &self.remote),
            Op::Write => (self.initiator, &self.local),
        }
    }

    fn sink(&self) -> (Life, &DescList) {
        match self.op {
            Op::Read => (self.initiator, &self.local),
            Op::Write => (self.target, &self.remote),
        }
    }
}

/// All memories.
#[derive(Default)]
pub(crate) struct Memory {
    regions: BTreeMap<(Life, RegionId), Region>,
    pub(crate) records: Vec<Record>,
    by_name: BTreeMap<(Life, XferId), Seq>,
    /// Connections that one of their ends has given up.
    lost: BTreeSet<(ConnId, Life)>,
}

/// The byte at this place of a transfer.
fn pattern(seq: Seq, at: usize) -> u8 {
    u8::try_from((seq * 131 + at * 7 + (at >> 8) * 13) % 251).unwrap()
}

/// Every byte of a list: region and offset.
fn bytes_of(list: &DescList) -> impl Iterator<Item = (RegionId, usize)> + '_ {
    (0..list.count()).flat_map(move |index| {
        let span = list.span(index).unwrap();
        let region = list.descs()[span.desc as usize].region();
        (span.offset..span.offset + span.len).map(move |at| (region, usize::try_from(at).unwrap()))
    })
}

impl Memory {
    /// A node comes to life.
    pub(crate) fn born(&mut self, life: Life) {
        for slot in 0..REGIONS {
            self.regions.insert((life, RegionId::new(slot, 0)), Region::new());
        }
    }

    fn region(&mut self, life: Life, id: RegionId) -> Result<&mut Region, String> {
        self.regions.get_mut(&(life, id)).ok_or_else(|| format!("no region {id} at {life:?}"))
    }

    /// As [`transfer_proto::proto::serve::check`] asks.
    pub(crate) fn region_len(&self, life: Life, id: RegionId) -> Option<u64> {
        self.regions.get(&(life, id)).filter(|region| !region.closed).map(|region| region.bytes.len() as u64)
    }

    pub(crate) fn generation(&self, life: Life, id: RegionId) -> u64 {
        self.regions[&(life, id)].generation
    }

    /// Whether who names this generation may touch these bytes.
    pub(crate) fn admits(
        &self,
        life: Life,
        id: RegionId,
        generation: u64,
        (offset, len): (u64, u64),
    ) -> bool {
        let generations = Generations::new(0, BLOCK as u64, BORN);
        let (first, end) = generations.blocks(offset, len);
        let region = &self.regions[&(life, id)];
        (first..end).all(|at| generations.admits(generation, region.revoked_at[usize::try_from(at).unwrap()]))
    }

    /// Blocks that nobody uses, of regions that are open.
    pub(crate) fn free_blocks(&self, life: Life) -> Vec<BlockId> {
        let of = self.regions.iter().filter(|((whose, _), region)| *whose == life && !region.closed);
        of.flat_map(|((_, id), region)| {
            (0..BLOCKS).filter(|at| region.holders[*at].is_none()).map(|at| (life, *id, at))
        })
        .collect()
    }

    /// Blocks that peers of this node use, and for which transfers.
    pub(crate) fn lent_blocks(&self, life: Life) -> Vec<(BlockId, Seq)> {
        let lent = |seq: &Seq| self.records[*seq].target == life;
        let of = self.regions.iter().filter(|((whose, _), _)| *whose == life);
        of.flat_map(|((_, id), region)| {
            let held = region.holders.iter().enumerate();
            held.filter_map(|(at, holder)| holder.filter(lent).map(|seq| ((life, *id, at), seq)))
        })
        .collect()
    }

    /// Takes blocks for a transfer, and fills them: the source with its pattern, the sink with something else.
    pub(crate) fn begin(&mut self, mut record: Record, blocks: &[BlockId]) -> Result<Seq, String> {
        let seq = self.records.len();
        for (life, id, at) in blocks {
            let region = self.region(*life, *id)?;
            region.check_free(*at).map_err(|problem| format!("{life:?} {id}: {problem}"))?;
            region.holders[*at] = Some(seq);
            region.bytes[at * BLOCK..(at + 1) * BLOCK].fill(0xee);
        }
        let (life, list) = record.source();
        for (at, (id, offset)) in bytes_of(list).enumerate() {
            self.regions.get_mut(&(life, id)).unwrap().bytes[offset] = pattern(seq, at);
        }
        // The target may have given up what the initiator still believes in.
        let lost = self.lost.contains(&(record.session, record.target));
        record.quiet = lost && record.op == Op::Write;
        record.notif_over = lost;
        self.records.push(record);
        Ok(seq)
    }

    pub(crate) fn name(&mut self, seq: Seq, id: XferId) {
        self.by_name.insert((self.records[seq].initiator, id), seq);
    }

    /// Bytes come into memory, for a transfer of `initiator`.
    pub(crate) fn land(
        &mut self,
        (life, id, offset): (Life, RegionId, usize),
        bytes: &[u8],
        (initiator, xfer): (Life, XferId),
    ) -> Result<(), String> {
        let at = format!("{} bytes at {offset} of {id} at {life:?} for {xfer} of {initiator:?}", bytes.len());
        let seq = *self.by_name.get(&(initiator, xfer)).ok_or_else(|| format!("unknown: {at}"))?;
        let record = &self.records[seq];
        if record.quiet {
            return Err(format!("landed after the end of transfer {seq} ({:?}): {at}", record.outcome));
        }
        if record.sink().0 != life {
            return Err(format!("landed at the wrong side of transfer {seq}: {at}"));
        }
        let region = self.region(life, id)?;
        let blocks = offset / BLOCK..=(offset + bytes.len() - 1) / BLOCK;
        if let Some(other) = blocks.map(|block| region.holders[block]).find(|holder| *holder != Some(seq)) {
            return Err(format!("transfer {seq} landed in memory of {other:?}: {at}"));
        }
        region.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Bytes leave memory, for a transfer of `initiator`.
    pub(crate) fn read(
        &mut self,
        (life, id, offset): (Life, RegionId, usize),
        len: usize,
        (initiator, xfer): (Life, XferId),
    ) -> Result<Vec<u8>, String> {
        let at = format!("{len} bytes at {offset} of {id} at {life:?} for {xfer} of {initiator:?}");
        let seq = *self.by_name.get(&(initiator, xfer)).ok_or_else(|| format!("unknown: {at}"))?;
        let record = &self.records[seq];
        // A read that has ended is thrown away where it arrives.
        let over = record.outcome.is_some();
        if over && record.op == Op::Write {
            return Err(format!("read after the end of transfer {seq}: {at}"));
        }
        let region = self.region(life, id)?;
        let mut blocks = offset / BLOCK..=(offset + len - 1) / BLOCK;
        if !over && blocks.any(|block| region.holders[block] != Some(seq)) {
            return Err(format!("transfer {seq} read memory of somebody else: {at}"));
        }
        Ok(region.bytes[offset..offset + len].to_vec())
    }

    /// From now on peers must not touch a block under generations up to now.
    pub(crate) fn revoke(&mut self, (life, id, at): BlockId) {
        let region = self.regions.get_mut(&(life, id)).unwrap();
        region.generation += 1;
        region.revoked_at[at] = region.generation;
    }

    /// From now on nobody comes in any more.
    pub(crate) fn close(&mut self, life: Life, id: RegionId) {
        self.regions.get_mut(&(life, id)).unwrap().closed = true;
    }

    /// Those inside have left: a block that was taken from a transfer belongs to its owner again, who uses it for
    /// something else.
    pub(crate) fn given_away(&mut self, ((life, id, at), seq): (BlockId, Seq), rng: &mut Rng) {
        let region = self.regions.get_mut(&(life, id)).unwrap();
        if region.holders[at] != Some(seq) {
            return;
        }
        let fill = u8::try_from(rng.below(256)).unwrap();
        region.bytes[at * BLOCK..(at + 1) * BLOCK].fill(fill);
        region.free(at);
    }

    /// The one terminal event of a transfer.
    pub(crate) fn ended(&mut self, seq: Seq, outcome: Outcome) -> Result<(), String> {
        let record = &mut self.records[seq];
        if let Some(before) = record.outcome {
            return Err(format!("transfer {seq} ended twice: {before:?}, then {outcome:?}"));
        }
        record.outcome = Some(outcome);
        if let Outcome::Failed(failure) = outcome
            && !matches!(
                failure.error,
                SliceError::RailLost | SliceError::Refused { status: Status::Stale, .. }
            )
            && !matches!(failure.error, SliceError::Refused { status: Status::BadSpan, .. })
        {
            return Err(format!("transfer {seq} failed for no reason: {failure}"));
        }
        // A write to a peer that was lost may still come in there, until it has noticed the loss too.
        record.quiet |= outcome != Outcome::PeerLost || record.op == Op::Read;
        record.notif_over |= !matches!(outcome, Outcome::Done { .. }) || !record.notifies;
        self.verify(seq)?;
        self.release_if_over(seq);
        Ok(())
    }

    /// Whether every byte is as the outcome says.
    fn verify(&self, seq: Seq) -> Result<(), String> {
        let record = &self.records[seq];
        let done = match record.outcome {
            Some(Outcome::Done { bytes }) if bytes != record.remote.bytes() => {
                return Err(format!(
                    "transfer {seq} is done with {bytes} bytes of {}",
                    record.remote.bytes()
                ));
            }
            outcome => matches!(outcome, Some(Outcome::Done { .. })),
        };
        let (life, list) = record.sink();
        let mut wanted = vec![vec![None; BLOCK * BLOCKS]; REGIONS as usize];
        for (at, (id, offset)) in bytes_of(list).enumerate() {
            wanted[id.slot() as usize][offset] = Some(pattern(seq, at));
        }
        for ((_, id), region) in self.regions.iter().filter(|((whose, _), _)| *whose == life) {
            for block in (0..BLOCKS).filter(|block| region.holders[*block] == Some(seq)) {
                for at in block * BLOCK..(block + 1) * BLOCK {
                    let (byte, wanted) = (region.bytes[at], wanted[id.slot() as usize][at]);
                    if wanted.is_none() && byte != 0xee || done && wanted.is_some_and(|wanted| wanted != byte)
                    {
                        let role = wanted.map_or("outside its spans", |_| "of its sink");
                        return Err(format!(
                            "transfer {seq}: byte {at} of {id} at {life:?}, {role}, is {byte:#x}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// A notification came to the application.
    pub(crate) fn notified(&mut self, seq: Seq, at: Life) -> Result<(), String> {
        let record = self.records.get_mut(seq).ok_or("a notification of nothing")?;
        record.notified += 1;
        if record.notified > 1 || record.target != at || !record.notifies {
            return Err(format!("transfer {seq} notified {} times, last {at:?}", record.notified));
        }
        if !matches!(record.outcome, Some(Outcome::Done { .. })) {
            return Err(format!("transfer {seq} notified before it was done: {:?}", record.outcome));
        }
        record.notif_over = true;
        self.verify(seq)?;
        self.release_if_over(seq);
        Ok(())
    }

    /// A node has given up a connection with a peer: nothing comes in over it any more.
    pub(crate) fn session_lost(&mut self, session: ConnId, life: Life) {
        self.lost.insert((session, life));
        for seq in 0..self.records.len() {
            let record = &mut self.records[seq];
            if record.session == session {
                record.quiet |= record.sink().0 == life;
                record.notif_over |= record.target == life;
                self.release_if_over(seq);
            }
        }
    }

    /// A life ends, and its memory with it.
    pub(crate) fn died(&mut self, life: Life) {
        self.regions.retain(|(whose, _), _| *whose != life);
        for seq in 0..self.records.len() {
            let record = &mut self.records[seq];
            if record.target == life {
                record.notif_over = true;
            }
            record.quiet |= record.sink().0 == life;
            self.release_if_over(seq);
        }
    }

    /// What a transfer held belongs to others once nothing of it can come any more.
    fn release_if_over(&mut self, seq: Seq) {
        let record = &self.records[seq];
        let ended =
            record.outcome.is_some() || !self.regions.keys().any(|(life, _)| *life == record.initiator);
        if !(ended && record.quiet && record.notif_over) {
            return;
        }
        for region in self.regions.values_mut() {
            for at in (0..BLOCKS).filter(|at| region.holders[*at] == Some(seq)).collect::<Vec<_>>() {
                region.free(at);
            }
        }
    }

    /// Looks at all that must hold once everything is over.
    pub(crate) fn final_check(&self, alive: impl Fn(Life) -> bool) -> Result<(), String> {
        for (seq, record) in self.records.iter().enumerate() {
            if record.outcome.is_none() && alive(record.initiator) {
                return Err(format!("transfer {seq} never ended"));
            }
            if !record.notif_over && alive(record.target) {
                return Err(format!("transfer {seq} is done and its notification never came"));
            }
        }
        for ((life, id), region) in &self.regions {
            for at in 0..BLOCKS {
                region.check_free(at).map_err(|problem| format!("{life:?} {id}: {problem}"))?;
            }
        }
        Ok(())
    }
}

impl Region {
    fn free(&mut self, at: usize) {
        self.holders[at] = None;
        let block = at * BLOCK..(at + 1) * BLOCK;
        self.shadow[block.clone()].copy_from_slice(&self.bytes[block]);
    }

    fn check_free(&self, at: usize) -> Result<(), String> {
        let block = at * BLOCK..(at + 1) * BLOCK;
        match self.holders[at] {
            Some(seq) => Err(format!("block {at} is still held by transfer {seq}")),
            None if self.bytes[block.clone()] != self.shadow[block] => Err(format!("block {at} was changed")),
            None => Ok(()),
        }
    }
}
