//! What programs in the kernel and the control plane exchange through maps.
//!
//! Values are plain words without padding, so that both sides see the same bytes; addresses and ports are big-endian
//! byte arrays.

/// Version of the layout of every map; a process adopts the maps of another only if it is equal.
pub const ABI_VERSION: u32 = 9;

/// Index of [`ABI_VERSION`] in the map `ABI`.
pub const ABI_VERSION_AT: u32 = 0;

/// Address and port of a backend: key of the map `BACKENDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// IPv6 address, or an IPv4 address mapped into one.
    pub address: [u8; 16],
    /// Port, big-endian.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}

/// What the kernel counted of the connections to one [`Endpoint`]: value of the map `BACKENDS`.
///
/// All connections that the process made count, those of health probes too, but for their resets (see [`PROBE`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BackendSignals {
    /// Connections established.
    pub connects: u64,
    /// Microseconds from the first SYN to the end of the handshake, added up over `connects`.
    pub connect_us_sum: u64,
    /// Segments sent again, SYN included.
    pub retransmits: u64,
    /// Connections that left the state ESTABLISHED, whichever way.
    pub closes: u64,
    /// Of `closes`, those that went straight to CLOSE without this process asking: the peer's RST, or a timeout.
    pub resets: u64,
    /// Of `resets`, those before a segment with bytes went either way: no client can provoke them by what it sends.
    pub early_resets: u64,
    /// Microseconds of the newest handshake.
    pub connect_us_last: u32,
    /// Smoothed round-trip time in microseconds, of the newest connection that was established or ended.
    pub srtt_us: u32,
}

/// Sockets in the maps of relay `sockmap` at most, two for each connection; above, connections stay with `copy`.
pub const RELAY_SOCKETS: u32 = 32_768;

/// Bytes of one direction that may be on their way without the receiving peer's acknowledgement.
pub const RELAY_UNACKED: u64 = 1 << 20;

/// Received segments of one direction that may be, since each costs the kernel memory however short it is.
pub const RELAY_SEGMENTS: u32 = 2048;

/// Indices into the map `PLACES`: offsets of `cb` in `struct sk_buff` and of `copied_seq` in `struct tcp_sock`.
pub const PLACE_CB: u32 = 0;
/// See [`PLACE_CB`].
pub const PLACE_COPIED_SEQ: u32 = 1;

/// Index of the only value of the map `ACKS_WANTED`: not 0 while relay `sockmap` is in use.
pub const ACKS_WANTED_AT: u32 = 0;

/// One direction of a connection of relay `sockmap`: value of the map `FLOWS`, by the cookie of the socket that
/// receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RelayFlow {
    /// Cookie of the socket that sends on.
    pub target: u64,
    /// Bytes that the target had been given when the kernel took over, by its `tcpi_bytes_acked`.
    pub base: u64,
    /// Bytes that the target's peer has acknowledged, as last seen.
    pub acked: u64,
    /// Bytes sent on in the kernel.
    pub redirected: u64,
    /// Bytes left to userspace.
    pub passed: u64,
    /// Bytes that could not be sent on although the sender takes them for delivered.
    pub lost: u64,
    /// Bytes given to the target when `old` began to count.
    pub mark: u64,
    /// Segments sent on after `mark`.
    pub young: u32,
    /// Segments sent on before `mark` that may be unacknowledged.
    pub old: u32,
    /// 1 while userspace moves the bytes.
    pub held: u32,
    /// Sequence number of the next byte, once the program has seen one.
    pub next: u32,
}

const _: () = assert!(size_of::<RelayFlow>() == 72);
const _: () = assert!(size_of::<Endpoint>() == 20 && size_of::<BackendSignals>() == 56);

/// Value of SO_RCVLOWAT that the process sets on a socket which it is about to reset itself.
///
/// The kernel shows a program no other difference between a reset of this side and one of the peer. It is far from the
/// default (1) and low enough that no buffer caps it.
pub const OWN_RESET: i32 = 1979;

/// Value of TCP_SYNCNT that a health probe sets on its socket: what becomes of it, a reset tells of the probe's end.
///
/// A probe often closes with bytes unread, which resets. The value is no default, and a probe ends long before so many
/// SYNs are sent.
pub const PROBE: i32 = 97;

impl Endpoint {
    /// The bytes as they stand in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..16].copy_from_slice(&self.address);
        bytes[16..18].copy_from_slice(&self.port);
        bytes
    }

    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let mut address = [0; 16];
        address.copy_from_slice(&bytes[..16]);
        Self { address, port: [bytes[16], bytes[17]], reserved: [0; 2] }
    }
}

impl BackendSignals {
    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let long = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let short = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            connects: long(0),
            connect_us_sum: long(8),
            retransmits: long(16),
            closes: long(24),
            resets: long(32),
            early_resets: long(40),
            connect_us_last: short(48),
            srtt_us: short(52),
        }
    }
}

impl RelayFlow {
    /// The bytes as they stand in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let Self { target, base, acked, redirected, passed, lost, mark, young, old, held, next } = self;
        let (longs, shorts) = bytes.split_at_mut(56);
        for (to, from) in longs.chunks_exact_mut(8).zip([target, base, acked, redirected, passed, lost, mark])
        {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        for (to, from) in shorts.chunks_exact_mut(4).zip([young, old, held, next]) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        bytes
    }

    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let long = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
            u64::from_ne_bytes(word)
        };
        let short = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[56 + at * 4..60 + at * 4]);
            u32::from_ne_bytes(word)
        };
        Self {
            target: long(0),
            base: long(1),
            acked: long(2),
            redirected: long(3),
            passed: long(4),
            lost: long(5),
            mark: long(6),
            young: short(0),
            old: short(1),
            held: short(2),
            next: short(3),
        }
    }
}
