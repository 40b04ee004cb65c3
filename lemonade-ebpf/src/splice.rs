//! TCP splice at tc: packets of a flow that the proxy has handed over pass between its two connections.
//!
//! A packet of no such flow costs a glance ([`sieve`]) and goes on to the next program.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{
    bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect_neigh, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use lemonade_common::FlowKey;
use lemonade_common::flow::TCP;
use lemonade_common::forward::Flow;
use lemonade_common::packet::{Bytes as _, Family, Kind, Oddity, Packet, RST, read};
use lemonade_common::splice::errors;
use lemonade_common::splice::fragments::{Fragmented, fragmented, readdress};
use lemonade_common::splice::header::{self, Header, Places, Shift};
use lemonade_common::splice::lull::{self, set_window, tell as tell_window, told};
use lemonade_common::splice::sieve::{self, Glance, glance};
use lemonade_common::splice::{
    Count, FORWARD, Fate, HALT, Leg, Own, Slot, acknowledgement, fate, given_stamp, note, note_reset, own,
    receipt, reopened,
};

use crate::packet::{BPF_F_IPV6, BPF_F_MMAPABLE, PACKET, SMALL, exceeded, tell_too_big};
use crate::skb::{Linear, Skb};
use crate::word;

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

/// Bits of all legs; the proxy shares the memory, and sets a bit before the leg is there.
#[map]
static SIEVE: Array<u64> = Array::with_max_entries(sieve::WORDS, BPF_F_MMAPABLE);

/// Counters, by [`Count`].
#[map]
static SPLICE_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Count::LEN, 0);

/// The header that this core is about, as it came and as it goes.
#[map]
static HEADERS: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// Flows of packets that come in fragments, of which only the first has ports.
#[map]
static FRAGMENTS: LruHashMap<Fragmented, FlowKey> = LruHashMap::with_max_entries(1 << 12, 0);

/// What an ICMP error that this core is about changes by.
#[map]
static ERROR: PerCpuArray<Changes> = PerCpuArray::with_max_entries(1, 0);

/// A flow's ends, which have no room on the stack.
#[repr(transparent)]
struct Changes(Flow);

// SAFETY: each core has its own.
unsafe impl Sync for Changes {}

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
    if !concerns(ctx, false) {
        return TC_ACT_UNSPEC;
    }
    let skb = Skb(ctx.as_ptr().cast());
    let Some(packet) = packet(&skb) else { return TC_ACT_UNSPEC };
    if packet.kind == Kind::LaterFragment {
        return later(skb.0, packet);
    }
    // SAFETY: values of this map are never changed.
    let Some(leg) = (unsafe { LEGS.get(&packet.key) }) else { return TC_ACT_UNSPEC };
    let Some(Shared(slot)) = SLOTS.get(leg.slot) else { return TC_ACT_UNSPEC };
    if packet.kind == Kind::IcmpError {
        return error(skb.0, packet, leg, slot);
    }
    let Some(work) = HEADERS.get_ptr_mut(0) else { return TC_ACT_UNSPEC };
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let work = unsafe { &mut *work };
    let at = (leg.side & 1) as usize;
    let (side, other) = (&slot.sides[at], &slot.sides[1 - at]);
    if reopened(state(slot), leg, side, other, packet.flags) {
        return TC_ACT_UNSPEC;
    }
    if packet.odd == Some(Oddity::BadLength) || !load(&skb, packet, work) {
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
    // SAFETY: it takes nothing.
    let owes = note(side, &segment, unsafe { bpf_ktime_get_coarse_ns() });
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
            let tells = ack == segment.ack;
            let shift = Shift::of(leg, ack, tells, side.stamp_delta.get(), other.stamp_delta.get());
            work.new = work.old;
            header::translate(&mut work.new, &work.places, &shift);
            side.forwarded.set(side.forwarded.get() + 1);
            if packet.odd == Some(Oddity::Fragment) {
                expect(skb.0, packet);
            }
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
    if from != 0 || !concerns(ctx, true) {
        return TC_ACT_UNSPEC;
    }
    let Some(packet) = packet(&skb) else { return TC_ACT_UNSPEC };
    if packet.kind != Kind::Flow {
        return TC_ACT_UNSPEC;
    }
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
    let lulled = lull_of(slot);
    if now & FORWARD == 0 && lulled == lull::NONE || reopened(now, leg, side, other, packet.flags) {
        return TC_ACT_UNSPEC;
    }
    let Some(work) = HEADERS.get_ptr_mut(0) else { return TC_ACT_SHOT };
    // SAFETY: as in `arrived`; packets leave in a softirq or with softirqs held off.
    let work = unsafe { &mut *work };
    if !load(&skb, packet, work) {
        return count(Count::NotSent, TC_ACT_SHOT);
    }
    work.new = work.old;
    let data = data(&skb, packet, header::length(&work.old));
    if now & FORWARD == 0 {
        // No option matters to it.
        let segment = header::read(&work.old, &Places::default(), data);
        // SAFETY: it takes nothing.
        let what = told(lulled, side, &segment, unsafe { bpf_ktime_get_coarse_ns() });
        tell_window(&mut work.new, what);
        return rewritten(&skb, packet, work);
    }
    header::places(&work.old, &mut work.places);
    let segment = header::read(&work.old, &work.places, data);
    match own(now, side, &segment) {
        Own::Pass => TC_ACT_UNSPEC,
        Own::Drop => count(Count::Held, TC_ACT_SHOT),
        Own::Renewed => {
            let mut place = (now & HALT != 0).then(|| side.ack.get());
            if lull::opens(lulled, side, &segment) {
                place = Some(side.owed.get());
                set_window(&mut work.new, slot.windows[at].get() as u16);
            }
            let (ack, stamp) = (receipt(leg, side, other), given_stamp(other));
            header::renew(&mut work.new, &work.places, place, ack, stamp);
            rewritten(&skb, packet, work)
        }
    }
}

