//! TCP splice: what a program and the proxy share of a flow whose packets pass between the proxy's two connections, and
//! what becomes of each packet.
//!
//! The proxy copies a flow's bytes one to one, so byte k of a stream has a fixed sequence number in each of the two
//! connections, and their difference is the same whatever the moment. All numbers are native-endian.

pub mod errors;
pub mod fragments;
pub mod header;
pub mod lull;
pub mod sieve;
#[cfg(test)]
mod tests;

use core::cell::Cell;

use crate::packet::{ACK, FIN, RST, SYN};
use header::Segment;

/// Bit of [`Slot::state`]: packets pass between the connections and no longer to the proxy's sockets.
pub const FORWARD: u64 = 1 << 63;

/// Bit of [`Slot::state`]: the flow is being ended by the proxy; nothing passes any more.
pub const HALT: u64 = 1 << 62;

/// Mark of a side that has acknowledged something: [`Side::ack`] holds.
pub const ACKED: u32 = 1;
/// Mark of a side that has sent a timestamp: [`Side::stamp`] holds.
pub const STAMPED: u32 = 2;
/// Mark of a side that has sent FIN: [`Side::fin`] holds.
pub const FINISHED: u32 = 4;
/// Mark of a side that has sent RST where the other one takes it for one.
pub const RESET: u32 = 8;
/// Mark of a side whose addresses and ports another connection has taken since the flow was over: its packets are no longer
/// the flow's, and its leg is to go.
pub const REOPENED: u32 = 16;

/// So far the end of what the proxy's own socket has sent may fall behind what is acknowledged: sequence numbers can be compared
/// within half of all that there are.
const FAR: u32 = 1 << 29;

/// Words of [`Slot::memo`].
pub const MEMO: usize = 5;

/// One of the two connections of a flow as packets from its peer meet it: value of the map `LEGS`, whose key is the
/// flow of these packets as they arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Leg {
    /// Source address as a packet leaves: the balancer's own in the other connection.
    pub src: [u8; 16],
    /// Destination address as it leaves: the peer of the other connection.
    pub dst: [u8; 16],
    /// Source port as it leaves, big-endian.
    pub sport: [u8; 2],
    /// Destination port as it leaves, big-endian.
    pub dport: [u8; 2],
    /// Index of the flow's [`Slot`].
    pub slot: u32,
    /// Which of the slot's sides it is: 0 towards the client, 1 towards the backend.
    pub side: u32,
    /// What is added to sequence numbers.
    pub sequence: u32,
    /// What is added to acknowledgements, and to the edges of SACK blocks: the other leg's `sequence` taken away.
    pub acknowledgement: u32,
    /// What checksums change by for the addresses.
    pub address_delta: u32,
    /// Window scale by which this peer's windows are told, and that by which the other peer reads them.
    pub scales: [u8; 2],
    /// Zero.
    pub reserved: [u8; 6],
}

const _: () = assert!(size_of::<Leg>() == 64 && align_of::<Leg>() == 4);

/// What is seen of one side of a flow.
///
/// Packets of one direction are handled one after another, but for moments in which the network changes its order. Of
/// two that write at once the last one counts, and what it has overwritten comes again with the next packet.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Side {
    /// End of the highest segment that has come, as a sequence number of 64 bits of which TCP has the lower half.
    pub end: Cell<u64>,
    /// Highest acknowledgement.
    pub ack: Cell<u32>,
    /// Latest TSval.
    pub stamp: Cell<u32>,
    /// Sum of [`ACKED`], [`STAMPED`], [`FINISHED`], [`RESET`] and [`REOPENED`].
    pub marks: Cell<u32>,
    /// Sequence number behind FIN.
    pub fin: Cell<u32>,
    /// Interface that packets come from; 0 before the first.
    pub arrives_by: Cell<u32>,
    /// Interface that the proxy's own packets to this side leave by; 0 before the first.
    pub leaves_by: Cell<u32>,
    /// Where `end` began. Set by the proxy.
    pub start: Cell<u32>,
    /// End of what the proxy's own socket has received from the peer; what it gets later it may not acknowledge. Set by
    /// the proxy.
    pub received: Cell<u32>,
    /// End of what the proxy's own socket has sent; it alone can send that again. Set by the proxy, and drawn along by
    /// acknowledgements that come far behind it.
    pub owed: Cell<u32>,
    /// What is added to TSval. Set by the proxy.
    pub stamp_delta: Cell<u32>,
    /// Packets that were sent on.
    pub forwarded: Cell<u64>,
    /// Time of the last packet in nanoseconds of CLOCK_MONOTONIC, by its coarse form; 0 before the first.
    pub seen: Cell<u64>,
}

