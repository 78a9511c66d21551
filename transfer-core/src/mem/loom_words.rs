//! Stands in for [`transfer_sys::words`] where loom tries the interleavings: words of its own, no file and no mapping.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use transfer_sys::OsResult;

use crate::sync::prim::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct OwnWords {
    words: Arc<[AtomicU64]>,
    file: OwnedFd,
}

impl OwnWords {
    pub(super) fn create(_name: &str, count: usize) -> OsResult<Self> {
        let file = File::open("/dev/null").expect("every system has it").into();
        Ok(Self { words: (0..count).map(|_| AtomicU64::new(0)).collect(), file })
    }

    pub(super) fn populate(&self, _first: usize, _count: usize) -> OsResult<()> {
        Ok(())
    }

    pub(super) fn get(&self, at: usize) -> Option<&AtomicU64> {
        self.words.get(at)
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(super) fn seen_by_peers(&self) -> PeerWords {
        PeerWords(Arc::clone(&self.words))
    }
}

#[derive(Debug)]
pub(super) struct PeerWords(Arc<[AtomicU64]>);

impl PeerWords {
    pub(super) fn map(_file: &OwnedFd, _count: usize) -> OsResult<Self> {
        unreachable!("where loom tries them, words are seen through `seen_by_peers`")
    }

    pub(super) fn load(&self, at: usize) -> Option<u64> {
        self.0.get(at).map(|word| word.load(Ordering::Relaxed))
    }
}