/// Sends a packet of the proxy's own socket with the new header.
#[inline(always)]
fn rewritten(skb: &Skb, packet: &Packet, work: &Work) -> i32 {
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
    let mtu = if skb.length() as u32 > SMALL { exceeded(skb, packet, interface, 0) } else { 0 };
    if mtu > 0 {
        return count(Count::TooBig, tell(skb.0, packet, mtu));
    }
    // In this order: the header is written with the checksum that it came with.
    if !(stored(skb, packet, work) && addressed(skb, packet, leg)) {
        return count(Count::NotSent, TC_ACT_SHOT);
    }
    count(Count::Forwarded, to(interface))
}

/// Tells the sender of a packet that it is larger than `mtu`. Who asks for this knows both ends of a connection, and gets
/// less than it has sent, so there is no limit.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn tell(skb: *mut __sk_buff, packet: &Packet, mtu: u32) -> i32 {
    tell_too_big(skb, packet, mtu)
}

/// Hands a packet to an interface.
#[inline(always)]
fn to(interface: u32) -> i32 {
    // SAFETY: without parameters the kernel finds the next hop by the destination.
    (unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) }) as i32
}

/// What becomes of an ICMP error about a packet that went to the peer of `leg`.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn error(skb: *mut __sk_buff, packet: &mut Packet, leg: &Leg, slot: &Slot) -> i32 {
    let mut skb = Skb(skb);
    let at = (leg.side & 1) as usize;
    let (side, other) = (&slot.sides[at], &slot.sides[1 - at]);
    let Some(sequence) = errors::quoted(&skb, packet) else { return TC_ACT_UNSPEC };
    let now = state(slot);
    // One in fragments or with wrong lengths is left to the stack, which knows better.
    if packet.odd.is_some() || reopened(now, leg, side, other, 0) {
        return TC_ACT_UNSPEC;
    }
    match errors::fate(now, side, sequence) {
        Fate::Stack => TC_ACT_UNSPEC,
        Fate::Drop => TC_ACT_SHOT,
        Fate::Forward => {
            packet.ttl = TTL + 1;
            let interface = other.leaves_by.get();
            if skb.length() as u32 > SMALL && exceeded(&skb, packet, interface, 0) > 0 {
                return count(Count::TooBig, TC_ACT_SHOT);
            }
            let Some(changes) = ERROR.get_ptr_mut(0) else { return TC_ACT_SHOT };
            // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
            if !errors::translate(&mut skb, packet, leg, unsafe { &mut (*changes).0 }) {
                return count(Count::NotSent, TC_ACT_SHOT);
            }
            count(Count::Errors, to(interface))
        }
    }
}

