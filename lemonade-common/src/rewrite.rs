//! What a forwarded packet's headers become. Where they stand in the packet, [`Packet`] says.

use crate::csum;
use crate::flow::TCP;
use crate::forward::Flow;
use crate::packet::{Family, Packet};

/// Place in an IPv4 header from which [`v4`] replaces it: time to live, protocol, checksum and both addresses.
pub const V4_AT: usize = 8;

/// Place in an IPv6 header from which [`v6`] replaces it: hop limit and both addresses.
pub const V6_AT: usize = 7;

/// End of an IPv4 header without options.
#[inline(always)]
pub fn v4(packet: &Packet, flow: &Flow) -> [u8; 12] {
    let protocol = packet.key.protocol as u8;
    let hop = csum::delta(&[packet.ttl, protocol], &[packet.ttl - 1, protocol]);
    let checksum = csum::update(packet.checksum, flow.address_delta + hop);
    let mut bytes = [packet.ttl - 1, protocol, checksum[0], checksum[1], 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[4..8].copy_from_slice(&flow.src[12..]);
    bytes[8..].copy_from_slice(&flow.dst[12..]);
    bytes
}

/// End of an IPv6 header.
#[inline(always)]
pub fn v6(packet: &Packet, flow: &Flow) -> [u8; 33] {
    let mut bytes = [packet.ttl - 1; 33];
    bytes[1..17].copy_from_slice(&flow.src);
    bytes[17..].copy_from_slice(&flow.dst);
    bytes
}

/// Ports, where TCP and UDP begin.
#[inline(always)]
pub const fn ports(flow: &Flow) -> [u8; 4] {
    [flow.sport[0], flow.sport[1], flow.dport[0], flow.dport[1]]
}

/// Place of the checksum in the header of TCP or UDP.
#[inline(always)]
pub const fn checksum_at(protocol: u32) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

/// Checksum of TCP or UDP after the rewriting; UDP without one keeps none (RFC 768).
#[inline(always)]
pub const fn checksum(old: [u8; 2], flow: &Flow) -> [u8; 2] {
    let udp = flow.protocol != TCP;
    if udp && old[0] == 0 && old[1] == 0 {
        return old;
    }
    let new = csum::update(old, flow.address_delta + flow.port_delta);
    if udp && new[0] == 0 && new[1] == 0 { [0xff, 0xff] } else { new }
}

/// Hop limit of outer headers.
const HOPS: u8 = 64;

/// Protocols of an outer header that carries IPv4 and IPv6 (RFC 2003, RFC 2473).
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;

/// Ethernet type and IPv4 header that go in front of a packet (RFC 2003).
///
/// It is never cut on the way, so it needs no number of its own (RFC 6864), and what is too big is told to the balancer.
#[inline(always)]
pub fn outer_v4(packet: &Packet, flow: &Flow) -> [u8; 22] {
    let mut bytes = [0; 22];
    // An aggregate that is cut later may be longer than the field can say.
    let length = u16::try_from(packet.length + 20).unwrap_or(0).to_be_bytes();
    bytes[..4].copy_from_slice(&[0x08, 0x00, 0x45, packet.service]);
    bytes[4..6].copy_from_slice(&length);
    bytes[8..12].copy_from_slice(&[0x40, 0, HOPS, carried(packet.family)]);
    bytes[14..18].copy_from_slice(&flow.src[12..]);
    bytes[18..].copy_from_slice(&flow.dst[12..]);
    let sum = csum::finish(csum::sum(&bytes[2..]));
    bytes[12..14].copy_from_slice(&sum);
    bytes
}

/// Ethernet type and IPv6 header that go in front of a packet (RFC 2473); the flow label spreads flows (RFC 6438).
#[inline(always)]
pub fn outer_v6(packet: &Packet, flow: &Flow) -> [u8; 42] {
    let mut bytes = [0; 42];
    let first = 6 << 28 | u32::from(packet.service) << 20 | flow.port_delta & 0xf_ffff;
    let length = u16::try_from(packet.length).unwrap_or(0).to_be_bytes();
    bytes[..2].copy_from_slice(&[0x86, 0xdd]);
    bytes[2..6].copy_from_slice(&first.to_be_bytes());
    bytes[6..8].copy_from_slice(&length);
    bytes[8..10].copy_from_slice(&[carried(packet.family), HOPS]);
    bytes[10..26].copy_from_slice(&flow.src);
    bytes[26..].copy_from_slice(&flow.dst);
    bytes
}

#[inline(always)]
const fn carried(family: Family) -> u8 {
    match family {
        Family::V4 => IPV4_IN_IP,
        Family::V6 => IPV6_IN_IP,
    }
}
