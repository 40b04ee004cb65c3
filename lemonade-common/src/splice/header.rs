//! The TCP header of a packet that changes connections: read, translated, and what its checksum changes by.

use super::Leg;
use crate::csum;
use crate::packet::{ACK, FIN, RST, SYN};

/// Bytes of a TCP header at most.
pub const MOST: usize = 60;

/// Bytes of a TCP header without options.
pub const LEAST: usize = 20;

/// A TCP header with all its options; what is beyond its end is zero. Four bytes more than there can be, so that every
/// place masked by `MASK` is inside.
pub type Header = [u8; 64];

const MASK: usize = 63;

/// Kinds of options (RFC 9293, RFC 2018, RFC 7323).
const END: u8 = 0;
const NOTHING: u8 = 1;
const SACK: u8 = 5;
const STAMP: u8 = 8;

/// Bytes of the option with timestamps.
const STAMP_LENGTH: usize = 10;

/// Blocks of a SACK option at most.
const BLOCKS: usize = 4;

/// What a TCP header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement, if the flags say that there is one.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
    /// Bytes of data.
    pub length: u32,
    /// TSval and TSecr.
    pub stamp: Option<(u32, u32)>,
}

impl Segment {
    /// Sequence number behind it.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.length).wrapping_add((self.flags & FIN) as u32)
    }

    /// Whether it does nothing but acknowledge.
    #[inline(always)]
    pub const fn bare(&self) -> bool {
        self.length == 0 && self.flags & (SYN | FIN | RST | ACK) == ACK
    }
}

/// Where the options stand that have sequence numbers or times in them; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The option with timestamps.
    pub stamp: usize,
    /// The option with SACK blocks.
    pub sack: usize,
    /// Its blocks.
    pub blocks: usize,
}

/// What a header changes by on its way between two connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// Source and destination port as it leaves, big-endian.
    pub ports: [u8; 4],
    /// What is added to the sequence number.
    pub sequence: u32,
    /// The acknowledgement as it leaves.
    pub ack: u32,
    /// What is added to the edges of SACK blocks; `None`: they are left out.
    pub blocks: Option<u32>,
    /// Window scale by which the window is told, and that by which it will be read.
    pub scales: [u8; 2],
    /// What is added to TSval.
    pub value: u32,
    /// What is added to TSecr.
    pub echo: u32,
}

impl Shift {
    /// That of packets of `leg`, with the acknowledgement as it leaves before translation. Unless it `tells` all that its
    /// peer has, blocks may be about bytes that the other peer knows nothing of.
    #[inline(always)]
    pub const fn of(leg: &Leg, ack: u32, tells: bool, stamp_delta: u32, other_stamp_delta: u32) -> Self {
        Self {
            ports: [leg.sport[0], leg.sport[1], leg.dport[0], leg.dport[1]],
            sequence: leg.sequence,
            ack: ack.wrapping_add(leg.acknowledgement),
            blocks: if tells { Some(leg.acknowledgement) } else { None },
            scales: leg.scales,
            value: stamp_delta,
            echo: 0_u32.wrapping_sub(other_stamp_delta),
        }
    }
}

/// Bytes of the header, by its own word.
#[inline(always)]
pub const fn length(header: &Header) -> usize {
    ((header[12] >> 2) & 0x3c) as usize
}

/// Finds the options; what is torn ends the search, as it does in the kernel.
// A frame of its own: programs in the kernel have 512 bytes of stack.
#[inline(never)]
pub fn places(header: &Header, found: &mut Places) {
    let end = length(header);
    *found = Places::default();
    // By far the most frequent: nothing but timestamps.
    if end == LEAST + 12 && header[20..24] == [NOTHING, NOTHING, STAMP, STAMP_LENGTH as u8] {
        found.stamp = 22;
        return;
    }
    let mut next = LEAST;
    // Place by place instead of option by option: each is a constant to the verifier.
    for at in LEAST..MOST - 1 {
        if at >= end || next > at {
            continue;
        }
        let kind = header[at];
        if kind == END {
            return;
        }
        if kind == NOTHING {
            next = at + 1;
            continue;
        }
        let size = header[at + 1] as usize;
        if size < 2 || at + size > end {
            return;
        }
        next = at + size;
        if kind == STAMP && size == STAMP_LENGTH {
            found.stamp = at;
        } else if kind == SACK && size >= 10 && (size - 2).is_multiple_of(8) {
            found.sack = at;
            found.blocks = (size - 2) / 8;
        }
    }
}

