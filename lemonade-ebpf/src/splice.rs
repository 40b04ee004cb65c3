//! TCP splice at tc: packets of a flow that the proxy has handed over pass between its two connections.
//!
//! A packet of no such flow costs a look-up and goes on to the next program.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_redirect_neigh, bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use lemonade_common::flow::TCP;
use lemonade_common::packet::{Bytes as _, BytesMut as _, Family, Kind, Oddity, Packet, RST, read};
use lemonade_common::splice::header::{self, Header, Places, Shift};
use lemonade_common::splice::{
    Count, FORWARD, Fate, HALT, Leg, Own, Side, Slot, acknowledgement, fate, given, given_stamp, note,
    note_reset, own,
};
use lemonade_common::{FlowKey, csum};

use crate::packet::{BPF_F_IPV6, BPF_F_MMAPABLE, PACKET, SMALL, exceeded};
use crate::skb::Skb;

/// `BPF_F_NO_PREALLOC`
const ON_DEMAND: u32 = 1;

/// Time to live that packets leave with: as if the balancer's own stack had sent them.
const TTL: u8 = 64;

/// Connections by the flow of the packets that arrive.
#[map]
static LEGS: HashMap<FlowKey, Leg> = HashMap::with_max_entries(1 << 17, ON_DEMAND);

/// Flows by number; the proxy shares the memory.
#[map]
static SLOTS: Array<Shared> = Array::with_max_entries(1 << 16, BPF_F_MMAPABLE);

/// Counters, by [`Count`].
#[map]
static SPLICE_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Count::LEN, 0);

/// The header that this core is about, as it came and as it goes.
#[map]
static HEADERS: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// A slot whose words several cores write; each write is of one word.
#[repr(transparent)]
struct Shared(Slot);

// SAFETY: every access is of an aligned word, and which of two counts that come at once does not matter.
unsafe impl Sync for Shared {}

/// What has no room on the stack.
#[repr(C)]
struct Work {
    old: Header,
    new: Header,
    places: Places,
}

/// What becomes of a packet that has arrived: an action of tc.
#[inline(always)]
pub fn arrived(ctx: &TcContext) -> i32 {
    let skb = Skb(ctx.as_ptr().cast());
    let Some(packet) = packet(&skb) else { return TC_ACT_UNSPEC };
    // SAFETY: values of this map are never changed.
    let Some(leg) = (unsafe { LEGS.get(&packet.key) }) else { return TC_ACT_UNSPEC };
    let Some(Shared(slot)) = SLOTS.get(leg.slot) else { return TC_ACT_UNSPEC };
    let Some(work) = HEADERS.get_ptr_mut(0) else { return TC_ACT_UNSPEC };
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let work = unsafe { &mut *work };
    let at = (leg.side & 1) as usize;
    let (side, other) = (&slot.sides[at], &slot.sides[1 - at]);
    let odd = matches!(packet.odd, Some(Oddity::Fragment | Oddity::BadLength));
    if odd || !load(&skb, packet, work) {
        return match state(slot) & FORWARD {
            0 => TC_ACT_UNSPEC,
            _ => count(Count::Malformed, TC_ACT_SHOT),
        };
    }
    header::places(&work.old, &mut work.places);
    let segment = header::read(&work.old, &work.places, data(&skb, packet, header::length(&work.old)));
    // SAFETY: a word of the context.
    let interface = unsafe { (*skb.0).ifindex };
    if side.arrives_by.get() != interface {
        side.arrives_by.set(interface);
    }
    let owes = note(side, &segment);
    if segment.flags & RST != 0 {
        note_reset(side, other, leg, &segment);
    }
    let mut now = state(slot);
    if now & FORWARD == 0 {
        now = counted(slot);
    }
    match fate(now, side, &segment, owes) {
        Fate::Stack => TC_ACT_UNSPEC,
        Fate::Drop => TC_ACT_SHOT,
        Fate::Forward => {
            let ack = acknowledgement(side, &segment);
            let shift = Shift::of(leg, ack, side.stamp_delta.get(), other.stamp_delta.get());
            work.new = work.old;
            header::translate(&mut work.new, &work.places, &shift);
            side.forwarded.set(side.forwarded.get() + 1);
            send(&skb, packet, leg, work, other.leaves_by.get())
        }
    }
}

