//! Names of agents, regions and transfers.

use core::fmt;

/// One life of an agent: drawn at random when it is created, never used again. A peer that restarted has
/// another one, and everything that was said to the old one is void.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation([u8; 16]);

impl Incarnation {
    /// From 16 random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A slot and the generation of what is in it, so that a name never comes to mean something else.
macro_rules! slot_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name { generation: u32, slot: u32 }

        impl $name {
            /// The name of what is in `slot` in its `generation`.
            #[must_use]
            pub const fn new(slot: u32, generation: u32) -> Self {
                Self { generation, slot }
            }

            /// Index into the owner's table.
            #[must_use]
            pub const fn slot(self) -> u32 {
                self.slot
            }

            /// How often the slot was used before.
            #[must_use]
            pub const fn generation(self) -> u32 {
                self.generation
            }

            /// As one number, for the wire.
            #[must_use]
            pub fn to_u64(self) -> u64 {
                u64::from(self.generation) << 32 | u64::from(self.slot)
            }

            /// From that number.
            #[must_use]
            #[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
            pub const fn from_u64(raw: u64) -> Self {
                Self { generation: (raw >> 32) as u32, slot: raw as u32 }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}.{}", self.slot, self.generation)
            }
        }
    };
}

slot_id! {
    /// Registered memory of one agent.
    RegionId
}
slot_id! {
    /// One transfer of one agent.
    XferId
}
slot_id! {
    /// One counter of one agent.
    CounterId
}
slot_id! {
    /// One way for bytes between two agents, such as a data connection. The slot is the way, the generation counts
    /// how often it was opened; both sides call it the same.
    RailId
}
