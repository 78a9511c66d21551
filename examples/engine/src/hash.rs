//! The name of a block's content: a hash over the block's tokens and, through its parent, over every token before it.
//!
//! Two blocks with the same hash hold the same keys and values, whoever computed them, so the hash is the key of
//! the prefix cache and the name of the block in the KV events. A request with a cache salt starts its chain at the
//! salt, so that it shares blocks only with requests of the same salt.

/// A 32-byte block hash, chained over the whole prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct BlockHash([u8; 32]);

impl BlockHash {
    /// What the chain of a sequence with a cache salt starts from, in the place of a first parent.
    pub(crate) fn of_salt(salt: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("headrace engine-lite cache salt");
        hasher.update(salt.as_bytes());
        Self(hasher.finalize().into())
    }

    /// The hash of a full block behind `parent` (`None`: the first block of a sequence without a salt).
    pub(crate) fn of(parent: Option<Self>, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&parent.map_or([0; 32], |hash| hash.0));
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// The low 64 bits of the hash read as a big-endian integer: the form in which vLLM publishes its hashes.
    pub(crate) fn low_u64(self) -> u64 {
        let mut low = [0; 8];
        low.copy_from_slice(&self.0[24..]);
        u64::from_be_bytes(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_the_tokens_and_on_everything_before_them() {
        let first = BlockHash::of(None, &[1, 2]);
        assert_eq!(first, BlockHash::of(None, &[1, 2]));
        assert_ne!(first, BlockHash::of(None, &[2, 1]));
        assert_ne!(BlockHash::of(Some(first), &[3, 4]), BlockHash::of(None, &[3, 4]));
        assert_ne!(BlockHash::of(Some(first), &[3, 4]).low_u64(), first.low_u64());
        let salted = |salt| BlockHash::of(Some(BlockHash::of_salt(salt)), &[1, 2]);
        assert_eq!(salted("a"), salted("a"));
        assert!(salted("a") != salted("b") && salted("a") != first && salted("") != first);
    }
}