/// What becomes of a packet that is about to leave: an action of tc.
#[inline(always)]
pub fn leaves(ctx: &TcContext) -> i32 {
    let skb = Skb(ctx.as_ptr().cast());
    // SAFETY: words of the context.
    let (from, interface) = unsafe { ((*skb.0).ingress_ifindex, (*skb.0).ifindex) };
    // What came from elsewhere is no packet of a socket of this host.
    if from != 0 {
        return TC_ACT_UNSPEC;
    }
    let Some(packet) = packet(&skb) else { return TC_ACT_UNSPEC };
    let key = packet.key.reversed();
    // SAFETY: values of this map are never changed.
    let Some(leg) = (unsafe { LEGS.get(&key) }) else { return TC_ACT_UNSPEC };
    let Some(Shared(slot)) = SLOTS.get(leg.slot) else { return TC_ACT_UNSPEC };
    let at = (leg.side & 1) as usize;
    let (side, other) = (&slot.sides[at], &slot.sides[1 - at]);
    let now = state(slot);
    if now & FORWARD == 0 && side.leaves_by.get() != interface {
        side.leaves_by.set(interface);
    }
    match own(now, packet.flags) {
        Own::Pass => TC_ACT_UNSPEC,
        Own::Drop => count(Count::Held, TC_ACT_SHOT),
        Own::Renewed => renew(&skb, packet, leg, (side, other), now),
    }
}

#[inline(always)]
fn renew(skb: &Skb, packet: &Packet, leg: &Leg, (side, other): (&Side, &Side), now: u64) -> i32 {
    let Some(work) = HEADERS.get_ptr_mut(0) else { return TC_ACT_SHOT };
    // SAFETY: as in `arrived`; packets leave in a softirq or with softirqs held off.
    let work = unsafe { &mut *work };
    if !load(skb, packet, work) {
        return count(Count::NotSent, TC_ACT_SHOT);
    }
    header::places(&work.old, &mut work.places);
    work.new = work.old;
    let place = (now & HALT != 0).then(|| side.ack.get());
    header::renew(&mut work.new, &work.places, place, given(leg, other), given_stamp(other));
    if work.new == work.old {
        return TC_ACT_UNSPEC;
    }
    if stored(skb, packet, work) {
        count(Count::Renewed, TC_ACT_UNSPEC)
    } else {
        count(Count::NotSent, TC_ACT_SHOT)
    }
}

#[inline(always)]
fn send(skb: &Skb, packet: &Packet, leg: &Leg, work: &Work, interface: u32) -> i32 {
    if skb.length() as u32 > SMALL && exceeded(skb, interface, 0) > 0 {
        return count(Count::TooBig, TC_ACT_SHOT);
    }
    // In this order: the header is written with the checksum that it came with.
    if !(stored(skb, packet, work) && addressed(skb, packet, leg)) {
        return count(Count::NotSent, TC_ACT_SHOT);
    }
    count(Count::Forwarded, 0);
    // SAFETY: without parameters the kernel finds the next hop by the destination.
    (unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) }) as i32
}

/// Writes addresses and time to live, and what they change of both checksums.
#[inline(always)]
fn addressed(skb: &Skb, packet: &Packet, leg: &Leg) -> bool {
    let network = usize::from(packet.network);
    let (stored, family) = match packet.family {
        Family::V4 => {
            let protocol = TCP as u8;
            let hop = csum::delta(&[packet.ttl, protocol], &[TTL, protocol]);
            let checksum = csum::update(packet.checksum, leg.address_delta + hop);
            let mut bytes = [TTL, protocol, checksum[0], checksum[1], 0, 0, 0, 0, 0, 0, 0, 0];
            bytes[4..8].copy_from_slice(&leg.src[12..]);
            bytes[8..].copy_from_slice(&leg.dst[12..]);
            (Skb(skb.0).store(network + lemonade_common::rewrite::V4_AT, &bytes), 0)
        }
        Family::V6 => {
            let mut bytes = [TTL; 33];
            bytes[1..17].copy_from_slice(&leg.src);
            bytes[17..].copy_from_slice(&leg.dst);
            (Skb(skb.0).store(network + lemonade_common::rewrite::V6_AT, &bytes), BPF_F_IPV6)
        }
    };
    let at = u32::from(packet.transport) + 16;
    let flags = u64::from(BPF_F_PSEUDO_HDR) | family;
    // SAFETY: offsets and words; the helper checks the packet's end.
    stored && unsafe { bpf_l4_csum_replace(skb.0, at, 0, u64::from(leg.address_delta), flags) == 0 }
}

