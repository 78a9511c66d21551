//! Words that one process writes and others of the same host read.
//!
//! They lie in a sealed file that only its maker can write. A reader's mapping is read-only memory, for which the
//! language allows relaxed loads and nothing else (std::sync::atomic, "Atomic accesses to read-only memory"); order
//! comes from fences around them.
#![allow(unsafe_code, reason = "atomic words in a shared mapping")]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memfd::{Mapping, Memfd, MemfdOptions};
use crate::{OsResult, RawRange};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Words of this process, zero at first. Safe to use from any thread.
#[derive(Debug)]
pub struct OwnWords {
    memfd: Memfd,
}

impl OwnWords {
    /// Creates `count` words. Their pages come when they are touched, or by [`OwnWords::populate`].
    ///
    /// # Errors
    /// As [`Memfd::create`].
    pub fn create(name: &str, count: usize) -> OsResult<Self> {
        let options = MemfdOptions::new(name, count.saturating_mul(WORD)).peers_may_write(false);
        Ok(Self { memfd: Memfd::create(&options)? })
    }

    /// Gives words their memory, so that no access to them can fail later.
    ///
    /// # Errors
    /// [`OsError`](crate::OsError) of madvise, such as ENOMEM.
    pub fn populate(&self, first: usize, count: usize) -> OsResult<()> {
        self.memfd.populate_part(first.saturating_mul(WORD), count.saturating_mul(WORD))
    }

    /// A word.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&AtomicU64> {
        let addr = word(self.memfd.range(), at)?;
        // SAFETY: S1. The mapping lives as long as `self`, is aligned to pages, and other processes can only read
        // it; this process reaches it through these atomics alone.
        Some(unsafe { AtomicU64::from_ptr(addr) })
    }

    /// The descriptor to give to readers.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        self.memfd.file()
    }
}

/// Words of another process. Safe to use from any thread.
#[derive(Debug)]
pub struct PeerWords {
    mapping: Mapping,
}

impl PeerWords {
    /// Maps the words of a file that came from a peer, at most so many.
    ///
    /// # Errors
    /// As [`Mapping::read_only`].
    pub fn map(file: &OwnedFd, most: usize) -> OsResult<Self> {
        let len = Mapping::len_of(file)?.min(most.saturating_mul(WORD));
        Ok(Self { mapping: Mapping::read_only(file, len)? })
    }

    /// What stands in a word, loaded relaxed.
    #[must_use]
    pub fn load(&self, at: usize) -> Option<u64> {
        let addr = word(self.mapping.range(), at)?;
        // SAFETY: S1. The mapping lives as long as `self` and is aligned to pages; a relaxed load of 64 bits is
        // allowed on read-only memory.
        Some(unsafe { AtomicU64::from_ptr(addr) }.load(Ordering::Relaxed))
    }
}

fn word(range: RawRange, at: usize) -> Option<*mut u64> {
    let word = range.sub(at.checked_mul(WORD)?, WORD)?.addr();
    Some(word.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_the_owner_writes_and_no_more() {
        let own = OwnWords::create("words", 1000).unwrap();
        own.populate(0, 1000).unwrap();
        let peer = PeerWords::map(own.file(), 1000).unwrap();
        own.get(999).unwrap().store(7, Ordering::Relaxed);
        assert_eq!((peer.load(999), peer.load(0)), (Some(7), Some(0)));
        assert!(own.get(1000).is_none() && peer.load(1000).is_none() && peer.load(usize::MAX).is_none());
        let (all, few) =
            (PeerWords::map(own.file(), usize::MAX).unwrap(), PeerWords::map(own.file(), 10).unwrap());
        assert_eq!(
            (all.load(999), all.load(1000), few.load(9), few.load(10)),
            (Some(7), None, Some(0), None)
        );
        assert!(Mapping::of(own.file(), 8000).is_err());
    }
}
