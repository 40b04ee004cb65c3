//! ICMP errors about packets that have changed connections: they go to the peer that sent what is quoted.

use super::{FORWARD, Fate, HALT, Leg, Side, before};
use crate::csum;
use crate::flow::TCP;
use crate::forward::Flow;
use crate::packet::{Bytes, BytesMut, Packet};
use crate::rewrite;

/// Sequence number of the segment that an error quotes; `None`: it quotes less than the eight bytes that it must (RFC 792).
#[inline(always)]
pub fn quoted<B: Bytes + ?Sized>(bytes: &B, packet: &Packet) -> Option<u32> {
    bytes.load(usize::from(packet.quoted_transport) + 4).map(u32::from_be_bytes)
}

/// What becomes of an error about a segment from `sequence` on that was sent to the peer of `side`: one of the proxy's own
/// socket is that socket's matter.
#[inline(always)]
pub fn fate(state: u64, side: &Side, sequence: u32) -> Fate {
    if state & FORWARD == 0 || before(sequence, side.owed.get()) {
        Fate::Stack
    } else if state & HALT != 0 {
        Fate::Drop
    } else {
        Fate::Forward
    }
}

/// Rewrites an error that meets `leg` in place: it goes to the other peer, and quotes the segment as that one sent it, as far
/// as TCP looks at it: addresses, ports and sequence number. Its hop limit is one less. Says whether the packet has all that.
///
/// `flow` is memory for what changes: programs in the kernel have 512 bytes of stack.
#[inline(never)]
pub fn translate<B: BytesMut + ?Sized>(bytes: &mut B, packet: &Packet, leg: &Leg, flow: &mut Flow) -> bool {
    let Some(sequence) = quoted(bytes, packet) else { return false };
    let (old, new) = (sequence.to_be_bytes(), sequence.wrapping_add(leg.acknowledgement).to_be_bytes());
    let delta = csum::delta(&old, &new);
    let key = &packet.key;
    let ports = csum::delta(
        &[key.sport[0], key.sport[1], key.dport[0], key.dport[1]],
        &[leg.sport[0], leg.sport[1], leg.dport[0], leg.dport[1]],
    );
    (flow.src, flow.dst, flow.sport, flow.dport) = (leg.src, leg.dst, leg.sport, leg.dport);
    // The checksum that is quoted, if it is, covers the sequence number as well.
    (flow.address_delta, flow.port_delta, flow.protocol) = (leg.address_delta, ports + delta, TCP);
    if !rewrite::translate_error(bytes, packet, flow) {
        return false;
    }
    let at = usize::from(packet.transport) + 2;
    let Some(sum) = bytes.load::<2>(at) else { return false };
    bytes.store(at, &csum::update(sum, delta)) && bytes.store(usize::from(packet.quoted_transport) + 4, &new)
}
