//! What an engine tells its peers about its KV cache, in the metadata of its agent.
//!
//! A peer reads pages out of another engine's region by arithmetic alone, so both must agree on every number that
//! goes into it, and on the model: the description travels in the handshake and is compared before the first pull.

use engine_model::{Dtype, KvLayout};

/// Version of the description.
const VERSION: u8 = 1;
/// Bytes of a description: version, fingerprint, five numbers, dtype.
const LEN: usize = 1 + 32 + 5 * 4 + 1;
/// Label of the region that holds the KV cache.
pub(crate) const REGION_LABEL: &str = "kv";

/// Identifies the model whose keys and values are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fingerprint(pub(crate) [u8; 32]);

/// A KV cache as its peers see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Description {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) layout: KvLayout,
}

/// Why blocks of a peer are of no use here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    #[error(
        "the peer does not describe its KV cache in a form this engine knows (version 1): is it an engine-lite of this release?"
    )]
    Unreadable,
    #[error(
        "{what} differs: {theirs} on the prefill side, {ours} on the decode side; start both with the same value"
    )]
    Mismatch { what: &'static str, theirs: String, ours: String },
}

impl Description {
    /// The bytes of the description.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let KvLayout { layers, kv_heads, head_dim, block_size, num_blocks, dtype } = self.layout;
        let mut bytes = vec![VERSION];
        bytes.extend(self.fingerprint.0);
        for number in [layers, kv_heads, head_dim, block_size, num_blocks] {
            bytes.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        bytes.push(dtype_code(dtype));
        bytes
    }

    /// Reads a description that a peer sent.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LayoutError> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| LayoutError::Unreadable)?;
        let (&[version], rest) = bytes.split_first_chunk().ok_or(LayoutError::Unreadable)?;
        let (&fingerprint, rest) = rest.split_first_chunk::<32>().ok_or(LayoutError::Unreadable)?;
        let number = |index: usize| {
            let word = rest.get(index * 4..index * 4 + 4).and_then(|word| word.try_into().ok());
            let word = word.map(u32::from_le_bytes).ok_or(LayoutError::Unreadable)?;
            usize::try_from(word).map_err(|_| LayoutError::Unreadable)
        };
        let dtype = match (version, rest.last()) {
            (VERSION, Some(0)) => Dtype::F32,
            (VERSION, Some(1)) => Dtype::Bf16,
            _ => return Err(LayoutError::Unreadable),
        };
        let layout = KvLayout {
            layers: number(0)?,
            kv_heads: number(1)?,
            head_dim: number(2)?,
            block_size: number(3)?,
            num_blocks: number(4)?,
            dtype,
        };
        Ok(Self { fingerprint: Fingerprint(fingerprint), layout })
    }

    /// Whether blocks of `peer` can be taken over as they are. The number of blocks may differ.
    pub(crate) fn accepts(&self, peer: &Self) -> Result<(), LayoutError> {
        let differs = |what, theirs: String, ours: String| {
            if theirs == ours { Ok(()) } else { Err(LayoutError::Mismatch { what, theirs, ours }) }
        };
        let (theirs, ours) = (&peer.layout, &self.layout);
        differs("the model", peer.fingerprint.short(), self.fingerprint.short())?;
        differs("the number of layers", theirs.layers.to_string(), ours.layers.to_string())?;
        differs("the number of KV heads", theirs.kv_heads.to_string(), ours.kv_heads.to_string())?;
        differs("the size of a head", theirs.head_dim.to_string(), ours.head_dim.to_string())?;
        differs("the block size", theirs.block_size.to_string(), ours.block_size.to_string())?;
        differs("the KV dtype", theirs.dtype.name().to_owned(), ours.dtype.name().to_owned())
    }
}

impl Fingerprint {
    fn short(&self) -> String {
        self.0[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

const fn dtype_code(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::Bf16 => 1,
        _ => u8::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        let layout = KvLayout {
            layers: 2,
            kv_heads: 3,
            head_dim: 64,
            block_size: 16,
            num_blocks: 100,
            dtype: Dtype::Bf16,
        };
        Description { fingerprint: Fingerprint([7; 32]), layout }
    }

    #[test]
    fn a_description_survives_the_wire_and_nothing_else_does() {
        let bytes = description().encode();
        assert_eq!(bytes.len(), LEN);
        assert_eq!(Description::decode(&bytes), Ok(description()));
        for cut in 0..LEN {
            assert_eq!(Description::decode(&bytes[..cut]), Err(LayoutError::Unreadable));
        }
        for (index, value) in [(0, 2), (LEN - 1, 9)] {
            let mut bad = bytes.clone();
            bad[index] = value;
            assert_eq!(Description::decode(&bad), Err(LayoutError::Unreadable));
        }
    }

    #[test]
    fn a_mismatch_names_both_sides() {
        let ours = description();
        let mut theirs = ours;
        theirs.layout.num_blocks = 7;
        assert_eq!(ours.accepts(&theirs), Ok(()));
        theirs.layout.block_size = 32;
        let error = ours.accepts(&theirs).unwrap_err().to_string();
        assert!(error.contains("32 on the prefill side, 16 on the decode side"), "{error}");
        theirs = ours;
        theirs.fingerprint = Fingerprint([8; 32]);
        assert!(ours.accepts(&theirs).unwrap_err().to_string().contains("the model differs"));
    }
}
