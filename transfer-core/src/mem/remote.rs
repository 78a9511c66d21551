//! Regions of a peer.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use transfer_proto::proto::metadata::{Access, RegionInfo};
use transfer_sys::memfd::Mapping;

use super::gate::{Gate, Gated};
use crate::error::{Error, Result};

/// A region of a peer: what the peer said of it, whether we may still touch it, and its mapping here.
#[derive(Debug)]
pub(crate) struct RemoteRegion {
    pub(crate) info: RegionInfo,
    gate: Gate,
    mapping: Mutex<Option<Arc<Mapping>>>,
}

impl Gated for RemoteRegion {
    fn gate(&self) -> &Gate {
        &self.gate
    }
}

impl RemoteRegion {
    pub(crate) fn new(info: RegionInfo) -> Self {
        Self { info, gate: Gate::default(), mapping: Mutex::new(None) }
    }

    /// The mapping, if it was made.
    pub(crate) fn mapping(&self) -> Option<Arc<Mapping>> {
        self.mapping.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Maps the file that the peer sent for it.
    pub(crate) fn map(&self, file: &OwnedFd) -> Result<Arc<Mapping>> {
        let len = usize::try_from(self.info.len).map_err(|_| Error::TooLarge {
            what: "region of a peer",
            value: self.info.len,
            max: usize::MAX as u64,
        })?;
        // Its owner has given it its memory. Our page table fills as it is touched, sixteen pages at a time for
        // reads: filling it here would make the first transfer wait for all of a cache of many gigabytes.
        let mapping = match self.info.access {
            Access::ReadWrite => Mapping::of(file, len)?,
            _ => Mapping::read_only(file, len)?,
        };
        let mapping = Arc::new(mapping);
        let mut slot = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(slot.get_or_insert(mapping)))
    }

    /// Nobody may use it any more; the mapping goes with its last user.
    pub(crate) fn close(&self) {
        self.gate.close();
        *self.mapping.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
