//! What programs that send packets on share.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_check_mtu;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use lemonade_common::packet::Packet;

use crate::skb::Skb;

/// Flag of a map whose memory the control plane writes without a call for each element.
pub const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Flag of `bpf_l4_csum_replace` for IPv6 addresses, which a checksum made by the network card needs (Linux 6.16 and
/// stable kernels); it is not in the bindings.
pub const BPF_F_IPV6: u64 = 1 << 7;

/// Flag of `bpf_check_mtu` that asks for every segment of a packet that is cut later.
const BPF_MTU_CHK_SEGS: u64 = 1;

/// Bytes that every link takes, so that smaller packets need no look at it.
pub const SMALL: u32 = 576;

/// The packet that this core is about, which has no room on the stack.
#[map]
pub static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// The largest packet that goes through, if this one is larger; else 0.
#[inline(always)]
pub fn exceeded(skb: &Skb, interface: u32, overhead: i32) -> u32 {
    let mut mtu = 0;
    // SAFETY: `mtu` is one word. Only packets of one segment have a length to compare, the others have segments; these
    // shrink by what is put in front of them, so that they fit afterwards if they do before.
    let told = unsafe {
        let cut = (*skb.0).gso_segs > 1;
        let (more, segments) = if cut { (0, BPF_MTU_CHK_SEGS) } else { (overhead, 0) };
        bpf_check_mtu(skb.0.cast::<c_void>(), interface, &raw mut mtu, more, segments)
    };
    if told > 0 { mtu.saturating_sub(overhead as u32) } else { 0 }
}
