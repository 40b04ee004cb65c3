//! The forward plane at tc: [`decide`] over maps, and what it says done to the packet.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_NOEXIST, TC_ACT_OK, TC_ACT_SHOT,
};
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect_neigh, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use lemonade_common::decide::{Arrival, Inserted, TableView, Verdict, decide, without_flow};
use lemonade_common::forward::{Flow, Service, ServiceKey, Target};
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{Bytes, Family, Kind, Packet, read};
use lemonade_common::{FlowKey, PacketReason, rewrite};

/// Flag of `bpf_l4_csum_replace` for IPv6 addresses, which a checksum made by the network card needs (Linux 6.16 and
/// stable kernels); it is not in the bindings.
pub(crate) const BPF_F_IPV6: u64 = 1 << 7;

/// Flag of `bpf_check_mtu` that asks for every segment of a packet that is cut later.
const BPF_MTU_CHK_SEGS: u64 = 1;

/// Bytes that every link takes, so that smaller packets need no look at it.
pub(crate) const SMALL: u32 = 576;

/// Flag of a map whose memory the control plane writes without a call for each element.
pub(crate) const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Directions of flows; its size is set when it is made.
#[map]
static CONNECTIONS: HashMap<FlowKey, Shared> = HashMap::with_max_entries(1 << 18, 0);

/// What is served.
#[map]
static SERVICES: HashMap<ServiceKey, Service> = HashMap::with_max_entries(1 << 14, 0);

/// Backends by index.
#[map]
static BACKEND_TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(1 << 16, 0);

/// Rings one after another; how many is set when it is made.
#[map]
static RINGS: Array<u32> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

/// Packets by reason.
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(PacketReason::COUNT as u32, 0);

/// The packet that this core is about, which has no room on the stack.
#[map]
pub(crate) static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// The seed of the flow hash.
#[map]
static SEED: Array<u64> = Array::with_max_entries(1, 0);

/// An entry that all cores see.
#[repr(transparent)]
struct Shared(Flow);

// SAFETY: whole words are loaded and stored, each by one instruction; which of two cores was last does not matter.
unsafe impl Sync for Shared {}

/// The maps as a decision sees them.
struct Maps;

impl TableView for Maps {
    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        // SAFETY: what changes in an entry is atomic. One that is freed meanwhile may serve another flow while this
        // packet is under way, as a packet may arrive a moment too late.
        unsafe { CONNECTIONS.get(key) }.map(|shared| &shared.0)
    }

    #[inline(always)]
    fn insert(&self, key: &FlowKey, flow: &Flow) -> Inserted {
        const EXISTS: i32 = -17;
        // SAFETY: the one is the other.
        let shared = unsafe { &*core::ptr::from_ref(flow).cast::<Shared>() };
        match CONNECTIONS.insert(key, shared, u64::from(BPF_NOEXIST)) {
            Ok(()) => Inserted::Done,
            Err(EXISTS) => Inserted::Exists,
            Err(_) => Inserted::Full,
        }
    }

    #[inline(always)]
    fn remove(&self, key: &FlowKey) -> bool {
        CONNECTIONS.remove(key).is_ok()
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        // SAFETY: values of this map are replaced, never changed.
        unsafe { SERVICES.get(key) }
    }

    #[inline(always)]
    fn slot(&self, ring: u32, slot: u32) -> Option<u32> {
        RINGS.get(ring * SLOTS + slot).copied()
    }

    #[inline(always)]
    fn target(&self, backend: u32) -> Option<&Target> {
        // SAFETY: values of this map are replaced, never changed.
        unsafe { BACKEND_TARGETS.get(&backend) }
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        SEED.get(0).copied().unwrap_or(0)
    }
}

/// A packet in the kernel.
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Bytes for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: `bytes` has room for N; the helper checks the packet's end.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.0.cast::<c_void>(),
                at as u32,
                bytes.as_mut_ptr().cast::<c_void>(),
                N as u32,
            )
        };
        (failed == 0).then_some(bytes)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: a word of the context.
        (unsafe { (*self.0).len }) as usize
    }
}

/// What becomes of a packet that has arrived: an action of tc.
#[inline(always)]
pub fn arrived(ctx: &TcContext) -> i32 {
    let skb = Skb(ctx.as_ptr().cast());
    // SAFETY: words of the context.
    let (interface, tagged) = unsafe { ((*skb.0).ifindex, (*skb.0).vlan_present != 0) };
    let Some(packet) = PACKET.get_ptr_mut(0) else { return TC_ACT_OK };
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    let packet = unsafe { &mut *packet };
    if let Err(why) = read(&skb, packet) {
        return count(without_flow(why), TC_ACT_OK);
    }
    packet.tagged |= tagged;
    // SAFETY: it takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let arrival = Arrival { length: skb.length() as u64, now, interface };
    match decide(&Maps, packet, &arrival) {
        Verdict::Pass(reason) => count(reason, TC_ACT_OK),
        Verdict::Drop(reason) => count(reason, TC_ACT_SHOT),
        // Errors are not translated yet: the host has them.
        Verdict::Forward(_, reason) if packet.kind == Kind::IcmpError => count(reason, TC_ACT_OK),
        Verdict::Forward(flow, reason) => send(&skb, packet, flow, reason),
    }
}

#[inline(always)]
fn send(skb: &Skb, packet: &Packet, flow: &Flow, reason: PacketReason) -> i32 {
    let interface = flow.interface;
    if skb.length() as u32 > SMALL && too_big(skb, interface) {
        return count(PacketReason::TooBig, TC_ACT_SHOT);
    }
    if !rewritten(skb, packet, flow) {
        return count(PacketReason::NotSent, TC_ACT_SHOT);
    }
    count(reason, 0);
    // SAFETY: without parameters the kernel finds the next hop by the destination.
    (unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) }) as i32
}

#[inline(always)]
pub(crate) fn too_big(skb: &Skb, interface: u32) -> bool {
    let mut mtu = 0;
    // SAFETY: `mtu` is one word. Only packets of one segment have a length to compare, the others have segments.
    unsafe {
        let segments = if (*skb.0).gso_segs > 1 { BPF_MTU_CHK_SEGS } else { 0 };
        bpf_check_mtu(skb.0.cast::<c_void>(), interface, &raw mut mtu, 0, segments) > 0
    }
}

#[inline(always)]
fn rewritten(skb: &Skb, packet: &Packet, flow: &Flow) -> bool {
    let (network, transport) = (usize::from(packet.network), usize::from(packet.transport));
    let (stored, family) = match packet.family {
        Family::V4 => (store(skb, network + rewrite::V4_AT, &rewrite::v4(packet, flow)), 0),
        Family::V6 => (store(skb, network + rewrite::V6_AT, &rewrite::v6(packet, flow)), BPF_F_IPV6),
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
    stored && summed && store(skb, transport, &rewrite::ports(flow))
}

#[inline(always)]
pub(crate) fn store<const N: usize>(skb: &Skb, at: usize, bytes: &[u8; N]) -> bool {
    // SAFETY: `bytes` has N; the helper checks the packet's end.
    unsafe { bpf_skb_store_bytes(skb.0, at as u32, bytes.as_ptr().cast::<c_void>(), N as u32, 0) == 0 }
}

#[inline(always)]
fn count(reason: PacketReason, action: i32) -> i32 {
    if let Some(counter) = REASONS.get_ptr_mut(reason.index() as u32) {
        // SAFETY: this core's own; a softirq does not interrupt another of its kind.
        unsafe { *counter += 1 };
    }
    action
}
