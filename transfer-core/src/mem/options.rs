//! How memory is registered.

use transfer_proto::proto::metadata::{Access, LABEL_MAX};

use crate::error::{Error, Result};

/// What a region is to be. Start from [`RegionOptions::new`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegionOptions {
    /// For peers to find it by; at most 255 bytes, not necessarily unique.
    pub label: String,
    /// What peers may do with it. Default [`Access::ReadWrite`]. Where it is [`Access::ReadOnly`], memory that the agent
    /// allocates cannot even be mapped writable by a peer, and everybody's writes are refused.
    pub access: Access,
    /// Bytes of a block: what [`crate::Region::revoke`] revokes at the least. Default 0: all of the region. An agent has
    /// room for 2^24 blocks, each of which costs it 8 bytes.
    pub block_bytes: u64,
    /// Whether it consists of huge pages, of the default size, from the administrator's pool (`vm.nr_hugepages`). Where
    /// they are missing it does not come to be. Default false. Only for memory that the agent allocates.
    pub huge_pages: bool,
    /// The node whose memory it gets, on a machine that has several. Where that node runs out, the kernel frees memory
    /// there by whatever means it has, and does not take another's. Default any. Only for memory that the agent
    /// allocates.
    pub numa_node: Option<u32>,
}

impl RegionOptions {
    /// A region of one block that peers may read and write.
    #[must_use]
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            access: Access::ReadWrite,
            block_bytes: 0,
            huge_pages: false,
            numa_node: None,
        }
    }

    /// What peers may do with it.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Bytes of a block, such as those of a page of a KV cache.
    #[must_use]
    pub fn block_bytes(mut self, bytes: u64) -> Self {
        self.block_bytes = bytes;
        self
    }

    /// Whether it consists of huge pages.
    #[must_use]
    pub fn huge_pages(mut self, huge: bool) -> Self {
        self.huge_pages = huge;
        self
    }

    /// The node whose memory it gets.
    #[must_use]
    pub fn numa_node(mut self, node: Option<u32>) -> Self {
        self.numa_node = node;
        self
    }

    /// For memory that comes with the call: it is what it is.
    pub(crate) fn check_given(&self) -> Result<()> {
        let asked = [("huge_pages", self.huge_pages), ("numa_node", self.numa_node.is_some())];
        match asked.into_iter().find(|(_, asked)| *asked) {
            None => self.check(),
            Some((field, _)) => {
                let problem = "holds for memory that the agent allocates; this one comes with its pages";
                Err(Error::InvalidConfig { field, problem: problem.to_owned() })
            }
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.label.len() > LABEL_MAX {
            let (what, value, max) = ("bytes of a region's label", self.label.len() as u64, LABEL_MAX as u64);
            return Err(Error::TooLarge { what, value, max });
        }
        Ok(())
    }

    /// Bytes of a block in a region of `len` bytes.
    pub(crate) fn block_bytes_of(&self, len: u64) -> u64 {
        if self.block_bytes == 0 { len.max(1) } else { self.block_bytes }
    }
}
