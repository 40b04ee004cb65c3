//! Which packets may be of a flow that is watched, by little of each: most packets are of none, and are let go after one look.
//!
//! Each leg sets one of [`BITS`] bits, so that a packet whose bit is not set is of no leg. One whose bit is set may be.

use crate::flow::{FlowKey, TCP};
use crate::packet::Bytes;

/// Words of the map `SIEVE`.
pub const WORDS: u32 = 1 << 12;

/// Bits that there are.
pub const BITS: u32 = WORDS * 64;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// Fragment header of IPv6, and headers with options.
const EXTENSIONS: [u8; 4] = [0, 43, 44, 60];

/// Bit of packets from a peer, by the last bytes of its address and the ports as they stand in its packets.
#[inline(always)]
pub const fn bit(peer: [u8; 4], ports: [u8; 4]) -> u32 {
    // Odd numbers without a pattern: clients of one port differ in their address, those of one address in their port.
    let sum = u32::from_ne_bytes(peer).wrapping_mul(0x9e37_79b1) ^ u32::from_ne_bytes(ports);
    sum.wrapping_mul(0x85eb_ca77) >> (32 - BITS.trailing_zeros())
}

/// Bit of a leg, by the flow of the packets that arrive.
pub const fn bit_of(key: &FlowKey) -> u32 {
    let [.., a, b, c, d] = key.src;
    let ([e, f], [g, h]) = (key.sport, key.dport);
    bit([a, b, c, d], [e, f, g, h])
}

/// What a glance at a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glance {
    /// It is of no leg.
    Foreign,
    /// If it is of a leg, then of one with this bit.
    Bit(u32),
    /// It does not say.
    Unclear,
}

/// Glances at a packet from its Ethernet header on, of which only the beginning may be within reach; of one that `leaves` the
/// peer is where it goes.
#[inline(always)]
pub fn glance<B: Bytes + ?Sized>(bytes: &B, leaves: bool) -> Glance {
    look(bytes, leaves).unwrap_or(Glance::Unclear)
}

#[inline(always)]
fn look<B: Bytes + ?Sized>(bytes: &B, leaves: bool) -> Option<Glance> {
    let (protocol, peer, transport) = match bytes.load::<2>(12)? {
        [0x08, 0x00] => {
            let [head] = bytes.load::<1>(14)?;
            let [high, low, _, protocol] = bytes.load::<4>(20)?;
            // A fragment, or options.
            if head != 0x45 || high & 0x3f != 0 || low != 0 {
                return Some(Glance::Unclear);
            }
            (protocol, if leaves { 30 } else { 26 }, 34)
        }
        [0x86, 0xdd] => {
            let [protocol] = bytes.load::<1>(20)?;
            (protocol, if leaves { 50 } else { 34 }, 54)
        }
        _ => return Some(Glance::Foreign),
    };
    if u32::from(protocol) != TCP {
        let more = protocol == ICMP || protocol == ICMP_V6 || EXTENSIONS.contains(&protocol);
        return Some(if more { Glance::Unclear } else { Glance::Foreign });
    }
    let (peer, [a, b, c, d]) = (bytes.load::<4>(peer)?, bytes.load::<4>(transport)?);
    Some(Glance::Bit(bit(peer, if leaves { [c, d, a, b] } else { [a, b, c, d] })))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::packet::{Kind, Packet, parse};

    fn v4(protocol: u8, fragment: [u8; 2]) -> Vec<u8> {
        let mut bytes = [[2; 12].as_slice(), &[8, 0, 0x45, 0, 0, 40, 0, 1]].concat();
        bytes.extend(fragment);
        bytes.extend([64, protocol, 0, 0, 198, 51, 100, 7, 192, 0, 2, 1]);
        bytes.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        bytes
    }

    fn v6(next: u8) -> Vec<u8> {
        let mut bytes = [[2; 12].as_slice(), &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, next, 64]].concat();
        bytes.extend((0..32).collect::<Vec<u8>>());
        bytes.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn a_glance_finds_the_bit_of_the_leg_that_a_whole_look_finds() {
        for bytes in [v4(6, [0x40, 0]), v6(6)] {
            let Packet { key, kind: Kind::Flow, .. } = parse(&bytes[..]).unwrap() else {
                panic!("no segment")
            };
            assert_eq!(glance(&bytes[..], false), Glance::Bit(bit_of(&key)));
            assert_eq!(glance(&bytes[..], true), Glance::Bit(bit_of(&key.reversed())));
            assert_ne!(bit_of(&key), bit_of(&key.reversed()));
            assert!(bit_of(&key) < BITS);
            for short in 0..if bytes[12] == 8 { 38 } else { 58 } {
                assert_eq!(glance(&bytes[..short], false), Glance::Unclear, "{short} bytes are within reach");
            }
        }
    }

    #[test]
    fn what_may_be_about_a_leg_and_does_not_say_of_which_is_looked_at() {
        let unclear =
            [v4(1, [0, 0]), v4(6, [0x20, 0]), v4(6, [0, 7]), v4(6, [1, 0]), v6(58), v6(44), v6(0), v6(60)];
        for bytes in &unclear {
            assert_eq!(glance(&bytes[..], false), Glance::Unclear, "{bytes:?}");
        }
        let mut options = v4(6, [0, 0]);
        options[14] = 0x46;
        assert_eq!(glance(&options[..], false), Glance::Unclear);
        let mut tagged = v4(6, [0, 0]);
        tagged[12] = 0x81;
        for bytes in [v4(17, [0, 0]), v6(17), tagged] {
            assert_eq!(glance(&bytes[..], false), Glance::Foreign, "{bytes:?}");
        }
    }

    #[test]
    fn bits_of_many_clients_differ() {
        let mut seen = vec![0_u32; BITS as usize];
        for n in 0..20_000_u32 {
            // Neighbours in address and port.
            let peer = (0x0a00_0000 + n % 100).to_be_bytes();
            let [a, b] = (32_768 + (n / 100) as u16).to_be_bytes();
            seen[bit(peer, [a, b, 0, 80]) as usize] += 1;
        }
        let used = seen.iter().filter(|count| **count > 0).count();
        assert!(used > 18_000, "{used} bits for 20,000 flows");
    }
}
