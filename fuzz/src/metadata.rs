//! What an agent tells of itself, as the blob that applications carry.

use transfer_proto::proto::metadata::{AgentMetadata, BLOB_MAX};
use transfer_proto::proto::preamble::PREAMBLE_BYTES;

/// There is one encoding of each content, and none is longer than it may be.
pub fn check(bytes: &[u8]) {
    let Ok(metadata) = AgentMetadata::from_blob(bytes) else { return };
    assert!(bytes.len() <= BLOB_MAX);
    // The preamble in front says which versions its writer spoke.
    assert_eq!(metadata.to_blob()[PREAMBLE_BYTES..], bytes[PREAMBLE_BYTES..]);
    for region in &metadata.regions {
        let (first, end) = region.generations.blocks(0, region.len);
        assert!(first <= end && region.base.checked_add(region.len).is_some());
    }
}
