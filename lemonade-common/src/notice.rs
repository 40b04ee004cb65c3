//! What the forward plane tells of single packets while somebody listens.

use crate::{FlowKey, PacketReason};

/// A packet that opened a flow or went nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Notice {
    /// Its flow as it arrived.
    pub key: FlowKey,
    /// Index of its [`PacketReason`].
    pub reason: u32,
    /// Index of the frontend of its flow; [`NOBODY`]: it has none.
    pub frontend: u32,
    /// Index of the backend of its flow; [`NOBODY`]: it has none.
    pub backend: u32,
    /// Kept for later; zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Notice>() == 56);

/// No frontend, or no backend.
pub const NOBODY: u32 = u32::MAX;

impl Notice {
    /// Reads what a ring buffer holds; `None`: it is of another size.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk::<{ size_of::<FlowKey>() }>()?;
        let word = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let key = FlowKey::from_bytes(key);
        Some(Self { key, reason: word(0)?, frontend: word(4)?, backend: word(8)?, reserved: word(12)? })
    }

    /// Why the packet is told of.
    pub fn reason(&self) -> Option<PacketReason> {
        PacketReason::ALL.get(self.reason as usize).copied()
    }
}

impl PacketReason {
    /// Whether single packets that came to this are told of: they opened a flow, or went nowhere.
    #[inline(always)]
    pub const fn is_told(self) -> bool {
        matches!(self, Self::Opened | Self::NoBackend) || self.drops()
    }
}