/// A flow's state: value of the map `SLOTS`, whose memory the proxy shares.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Slot {
    /// Packets that have come while the proxy's sockets had them, and the bits [`FORWARD`] and [`HALT`].
    pub state: Cell<u64>,
    /// What the proxy writes down for the process after it; programs leave it alone.
    pub memo: [Cell<u64>; MEMO],
    /// What the proxy's own packets say of windows, see [`lull::Told`]. Set by the proxy.
    pub lull: Cell<u64>,
    /// Window that each side is told by [`lull::OPENS`] behind the hand-over, as it stands in a header; 0: none. Set by the
    /// proxy.
    pub windows: [Cell<u32>; 2],
    /// Client and backend.
    pub sides: [Side; 2],
}

const _: () = assert!(size_of::<Side>() == 64 && size_of::<Slot>() == 192);

/// What the programs count: index of the map `SPLICE_COUNTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Packets that passed between connections; segments that the network card cuts later count as one.
    Forwarded,
    /// Packets of the proxy's own sockets that were held back.
    Held,
    /// Packets of the proxy's own sockets that were made to fit.
    Renewed,
    /// Packets with wrong lengths.
    Malformed,
    /// Packets that the link on the other side does not take; their sender is told what it takes.
    TooBig,
    /// Packets that could not be changed.
    NotSent,
    /// ICMP errors that passed to the peer that they are about.
    Errors,
    /// Fragments that passed behind the first of their packet.
    Fragments,
}

impl Count {
    /// How many there are.
    pub const LEN: u32 = 8;

    /// Names by index.
    pub const NAMES: [&str; Self::LEN as usize] =
        ["forwarded", "held", "renewed", "malformed", "too_big", "not_sent", "errors", "fragments"];
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The host's stack has it, and the proxy's socket.
    Stack,
    /// It is translated and goes to the other side.
    Forward,
    /// Nobody has it.
    Drop,
}

/// What becomes of a packet of the proxy's own socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// It leaves as it is.
    Pass,
    /// It does not leave.
    Drop,
    /// It leaves with the acknowledgement and TSval that its peer has been given, and without FIN and SACK blocks; if it is
    /// RST, from where its peer expects it.
    Renewed,
}

/// Notes a packet of `side` at `now`; tells whether its acknowledgement is the first that covers more of what is owed.
///
/// A state with [`FORWARD`] or not is read after this, so that the proxy, which looks at what is noted before it sets the
/// bit, has seen everything of the packets that its socket gets.
#[inline(always)]
pub fn note(side: &Side, segment: &Segment, now: u64) -> bool {
    if side.seen.get() != now {
        side.seen.set(now);
    }
    let marks = side.marks.get();
    let mut fresh = 0;
    let owes = marks & ACKED == 0 || before(side.ack.get(), side.owed.get());
    if segment.flags & SYN != 0 {
        return owes;
    }
    if segment.flags & ACK != 0 && (marks & ACKED == 0 || before(side.ack.get(), segment.ack)) {
        side.ack.set(segment.ack);
        fresh |= ACKED;
        let beyond = segment.ack.wrapping_sub(side.owed.get());
        if beyond > FAR && !before(segment.ack, side.owed.get()) {
            side.owed.set(segment.ack.wrapping_sub(FAR / 2));
        }
    }
    if let Some((value, _)) = segment.stamp
        && (marks & STAMPED == 0 || before(side.stamp.get(), value))
    {
        side.stamp.set(value);
        fresh |= STAMPED;
    }
    let end = segment.end();
    if segment.flags & (RST | FIN) == FIN {
        side.fin.set(end);
        fresh |= FINISHED;
    }
    // Added to what there is by now, so that a packet on another core rarely loses one; and before the end, in which FIN would
    // count as a byte of data to who reads between the two.
    let marks = side.marks.get();
    if marks | fresh != marks {
        side.marks.set(marks | fresh);
    }
    let highest = side.end.get();
    if segment.flags & RST == 0 && before(highest as u32, end) {
        side.end.set(highest + u64::from(end.wrapping_sub(highest as u32)));
    }
    owes
}

/// Notes that `side` has sent RST, if its place is one at which the other side takes it for one.
#[inline(always)]
pub fn note_reset(side: &Side, other: &Side, leg: &Leg, segment: &Segment) {
    let place = segment.sequence;
    // From what the other side has acknowledged on, up to what has been sent to it.
    let acked = other.ack.get().wrapping_add(0_u32.wrapping_sub(leg.sequence));
    let expected = other.marks.get() & ACKED == 0 || !before(place, acked);
    if segment.flags & RST != 0 && expected && !before(side.end.get() as u32, place) {
        side.marks.set(side.marks.get() | RESET);
    }
}

/// Whether a flow has ended for both sides, so that one may begin another with the same addresses and ports: `leg` is that
/// of `side`.
#[inline(always)]
pub fn over(state: u64, leg: &Leg, side: &Side, other: &Side) -> bool {
    let (marks, others) = (side.marks.get(), other.marks.get());
    if state & HALT != 0 || (marks | others) & RESET != 0 {
        return true;
    }
    let whole = FINISHED | ACKED;
    marks & others & whole == whole
        && !before(other.ack.get().wrapping_sub(leg.sequence), side.fin.get())
        && !before(side.ack.get().wrapping_add(leg.acknowledgement), other.fin.get())
}

