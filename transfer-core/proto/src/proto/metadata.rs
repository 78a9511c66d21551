//! What an agent tells of itself: who it is, where it listens, which regions it offers.
//!
//! The same bytes travel in the handshake and in the blob that an application may carry itself. Layout of the
//! blob: preamble of a control connection (magic and version), then the body.

use alloc::string::String;
use alloc::vec::Vec;

use crate::codec::{DecodeError, Reader, put_blob};
use crate::id::{Incarnation, RegionId};
use crate::proto::preamble::{self, Flags, Kind, PREAMBLE_BYTES, PreambleError};

/// The longest agent name.
pub const NAME_MAX: usize = 255;
/// The longest label of a region.
pub const LABEL_MAX: usize = 255;
/// The longest description that an application adds.
pub const APP_METADATA_MAX: usize = 64 << 10;
/// The longest address.
pub const ADDRESS_MAX: usize = 255;
/// The most addresses of one agent.
pub const ADDRESSES_MAX: usize = 64;
/// The most regions of one agent.
pub const REGIONS_MAX: usize = 1 << 16;
/// The longest blob: one at every limit of the format.
pub const BLOB_MAX: usize = PREAMBLE_BYTES
    + 16
    + (4 + NAME_MAX)
    + (4 + ADDRESS_MAX)
    + (4 + APP_METADATA_MAX)
    + (4 + ADDRESSES_MAX * (4 + ADDRESS_MAX))
    + (4 + REGIONS_MAX * (REGION_BYTES_MIN + LABEL_MAX));

/// The shortest description of a region.
const REGION_BYTES_MIN: usize = 6 * 8 + 2 + 4;

/// Where the memory of a region came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionKind {
    /// The agent allocated it, in a file that peers on the same host can map.
    Allocated,
    /// Any memory of the process.
    Foreign,
}

/// What peers may do with a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Read it.
    ReadOnly,
    /// Read and write it.
    #[default]
    ReadWrite,
}

/// Where the generations of a region stand in its owner's table, for peers of the same host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generations {
    /// Index of the first block's generation in the table.
    pub first: u64,
    /// Bytes of a block, each of which has one generation. Never zero.
    pub block_bytes: u64,
    /// Generation of the whole region when it was registered.
    pub born: u64,
}

impl Generations {
    /// All fields.
    #[must_use]
    pub fn new(first: u64, block_bytes: u64, born: u64) -> Self {
        Self { first, block_bytes, born }
    }

    /// The blocks that `len` bytes at `offset` touch, as indices of the table: first and one past the last.
    #[must_use]
    pub fn blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        let block = self.block_bytes.max(1);
        let first = offset / block;
        let end = if len == 0 { first } else { (offset + (len - 1)) / block + 1 };
        (self.first.wrapping_add(first), self.first.wrapping_add(end))
    }

    /// Whether who names `generation` may still access a block that was revoked last at `current`. Generation 0
    /// stands for the one at which the region was registered.
    #[must_use]
    pub fn admits(&self, generation: u64, current: u64) -> bool {
        current <= if generation == 0 { self.born } else { generation }
    }
}

/// A region, as its owner describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionInfo {
    /// Its name.
    pub id: RegionId,
    /// Its length in bytes.
    pub len: u64,
    /// What the owner's application calls it.
    pub label: String,
    /// Where its memory came from.
    pub kind: RegionKind,
    /// Address in the owner's process, for [`crate::plan::Path::ProcessMemory`]. Never a pointer here.
    pub base: u64,
    /// What peers may do with it.
    pub access: Access,
    /// Its generations.
    pub generations: Generations,
}

