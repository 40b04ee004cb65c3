//! Next hops that a core has asked the kernel's routes for and knows until the clock moves on.

use crate::forward::{DSR_IPIP, Flow};
use crate::packet::Packet;

/// Next hops that a core knows at once: entries of the map `HOPS`.
pub const HOPS: u32 = 256;

/// What the next hop is asked for by: the addresses and the interface of the packet that leaves. The rest of the question is
/// the same for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    /// Source address, as it lies in memory.
    pub src: [u64; 2],
    /// Destination address.
    pub dst: [u64; 2],
    /// Interface by which the packet leaves, as a long word, so that there is no padding.
    pub interface: u64,
}

/// A next hop: value of the map `HOPS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    /// Who asked.
    pub way: Way,
    /// When it was asked for, in nanoseconds of the clock that moves on by ticks; 0: never.
    pub tick: u64,
    /// Bytes from the IP header on that go that way in one piece.
    pub mtu: u32,
    /// Destination and source of Ethernet.
    pub addresses: [u16; 6],
}

const _: () = assert!(size_of::<Way>() == 40 && size_of::<Hop>() == 64);

impl Way {
    /// Whether it is one of IPv4.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.dst[0] == 0 && self.dst[1].to_le() as u32 == 0xffff_0000
    }

    /// Place among [`HOPS`] where its next hop is kept.
    #[inline(always)]
    pub fn place(&self) -> u32 {
        // Odd numbers whose bits look random, so that the highest byte depends on every bit.
        let src = (self.src[0] ^ self.src[1]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let dst = (self.dst[0] ^ self.dst[1]).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        ((src ^ dst ^ self.interface << 56) >> 56) as u32
    }
}

impl Hop {
    /// Whether a packet of this length may take it now without another question.
    #[inline(always)]
    pub fn serves(&self, way: &Way, length: u32, now: u64) -> bool {
        self.tick == now && self.way == *way && length <= self.mtu
    }
}

/// Bytes from the IP header on of a packet as it leaves.
#[inline(always)]
pub fn length(packet: &Packet, flow: &Flow, v4: bool) -> u32 {
    match (flow.mode, v4) {
        (DSR_IPIP, true) => packet.length + 20,
        (DSR_IPIP, false) => packet.length + 40,
        _ => packet.length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 4_000_000;

    fn asked() -> Hop {
        let way = Way { src: [1, 2], dst: [3, 4], interface: 5 };
        Hop { way, mtu: 1_500, tick: NOW, ..Hop::default() }
    }

    #[test]
    fn a_hop_is_known_to_who_asked_and_until_the_clock_moves_on() {
        let hop = asked();
        assert!(hop.serves(&hop.way, 1_500, NOW));
        assert!(!hop.serves(&hop.way, 1_500, NOW + 1) && !hop.serves(&hop.way, 1_500, NOW - 1));
        let others = [
            Way { src: [0, 2], ..hop.way },
            Way { src: [1, 0], ..hop.way },
            Way { dst: [0, 4], ..hop.way },
            Way { dst: [3, 0], ..hop.way },
            Way { interface: 0, ..hop.way },
        ];
        assert!(others.iter().all(|other| !hop.serves(other, 1_500, NOW)));
        assert!(!Hop::default().serves(&Way::default(), 0, NOW), "what was never asked for is not known");
    }

    #[test]
    fn what_is_longer_than_the_way_takes_is_asked_for_anew() {
        let hop = asked();
        assert!(!hop.serves(&hop.way, 1_501, NOW));
    }

    #[test]
    fn neighbouring_ways_have_places_apart() {
        let way = |n: u32| {
            let last = u64::from(u32::from_ne_bytes((0x0a00_0000 + n).to_be_bytes()));
            Way {
                src: [0, 0xffff_0000],
                dst: [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]) | last << 32],
                interface: 1,
            }
        };
        let mut places = [0_u32; HOPS as usize];
        (0..HOPS).for_each(|n| places[way(n).place() as usize] += 1);
        let most = places.iter().max().copied();
        assert!(most <= Some(4), "{most:?} of {HOPS} ways share a place");
        assert!(way(1).is_v4() && !asked().way.is_v4());
    }
}