/// Reads a header whose data are `data` bytes.
#[inline(always)]
pub fn read(header: &Header, places: &Places, data: u32) -> Segment {
    let stamp = places.stamp & MASK;
    Segment {
        sequence: word(header, 4),
        ack: word(header, 8),
        flags: header[13],
        length: data,
        stamp: (stamp != 0).then(|| (word(header, stamp + 2), word(header, stamp + 6))),
    }
}

/// Translates a header; its checksum stays as it is, and changes by [`delta`].
#[inline(always)]
pub fn translate(header: &mut Header, places: &Places, shift: &Shift) {
    header[..4].copy_from_slice(&shift.ports);
    add(header, 4, shift.sequence);
    if header[13] & ACK != 0 {
        put(header, 8, shift.ack);
    }
    let window = window(u16::from_be_bytes([header[14], header[15]]), shift.scales);
    header[14..16].copy_from_slice(&window.to_be_bytes());
    let stamp = places.stamp & MASK;
    if stamp != 0 {
        add(header, stamp + 2, shift.value);
        add(header, stamp + 6, shift.echo);
    }
    blocks(header, places, shift.blocks);
}

/// A packet of the proxy's own socket, made one that the other peer could have sent by now: its acknowledgement and TSval
/// are what its peer has been given, and neither FIN nor SACK blocks are in it; RST, for which `place` is given, comes from
/// there.
#[inline(always)]
pub fn renew(header: &mut Header, places: &Places, place: Option<u32>, ack: u32, stamp: Option<u32>) {
    header[13] &= !FIN;
    if let Some(place) = place {
        put(header, 4, place);
    }
    if header[13] & ACK != 0 {
        put(header, 8, ack);
    }
    let at = places.stamp & MASK;
    // A later one would have its peer take what is sent on afterwards for old (RFC 7323, 5.3).
    if at != 0
        && let Some(stamp) = stamp
    {
        put(header, at + 2, stamp);
    }
    blocks(header, places, None);
}

/// Shifts the edges of SACK blocks, or puts nothing in the option's place.
#[inline(always)]
fn blocks(header: &mut Header, places: &Places, by: Option<u32>) {
    let sack = places.sack & MASK;
    if sack == 0 {
        return;
    }
    if by.is_none() {
        header[sack] = NOTHING;
        header[(sack + 1) & MASK] = NOTHING;
    }
    for block in 0..BLOCKS {
        if block >= places.blocks {
            break;
        }
        for edge in [sack + 2 + block * 8, sack + 6 + block * 8] {
            let moved = by.map_or(u32::from_be_bytes([NOTHING; 4]), |by| word(header, edge).wrapping_add(by));
            put(header, edge, moved);
        }
    }
}

/// What the checksum changes by when one header becomes the other.
#[inline(always)]
pub fn delta(old: &Header, new: &Header) -> u32 {
    csum::delta(old, new)
}

/// A window told by one scale as it is read by another: never more than it says, but for the least that there is, and
/// closed only if it is (RFC 7323, 2.3).
#[inline(always)]
pub const fn window(told: u16, [by, read_by]: [u8; 2]) -> u16 {
    let bytes = (told as u32) << (by & 15);
    let window = bytes >> (read_by & 15);
    if window > 0xffff {
        0xffff
    } else if window == 0 && told != 0 {
        1
    } else {
        window as u16
    }
}

#[inline(always)]
fn word(header: &Header, at: usize) -> u32 {
    u32::from_be_bytes([
        header[at & MASK],
        header[(at + 1) & MASK],
        header[(at + 2) & MASK],
        header[(at + 3) & MASK],
    ])
}

#[inline(always)]
fn put(header: &mut Header, at: usize, word: u32) {
    let bytes = word.to_be_bytes();
    header[at & MASK] = bytes[0];
    header[(at + 1) & MASK] = bytes[1];
    header[(at + 2) & MASK] = bytes[2];
    header[(at + 3) & MASK] = bytes[3];
}

#[inline(always)]
fn add(header: &mut Header, at: usize, by: u32) {
    put(header, at, word(header, at).wrapping_add(by));
}
