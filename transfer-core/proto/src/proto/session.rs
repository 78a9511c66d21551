//! Which peer a further connection belongs to: 32 bytes behind the preamble of local and data connections.

use crate::id::{Incarnation, RailId};

/// Length of the greeting.
pub const SESSION_HELLO_BYTES: usize = 32;

/// Who opened a connection, and what proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionHello {
    /// The sender.
    pub incarnation: Incarnation,
    /// The word of the receiver's `Hello`. Zero between agents that have a key: there the word is proven and not
    /// shown.
    pub token: u64,
    /// What both sides call a data connection from here on; nothing on a local one.
    pub rail: RailId,
}

impl SessionHello {
    /// All fields.
    #[must_use]
    pub fn new(incarnation: Incarnation, token: u64, rail: RailId) -> Self {
        Self { incarnation, token, rail }
    }

    /// As bytes.
    #[must_use]
    pub fn encode(self) -> [u8; SESSION_HELLO_BYTES] {
        let mut out = [0; SESSION_HELLO_BYTES];
        out[..16].copy_from_slice(&self.incarnation.to_bytes());
        out[16..24].copy_from_slice(&self.token.to_le_bytes());
        out[24..].copy_from_slice(&self.rail.to_u64().to_le_bytes());
        out
    }

    /// From bytes: every 32 of them are a greeting, right or wrong.
    #[must_use]
    pub fn decode(bytes: [u8; SESSION_HELLO_BYTES]) -> Self {
        let mut incarnation = [0; 16];
        incarnation.copy_from_slice(&bytes[..16]);
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Self::new(Incarnation::from_bytes(incarnation), word(16), RailId::from_u64(word(24)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_comes_back() {
        let hello = SessionHello::new(Incarnation::from_bytes([1; 16]), 42, RailId::new(3, 1));
        assert_eq!(SessionHello::decode(hello.encode()), hello);
    }
}
