//! Next hops at XDP: asked of the kernel's routes once a tick, and known for the rest of it.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup,
    bpf_fib_lookup__bindgen_ty_1, bpf_fib_lookup__bindgen_ty_2, bpf_fib_lookup__bindgen_ty_3,
    bpf_fib_lookup__bindgen_ty_4, bpf_fib_lookup__bindgen_ty_5, xdp_md,
};
use aya_ebpf::helpers::bpf_fib_lookup as look_up_route;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use lemonade_common::PacketReason;
use lemonade_common::forward::Flow;
use lemonade_common::hop::{self, Hop, Way};
use lemonade_common::packet::{Family, family};

use crate::word::zero;

/// What this core knows.
#[map]
static HOPS: PerCpuArray<Hop> = PerCpuArray::with_max_entries(hop::HOPS, 0);

/// The way of a flow's packets.
#[inline(always)]
pub fn way(flow: &Flow) -> Way {
    // The compiler would compare addresses byte by byte.
    let words = |address: &[u8; 16]| {
        // SAFETY: both addresses lie at multiples of eight bytes.
        unsafe { *core::ptr::from_ref(address).cast::<[u64; 2]>() }
    };
    Way { src: words(&flow.src), dst: words(&flow.dst), interface: u64::from(flow.interface) }
}

const _: () = assert!(core::mem::offset_of!(Flow, src) % 8 == 0 && core::mem::offset_of!(Flow, dst) % 8 == 0);

/// Next hop of a packet of this length on a way, destination and source of Ethernet.
///
/// # Errors
/// What the packet is left to tc for.
#[inline(always)]
pub fn next<'h>(
    frame: *mut xdp_md,
    flow: &Flow,
    way: &Way,
    length: u32,
    now: u64,
) -> Result<&'h [u16; 6], PacketReason> {
    let Some(hop) = HOPS.get_ptr_mut(way.place()) else { return Err(PacketReason::LeftToTc) };
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let hop = unsafe { &mut *hop };
    if !hop.serves(way, length, now) {
        match ask(frame, flow, length, hop) {
            BPF_FIB_LKUP_RET_SUCCESS => hop.tick = now,
            BPF_FIB_LKUP_RET_NO_NEIGH => return Err(PacketReason::NoNeighbour),
            _ => return Err(PacketReason::LeftToTc),
        }
    }
    Ok(&hop.addresses)
}

/// Asks the kernel's routes; what they said. Only a success is written down.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn ask(frame: *mut xdp_md, flow: &Flow, length: u32, hop: &mut Hop) -> u32 {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let words = |at: &[u8; 16]| {
        let word = |n: usize| u32::from_ne_bytes([at[n], at[n + 1], at[n + 2], at[n + 3]]);
        [word(0), word(4), word(8), word(12)]
    };
    let (src, dst, none) = (words(&flow.src), words(&flow.dst), zero());
    let (family, src, dst) = match family(&flow.dst) {
        Family::V4 => (AF_INET, [src[3], none, none, none], [dst[3], none, none, none]),
        Family::V6 => (AF_INET6, src, dst),
    };
    let mut query = bpf_fib_lookup {
        family,
        l4_protocol: 0,
        sport: 0,
        dport: 0,
        __bindgen_anon_1: bpf_fib_lookup__bindgen_ty_1 { tot_len: u16::try_from(length).unwrap_or(u16::MAX) },
        ifindex: flow.interface,
        __bindgen_anon_2: bpf_fib_lookup__bindgen_ty_2 { rt_metric: 0 },
        __bindgen_anon_3: bpf_fib_lookup__bindgen_ty_3 { ipv6_src: src },
        __bindgen_anon_4: bpf_fib_lookup__bindgen_ty_4 { ipv6_dst: dst },
        __bindgen_anon_5: bpf_fib_lookup__bindgen_ty_5 { tbid: 0 },
        smac: [0; 6],
        dmac: [0; 6],
    };
    // SAFETY: the query has the size that is told.
    let found = unsafe {
        let size = size_of::<bpf_fib_lookup>() as i32;
        look_up_route(frame.cast(), &raw mut query, size, BPF_FIB_LOOKUP_OUTPUT)
    };
    // What is negative is no code of the kernel's either.
    let found = u32::try_from(found).unwrap_or(u32::MAX);
    if found != BPF_FIB_LKUP_RET_SUCCESS {
        return found;
    }
    // Over IPv6 the interface is no more than a wish.
    if query.ifindex != flow.interface {
        return u32::MAX;
    }
    hop.way = way(flow);
    // SAFETY: a word. Before Linux 5.13 it still is the packet's own length, and longer ones ask anew.
    hop.mtu = u32::from(unsafe { query.__bindgen_anon_1.mtu_result });
    let (to, from) = (query.dmac, query.smac);
    let word = |a, b| u16::from_ne_bytes([a, b]);
    hop.addresses = [
        word(to[0], to[1]),
        word(to[2], to[3]),
        word(to[4], to[5]),
        word(from[0], from[1]),
        word(from[2], from[3]),
        word(from[4], from[5]),
    ];
    found
}