impl RegionInfo {
    /// All fields.
    #[must_use]
    pub fn new(
        id: RegionId,
        (base, len): (u64, u64),
        label: String,
        kind: RegionKind,
        access: Access,
        generations: Generations,
    ) -> Self {
        Self { id, len, label, kind, base, access, generations }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_u64().to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.base.to_le_bytes());
        out.push(match self.kind {
            RegionKind::Allocated => 0,
            RegionKind::Foreign => 1,
        });
        out.push(match self.access {
            Access::ReadWrite => 0,
            Access::ReadOnly => 1,
        });
        let Generations { first, block_bytes, born } = self.generations;
        for field in [first, block_bytes, born] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        put_blob(out, self.label.as_bytes());
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = RegionId::from_u64(reader.u64("region")?);
        let len = reader.u64("region length")?;
        let base = reader.u64("region base")?;
        let kind = match reader.u8("region kind")? {
            0 => RegionKind::Allocated,
            1 => RegionKind::Foreign,
            value => return Err(DecodeError::Invalid { what: "region kind", value: u64::from(value) }),
        };
        let access = match reader.u8("region access")? {
            0 => Access::ReadWrite,
            1 => Access::ReadOnly,
            value => return Err(DecodeError::Invalid { what: "region access", value: u64::from(value) }),
        };
        let (first, block_bytes) = (reader.u64("first generation")?, reader.u64("block length")?);
        let generations = Generations { first, block_bytes, born: reader.u64("region generation")? };
        if block_bytes == 0 || first.checked_add(len.div_ceil(block_bytes)).is_none() {
            return Err(DecodeError::Invalid { what: "block length", value: block_bytes });
        }
        if base.checked_add(len).is_none() {
            return Err(DecodeError::Invalid { what: "region length", value: len });
        }
        let label = reader.text("region label", LABEL_MAX)?;
        Ok(Self { id, len, label, kind, base, access, generations })
    }
}

/// An agent, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentMetadata {
    /// Its name, for people.
    pub name: String,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Where it listens, as text (`tcp://…`).
    pub addresses: Vec<String>,
    /// Name of its abstract Unix socket (unix(7)), empty where it has none.
    pub local_name: String,
    /// What the application adds.
    pub app: Vec<u8>,
    /// Its regions.
    pub regions: Vec<RegionInfo>,
}

