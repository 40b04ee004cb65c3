//! The forward plane at tc: [`decide`] over maps, and what it says done to the packet.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_MARK_MANGLED_0,
    BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::{
    bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room,
};
use aya_ebpf::programs::TcContext;
use lemonade_common::decide::{Arrival, Verdict, decide, without_flow};
use lemonade_common::forward::{DSR_IPIP, DSR_L2, Flow};
use lemonade_common::gate::TOLD;
use lemonade_common::packet::{Bytes, BytesMut, ETHERNET, Family, Kind, Packet, family, read};
use lemonade_common::{PacketReason, answer, rewrite};

use crate::near::Near;
use crate::packet::{BPF_F_IPV6, PACKET, SMALL, exceeded, tell_too_big};
use crate::skb::Skb;
use crate::tables::{Maps, admits, count, count_told, opened, told};

/// What becomes of a packet that has arrived: an action of tc.
#[inline(always)]
pub fn arrived(ctx: &TcContext) -> i32 {
    let mut skb = Skb(ctx.as_ptr().cast());
    // SAFETY: words of the context.
    let (interface, tagged) = unsafe { ((*skb.0).ifindex, (*skb.0).vlan_present != 0) };
    let Some(packet) = PACKET.get_ptr_mut(0) else { return TC_ACT_UNSPEC };
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let packet = unsafe { &mut *packet };
    if let Err(why) = read(&Near(skb.0), packet) {
        return count(without_flow(why), TC_ACT_UNSPEC);
    }
    packet.tagged |= tagged;
    // SAFETY: it takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let arrival = Arrival { length: skb.length() as u64, now, interface };
    match decide(&Maps { context: skb.0.cast() }, packet, &arrival) {
        Verdict::Pass(reason) => count_told(packet, reason, None, TC_ACT_UNSPEC),
        Verdict::Drop(reason) => count_told(packet, reason, None, TC_ACT_SHOT),
        Verdict::Echo => answer(&mut skb, packet),
        Verdict::Forward(flow, reason) => {
            // Here and not in `send`, which the verifier would follow once for each reason.
            if matches!(reason, PacketReason::Opened | PacketReason::Adopted) {
                opened(flow);
            }
            if reason == PacketReason::Opened {
                told(packet, reason.index() as u32, flow.frontend, flow.backend);
            }
            send(skb.0, packet, flow, reason)
        }
    }
}

/// Answers a request for an echo where it came from.
#[inline(always)]
fn answer(skb: &mut Skb, packet: &Packet) -> i32 {
    if !answer::echo(skb, packet) {
        return count(PacketReason::NotSent, TC_ACT_SHOT);
    }
    count(PacketReason::Echo, 0);
    // SAFETY: numbers, and a word of the context.
    (unsafe { bpf_redirect((*skb.0).ifindex, 0) }) as i32
}

/// Changes a packet and sends it on.
// A frame of its own: programs have 512 bytes of stack; and the verifier follows it fewer times.
#[inline(never)]
fn send(skb: *mut __sk_buff, packet: &Packet, flow: &Flow, reason: PacketReason) -> i32 {
    let skb = &mut Skb(skb);
    let interface = flow.interface;
    if skb.length() as u32 > SMALL {
        let mtu = exceeded(skb, packet, interface, overhead(flow));
        if mtu != 0 {
            return count_told(packet, PacketReason::TooBig, Some(flow), tell(skb.0, packet, mtu));
        }
    }
    let done = match flow.mode {
        DSR_L2 => true,
        DSR_IPIP => encapsulated(skb.0, packet, flow),
        _ if packet.kind == Kind::IcmpError => rewrite::translate_error(skb, packet, flow),
        _ => rewritten(skb, packet, flow),
    };
    if !done {
        return count_told(packet, PacketReason::NotSent, Some(flow), TC_ACT_SHOT);
    }
    count(reason, 0);
    if flow.mode == DSR_L2 {
        return to_neighbour(interface, &flow.dst);
    }
    // SAFETY: without parameters the kernel finds the next hop by the destination.
    (unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) }) as i32
}

