//! What the balancer sends of its own: answers to echo requests, and what it tells the sender of a packet that is too big.

use crate::csum;
use crate::packet::{BytesMut, ETHERNET, Family, Packet, echo_request};

/// Hop limit of the balancer's own packets.
const HOPS: u8 = 64;

/// Bytes that are quoted of a packet that is too big, from its IP header on: at least eight of TCP or UDP (RFC 792).
pub const QUOTED: usize = 64;

/// Bytes of the answer to a packet that is too big, with its Ethernet header.
#[inline(always)]
pub const fn too_big_length(family: Family) -> usize {
    match family {
        Family::V4 => ETHERNET + 20 + 8 + QUOTED,
        Family::V6 => ETHERNET + 40 + 8 + QUOTED,
    }
}

/// Writes over a packet of [`too_big_length`], whose Ethernet header is still that of `packet`: its sender is told of `mtu`
/// bytes (RFC 1191, RFC 4443), and `quoted` is what the packet began with. Says whether the packet has all that is written.
// A frame of its own: programs in the kernel have 512 bytes of stack.
#[inline(never)]
pub fn too_big<B: BytesMut + ?Sized>(
    bytes: &mut B,
    packet: &Packet,
    quoted: &[u8; QUOTED],
    mtu: u32,
) -> bool {
    let (src, dst) = (&packet.key.dst, &packet.key.src);
    let [a, b, c, d] = mtu.to_be_bytes();
    let sum = csum::sum(quoted);
    let (header, at) = match packet.family {
        Family::V4 => {
            let length = ((20 + 8 + QUOTED) as u16).to_be_bytes();
            let mut header =
                [0x45, 0, length[0], length[1], 0, 0, 0x40, 0, HOPS, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[12..16].copy_from_slice(&src[12..]);
            header[16..].copy_from_slice(&dst[12..]);
            let own = csum::finish(csum::sum(&header));
            (header[10], header[11]) = (own[0], own[1]);
            (bytes.store(ETHERNET, &header), ETHERNET + 20)
        }
        Family::V6 => {
            let length = ((8 + QUOTED) as u16).to_be_bytes();
            let stored = bytes.store(ETHERNET, &[0x60, 0, 0, 0, length[0], length[1], 58, HOPS])
                && bytes.store(ETHERNET + 8, src)
                && bytes.store(ETHERNET + 24, dst);
            (stored, ETHERNET + 40)
        }
    };
    let mut message = match packet.family {
        Family::V4 => [3, 4, 0, 0, 0, 0, c, d],
        Family::V6 => [2, 0, 0, 0, a, b, c, d],
    };
    let mut sum = sum + csum::sum(&message);
    if packet.family == Family::V6 {
        // RFC 8200, 8.1: both addresses, the length and the protocol.
        let tail = [0, (8 + QUOTED) as u8, 0, 58];
        sum += csum::sum(src) + csum::sum(dst) + csum::sum(&tail);
    }
    let sum = csum::finish(sum);
    (message[2], message[3]) = (sum[0], sum[1]);
    header && bytes.store(at, &message) && bytes.store(at + 8, quoted) && turn(bytes)
}

/// Makes of a request for an echo the answer to it, in place; says whether the packet has all that is changed.
// A frame of its own: programs in the kernel have 512 bytes of stack.
#[inline(never)]
pub fn echo<B: BytesMut + ?Sized>(bytes: &mut B, packet: &Packet) -> bool {
    let (network, transport) = (usize::from(packet.network), usize::from(packet.transport));
    let Some([kind, code, high, low]) = bytes.load(transport) else { return false };
    let reply = match packet.family {
        Family::V4 => 0,
        Family::V6 => echo_request(Family::V6) + 1,
    };
    let mut sum = csum::update([high, low], csum::delta(&[kind, code], &[reply, code]));
    // Of a message that is all zeroes this is the only form that is right, and it is right for the others too.
    if sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    let (src, dst) = (&packet.key.dst, &packet.key.src);
    let header = match packet.family {
        Family::V4 => {
            let protocol = packet.key.protocol as u8;
            // The addresses change places, which leaves the sum as it is.
            let sum = csum::update(packet.checksum, csum::delta(&[packet.ttl, protocol], &[HOPS, protocol]));
            let mut new = [HOPS, protocol, sum[0], sum[1], 0, 0, 0, 0, 0, 0, 0, 0];
            new[4..8].copy_from_slice(&src[12..]);
            new[8..].copy_from_slice(&dst[12..]);
            bytes.store(network + 8, &new)
        }
        Family::V6 => {
            bytes.store(network + 7, &[HOPS])
                && bytes.store(network + 8, src)
                && bytes.store(network + 24, dst)
        }
    };
    header && bytes.store(transport, &[reply, code, sum[0], sum[1]]) && turn(bytes)
}

/// Lets the Ethernet addresses change places.
#[inline(always)]
fn turn<B: BytesMut + ?Sized>(bytes: &mut B) -> bool {
    let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = bytes.load(0) else { return false };
    bytes.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f])
}
