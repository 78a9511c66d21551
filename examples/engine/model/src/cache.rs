//! The paged KV cache: where each token's keys and values lie, and who owns the bytes.
//!
//! The layout is pure arithmetic over offsets into one flat store. The store is a trait, because in an engine the
//! bytes live in memory that other processes read and write; here they are only ever copied in and out.

use std::sync::{Arc, PoisonError, RwLock};

use half::bf16;

use crate::config::Dtype;
use crate::error::ModelError;

/// Longest block, in tokens, that a layout may have.
const BLOCK_SIZE_MAX: usize = 4096;

/// Flat bytes that hold a cache. Implementations copy; they never lend memory that somebody else may change.
///
/// Offsets always lie inside `len()`: [`KvCache::new`] checks the size once and every access is derived from
/// checked block ids. An implementation may panic beyond its end.
pub trait BlockStore: Send + Sync {
    /// Size of the store in bytes.
    fn len(&self) -> usize;
    /// Whether the store has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies `out.len()` bytes from `offset` out of the store.
    fn read(&self, offset: usize, out: &mut [u8]);
    /// Copies `data` into the store at `offset`.
    fn write(&self, offset: usize, data: &[u8]);
}

/// A [`BlockStore`] in the memory of this process, for tests and for engines that hand nothing over.
#[derive(Debug)]
pub struct MemoryStore {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryStore {
    /// A zeroed store of `len` bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { bytes: RwLock::new(vec![0; len]) }
    }
}

impl BlockStore for MemoryStore {
    fn len(&self) -> usize {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn read(&self, offset: usize, out: &mut [u8]) {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        out.copy_from_slice(&bytes[offset..offset + out.len()]);
    }

    fn write(&self, offset: usize, data: &[u8]) {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        bytes[offset..offset + data.len()].copy_from_slice(data);
    }
}

/// Which of the two halves of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Plane {
    /// Keys, after the rotary embedding.
    Key,
    /// Values.
    Value,
}

/// Where everything lies: `[layer][key | value][block][token in block][kv_head][head_dim]`.
///
/// A *plane* is one layer's keys or values, an array of blocks; a *page* is one block of one plane, contiguous.
/// These are the pages of vLLM's NHD layout. The sizes saturate instead of overflowing; [`KvCache::new`] rejects
/// a layout for which that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a plain set of numbers that callers build by field")]
pub struct KvLayout {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads per layer.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks in the cache.
    pub num_blocks: usize,
    /// How each element is stored.
    pub dtype: Dtype,
}

impl KvLayout {
    /// Bytes of one token's keys or values in one layer.
    #[must_use]
    pub const fn token_bytes(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim).saturating_mul(self.dtype.size_bytes())
    }

    /// Bytes of one page: one block of one plane.
    #[must_use]
    pub const fn page_bytes(&self) -> usize {
        self.token_bytes().saturating_mul(self.block_size)
    }

    /// Bytes of one plane: every block of one layer's keys or values.
    #[must_use]
    pub const fn plane_bytes(&self) -> usize {
        self.page_bytes().saturating_mul(self.num_blocks)
    }

    /// Bytes of one block across all planes.
    #[must_use]
    pub const fn block_bytes(&self) -> usize {
        self.page_bytes().saturating_mul(self.planes())
    }

    /// Number of planes: two per layer.
    #[must_use]
    pub const fn planes(&self) -> usize {
        self.layers.saturating_mul(2)
    }

    /// Bytes of the whole cache.
    #[must_use]
    pub const fn total_bytes(&self) -> usize {
        self.plane_bytes().saturating_mul(self.planes())
    }

    /// Offset of the block array of a plane.
    #[must_use]
    pub const fn plane_offset(&self, layer: usize, plane: Plane) -> usize {
        let index = layer.saturating_mul(2).saturating_add(match plane {
            Plane::Key => 0,
            Plane::Value => 1,
        });
        index.saturating_mul(self.plane_bytes())
    }

    /// Offset of one page.
    #[must_use]
    pub const fn page_offset(&self, layer: usize, plane: Plane, block: usize) -> usize {
        self.plane_offset(layer, plane).saturating_add(block.saturating_mul(self.page_bytes()))
    }

    /// Blocks that cover `tokens` positions.
    #[must_use]
    pub const fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    fn check(&self) -> Result<(), ModelError> {
        let fields = [
            (self.layers, "layers"),
            (self.kv_heads, "kv_heads"),
            (self.head_dim, "head_dim"),
            (self.block_size, "block_size"),
            (self.num_blocks, "num_blocks"),
        ];
        if let Some((_, name)) = fields.iter().find(|(value, _)| *value == 0) {
            return Err(ModelError::Cache { reason: format!("{name} is zero") });
        }
        if self.block_size > BLOCK_SIZE_MAX {
            let reason = format!("block_size {} is over {BLOCK_SIZE_MAX}", self.block_size);
            return Err(ModelError::Cache { reason });
        }
        if self.total_bytes() == usize::MAX {
            return Err(ModelError::Cache { reason: "the cache would not fit any address space".to_owned() });
        }
        Ok(())
    }
}

