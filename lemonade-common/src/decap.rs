//! The backend's side of mode `dsr-ipip`: what is to be taken off a packet.

use crate::packet::{Bytes, ETHERNET, Family};

/// An outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Who put it there: IPv6 address, or an IPv4 address mapped into one.
    pub source: [u8; 16],
    /// Its bytes.
    pub length: u32,
    /// Its IP version.
    pub family: Family,
    /// IP version of the packet in it.
    pub carried: Family,
}

/// What became of packets with an outer header: index of the map `UNWRAPPED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Unwrapped {
    /// The header was taken off.
    Done,
    /// It is of nobody whose packets are to be unwrapped: the host has it.
    Stranger,
    /// The kernel did not take the change: the host has it.
    Refused,
}

impl Unwrapped {
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// Reads the outer header of a packet from its Ethernet header on, if it has one of the kinds that the balancer makes: no
/// options, no extensions, not a fragment.
#[inline(always)]
pub fn outer<B: Bytes + ?Sized>(bytes: &B) -> Option<Outer> {
    let kind: [u8; 2] = bytes.load(ETHERNET - 2)?;
    let mut source = [0; 16];
    let (length, family, protocol) = match kind {
        [0x08, 0x00] => {
            let header: [u8; 20] = bytes.load(ETHERNET)?;
            if header[0] != 0x45 || header[6] & 0x3f != 0 || header[7] != 0 {
                return None;
            }
            source[10..12].copy_from_slice(&[0xff; 2]);
            source[12..].copy_from_slice(&header[12..16]);
            (20, Family::V4, header[9])
        }
        [0x86, 0xdd] => {
            let header: [u8; 24] = bytes.load(ETHERNET)?;
            if header[0] >> 4 != 6 {
                return None;
            }
            source.copy_from_slice(&header[8..]);
            (40, Family::V6, header[6])
        }
        _ => return None,
    };
    let first: [u8; 1] = bytes.load(ETHERNET + length as usize)?;
    let carried = match (protocol, first[0] >> 4) {
        (4, 4) => Family::V4,
        (41, 6) => Family::V6,
        _ => return None,
    };
    Some(Outer { source, length, family, carried })
}
