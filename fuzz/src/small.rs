//! Messages of a fixed size: preambles, and those of the Unix socket.

use transfer_proto::proto::local::{LOCAL_BYTES, LocalMessage};
use transfer_proto::proto::preamble::{self, PREAMBLE_BYTES};
use transfer_proto::proto::session::{SESSION_HELLO_BYTES, SessionHello};

/// What is decoded comes back when it is encoded.
pub fn check(bytes: &[u8]) {
    if let Some(raw) = bytes.first_chunk::<PREAMBLE_BYTES>()
        && let Ok(preamble) = preamble::decode(*raw)
    {
        assert_eq!(preamble::decode(preamble::encode(preamble.kind, preamble.flags)), Ok(preamble));
    }
    if let Some(raw) = bytes.first_chunk::<SESSION_HELLO_BYTES>() {
        assert_eq!(SessionHello::decode(*raw).encode(), *raw);
    }
    if let Some(raw) = bytes.first_chunk::<LOCAL_BYTES>()
        && let Ok(message) = LocalMessage::decode(*raw)
    {
        assert_eq!(LocalMessage::decode(message.encode()), Ok(message));
    }
}
