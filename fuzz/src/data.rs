//! What comes on data connections before any payload.

use transfer_proto::proto::data::{DESCS_BYTES_MAX, DataHeader, HEADER_BYTES, Head, PAYLOAD_MAX};

/// A head says what is missing until it is whole, stays within its limits, and comes back.
pub fn check(bytes: &[u8]) {
    match Head::decode(bytes) {
        Err(_) => {}
        Ok(Head::Missing(missing)) => {
            let max = HEADER_BYTES + usize::try_from(DESCS_BYTES_MAX).expect("fits");
            assert!(missing > 0 && bytes.len() + missing <= max, "{missing}");
        }
        Ok(Head::Whole { header, list, len }) => {
            assert!(len <= bytes.len() && header.payload_len <= PAYLOAD_MAX);
            assert_eq!(DataHeader::decode(header.encode()), Ok(header));
            assert_eq!(Head::decode(&bytes[..len]), Ok(Head::Whole { header, list, len }));
            for cut in [0, HEADER_BYTES - 1, HEADER_BYTES, len - 1] {
                let missing = matches!(Head::decode(&bytes[..cut.min(len - 1)]), Ok(Head::Missing(_)));
                assert!(missing, "whole without its last bytes");
            }
        }
    }
}
