//! The model's KV cache in a region of the transfer engine, so that peers can read blocks where they lie.

use engine_model::BlockStore;
use transfer_core::Region;

/// A region as the store of a KV cache.
#[derive(Debug)]
pub(crate) struct RegionStore {
    region: Region,
    len: usize,
}

impl RegionStore {
    /// A store over the whole region of `len` bytes.
    pub(crate) fn new(region: Region, len: usize) -> Self {
        Self { region, len }
    }
}

impl BlockStore for RegionStore {
    fn len(&self) -> usize {
        self.len
    }

    #[expect(
        clippy::expect_used,
        reason = "the cache derives every offset from checked block ids, inside len()"
    )]
    fn read(&self, offset: usize, out: &mut [u8]) {
        self.region.read_at(offset, out).expect("a KV page lies within its region");
    }

    #[expect(
        clippy::expect_used,
        reason = "the cache derives every offset from checked block ids, inside len()"
    )]
    fn write(&self, offset: usize, data: &[u8]) {
        self.region.write_at(offset, data).expect("a KV page lies within its region");
    }
}
