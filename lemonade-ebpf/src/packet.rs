//! What programs that send packets on share.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_check_mtu, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use lemonade_common::answer;
use lemonade_common::packet::{Bytes as _, Family, Packet};

use crate::skb::{Anew, Skb};

/// Flag of a map whose memory the control plane writes without a call for each element.
pub const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Flag of `bpf_l4_csum_replace` for IPv6 addresses, which a checksum made by the network card needs (Linux 6.16 and
/// stable kernels); it is not in the bindings.
pub const BPF_F_IPV6: u64 = 1 << 7;

/// Flag of `bpf_check_mtu` that asks for every segment of a packet that is cut later.
const BPF_MTU_CHK_SEGS: u64 = 1;

/// Bytes that every link takes, so that smaller packets need no look at it.
pub const SMALL: u32 = 576;

/// Bytes of a hop-by-hop header with a jumbo payload option.
const JUMBO: usize = 8;

/// The packet that this core is about, which has no room on the stack.
#[map]
pub static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// The largest packet that goes through, if this one is larger; else 0.
#[inline(always)]
pub fn exceeded(skb: &Skb, packet: &Packet, interface: u32, overhead: i32) -> u32 {
    let mut mtu = 0;
    // SAFETY: `mtu` is one word. Only packets of one segment have a length to compare, the others have segments; these
    // shrink by what is put in front of them, so that they fit afterwards if they do before.
    let told = unsafe {
        let cut = (*skb.0).gso_segs > 1;
        let (more, segments) = if cut { (0, BPF_MTU_CHK_SEGS) } else { (overhead, 0) };
        bpf_check_mtu(skb.0.cast::<c_void>(), interface, &raw mut mtu, more, segments)
    };
    if told > 0 && !fits_cut(skb, packet, mtu) { mtu.saturating_sub(overhead as u32) } else { 0 }
}

/// Whether the segments of a packet of IPv6 of more than 64 KiB fit: it says how long it is in a header (RFC 2675) that none of
/// them will have, and that the kernel counts with each (`skb_gso_validate_network_len`).
#[inline(always)]
fn fits_cut(skb: &Skb, packet: &Packet, mtu: u32) -> bool {
    let network = usize::from(packet.network);
    if packet.family != Family::V6 || skb.load(network + 4) != Some([0; 2]) {
        return false;
    }
    let transport = usize::from(packet.transport);
    let Some([words]) = skb.load(transport + 12) else { return false };
    let headers = transport.saturating_sub(network + JUMBO) + usize::from(words >> 4) * 4;
    // SAFETY: a word of the context.
    headers as u32 + unsafe { (*skb.0).gso_size } <= mtu
}

/// Makes of a packet the answer that it is larger than `mtu`, and sends that where it came from: an action of tc.
#[inline(always)]
pub fn tell_too_big(skb: *mut __sk_buff, packet: &Packet, mtu: u32) -> i32 {
    let Some(quoted) = Skb(skb).load(usize::from(packet.network)) else { return TC_ACT_SHOT };
    let length = answer::too_big_length(packet.family) as u32;
    // A checksum that the network card completes would be written into the answer. The kernel forgets it once the place that
    // it begins at is cut away.
    let cut = u32::from(packet.transport) + 8;
    // SAFETY: numbers; the helpers judge them. The first also undoes that the packet is several in one.
    let resized = unsafe {
        bpf_skb_change_tail(skb, length + cut, 0) == 0
            && bpf_skb_adjust_room(skb, -(cut as i32), BPF_ADJ_ROOM_MAC, 0) == 0
    };
    if !resized || !answer::too_big(&mut Anew(skb), packet, &quoted, mtu) {
        return TC_ACT_SHOT;
    }
    // SAFETY: numbers, and a word of the context.
    (unsafe { bpf_redirect((*skb).ifindex, 0) }) as i32
}
