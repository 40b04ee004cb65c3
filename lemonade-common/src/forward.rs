//! What the forward plane keeps in maps: services, targets and flows. All words are native-endian unless they are bytes.

use core::cell::Cell;

use crate::flow::FlowKey;

/// Address, port and protocol that clients use: key of the map `SERVICES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// IPv6 address, or an IPv4 address mapped into one.
    pub address: [u8; 16],
    /// Port, big-endian.
    pub port: [u8; 2],
    /// IP protocol number, big-endian.
    pub protocol: [u8; 2],
}

/// Where new flows to a [`ServiceKey`] go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Index of its frontend.
    pub frontend: u32,
    /// Which of the rings in the map `RINGS` is its pool's.
    pub ring: u32,
    /// Sum of [`BY_SOURCE`], [`PASS_FRAGMENTS`], [`BY_PORT`], [`ANSWER_ECHO`] and [`LEAST_CONNECTIONS`].
    pub flags: u32,
    /// How packets reach the backend: [`NAT`], [`NAT_GATEWAY`], [`DSR_L2`] or [`DSR_IPIP`].
    pub mode: u32,
    /// One more than the number of the ring that was its pool's before, 0 for none. In every mode but [`NAT`] a packet from
    /// the middle of a flow that the table does not know asks it first.
    pub previous: u32,
    /// Connections of the frontend at most, those elsewhere included; 0: no limit.
    pub most: u32,
}

/// Mode that gives packets both addresses anew: answers come back whatever the routes of the backend are.
pub const NAT: u32 = 0;

/// Mode that gives packets another destination and leaves them the client's address; the backend routes its answers by way
/// of the balancer.
pub const NAT_GATEWAY: u32 = 1;

/// Mode that changes nothing but the Ethernet header; the backend has the service's address and answers the client itself.
pub const DSR_L2: u32 = 2;

/// Mode that puts another IP header in front (RFC 2003, RFC 2473); the backend takes it off and answers the client itself.
pub const DSR_IPIP: u32 = 3;

/// Whether answers go past the balancer in this mode.
#[inline(always)]
pub const fn answers_pass_by(mode: u32) -> bool {
    mode >= DSR_L2
}

/// Flag of a service whose clients each keep to one backend, whatever their port.
pub const BY_SOURCE: u32 = 1;

/// Flag of a service whose fragments go to the host instead of nowhere.
pub const PASS_FRAGMENTS: u32 = 2;

/// Flag of a service whose ports each keep to one backend, whoever the client is.
pub const BY_PORT: u32 = 4;

/// Flag of the service at [`ServiceKey::whole`]: the balancer answers who asks the address for an echo.
pub const ANSWER_ECHO: u32 = 8;

/// Flag of a service whose new flows go to the backend of its ring with the fewest connections per weight. The ring decides
/// on what the table does not know.
pub const LEAST_CONNECTIONS: u32 = 16;

/// One backend of a service: value of the map `BACKEND_TARGETS`, whose key is the index of the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// Where it is: IPv6 address, or an IPv4 address mapped into one.
    pub address: [u8; 16],
    /// The balancer's own address on the way there; in mode [`DSR_IPIP`], source of the outer header.
    pub snat: [u8; 16],
    /// Port, big-endian; zero takes the port that the client used.
    pub port: [u8; 2],
    /// First port for [`Self::snat`], big-endian.
    pub first_port: [u8; 2],
    /// How many ports there are from there on; in mode [`DSR_IPIP`], over how many addresses from [`Self::snat`] on outer
    /// headers are spread by the hash of their flow (0 is 1).
    pub ports: u32,
    /// Interface towards it.
    pub interface: u32,
    /// Its share relative to the others of its pool, where connections per weight are compared.
    pub weight: u32,
    /// Connections to it at most, those elsewhere included; 0: no limit.
    pub most: u32,
}