/// Writes the new header, and what it changes of the checksum, which is in neither.
#[inline(always)]
fn stored(skb: &Skb, packet: &Packet, work: &Work) -> bool {
    let Some(length) = bounded(header::length(&work.old)) else { return false };
    let at = u32::from(packet.transport);
    let delta = header::delta(&work.old, &work.new);
    // SAFETY: the header has 64 bytes, of which its length says up to 60; the helpers check the packet's end.
    unsafe {
        bpf_skb_store_bytes(skb.0, at, work.new.as_ptr().cast::<c_void>(), length as u32, 0) == 0
            && bpf_l4_csum_replace(skb.0, at + 16, 0, u64::from(delta), 0) == 0
    }
}

/// The packet, if it is one of TCP and of a flow.
#[inline(always)]
fn packet(skb: &Skb) -> Option<&'static Packet> {
    let packet = PACKET.get_ptr_mut(0)?;
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let packet = unsafe { &mut *packet };
    // SAFETY: a word of the context.
    let tagged = unsafe { (*skb.0).vlan_present != 0 };
    if read(skb, packet).is_err() || packet.tagged || tagged {
        return None;
    }
    (packet.kind == Kind::Flow && packet.key.protocol == TCP).then_some(packet)
}

/// Loads the header with its options.
#[inline(always)]
fn load(skb: &Skb, packet: &Packet, work: &mut Work) -> bool {
    let at = usize::from(packet.transport);
    let Some([word]) = skb.load::<1>(at + 12) else { return false };
    let Some(length) = bounded(((word >> 2) & 0x3c) as usize) else { return false };
    work.old = [0; 64];
    // SAFETY: there is room for 64 bytes; the helper checks the packet's end.
    unsafe {
        bpf_skb_load_bytes(
            skb.0.cast::<c_void>(),
            at as u32,
            work.old.as_mut_ptr().cast::<c_void>(),
            length as u32,
        ) == 0
    }
}

/// A length that a header may have. The verifier must see both bounds, and the compiler may not move them to where the
/// length came from.
#[inline(always)]
fn bounded(length: usize) -> Option<usize> {
    #[cfg(target_arch = "bpf")]
    let length = {
        let mut seen = length;
        // SAFETY: it copies a register to itself.
        unsafe { core::arch::asm!("{seen} = {seen}", seen = inout(reg) seen) };
        seen
    };
    (header::LEAST..=header::MOST).contains(&length).then_some(length)
}

/// Bytes of data behind the header; a frame may be longer than its packet.
#[inline(always)]
fn data(skb: &Skb, packet: &Packet, header: usize) -> u32 {
    let network = usize::from(packet.network);
    let (at, from) = match packet.family {
        Family::V4 => (network + 2, network),
        Family::V6 => (network + 4, network + 40),
    };
    let told = skb.load::<2>(at).map_or(0, |bytes| usize::from(u16::from_be_bytes(bytes)));
    // More than the field can say.
    let end = if told == 0 { skb.length() } else { from + told };
    end.saturating_sub(usize::from(packet.transport) + header) as u32
}

/// The slot's state now.
#[inline(always)]
fn state(slot: &Slot) -> u64 {
    // SAFETY: an aligned word that the proxy may change.
    unsafe { read_volatile(slot.state.as_ptr()) }
}

/// Counts a packet in the slot's state, which is told as it was; all that was noted before is seen before it.
#[inline(always)]
fn counted(slot: &Slot) -> u64 {
    let at = slot.state.as_ptr();
    #[cfg(target_arch = "bpf")]
    {
        let mut word: u64 = 1;
        // SAFETY: an aligned word; nothing but it is touched.
        unsafe {
            core::arch::asm!(
                "{word} = atomic_fetch_add((u64 *)({at} + 0), {word})",
                at = in(reg) at,
                word = inout(reg) word,
            );
        }
        word
    }
    // Elsewhere the module is only checked, never run.
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    unsafe {
        at.replace(at.read() + 1)
    }
}

#[inline(always)]
fn count(what: Count, action: i32) -> i32 {
    if let Some(counter) = SPLICE_COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: this core's own; a softirq does not interrupt another of its kind.
        unsafe { *counter += 1 };
    }
    action
}