/// Whether a packet that meets the leg of `side` belongs to another connection than the flow's: one that began with this
/// SYN, which is noted, or an earlier one, after the flow was over. A SYN before that is the flow's matter: the other peer
/// answers as TCP wants (RFC 5961, 4.2).
#[inline(always)]
pub fn reopened(state: u64, leg: &Leg, side: &Side, other: &Side, flags: u8) -> bool {
    let marks = side.marks.get();
    if marks & REOPENED != 0 {
        return true;
    }
    if flags & SYN == 0 || state & FORWARD == 0 || !over(state, leg, side, other) {
        return false;
    }
    side.marks.set(marks | REOPENED);
    true
}

/// What becomes of a noted packet; `state` is the slot's behind it, `owes` what [`note`] told.
#[inline(always)]
pub fn fate(state: u64, side: &Side, segment: &Segment, owes: bool) -> Fate {
    if state & HALT != 0 {
        return Fate::Drop;
    }
    if state & FORWARD == 0 {
        return Fate::Stack;
    }
    // Without its acknowledgements the proxy's socket would neither send again what is lost nor get rid of it.
    if owes && segment.bare() && !before(side.owed.get(), segment.ack) { Fate::Stack } else { Fate::Forward }
}

/// The acknowledgement to send on for one of `side`: what its own socket still owes, the proxy has taken charge of.
#[inline(always)]
pub fn acknowledgement(side: &Side, segment: &Segment) -> u32 {
    if before(segment.ack, side.owed.get()) { side.owed.get() } else { segment.ack }
}

/// What becomes of a segment that the proxy's own socket sends to the peer of `side`.
#[inline(always)]
pub fn own(state: u64, side: &Side, segment: &Segment) -> Own {
    if state & FORWARD == 0 {
        return Own::Pass;
    }
    if segment.flags & RST != 0 {
        return if state & HALT != 0 { Own::Renewed } else { Own::Drop };
    }
    let end = segment.sequence.wrapping_add(segment.length);
    let ends = segment.flags & SYN != 0 || segment.flags & FIN != 0 && segment.length == 0;
    // What was not sent before the hand-over is none of the stream's bytes; what the peer has need not be sent again.
    let has = side.marks.get() & ACKED != 0 && !before(side.ack.get(), end);
    let useless = before(side.owed.get(), end) || segment.length > 0 && has;
    if state & HALT != 0 || ends || useless { Own::Drop } else { Own::Renewed }
}

/// The acknowledgement that the proxy's own socket may send to the peer of `side`, whose leg is `leg`: what it had received
/// at the hand-over, or what has been sent on since. What has reached it later was not sent on, and comes again.
#[inline(always)]
pub fn receipt(leg: &Leg, side: &Side, other: &Side) -> u32 {
    match given(leg, other) {
        // All of it is acknowledged, by numbers of the other connection; those of the hand-over are soon too old to compare.
        Some(given) if !before(other.ack.get(), other.owed.get()) => given,
        _ => side.received.get(),
    }
}

/// Highest acknowledgement that the peer of `leg` has been sent on, in its own sequence numbers; `other` is the side
/// that it came from.
#[inline(always)]
pub fn given(leg: &Leg, other: &Side) -> Option<u32> {
    (other.marks.get() & ACKED != 0).then(|| other.ack.get().wrapping_sub(leg.sequence))
}

/// Latest TSval that the peer of a leg has been sent on; `other` is the side that it came from.
#[inline(always)]
pub fn given_stamp(other: &Side) -> Option<u32> {
    (other.marks.get() & STAMPED != 0).then(|| other.stamp.get().wrapping_add(other.stamp_delta.get()))
}

/// Whether sequence number `one` comes before `other` (RFC 9293, 3.4; as TSval RFC 7323, 5.2).
#[inline(always)]
pub const fn before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

impl Leg {
    /// The bytes as they stand in the map.
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..16].copy_from_slice(&self.src);
        bytes[16..32].copy_from_slice(&self.dst);
        bytes[32..34].copy_from_slice(&self.sport);
        bytes[34..36].copy_from_slice(&self.dport);
        let words = [self.slot, self.side, self.sequence, self.acknowledgement, self.address_delta];
        for (to, word) in bytes[36..56].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes[56..58].copy_from_slice(&self.scales);
        bytes
    }

    /// Reads the bytes of the map.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let (mut src, mut dst) = ([0; 16], [0; 16]);
        src.copy_from_slice(&bytes[..16]);
        dst.copy_from_slice(&bytes[16..32]);
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            src,
            dst,
            sport: [bytes[32], bytes[33]],
            dport: [bytes[34], bytes[35]],
            slot: word(36),
            side: word(40),
            sequence: word(44),
            acknowledgement: word(48),
            address_delta: word(52),
            scales: [bytes[56], bytes[57]],
            reserved: [0; 6],
        }
    }
}
