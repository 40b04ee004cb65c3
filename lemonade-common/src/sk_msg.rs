//! What the programs of relay `sk_msg` and the control plane exchange through maps.

/// One end of a connection within this host, as that end sees it: key of the maps `ENDS`, `SOCKS` and `UNREAD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct End {
    /// Own address: IPv6, or IPv4 mapped into it.
    pub local: [u8; 16],
    /// Address of the other end.
    pub remote: [u8; 16],
    /// Own port, big-endian.
    pub local_port: [u8; 2],
    /// Port of the other end, big-endian.
    pub remote_port: [u8; 2],
}

/// What is known of an [`End`]: value of the map `ENDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Socket {
    /// Where the kernel keeps it.
    pub address: u64,
    /// Sequence number of the first byte that it will receive.
    pub first: u32,
    /// [`OWN`] for a socket of Lemonade, [`FOREIGN`] for one of the peer in front of it or behind it; with [`TRIAL`], a
    /// socket that plays that part in a self-test.
    pub owner: u32,
}

/// A socket of the balancer: it reads until the kernel has nothing left, whichever way the bytes came.
pub const OWN: u32 = 1;

/// A socket of a local client or backend, of whose habits nothing is known.
pub const FOREIGN: u32 = 2;

/// Added to the owner of a socket that connects in a self-test: the other end is Lemonade's too, and plays the other part.
pub const TRIAL: u32 = 4;

/// Bytes that a receiver may have unread on the short way.
///
/// It holds several answers of the size of a relay buffer, and is far below what makes the kernel refuse memory.
pub const MOST_UNREAD: u32 = 1 << 20;

/// What is counted: index into the map `COUNTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Messages that went straight to the receiver.
    Redirected,
    /// Bytes of these.
    Bytes,
    /// Messages that took TCP because the receiver, a socket of the balancer, had too much unread.
    Overflowed,
    /// Messages that took TCP because bytes before them had, and were unread or their receiver is foreign.
    Behind,
    /// Messages to a receiver that does not take part, or no longer.
    Alone,
    /// Sockets that joined.
    Joined,
    /// Sockets that could not join, because a map was full.
    Full,
}

impl Count {
    /// How many counters there are.
    pub const LEN: u32 = Self::Full as u32 + 1;
}

const _: () = assert!(size_of::<End>() == 36 && size_of::<Socket>() == 16);

impl End {
    /// The other end.
    #[must_use]
    pub const fn reverse(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
        }
    }

    /// The bytes as they stand in the maps.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..16].copy_from_slice(&self.local);
        bytes[16..32].copy_from_slice(&self.remote);
        bytes[32..34].copy_from_slice(&self.local_port);
        bytes[34..].copy_from_slice(&self.remote_port);
        bytes
    }
}
