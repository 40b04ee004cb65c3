//! What a forwarded packet's headers become. Where they stand in the packet, [`Packet`] says.

use crate::csum;
use crate::flow::TCP;
use crate::forward::Flow;
use crate::packet::Packet;

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