/// Has later fragments find the flow of the first.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn expect(skb: *mut __sk_buff, packet: &Packet) -> i32 {
    if let Some(name) = fragmented(&Skb(skb), packet) {
        // Without room they are left to the stack, and the peer sends the packet again.
        let _ = FRAGMENTS.insert(&name, &packet.key, 0);
    }
    0
}

/// What becomes of a fragment that is not the first: it follows the first.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn later(skb: *mut __sk_buff, packet: &Packet) -> i32 {
    let mut skb = Skb(skb);
    let Some(name) = fragmented(&skb, packet) else { return TC_ACT_UNSPEC };
    // SAFETY: an entry that serves another packet meanwhile is of one with the same name.
    let Some(key) = (unsafe { FRAGMENTS.get(&name) }) else { return TC_ACT_UNSPEC };
    // SAFETY: values of this map are never changed.
    let Some(leg) = (unsafe { LEGS.get(key) }) else { return TC_ACT_UNSPEC };
    let Some(Shared(slot)) = SLOTS.get(leg.slot) else { return TC_ACT_UNSPEC };
    let at = (leg.side & 1) as usize;
    let now = state(slot);
    if now & (FORWARD | HALT) != FORWARD {
        return TC_ACT_UNSPEC;
    }
    let interface = slot.sides[1 - at].leaves_by.get();
    if skb.length() as u32 > SMALL && exceeded(&skb, packet, interface, 0) > 0 {
        return count(Count::TooBig, TC_ACT_SHOT);
    }
    if !readdress(&mut skb, packet, leg, TTL) {
        return count(Count::NotSent, TC_ACT_SHOT);
    }
    count(Count::Fragments, to(interface))
}

/// Writes addresses and time to live, and what they change of both checksums.
#[inline(always)]
fn addressed(skb: &Skb, packet: &Packet, leg: &Leg) -> bool {
    let stored = readdress(&mut Skb(skb.0), packet, leg, TTL);
    let family = if packet.family == Family::V6 { BPF_F_IPV6 } else { 0 };
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

/// Whether a packet may be of a leg.
#[inline(always)]
fn concerns(ctx: &TcContext, leaves: bool) -> bool {
    match glance(&Linear::of(ctx), leaves) {
        Glance::Foreign => false,
        Glance::Unclear => true,
        Glance::Bit(bit) => match SIEVE.get_ptr(bit / 64) {
            // SAFETY: a word that the proxy may change.
            Some(word) => unsafe { read_volatile(word) & (1 << (bit % 64)) != 0 },
            None => true,
        },
    }
}

/// The packet, if it is one of TCP, or an ICMP error about one.
#[inline(always)]
fn packet(skb: &Skb) -> Option<&'static mut Packet> {
    let packet = PACKET.get_ptr_mut(0)?;
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let packet = unsafe { &mut *packet };
    // SAFETY: a word of the context.
    let tagged = unsafe { (*skb.0).vlan_present != 0 };
    if read(skb, packet).is_err() || packet.tagged || tagged {
        return None;
    }
    // Of a later fragment over IPv6 the protocol is not known.
    let known = packet.key.protocol == TCP && packet.kind != Kind::Echo;
    (known || packet.kind == Kind::LaterFragment).then_some(packet)
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

/// What the slot says of windows now.
#[inline(always)]
fn lull_of(slot: &Slot) -> u64 {
    // SAFETY: an aligned word that the proxy may change.
    unsafe { read_volatile(slot.lull.as_ptr()) }
}

/// Counts a packet in the slot's state, which is told as it was; all that was noted before is seen before it.
#[inline(always)]
fn counted(slot: &Slot) -> u64 {
    // SAFETY: a word of the slot.
    unsafe { word::count(slot.state.as_ptr()) }
}

#[inline(always)]
fn count(what: Count, action: i32) -> i32 {
    if let Some(counter) = SPLICE_COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: this core's own; a softirq does not interrupt another of its kind.
        unsafe { *counter += 1 };
    }
    action
}