/// One direction of a flow: value of the map `CONNECTIONS`, whose key is the flow as it arrives in that direction.
///
/// What changes after insertion is in cells: several cores may write them at once, and the last one counts. The
/// compiler for programs in the kernel has no atomics that would say so.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Flow {
    /// Source address as it leaves; that of the outer header in mode [`DSR_IPIP`].
    pub src: [u8; 16],
    /// Destination address as it leaves; in modes [`DSR_L2`] and [`DSR_IPIP`] the backend's, whatever the packet's.
    pub dst: [u8; 16],
    /// Source port as it leaves, big-endian.
    pub sport: [u8; 2],
    /// Destination port as it leaves, big-endian.
    pub dport: [u8; 2],
    /// Interface by which it leaves.
    pub interface: u32,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the frontend.
    pub frontend: u32,
    /// What checksums change by for the addresses.
    pub address_delta: u32,
    /// What checksums change by for the ports; in mode [`DSR_IPIP`], the flow label of the outer header.
    pub port_delta: u32,
    /// Protocol of the flow.
    pub protocol: u32,
    /// Mode of the service when the flow was opened.
    pub mode: u32,
    /// Sum of [`DOWN`], [`ANSWERED`], [`FIN_UP`], [`FIN_DOWN`], [`RESET`], [`ESTABLISHED`] and [`ADOPTED`], as packets of this
    /// direction say.
    pub state: Cell<u64>,
    /// The same as packets of the other direction say. Apart, since the two directions are often on two cores, and a FIN
    /// that one core overwrites does not come again.
    pub told: Cell<u64>,
    /// Time of the last packet in nanoseconds of CLOCK_MONOTONIC.
    pub seen: Cell<u64>,
    /// Packets in this direction; segments that the network card cuts later count as one.
    pub packets: Cell<u64>,
    /// Bytes in this direction, with Ethernet headers.
    pub bytes: Cell<u64>,
    /// Time of the packet that opened it, as `seen`.
    pub opened: u64,
    /// Time since which the flow counts as live at its frontend and its backend, to the nanosecond; 0: it does not, or this is
    /// not the entry of the direction from the client. Who puts 0 there takes the counts away.
    pub counted: Cell<u64>,
}

/// A direction of a flow that is to be forgotten: the program `forward_forget` is handed up to [`FORGOTTEN`] of them, one after
/// the other as if they were a packet, and returns a bit for each that it took away, the first one lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Forgotten {
    /// Key of its entry.
    pub key: FlowKey,
    /// The entry's `seen`, so that it stays if a packet has come meanwhile; 0: it goes all the same.
    pub seen: u64,
}

/// Directions that are forgotten at once.
pub const FORGOTTEN: usize = 32;

/// What flows carried whose entries were taken away: value of the map `GONE`, whose key is [`opened_key`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Carried {
    /// Packets from clients, and to them.
    pub packets: [u64; 2],
    /// Bytes of both, with Ethernet headers.
    pub bytes: [u64; 2],
}

/// Key of the map `OPENED`, which counts the flows that were opened: a frontend and one of its backends.
#[inline(always)]
pub const fn opened_key(frontend: u32, backend: u32) -> u64 {
    ((frontend as u64) << 32) | backend as u64
}

/// State of the entry whose direction is from the backend to the client.
pub const DOWN: u32 = 1;
/// State of a flow that the backend has answered.
pub const ANSWERED: u32 = 2;
/// State of a flow whose client has sent FIN.
pub const FIN_UP: u32 = 4;
/// State of a flow whose backend has sent FIN.
pub const FIN_DOWN: u32 = 8;
/// State of a flow that one side has reset.
pub const RESET: u32 = 16;
/// State of a flow whose client has acknowledged an answer, which ends the handshake of TCP.
pub const ESTABLISHED: u32 = 32;
/// State of a flow that was found in its middle: what the backend says first is no answer to a SYN.
pub const ADOPTED: u32 = 64;

const _: () = assert!(size_of::<ServiceKey>() == 20 && align_of::<ServiceKey>() == 1);
const _: () = assert!(size_of::<Service>() == 24);
const _: () = assert!(size_of::<Target>() == 52);
const _: () = assert!(size_of::<Flow>() == 120);
const _: () = assert!(size_of::<Forgotten>() == 48);

/// Whether a flow in this state has ended, so that its ports may serve another before long.
pub const fn ended(state: u32) -> bool {
    state & RESET != 0 || state & (FIN_UP | FIN_DOWN) == FIN_UP | FIN_DOWN
}

impl ServiceKey {
    /// Service that a packet with this key is for.
    #[inline(always)]
    pub const fn of(key: &FlowKey) -> Self {
        Self { address: key.dst, port: key.dport, protocol: [0, key.protocol as u8] }
    }

    /// An address as a whole: the flags that are put there hold for packets without ports, which are later fragments
    /// ([`PASS_FRAGMENTS`]) and requests for an echo ([`ANSWER_ECHO`]).
    #[inline(always)]
    pub const fn whole(address: [u8; 16]) -> Self {
        Self { address, port: [0; 2], protocol: [0; 2] }
    }

