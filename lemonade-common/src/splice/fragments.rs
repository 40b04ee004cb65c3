//! Fragments of a packet that changes connections: only the first names its flow.

use crate::csum;
use crate::packet::{Bytes, BytesMut, Family, Kind, Packet};
use crate::rewrite;

use super::Leg;

/// What fragments of one packet have in common: key of the map `FRAGMENTS`, whose value is the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Fragmented {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Identification.
    pub id: [u8; 4],
}

/// What names a fragment's packet.
#[inline(always)]
pub fn fragmented<B: Bytes + ?Sized>(bytes: &B, packet: &Packet) -> Option<Fragmented> {
    let id = match (packet.family, packet.kind) {
        (Family::V4, _) => {
            let id: [u8; 2] = bytes.load(usize::from(packet.network) + 4)?;
            [0, 0, id[0], id[1]]
        }
        // Of a later fragment nothing behind its fragment header was read, of the first it ends where TCP begins.
        (Family::V6, Kind::LaterFragment) => bytes.load(usize::from(packet.transport) + 4)?,
        (Family::V6, _) => bytes.load(usize::from(packet.transport) - 4)?,
    };
    Some(Fragmented { src: packet.key.src, dst: packet.key.dst, id })
}

/// Gives a packet the addresses of the other connection, and a time to live of `hops`; says whether the packet has room for
/// them. No checksum but that of the IPv4 header follows.
#[inline(always)]
pub fn readdress<B: BytesMut + ?Sized>(bytes: &mut B, packet: &Packet, leg: &Leg, hops: u8) -> bool {
    let network = usize::from(packet.network);
    match packet.family {
        Family::V4 => {
            let Some([ttl, protocol, high, low]) = bytes.load(network + rewrite::V4_AT) else { return false };
            let hop = csum::delta(&[ttl, protocol], &[hops, protocol]);
            let sum = csum::update([high, low], leg.address_delta + hop);
            let mut new = [hops, protocol, sum[0], sum[1], 0, 0, 0, 0, 0, 0, 0, 0];
            new[4..8].copy_from_slice(&leg.src[12..]);
            new[8..].copy_from_slice(&leg.dst[12..]);
            bytes.store(network + rewrite::V4_AT, &new)
        }
        Family::V6 => {
            let mut new = [hops; 33];
            new[1..17].copy_from_slice(&leg.src);
            new[17..].copy_from_slice(&leg.dst);
            bytes.store(network + rewrite::V6_AT, &new)
        }
    }
}
