//! What a forwarded packet's headers become. Where they stand in the packet, [`Packet`] says.

use crate::csum;
use crate::flow::TCP;
use crate::forward::Flow;
use crate::packet::{BytesMut, Family, Packet};

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
    let ([.., a, b, c, d], [.., e, f, g, h]) = (flow.src, flow.dst);
    [packet.ttl - 1, protocol, checksum[0], checksum[1], a, b, c, d, e, f, g, h]
}

/// End of an IPv6 header.
#[inline(always)]
pub fn v6(packet: &Packet, flow: &Flow) -> [u8; 33] {
    let mut bytes = [0; 33];
    bytes[0] = packet.ttl - 1;
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

/// Rewrites addresses, ports and checksums in place; says whether the packet has them all. Checksums must be in it: what
/// the network card completes is beyond this.
#[inline(always)]
pub fn translate<B: BytesMut + ?Sized>(bytes: &mut B, packet: &Packet, flow: &Flow) -> bool {
    let (network, transport) = (usize::from(packet.network), usize::from(packet.transport));
    let at = transport + checksum_at(flow.protocol);
    let Some(old) = bytes.load(at) else { return false };
    let header = match packet.family {
        Family::V4 => bytes.store(network + V4_AT, &v4(packet, flow)),
        Family::V6 => bytes.store(network + V6_AT, &v6(packet, flow)),
    };
    header && bytes.store(at, &checksum(old, flow)) && bytes.store(transport, &ports(flow))
}

/// Rewrites an ICMP error about a flow in place: it goes on with the ends of the flow's packets, and quotes the packet as
/// its sender sent it. Says whether the packet has all that.
///
/// What it quotes went the other way, so that the flow's new source is the quoted destination.
// A frame of its own: programs in the kernel have 512 bytes of stack.
#[inline(never)]
pub fn translate_error<B: BytesMut + ?Sized>(bytes: &mut B, packet: &Packet, flow: &Flow) -> bool {
    let (network, at) = (usize::from(packet.network), usize::from(packet.transport) + 2);
    let (quoted, inner) = (usize::from(packet.quoted), usize::from(packet.quoted_transport));
    let Some(sum) = bytes.load::<2>(at) else { return false };
    let addresses = match packet.family {
        Family::V4 => error_v4(bytes, packet, flow, network, quoted),
        Family::V6 => error_v6(bytes, packet, flow, network, quoted),
    };
    let Some(mut delta) = addresses else { return false };
    let Some(old) = bytes.load::<4>(inner) else { return false };
    let new = [flow.dport[0], flow.dport[1], flow.sport[0], flow.sport[1]];
    delta += u32::from(csum::fold(csum::delta(&old, &new)));
    if !bytes.store(inner, &new) {
        return false;
    }
    // Eight bytes are all that must be quoted: the checksum of TCP may be missing.
    if let Some(old) = bytes.load::<2>(inner + checksum_at(flow.protocol)) {
        let new = checksum(old, flow);
        delta += u32::from(csum::fold(csum::delta(&old, &new)));
        if !bytes.store(inner + checksum_at(flow.protocol), &new) {
            return false;
        }
    }
    bytes.store(at, &csum::update(sum, delta))
}

/// Headers of an error over IPv4; what its checksum changes by.
#[inline(always)]
fn error_v4<B: BytesMut + ?Sized>(
    bytes: &mut B,
    packet: &Packet,
    flow: &Flow,
    network: usize,
    quoted: usize,
) -> Option<u32> {
    let old: [u8; 12] = bytes.load(network + V4_AT)?;
    let mut new = [packet.ttl - 1, old[1], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    new[4..8].copy_from_slice(&flow.src[12..]);
    new[8..].copy_from_slice(&flow.dst[12..]);
    let sum = [old[2], old[3]];
    let bare = [old[0], old[1], 0, 0, old[4], old[5], old[6], old[7], old[8], old[9], old[10], old[11]];
    let sum = csum::update(sum, csum::delta(&bare, &new));
    (new[2], new[3]) = (sum[0], sum[1]);
    let stored = bytes.store(network + V4_AT, &new);
    let old: [u8; 10] = bytes.load(quoted + 10)?;
    let sum = csum::update([old[0], old[1]], flow.address_delta);
    let mut new = [sum[0], sum[1], 0, 0, 0, 0, 0, 0, 0, 0];
    new[2..6].copy_from_slice(&flow.dst[12..]);
    new[6..].copy_from_slice(&flow.src[12..]);
    let stored = stored && bytes.store(quoted + 10, &new);
    stored.then_some(u32::from(csum::fold(csum::delta(&old, &new))))
}

/// As [`error_v4`] over IPv6, where the checksum covers the outer addresses too.
#[inline(always)]
fn error_v6<B: BytesMut + ?Sized>(
    bytes: &mut B,
    packet: &Packet,
    flow: &Flow,
    network: usize,
    quoted: usize,
) -> Option<u32> {
    let (src, dst): ([u8; 16], [u8; 16]) = (bytes.load(network + 8)?, bytes.load(network + 24)?);
    let outer = csum::address_delta(&src, &flow.src) + csum::address_delta(&dst, &flow.dst);
    let stored = bytes.store(network + V6_AT, &[packet.ttl - 1])
        && bytes.store(network + 8, &flow.src)
        && bytes.store(network + 24, &flow.dst)
        && bytes.store(quoted + 8, &flow.dst)
        && bytes.store(quoted + 24, &flow.src);
    stored.then_some(u32::from(csum::fold(outer)) + u32::from(csum::fold(flow.address_delta)))
}

/// Hop limit of outer headers.
const HOPS: u8 = 64;

/// Protocols of an outer header that carries IPv4 and IPv6 (RFC 2003, RFC 2473).
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;

/// Ethernet type and IPv4 header that go in front of a packet (RFC 2003), as words lie in memory: programs in the kernel write
/// bytes one by one.
///
/// It is never cut on the way, so it needs no number of its own (RFC 6864), and what is too big is told to the balancer.
#[inline(always)]
pub fn outer_v4(packet: &Packet, flow: &Flow) -> [u16; 11] {
    // An aggregate that is cut later may be longer than the field can say.
    let length = u16::try_from(packet.length + 20).unwrap_or(0).to_be();
    let first = u16::from_be(0x4500 | u16::from(packet.service));
    let hops = u16::from_be(u16::from(HOPS) << 8 | u16::from(carried(packet.family)));
    let ([.., a, b, c, d], [.., e, f, g, h]) = (flow.src, flow.dst);
    let word = |high, low| u16::from_ne_bytes([high, low]);
    let whole = u16::from_be(0x4000);
    let ends = [word(a, b), word(c, d), word(e, f), word(g, h)];
    let words = [first, length, whole, hops, ends[0], ends[1], ends[2], ends[3]];
    let sum = words.iter().fold(0, |sum, word| sum + u32::from(*word));
    let sum = u16::from_ne_bytes(csum::finish(sum));
    [u16::from_be(0x0800), first, length, 0, whole, hops, sum, ends[0], ends[1], ends[2], ends[3]]
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