/// A layout and the store that holds its bytes.
#[derive(Clone)]
pub struct KvCache {
    layout: KvLayout,
    store: Arc<dyn BlockStore>,
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvCache").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl KvCache {
    /// Joins a layout and a store.
    ///
    /// # Errors
    /// [`ModelError::Cache`] if the layout has a zero or overflows, or if the store is smaller than it.
    pub fn new(layout: KvLayout, store: Arc<dyn BlockStore>) -> Result<Self, ModelError> {
        layout.check()?;
        if store.len() < layout.total_bytes() {
            let reason =
                format!("the store has {} bytes, the layout needs {}", store.len(), layout.total_bytes());
            return Err(ModelError::Cache { reason });
        }
        Ok(Self { layout, store })
    }

    /// A cache in the memory of this process.
    ///
    /// # Errors
    /// [`ModelError::Cache`] if the layout has a zero or overflows.
    pub fn in_memory(layout: KvLayout) -> Result<Self, ModelError> {
        layout.check()?;
        Self::new(layout, Arc::new(MemoryStore::new(layout.total_bytes())))
    }

    /// Where everything lies.
    #[must_use]
    pub const fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Stores rows of `[kv_head][head_dim]` for the positions from `start` on, rounded to the cache's type.
    pub(crate) fn write_rows(&self, layer: usize, plane: Plane, blocks: &[u32], start: usize, rows: &[f32]) {
        let layout = &self.layout;
        let width = layout.kv_heads * layout.head_dim;
        let mut bytes = Vec::with_capacity(layout.page_bytes());
        let mut position = start;
        let mut rest = rows;
        while !rest.is_empty() {
            let slot = position % layout.block_size;
            let count = (layout.block_size - slot).min(rest.len() / width);
            let (page, next) = rest.split_at(count * width);
            bytes.clear();
            match layout.dtype {
                Dtype::Bf16 => bytes.extend(page.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
                Dtype::F32 => bytes.extend(page.iter().flat_map(|x| x.to_le_bytes())),
            }
            let page_offset =
                layout.page_offset(layer, plane, block_index(blocks[position / layout.block_size]));
            self.store.write(page_offset + slot * layout.token_bytes(), &bytes);
            position += count;
            rest = next;
        }
    }

    /// Reads positions `0..len` of a plane into `out`, as `[kv_head][position][stride]` with `head_dim` elements
    /// used of each stride.
    pub(crate) fn gather(
        &self,
        layer: usize,
        plane: Plane,
        blocks: &[u32],
        len: usize,
        stride: usize,
        out: &mut [f32],
    ) {
        let layout = &self.layout;
        let mut bytes = vec![0u8; layout.page_bytes()];
        for (index, &block) in blocks.iter().enumerate().take(layout.blocks_for(len)) {
            let first = index * layout.block_size;
            let count = layout.block_size.min(len - first);
            let page = &mut bytes[..count * layout.token_bytes()];
            self.store.read(layout.page_offset(layer, plane, block_index(block)), page);
            let head_bytes = layout.head_dim * layout.dtype.size_bytes();
            for (row, head_row) in page.chunks_exact(head_bytes).enumerate() {
                let (token, head) = (row / layout.kv_heads, row % layout.kv_heads);
                let at = (head * len + first + token) * stride;
                decode(layout.dtype, head_row, &mut out[at..at + layout.head_dim]);
            }
        }
    }
}

/// Block ids are `u32` on every wire; this crate runs where `usize` is at least as wide.
const fn block_index(block: u32) -> usize {
    const { assert!(usize::BITS >= u32::BITS) };
    block as usize
}

fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::Bf16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = bf16::from_le_bytes(*b).to_f32();
            }
        }
        Dtype::F32 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
    }
}
