//! The backend's side of mode `dsr-ipip`: takes outer headers off, at tc.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6};
use aya_ebpf::helpers::bpf_skb_adjust_room;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use lemonade_common::decap::{Unwrapped, outer};
use lemonade_common::packet::{BytesMut, ETHERNET, Family};

use crate::skb::Skb;

/// Whose outer headers are taken off.
#[map]
static BALANCERS: HashMap<[u8; 16], u32> = HashMap::with_max_entries(256, 0);

/// Packets with an outer header, by what became of them.
#[map]
static UNWRAPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(Unwrapped::COUNT, 0);

/// Takes the outer header off a packet that has arrived, if it has one of a balancer's. The packet goes on to the host
/// either way.
#[inline(always)]
pub fn arrived(ctx: &TcContext) {
    let mut skb = Skb(ctx.as_ptr().cast());
    let Some(outer) = outer(&skb) else { return };
    // SAFETY: values of this map are never changed.
    if unsafe { BALANCERS.get(&outer.source) }.is_none() {
        return count(Unwrapped::Stranger);
    }
    let (kind, flag) = match outer.carried {
        Family::V4 => ([0x08, 0x00], BPF_F_ADJ_ROOM_DECAP_L3_IPV4),
        Family::V6 => ([0x86, 0xdd], BPF_F_ADJ_ROOM_DECAP_L3_IPV6),
    };
    let other = outer.carried != outer.family;
    let flags = if other { u64::from(flag) } else { 0 };
    // SAFETY: numbers; the helper judges them.
    let taken = unsafe { bpf_skb_adjust_room(skb.0, -(outer.length as i32), BPF_ADJ_ROOM_MAC, flags) } == 0;
    let taken = taken && (!other || skb.store(ETHERNET - 2, &kind));
    count(if taken { Unwrapped::Done } else { Unwrapped::Refused });
}

#[inline(always)]
fn count(what: Unwrapped) {
    if let Some(counter) = UNWRAPPED.get_ptr_mut(what as u32) {
        // SAFETY: this core's own; a softirq does not interrupt another of its kind.
        unsafe { *counter += 1 };
    }
}