/// Bytes by which a packet grows.
#[inline(always)]
fn overhead(flow: &Flow) -> i32 {
    if flow.mode != DSR_IPIP {
        return 0;
    }
    match family(&flow.dst) {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// Tells the sender of a packet that it is larger than `mtu`, in the packet's own memory; an error is dropped instead.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn tell(skb: *mut __sk_buff, packet: &Packet, mtu: u32) -> i32 {
    // SAFETY: it takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if packet.kind != Kind::Flow || !admits(TOLD, now) {
        return TC_ACT_SHOT;
    }
    tell_too_big(skb, packet, mtu)
}

/// Sends a packet, whatever its destination, to a neighbour on the interface.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn to_neighbour(interface: u32, address: &[u8; 16]) -> i32 {
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    let word = |n: usize| u32::from_ne_bytes([address[n], address[n + 1], address[n + 2], address[n + 3]]);
    // Every word is set, since the kernel asks for that whatever the family.
    let v6 = [word(0), word(4), word(8), word(12)];
    let (nh_family, words) = match family(address) {
        Family::V4 => (AF_INET, [v6[3], 0, 0, 0]),
        Family::V6 => (AF_INET6, v6),
    };
    let hop = bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: words };
    let mut hop = bpf_redir_neigh { nh_family, __bindgen_anon_1: hop };
    // SAFETY: the parameters are read before the helper returns.
    (unsafe { bpf_redirect_neigh(interface, &raw mut hop, size_of::<bpf_redir_neigh>() as i32, 0) }) as i32
}

/// Puts an outer header in front; says whether the kernel took it.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn encapsulated(skb: *mut __sk_buff, packet: &Packet, flow: &Flow) -> bool {
    let at = ETHERNET - 2;
    match family(&flow.dst) {
        Family::V4 => {
            grown(skb, 20, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
                && Skb(skb).store::<22>(at, bytes(&rewrite::outer_v4(packet, flow)))
        }
        Family::V6 => {
            grown(skb, 40, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)
                && Skb(skb).store(at, &rewrite::outer_v6(packet, flow))
        }
    }
}

/// Words as the bytes that they are.
#[inline(always)]
const fn bytes<const W: usize, const N: usize>(words: &[u16; W]) -> &[u8; N] {
    const { assert!(N == 2 * W) };
    // SAFETY: of the same size, and bytes may be anything and lie anywhere.
    unsafe { &*core::ptr::from_ref(words).cast::<[u8; N]>() }
}

#[inline(always)]
fn grown(skb: *mut __sk_buff, bytes: i32, family: u32) -> bool {
    // SAFETY: numbers; the helper judges them.
    (unsafe { bpf_skb_adjust_room(skb, bytes, BPF_ADJ_ROOM_MAC, u64::from(family)) }) == 0
}

#[inline(always)]
fn rewritten(skb: &mut Skb, packet: &Packet, flow: &Flow) -> bool {
    let (network, transport) = (usize::from(packet.network), usize::from(packet.transport));
    let (stored, family) = match packet.family {
        Family::V4 => (skb.store(network + rewrite::V4_AT, &rewrite::v4(packet, flow)), 0),
        Family::V6 => (skb.store(network + rewrite::V6_AT, &rewrite::v6(packet, flow)), BPF_F_IPV6),
    };
    let at = (transport + rewrite::checksum_at(packet.key.protocol)) as u32;
    // UDP without a checksum keeps none; the flag does nothing to TCP's.
    let udp =
        if packet.key.protocol == lemonade_common::flow::UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    // SAFETY: offsets and words; the helper checks the packet's end. The two are apart, since a checksum that the
    // network card completes covers the addresses already and the ports not yet.
    let summed = unsafe {
        let addresses = u64::from(BPF_F_PSEUDO_HDR) | udp;
        bpf_l4_csum_replace(skb.0, at, 0, u64::from(flow.address_delta), addresses | family) == 0
            && bpf_l4_csum_replace(skb.0, at, 0, u64::from(flow.port_delta), udp) == 0
    };
    stored && summed && skb.store(transport, &rewrite::ports(flow))
}
