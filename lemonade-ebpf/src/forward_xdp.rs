//! The forward plane at XDP: [`decide`] over the same maps as at tc. What cannot be done here goes on unchanged, to the
//! program at tc of the same interface.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{
    bpf_ktime_get_coarse_ns, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
    bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;
use lemonade_common::decide::{Arrival, Verdict, decide, without_flow};
use lemonade_common::forward::{DSR_IPIP, DSR_L2, Flow};
use lemonade_common::packet::{Bytes, BytesMut, Kind, Packet, read};
use lemonade_common::{PacketReason, answer, rewrite};

use crate::hop;
use crate::near::within;
use crate::packet::PACKET;
use crate::tables::{Maps, count, count_told, opened, told};

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

    /// Writes words as they lie in memory, by words; says whether the packet's first part has room there.
    #[inline(always)]
    fn store_words<const N: usize>(&mut self, at: usize, words: &[u16; N]) -> bool {
        // SAFETY: words of the context.
        let (begin, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let Some(place) = within(begin, end, at, 2 * N) else { return false };
        // SAFETY: it lies before the packet's end, and packets begin at even addresses.
        unsafe { *(place as *mut [u16; N]) = *words };
        true
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

/// As [`Near`], of a length that is known: the kernel is asked for it once.
struct Measured {
    near: Near,
    length: usize,
}

impl Bytes for Measured {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.near.load(at)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
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

/// What becomes of a packet that has arrived: an action of XDP.
#[inline(always)]
pub fn arrived(ctx: &XdpContext) -> u32 {
    let mut frame = Frame(ctx.ctx);
    let Some(packet) = PACKET.get_ptr_mut(0) else { return XDP_PASS };
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let packet = unsafe { &mut *packet };
    let length = frame.length();
    if let Err(why) = read(&Measured { near: Near(frame.0), length }, packet) {
        return count(without_flow(why), XDP_PASS);
    }
    // SAFETY: it takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: a word of the context.
    let interface = unsafe { (*frame.0).ingress_ifindex };
    let arrival = Arrival { length: length as u64, now, interface };
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
            send(frame.0, packet, flow, reason, now)
        }
    }
}

/// Changes a packet and sends it on.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn send(frame: *mut xdp_md, packet: &Packet, flow: &Flow, reason: PacketReason, now: u64) -> u32 {
    let way = hop::way(flow);
    let v4 = way.is_v4();
    let addresses = match hop::next(frame, flow, &way, lemonade_common::hop::length(packet, flow, v4), now) {
        Ok(addresses) => addresses,
        Err(why) => return leave(frame, packet, flow, why),
    };
    if flow.mode == DSR_IPIP && !grown(frame, v4) {
        return leave(frame, packet, flow, PacketReason::LeftToTc);
    }
    let (frame, near) = (&mut Frame(frame), &mut Near(frame));
    let done = match flow.mode {
        DSR_L2 => true,
        DSR_IPIP if v4 => near.store_words(12, &rewrite::outer_v4(packet, flow)),
        DSR_IPIP => near.store(12, &rewrite::outer_v6(packet, flow)),
        _ if packet.kind == Kind::IcmpError => rewrite::translate_error(frame, packet, flow),
        _ => rewrite::translate(near, packet, flow),
    };
    if !done || !near.store_words(0, addresses) {
        return count_told(packet, PacketReason::NotSent, Some(flow), XDP_DROP);
    }
    // SAFETY: a word of the context.
    if flow.interface == unsafe { (*frame.0).ingress_ifindex } {
        return count(reason, XDP_TX);
    }
    // SAFETY: numbers.
    count(reason, (unsafe { bpf_redirect(flow.interface, 0) }) as u32)
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
fn grown(frame: *mut xdp_md, v4: bool) -> bool {
    let bytes = if v4 { 20 } else { 40 };
    // SAFETY: numbers; the helper knows how much room there is in front.
    (unsafe { bpf_xdp_adjust_head(frame, -bytes) }) == 0
}
