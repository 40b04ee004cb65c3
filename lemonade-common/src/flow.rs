//! The identity of a flow: protocol, addresses and ports, all in network byte order.

use core::net::{IpAddr, SocketAddr};

/// A flow's 5-tuple; IPv4 addresses are stored IPv4-mapped (RFC 4291, 2.5.5.2).
///
/// Programs in the kernel read and write it by whole words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// Client address.
    pub src: [u8; 16],
    /// Frontend address.
    pub dst: [u8; 16],
    /// Client port, big-endian.
    pub sport: [u8; 2],
    /// Frontend port, big-endian.
    pub dport: [u8; 2],
    /// IP protocol number, zero-extended so that the key has no padding.
    pub protocol: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 40);

/// IP protocol number of TCP.
pub const TCP: u32 = 6;

/// IP protocol number of UDP.
pub const UDP: u32 = 17;

impl FlowKey {
    /// Key of a TCP connection from `client` to `frontend`.
    pub const fn tcp(client: SocketAddr, frontend: SocketAddr) -> Self {
        Self::of(TCP, client, frontend)
    }

    /// Key of the datagrams from `client` to `frontend`.
    pub const fn udp(client: SocketAddr, frontend: SocketAddr) -> Self {
        Self::of(UDP, client, frontend)
    }

    const fn of(protocol: u32, client: SocketAddr, frontend: SocketAddr) -> Self {
        Self {
            src: mapped(client.ip()),
            dst: mapped(frontend.ip()),
            sport: client.port().to_be_bytes(),
            dport: frontend.port().to_be_bytes(),
            protocol,
        }
    }

    /// The bytes as they stand in a map.
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..16].copy_from_slice(&self.src);
        bytes[16..32].copy_from_slice(&self.dst);
        bytes[32..34].copy_from_slice(&self.sport);
        bytes[34..36].copy_from_slice(&self.dport);
        bytes[36..].copy_from_slice(&self.protocol.to_ne_bytes());
        bytes
    }

    /// Reads the bytes of a map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let (mut src, mut dst) = ([0; 16], [0; 16]);
        src.copy_from_slice(&bytes[..16]);
        dst.copy_from_slice(&bytes[16..32]);
        Self {
            src,
            dst,
            sport: [bytes[32], bytes[33]],
            dport: [bytes[34], bytes[35]],
            protocol: u32::from_ne_bytes([bytes[36], bytes[37], bytes[38], bytes[39]]),
        }
    }

    /// Key of what is sent in answer.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, protocol: self.protocol }
    }
}

/// Address as [`FlowKey`] holds it.
pub const fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_client_and_its_mapped_form_are_the_same_flow() {
        let frontend: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let plain = FlowKey::tcp("198.51.100.7:5000".parse().unwrap(), frontend);
        let mapped = FlowKey::tcp("[::ffff:198.51.100.7]:5000".parse().unwrap(), frontend);
        assert_eq!(plain, mapped);
        assert_eq!(plain.sport, [0x13, 0x88]);
    }
}