    /// The same address and protocol with any port: what is served there holds where nothing is served at the port itself.
    #[inline(always)]
    #[must_use]
    pub const fn any_port(self) -> Self {
        Self { port: [0; 2], ..self }
    }

    /// The bytes as they stand in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..16].copy_from_slice(&self.address);
        bytes[16..18].copy_from_slice(&self.port);
        bytes[18..].copy_from_slice(&self.protocol);
        bytes
    }
}

impl ServiceKey {
    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let mut address = [0; 16];
        address.copy_from_slice(&bytes[..16]);
        Self { address, port: [bytes[16], bytes[17]], protocol: [bytes[18], bytes[19]] }
    }
}

impl Service {
    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let word = |n: usize| word(bytes, 4 * n);
        Self {
            frontend: word(0),
            ring: word(1),
            flags: word(2),
            mode: word(3),
            previous: word(4),
            most: word(5),
        }
    }

    /// The bytes as they stand in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let words = [self.frontend, self.ring, self.flags, self.mode, self.previous, self.most];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

impl Carried {
    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let long = |at: usize| {
            let mut long = [0; 8];
            long.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(long)
        };
        Self { packets: [long(0), long(8)], bytes: [long(16), long(24)] }
    }
}

impl Forgotten {
    /// The bytes as the program reads them.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..40].copy_from_slice(&self.key.to_bytes());
        bytes[40..].copy_from_slice(&self.seen.to_ne_bytes());
        bytes
    }
}

impl Target {
    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let [ports, interface, weight, most] = [36, 40, 44, 48].map(|at| word(bytes, at));
        let mut own = Self { ports, interface, weight, most, ..Self::default() };
        own.address.copy_from_slice(&bytes[..16]);
        own.snat.copy_from_slice(&bytes[16..32]);
        own.port.copy_from_slice(&bytes[32..34]);
        own.first_port.copy_from_slice(&bytes[34..36]);
        own
    }

    /// The bytes as they stand in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..16].copy_from_slice(&self.address);
        bytes[16..32].copy_from_slice(&self.snat);
        bytes[32..34].copy_from_slice(&self.port);
        bytes[34..36].copy_from_slice(&self.first_port);
        bytes[36..40].copy_from_slice(&self.ports.to_ne_bytes());
        bytes[40..44].copy_from_slice(&self.interface.to_ne_bytes());
        bytes[44..48].copy_from_slice(&self.weight.to_ne_bytes());
        bytes[48..].copy_from_slice(&self.most.to_ne_bytes());
        bytes
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Flow {
    /// Key of the packets that leave.
    #[inline(always)]
    pub const fn leaves(&self) -> FlowKey {
        FlowKey {
            src: self.src,
            dst: self.dst,
            sport: self.sport,
            dport: self.dport,
            protocol: self.protocol,
        }
    }

    /// Its state now, as both directions say.
    #[inline(always)]
    pub fn state(&self) -> u32 {
        (self.state.get() | self.told.get()) as u32
    }

    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let address = |at: usize| {
            let mut address = [0; 16];
            address.copy_from_slice(&bytes[at..at + 16]);
            address
        };
        let word = |at: usize| word(bytes, at);
        let long = |at: usize| {
            let mut long = [0; 8];
            long.copy_from_slice(&bytes[at..at + 8]);
            Cell::new(u64::from_ne_bytes(long))
        };
        Self {
            src: address(0),
            dst: address(16),
            sport: [bytes[32], bytes[33]],
            dport: [bytes[34], bytes[35]],
            interface: word(36),
            backend: word(40),
            frontend: word(44),
            address_delta: word(48),
            port_delta: word(52),
            protocol: word(56),
            mode: word(60),
            state: long(64),
            told: long(72),
            seen: long(80),
            packets: long(88),
            bytes: long(96),
            opened: long(104).get(),
            counted: long(112),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_maps_is_read_back() {
        let key = ServiceKey { address: [7; 16], port: [1, 2], protocol: [0, 6] };
        assert_eq!(ServiceKey::from_bytes(&key.to_bytes()), key);
        let service = Service { frontend: 1, ring: 2, flags: 3, mode: 4, previous: 5, most: 6 };
        assert_eq!(Service::from_bytes(&service.to_bytes()), service);
        let (address, snat) = ([8; 16], [9; 16]);
        let (port, first_port) = ([1, 2], [3, 4]);
        let target = Target { address, snat, port, first_port, ports: 5, interface: 6, weight: 7, most: 8 };
        assert_eq!(Target::from_bytes(&target.to_bytes()), target);
    }
}
