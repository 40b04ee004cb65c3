//! Why a connection was refused, and what became of a packet; each reason is a counter index.

/// Reason for which a connection got no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Every backend of the pool is down, disabled, draining or of weight 0.
    NoBackendUp,
    /// Every backend is at its `max_connections` and the pool has no queue.
    BackendsFull,
    /// The pool's queue is full.
    QueueFull,
    /// No backend became free within `queue_timeout`.
    QueueTimeout,
    /// The frontend is at its `max_connections`.
    FrontendLimit,
    /// The process is at `[runtime] max_connections`.
    TotalLimit,
    /// Each backend tried refused, reset or was unreachable.
    ConnectFailed,
    /// No backend tried answered within `connect_timeout`.
    ConnectTimeout,
    /// The process has no file descriptor left.
    NoDescriptors,
    /// No local port is left towards the backend.
    NoPorts,
    /// The client went away before a backend was connected.
    ClientGone,
    /// Lemonade is shutting down.
    Draining,
}

impl Reason {
    /// Every reason, in the order of its index.
    pub const ALL: [Self; 12] = [
        Self::NoBackendUp,
        Self::BackendsFull,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::FrontendLimit,
        Self::TotalLimit,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::NoDescriptors,
        Self::NoPorts,
        Self::ClientGone,
        Self::Draining,
    ];

    /// Number of reasons, the size of a counter array.
    pub const COUNT: usize = Self::ALL.len();

    /// Counter index.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Stable name, used in metrics, logs and access records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoBackendUp => "no_backend_up",
            Self::BackendsFull => "backends_full",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::FrontendLimit => "frontend_limit",
            Self::TotalLimit => "total_limit",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::NoDescriptors => "no_descriptors",
            Self::NoPorts => "no_ports",
            Self::ClientGone => "client_gone",
            Self::Draining => "draining",
        }
    }
}

/// What became of a packet in the forward plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PacketReason {
    /// It belongs to a flow and was sent on.
    Forwarded,
    /// It opened a flow and was sent on.
    Opened,
    /// It is an ICMP error about a flow and was sent on to the one who must know.
    IcmpError,
    /// It is for no frontend: the host has it.
    NotOurs,
    /// It is neither IPv4 nor IPv6: the host has it.
    NotIp,
    /// It is neither TCP nor UDP, nor an ICMP error about a flow: the host has it.
    OtherProtocol,
    /// It is a fragment without ports, to an address that no frontend claims: the host has it.
    LaterFragment,
    /// It ends before its ports or contradicts itself: the host has it.
    Torn,
    /// It has a VLAN tag: the host has it.
    Tagged,
    /// It is for a frontend, but neither opens a flow nor belongs to one: the host has it, and resets what it does not know.
    UnknownFlow,
    /// No backend of the frontend's pool is up: the host has it, and refuses.
    NoBackend,
    /// It is a fragment for a frontend: dropped, or the host has it, as the frontend says.
    Fragment,
    /// It has IP options or a routing header: dropped.
    Options,
    /// Its lengths contradict each other: dropped.
    BadLength,
    /// Its time to live ends here: dropped.
    HopLimit,
    /// It is larger than the way to its destination takes: dropped, and its sender told.
    TooBig,
    /// No port is left towards the backend: dropped.
    PortsExhausted,
    /// The connection table is full: dropped.
    TableFull,
    /// The kernel did not take the change: dropped.
    NotSent,
    /// It belongs to a flow that the table did not know; the ring named its backend, and it was sent on.
    Adopted,
    /// It came while flows opened faster than they may be written down, or reset a flow that the table did not know; the
    /// ring named its backend, and it was sent on.
    Unrecorded,
    /// It asked the balancer for an echo, and was answered.
    Echo,
    /// The address of the next hop is not known yet: left by the program at XDP to the one at tc, which asks for it.
    NoNeighbour,
    /// The program at XDP cannot send it on: left to the one at tc.
    LeftToTc,
    /// As many handshakes are open as may be, and none for long: dropped.
    HalfOpenFull,
    /// Every backend that may be picked is at its `max_connections`: dropped.
    BackendsFull,
    /// The frontend is at its `max_connections`: dropped.
    FrontendLimit,
}

impl PacketReason {
    /// Every reason, in the order of its index.
    pub const ALL: [Self; 27] = [
        Self::Forwarded,
        Self::Opened,
        Self::IcmpError,
        Self::NotOurs,
        Self::NotIp,
        Self::OtherProtocol,
        Self::LaterFragment,
        Self::Torn,
        Self::Tagged,
        Self::UnknownFlow,
        Self::NoBackend,
        Self::Fragment,
        Self::Options,
        Self::BadLength,
        Self::HopLimit,
        Self::TooBig,
        Self::PortsExhausted,
        Self::TableFull,
        Self::NotSent,
        Self::Adopted,
        Self::Unrecorded,
        Self::Echo,
        Self::NoNeighbour,
        Self::LeftToTc,
        Self::HalfOpenFull,
        Self::BackendsFull,
        Self::FrontendLimit,
    ];

    /// Number of reasons, the size of a counter array.
    pub const COUNT: usize = Self::ALL.len();

    /// Counter index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether the packet went nowhere; a fragment may be passed instead, as its frontend says.
    #[inline(always)]
    pub const fn drops(self) -> bool {
        match self {
            Self::Fragment | Self::Options | Self::BadLength | Self::HopLimit | Self::TooBig => true,
            Self::PortsExhausted | Self::TableFull | Self::HalfOpenFull | Self::NotSent => true,
            Self::BackendsFull | Self::FrontendLimit => true,
            Self::Forwarded | Self::Opened | Self::Adopted | Self::Unrecorded | Self::Echo => false,
            Self::IcmpError | Self::NotOurs | Self::NotIp | Self::OtherProtocol | Self::LaterFragment => {
                false
            }
            Self::Torn | Self::Tagged | Self::UnknownFlow | Self::NoBackend => false,
            Self::NoNeighbour | Self::LeftToTc => false,
        }
    }

    /// Stable name, used in metrics and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Opened => "opened",
            Self::IcmpError => "icmp_error",
            Self::NotOurs => "not_ours",
            Self::NotIp => "not_ip",
            Self::OtherProtocol => "other_protocol",
            Self::LaterFragment => "later_fragment",
            Self::Torn => "torn",
            Self::Tagged => "tagged",
            Self::UnknownFlow => "unknown_flow",
            Self::NoBackend => "no_backend",
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::BadLength => "bad_length",
            Self::HopLimit => "hop_limit",
            Self::TooBig => "too_big",
            Self::PortsExhausted => "ports_exhausted",
            Self::TableFull => "table_full",
            Self::NotSent => "not_sent",
            Self::Adopted => "adopted",
            Self::Unrecorded => "unrecorded",
            Self::Echo => "echo",
            Self::NoNeighbour => "no_neighbour",
            Self::LeftToTc => "left_to_tc",
            Self::HalfOpenFull => "half_open_full",
            Self::BackendsFull => "backends_full",
            Self::FrontendLimit => "frontend_limit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_sits_at_its_index_with_a_name_of_its_own() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), i);
            assert_eq!(Reason::ALL.iter().filter(|other| other.as_str() == reason.as_str()).count(), 1);
        }
    }

    #[test]
    fn each_packet_reason_sits_at_its_index_with_a_name_of_its_own() {
        for (i, reason) in PacketReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), i);
            assert_eq!(PacketReason::ALL.iter().filter(|other| other.as_str() == reason.as_str()).count(), 1);
        }
    }
}