impl AgentMetadata {
    /// An agent without addresses, regions or anything added.
    #[must_use]
    pub fn new(name: String, incarnation: Incarnation) -> Self {
        Self {
            name,
            incarnation,
            addresses: Vec::new(),
            local_name: String::new(),
            app: Vec::new(),
            regions: Vec::new(),
        }
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.incarnation.to_bytes());
        put_blob(out, self.name.as_bytes());
        put_blob(out, self.local_name.as_bytes());
        put_blob(out, &self.app);
        put_count(out, self.addresses.len());
        self.addresses.iter().for_each(|address| put_blob(out, address.as_bytes()));
        put_count(out, self.regions.len());
        self.regions.iter().for_each(|region| region.encode(out));
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`]; nothing is allocated beyond the size of the input.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let incarnation = Incarnation::from_bytes(reader.array("incarnation")?);
        let name = reader.text("agent name", NAME_MAX)?;
        let local_name = reader.text("local name", ADDRESS_MAX)?;
        let app = reader.blob("application metadata", APP_METADATA_MAX)?.to_vec();
        let count = reader.count("address count", 4, ADDRESSES_MAX)?;
        let addresses = (0..count).map(|_| reader.text("address", ADDRESS_MAX)).collect::<Result<_, _>>()?;
        let count = reader.count("region count", REGION_BYTES_MIN, REGIONS_MAX)?;
        let regions = (0..count).map(|_| RegionInfo::decode(reader)).collect::<Result<_, _>>()?;
        Ok(Self { name, incarnation, addresses, local_name, app, regions })
    }

    /// As a blob for the application to carry.
    #[must_use]
    pub fn to_blob(&self) -> Vec<u8> {
        let mut out = preamble::encode(Kind::Control, Flags::NONE).to_vec();
        self.encode(&mut out);
        out
    }

    /// From such a blob.
    ///
    /// # Errors
    /// [`PreambleError`], which tells a blob of another version from one that is damaged.
    pub fn from_blob(blob: &[u8]) -> Result<Self, PreambleError> {
        let mut reader = Reader::new(blob);
        let preamble = preamble::decode(reader.array::<PREAMBLE_BYTES>("preamble")?)?;
        if preamble.kind != Kind::Control {
            return Err(DecodeError::Invalid { what: "blob kind", value: 0 }.into());
        }
        let metadata = Self::decode(&mut reader)?;
        reader.end()?;
        Ok(metadata)
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::proto::preamble::Versions;

    pub(crate) fn sample() -> AgentMetadata {
        let mut sample = AgentMetadata::new("prefill-0".to_string(), Incarnation::from_bytes([7; 16]));
        sample.addresses = vec!["tcp://127.0.0.1:4000".to_string()];
        sample.local_name = "headrace-x".to_string();
        sample.app = vec![1, 2, 3];
        sample.regions = vec![region(RegionId::new(3, 4))];
        sample
    }

    pub(crate) fn region(id: RegionId) -> RegionInfo {
        let generations = Generations::new(5, 1024, 7);
        let (kind, access) = (RegionKind::Allocated, Access::ReadOnly);
        RegionInfo::new(id, (0x7000, 4096), "kv".to_string(), kind, access, generations)
    }

    #[test]
    fn spans_touch_the_blocks_that_their_bytes_lie_in() {
        let generations = Generations::new(10, 16, 3);
        assert_eq!(generations.blocks(0, 16), (10, 11));
        assert_eq!(generations.blocks(15, 2), (10, 12));
        assert_eq!(generations.blocks(32, 0), (12, 12));
        assert_eq!(generations.blocks(31, 34), (11, 15));
    }

    #[test]
    fn a_generation_holds_until_the_block_is_revoked() {
        let generations = Generations::new(0, 16, 3);
        assert!(generations.admits(0, 3) && generations.admits(3, 3) && generations.admits(9, 9));
        assert!(!generations.admits(0, 4) && !generations.admits(3, 4) && !generations.admits(2, 3));
    }

    #[test]
    fn a_blob_comes_back() {
        assert_eq!(AgentMetadata::from_blob(&sample().to_blob()), Ok(sample()));
    }

    #[test]
    fn a_blob_at_every_limit_has_the_stated_length() {
        let mut largest = AgentMetadata::new("n".repeat(NAME_MAX), Incarnation::from_bytes([7; 16]));
        largest.addresses = vec!["a".repeat(ADDRESS_MAX); ADDRESSES_MAX];
        largest.local_name = "l".repeat(ADDRESS_MAX);
        largest.app = vec![0; APP_METADATA_MAX];
        let mut longest = region(RegionId::new(3, 4));
        longest.label = "r".repeat(LABEL_MAX);
        largest.regions = vec![longest; REGIONS_MAX];
        let blob = largest.to_blob();
        assert_eq!(blob.len(), BLOB_MAX);
        assert_eq!(AgentMetadata::from_blob(&blob), Ok(largest));
    }

    #[test]
    fn a_blob_of_another_version_says_so() {
        let mut blob = sample().to_blob();
        (blob[4], blob[6]) = (200, 200);
        let theirs = Versions::new(200, 200);
        assert_eq!(AgentMetadata::from_blob(&blob), Err(PreambleError::Version { theirs }));
    }

    #[test]
    fn every_truncation_and_addition_is_refused() {
        let blob = sample().to_blob();
        for len in 0..blob.len() {
            assert!(AgentMetadata::from_blob(&blob[..len]).is_err(), "{len} bytes");
        }
        let longer = [&blob[..], &[0]].concat();
        assert_eq!(
            AgentMetadata::from_blob(&longer),
            Err(PreambleError::Malformed(DecodeError::Trailing { count: 1 }))
        );
    }

    #[test]
    fn a_region_beyond_the_address_space_is_refused() {
        let mut metadata = sample();
        metadata.regions[0].len = u64::MAX;
        assert!(AgentMetadata::from_blob(&metadata.to_blob()).is_err());
    }

    proptest! {
        #[test]
        fn flipped_bits_never_panic(at in 0_usize..100, bit in 0_u8..8) {
            let mut blob = sample().to_blob();
            let at = at % blob.len();
            blob[at] ^= 1 << bit;
            let _result = AgentMetadata::from_blob(&blob);
        }
    }
}
