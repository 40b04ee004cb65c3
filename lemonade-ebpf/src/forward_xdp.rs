//! The forward plane at XDP: [`decide`] over the same maps as at tc. What cannot be done here goes on unchanged, to the
//! program at tc of the same interface.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup,
    bpf_fib_lookup__bindgen_ty_1, bpf_fib_lookup__bindgen_ty_2, bpf_fib_lookup__bindgen_ty_3,
    bpf_fib_lookup__bindgen_ty_4, bpf_fib_lookup__bindgen_ty_5, xdp_md,
};
use aya_ebpf::helpers::{
    bpf_fib_lookup as look_up_route, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_xdp_adjust_head,
    bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;
use lemonade_common::decide::{Arrival, Verdict, decide, without_flow};
use lemonade_common::forward::{DSR_IPIP, DSR_L2, Flow};
use lemonade_common::packet::{Bytes, BytesMut, Family, Kind, Packet, family, read};
use lemonade_common::{PacketReason, answer, rewrite};

use crate::near::within;
use crate::packet::PACKET;
use crate::tables::{Maps, count, count_told, opened, told};
use crate::word::zero;

/// A packet in the driver's memory.
struct Frame(*mut xdp_md);

/// The same, whose bytes are read and written where they lie, if they lie in its first part: for what every packet needs.
struct Near(*mut xdp_md);

impl Near {
    /// Where bytes lie, if all of them do in the packet's first part.
    #[inline(always)]
    fn place<const N: usize>(&self, at: usize) -> Option<*mut [u8; N]> {
        // SAFETY: words of the context.
        let (begin, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        within(begin, end, at, N).map(|place| place as *mut [u8; N])
    }
}

impl Bytes for Near {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        match self.place::<N>(at) {
            // SAFETY: it lies before the packet's end.
            Some(place) => Some(unsafe { *place }),
            None => Frame(self.0).load(at),
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        Frame(self.0).length()
    }
}

impl BytesMut for Near {
    #[inline(always)]
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool {
        match self.place::<N>(at) {
            Some(place) => {
                // SAFETY: it lies before the packet's end.
                unsafe { *place = *bytes };
                true
            }
            None => Frame(self.0).store(at, bytes),
        }
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        // As at tc.
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        let to = bytes.as_mut_ptr().cast::<c_void>();
        // SAFETY: `bytes` has room for N; the helper checks the packet's end, and fills all of it unless it fails.
        unsafe {
            let failed = bpf_xdp_load_bytes(self.0, at as u32, to, N as u32);
            if failed == 0 { Some(bytes.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: it takes the context.
        (unsafe { bpf_xdp_get_buff_len(self.0) }) as usize
    }
}

impl BytesMut for Frame {
    #[inline(always)]
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool {
        let bytes = bytes.as_ptr().cast::<c_void>().cast_mut();
        // SAFETY: `bytes` has N, which the helper reads; it checks the packet's end.
        unsafe { bpf_xdp_store_bytes(self.0, at as u32, bytes, N as u32) == 0 }
    }
}

/// Where a packet leaves, and between which Ethernet addresses.
struct Hop {
    interface: u32,
    /// Destination and source.
    addresses: [u8; 12],
}

/// What becomes of a packet that has arrived: an action of XDP.
#[inline(always)]
pub fn arrived(ctx: &XdpContext) -> u32 {
    let mut frame = Frame(ctx.ctx);
    let Some(packet) = PACKET.get_ptr_mut(0) else { return XDP_PASS };
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let packet = unsafe { &mut *packet };
    if let Err(why) = read(&Near(frame.0), packet) {
        return count(without_flow(why), XDP_PASS);
    }
    // SAFETY: it takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: a word of the context.
    let interface = unsafe { (*frame.0).ingress_ifindex };
    let arrival = Arrival { length: frame.length() as u64, now, interface };
    match decide(&Maps { context: frame.0.cast() }, packet, &arrival) {
        Verdict::Pass(reason) => count_told(packet, reason, None, XDP_PASS),
        Verdict::Drop(reason) => count_told(packet, reason, None, XDP_DROP),
        Verdict::Echo if answer::echo(&mut frame, packet) => count(PacketReason::Echo, XDP_TX),
        Verdict::Echo => count(PacketReason::NotSent, XDP_DROP),
        Verdict::Forward(flow, reason) => {
            // As at tc.
            if matches!(reason, PacketReason::Opened | PacketReason::Adopted) {
                opened(flow);
            }
            if reason == PacketReason::Opened {
                told(packet, reason.index() as u32, flow.frontend, flow.backend);
            }
            send(frame.0, packet, flow, reason)
        }
    }
}

/// Changes a packet and sends it on.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn send(frame: *mut xdp_md, packet: &Packet, flow: &Flow, reason: PacketReason) -> u32 {
    let mut hop = Hop { interface: 0, addresses: [0; 12] };
    match route(frame, packet, flow, &mut hop) {
        // Over IPv6 the interface is no more than a wish.
        BPF_FIB_LKUP_RET_SUCCESS if hop.interface == flow.interface => {}
        BPF_FIB_LKUP_RET_NO_NEIGH => return leave(frame, packet, flow, PacketReason::NoNeighbour),
        _ => return leave(frame, packet, flow, PacketReason::LeftToTc),
    }
    if flow.mode == DSR_IPIP && !grown(frame, flow) {
        return leave(frame, packet, flow, PacketReason::LeftToTc);
    }
    let (frame, near) = (&mut Frame(frame), &mut Near(frame));
    let done = match (flow.mode, family(&flow.dst)) {
        (DSR_L2, _) => true,
        (DSR_IPIP, Family::V4) => near.store(12, &rewrite::outer_v4(packet, flow)),
        (DSR_IPIP, Family::V6) => near.store(12, &rewrite::outer_v6(packet, flow)),
        _ if packet.kind == Kind::IcmpError => rewrite::translate_error(frame, packet, flow),
        _ => rewrite::translate(near, packet, flow),
    };
    if !done || !near.store(0, &hop.addresses) {
        return count_told(packet, PacketReason::NotSent, Some(flow), XDP_DROP);
    }
    // SAFETY: a word of the context.
    if hop.interface == unsafe { (*frame.0).ingress_ifindex } {
        return count(reason, XDP_TX);
    }
    // SAFETY: numbers.
    count(reason, (unsafe { bpf_redirect(hop.interface, 0) }) as u32)
}

/// Leaves a packet to the program at tc, which counts it as one of its flow again.
#[inline(always)]
fn leave(frame: *mut xdp_md, packet: &Packet, flow: &Flow, reason: PacketReason) -> u32 {
    if packet.kind != Kind::IcmpError {
        flow.packets.set(flow.packets.get().wrapping_sub(1));
        flow.bytes.set(flow.bytes.get().wrapping_sub(Frame(frame).length() as u64));
    }
    count(reason, XDP_PASS)
}

/// Makes room for an outer header; says whether there is some.
#[inline(always)]
fn grown(frame: *mut xdp_md, flow: &Flow) -> bool {
    let bytes = match family(&flow.dst) {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    // SAFETY: numbers; the helper knows how much room there is in front.
    (unsafe { bpf_xdp_adjust_head(frame, -bytes) }) == 0
}

/// Finds the next hop of what a packet becomes: by its destination, in mode `dsr-l2` by the backend's address. What the
/// helper said; it compares lengths with the way's MTU too.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn route(frame: *mut xdp_md, packet: &Packet, flow: &Flow, hop: &mut Hop) -> u32 {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let words = |at: &[u8; 16]| {
        let word = |n: usize| u32::from_ne_bytes([at[n], at[n + 1], at[n + 2], at[n + 3]]);
        [word(0), word(4), word(8), word(12)]
    };
    let (src, dst) = (words(&flow.src), words(&flow.dst));
    let none = zero();
    let (family, src, dst, outer) = match family(&flow.dst) {
        Family::V4 => (AF_INET, [src[3], none, none, none], [dst[3], none, none, none], 20),
        Family::V6 => (AF_INET6, src, dst, 40),
    };
    let overhead = if flow.mode == DSR_IPIP { outer } else { 0 };
    let mut query = bpf_fib_lookup {
        family,
        l4_protocol: 0,
        sport: 0,
        dport: 0,
        __bindgen_anon_1: bpf_fib_lookup__bindgen_ty_1 {
            tot_len: u16::try_from(packet.length + overhead).unwrap_or(u16::MAX),
        },
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
    hop.interface = query.ifindex;
    let [a, b, c, d, e, f] = query.dmac;
    let [g, h, i, j, k, l] = query.smac;
    hop.addresses = [a, b, c, d, e, f, g, h, i, j, k, l];
    // What is negative is no code of the kernel's either.
    u32::try_from(found).unwrap_or(u32::MAX)
}
