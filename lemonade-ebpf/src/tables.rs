//! Maps of the forward plane, and the view of them that decisions are made by.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_NOEXIST, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, Queue, RingBuf};
use lemonade_common::decide::{Inserted, Opening, TableView};
use lemonade_common::forward::{Carried, DOWN, Flow, Service, ServiceKey, Target, opened_key};
use lemonade_common::gate::{GATE_KINDS, Gate, NEW_FLOWS};
use lemonade_common::half_open::HalfOpen;
use lemonade_common::least::{Choices, Load, Scan};
use lemonade_common::maglev::SLOTS;
use lemonade_common::notice::{NOBODY, Notice};
use lemonade_common::packet::{Family, Packet, family};
use lemonade_common::place::Place;
use lemonade_common::{FlowKey, PacketReason};

use crate::global::{
    forward_hash, forward_least, forward_place, forward_put, forward_remove, forward_room, forward_spare,
    forward_step,
};
use crate::maps::add;
use crate::packet::BPF_F_MMAPABLE;
use crate::word::{count as next, exchange};

/// Directions of flows; its size is set when it is made.
#[map]
static CONNECTIONS: HashMap<FlowKey, Shared> = HashMap::with_max_entries(1 << 18, 0);

/// Handshakes that have begun, the oldest first; its size is set when it is made.
#[map]
static HALF_OPEN: Queue<HalfOpen> = Queue::with_max_entries(1 << 14, 0);

/// Handshakes that had to make room for others.
#[map]
static REPLACED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What is served.
#[map]
static SERVICES: HashMap<ServiceKey, Service> = HashMap::with_max_entries(1 << 14, 0);

/// Not 0 once anything is served at all ports of an address.
#[map]
static ANY_PORTS: Array<u32> = Array::with_max_entries(1, 0);

/// Backends by index.
#[map]
static BACKEND_TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(1 << 16, 0);

/// Rings one after another; how many is set when it is made.
#[map]
static RINGS: Array<u32> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

/// Backends of rings, where what each has decides; how many rings is set when it is made.
#[map]
static CHOICES: Array<Choices> = Array::with_max_entries(1, 0);

/// What counts at backends; whoever lists a backend makes its entry.
#[map]
static LOADS: HashMap<u32, Load> = HashMap::with_max_entries(1 << 16, 0);

/// Live flows of frontends; whoever lists a frontend makes its entry.
#[map]
static FRONTENDS: HashMap<u32, u64> = HashMap::with_max_entries(1 << 14, 0);

/// Connections of backends and frontends with limits that the proxy has.
#[map]
static ELSEWHERE: HashMap<u64, u32> = HashMap::with_max_entries(1 << 16, 0);

/// Packets by reason.
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(PacketReason::COUNT as u32, 0);

/// Flows opened by frontend and backend; whoever lists a backend makes its counters.
#[map]
pub static OPENED: PerCpuHashMap<u64, u64> = PerCpuHashMap::with_max_entries(1 << 16, 0);

/// What flows carried whose entries are gone, by frontend and backend; made with the counters in [`OPENED`].
#[map]
static GONE: HashMap<u64, Carried> = HashMap::with_max_entries(1 << 16, 0);

/// The entry that this core has kept aside.
#[map]
static LENT: PerCpuArray<Shared> = PerCpuArray::with_max_entries(1, 0);

/// What this core has let through, by kind.
#[map]
static GATES: PerCpuArray<Gate> = PerCpuArray::with_max_entries(GATE_KINDS, 0);

/// How much each core lets through in a second, by kind.
#[map]
static LIMITS: Array<u32> = Array::with_max_entries(GATE_KINDS, 0);

/// Packets that are told of.
#[map]
static NOTICES: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

/// Not 0 while somebody listens to [`NOTICES`].
#[map]
static LISTENED: Array<u32> = Array::with_max_entries(1, 0);

/// Packets that there was no room in [`NOTICES`] for.
#[map]
static UNTOLD: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The seed of the flow hash.
#[map]
static SEED: Array<u64> = Array::with_max_entries(1, 0);

/// An entry that all cores see.
#[repr(transparent)]
struct Shared(Flow);

// SAFETY: whole words are loaded and stored, each by one instruction; which of two cores was last does not matter.
unsafe impl Sync for Shared {}

/// The maps as a decision sees them.
pub struct Maps {
    /// Context of the program, for helpers that ask for one.
    pub context: *mut c_void,
}

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
        forward_remove(key, 0) != 0
    }

    #[inline(always)]
    fn enter(&self, backend: u32, most: u64) -> bool {
        // SAFETY: a word of a value of the map.
        LOADS.get_ptr_mut(backend).is_none_or(|load| unsafe { more(&raw mut (*load).live, most) })
    }

    #[inline(always)]
    fn enter_frontend(&self, frontend: u32, most: u64) -> bool {
        // SAFETY: a value of the map.
        FRONTENDS.get_ptr_mut(frontend).is_none_or(|live| unsafe { more(live, most) })
    }

    #[inline(always)]
    fn leave_backend(&self, backend: u32) {
        if let Some(load) = LOADS.get_ptr_mut(backend) {
            // SAFETY: a word of a value of the map.
            unsafe { add(&raw mut (*load).live, u64::MAX) };
        }
    }

    #[inline(always)]
    fn leave_frontend(&self, frontend: u32) {
        if let Some(live) = FRONTENDS.get_ptr_mut(frontend) {
            // SAFETY: a value of the map.
            unsafe { add(live, u64::MAX) };
        }
    }

    #[inline(always)]
    fn elsewhere(&self, whose: u64) -> u32 {
        // SAFETY: values of this map are replaced, never changed.
        unsafe { ELSEWHERE.get(&whose) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn since(&self) -> u64 {
        // SAFETY: it takes nothing.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn leave(&self, flow: &Flow) {
        // SAFETY: a word of a map's value; of several that see the flow end one gets the time.
        if unsafe { exchange(flow.counted.as_ptr(), 0) } != 0 {
            self.leave_backend(flow.backend);
            self.leave_frontend(flow.frontend);
        }
    }

    #[inline(always)]
    fn answered(&self, flow: &Flow) {
        let since = flow.counted.get();
        let Some(load) = LOADS.get_ptr_mut(flow.backend).filter(|_| since != 0) else { return };
        // SAFETY: words of a value of the map.
        unsafe {
            add(&raw mut (*load).waited, bpf_ktime_get_ns().wrapping_sub(since));
            add(&raw mut (*load).answers, 1);
        }
    }

    #[inline(always)]
    fn refused(&self, flow: &Flow) {
        if let Some(load) = LOADS.get_ptr_mut(flow.backend) {
            // SAFETY: a word of a value of the map.
            unsafe { add(&raw mut (*load).refused, 1) };
        }
    }

    #[inline(always)]
    fn live(&self, backend: u32) -> u32 {
        // SAFETY: whole words are loaded.
        let live =
            LOADS.get_ptr(backend).map_or(0, |load| unsafe { (&raw const (*load).live).read_volatile() });
        // Below 0 where the backend was not listed yet when a flow to it began.
        if live >> 32 == 0 { live as u32 } else { 0 }
    }

    #[inline(always)]
    fn choices(&self, ring: u32) -> Option<&Choices> {
        CHOICES.get(ring)
    }

    #[inline(always)]
    fn turn(&self, ring: u32) -> u64 {
        // SAFETY: a word of a value of the map.
        CHOICES.get_ptr_mut(ring).map_or(0, |choices| unsafe { next(&raw mut (*choices).turn) })
    }

    #[inline(always)]
    fn hash(&self, key: &FlowKey) -> u64 {
        forward_hash(key)
    }

    #[inline(always)]
    fn least(&self, ring: u32, hash: u64) -> u32 {
        forward_least(ring, hash)
    }

    #[inline(always)]
    fn step(&self, ring: u32, at: u32, scan: &mut Scan) {
        forward_step(ring, at, scan);
    }

    #[inline(always)]
    fn place(&self, service: &Service, key: &FlowKey, how: u32, place: &mut Place) -> bool {
        forward_place(service, key, how, place) != 0
    }

    #[inline(always)]
    fn spare(&self, ring: u32, slot: u32) -> u32 {
        forward_spare(ring, slot)
    }

    #[inline(always)]
    fn room_at(&self, ring: u32, slot: u32, step: u32) -> u32 {
        forward_room(ring, slot, step)
    }

    #[inline(always)]
    fn put(&self, from: &FlowKey, answers: &FlowKey, opening: &Opening) -> Inserted {
        match forward_put(from, answers, opening) {
            0 => Inserted::Done,
            1 => Inserted::Exists,
            _ => Inserted::Full,
        }
    }

    #[inline(always)]
    fn lend(&self, flow: &Flow) {
        let Some(place) = LENT.get_ptr_mut(0) else { return };
        // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
        unsafe { core::ptr::copy_nonoverlapping(core::ptr::from_ref(flow).cast::<Shared>(), place, 1) };
    }

    #[inline(always)]
    fn lent(&self) -> Option<&Flow> {
        LENT.get(0).map(|shared| &shared.0)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        // SAFETY: values of this map are replaced, never changed.
        unsafe { SERVICES.get(key) }
    }

    #[inline(always)]
    fn any_ports(&self) -> bool {
        ANY_PORTS.get(0).is_some_and(|any| *any != 0)
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
    fn is_own(&self, key: &FlowKey) -> bool {
        is_own(self.context, key)
    }

    #[inline(always)]
    fn admits(&self, now: u64) -> bool {
        admits(NEW_FLOWS, now)
    }

    #[inline(always)]
    fn begin(&self, begun: &HalfOpen) -> bool {
        HALF_OPEN.push(begun, 0).is_ok()
    }

    #[inline(always)]
    fn oldest(&self) -> Option<HalfOpen> {
        HALF_OPEN.peek().ok().flatten()
    }

    #[inline(always)]
    fn shift(&self) -> Option<HalfOpen> {
        HALF_OPEN.pop().ok().flatten()
    }

    #[inline(always)]
    fn replaced(&self) {
        if let Some(counter) = REPLACED.get_ptr_mut(0) {
            // SAFETY: this core's own; a softirq does not interrupt another of its kind.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        SEED.get(0).copied().unwrap_or(0)
    }
}

/// Counts one more, unless `most` are there; says whether it did. Both are compared as signed numbers.
///
/// # Safety
/// `live` points to a word of a map's value.
#[inline(always)]
unsafe fn more(live: *mut u64, most: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        // Who is refused changes nothing, as long as no other core is faster with the last place.
        if live.read_volatile() as i64 >= most as i64 {
            return false;
        }
        if next(live) as i64 >= most as i64 {
            add(live, u64::MAX);
            return false;
        }
    }
    true
}

/// Takes an entry away, with what it counts, if the last packet came at `seen` (0: whenever that was); says whether it did.
#[inline(always)]
pub fn remove(key: &FlowKey, seen: u64) -> bool {
    let tables = Maps { context: core::ptr::null_mut() };
    let Some(flow) = tables.flow(key) else { return false };
    if seen != 0 && flow.seen.get() != seen {
        return false;
    }
    tables.leave(flow);
    let carried = (flow.packets.get(), flow.bytes.get());
    let (lane, way) = (opened_key(flow.frontend, flow.backend), flow.state.get() as u32 & DOWN);
    if CONNECTIONS.remove(key).is_err() {
        return false;
    }
    if let Some(gone) = GONE.get_ptr_mut(lane) {
        // SAFETY: words of a value of the map.
        unsafe {
            let (packets, bytes) = (&raw mut (*gone).packets, &raw mut (*gone).bytes);
            let way = (way != 0) as usize;
            add(packets.cast::<u64>().add(way), carried.0);
            add(bytes.cast::<u64>().add(way), carried.1);
        }
    }
    true
}

/// Whether one more of a kind may pass.
#[inline(always)]
pub fn admits(kind: u32, now: u64) -> bool {
    let limit = LIMITS.get(kind).copied().unwrap_or(0);
    let Some(gate) = GATES.get_ptr_mut(kind) else { return false };
    // SAFETY: this core's own, and a softirq does not interrupt another of its kind.
    unsafe { &mut *gate }.admits(now, limit)
}

/// Whether a TCP connection of this host has the key; one that merely listens does not.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
fn is_own(context: *mut c_void, key: &FlowKey) -> bool {
    /// `BPF_TCP_LISTEN` of `linux/bpf.h`.
    const LISTEN: u32 = 10;
    /// The namespace of the interface.
    const HERE: u64 = u64::MAX;
    let word = |at: &[u8; 16], n: usize| u32::from_ne_bytes([at[n], at[n + 1], at[n + 2], at[n + 3]]);
    let words = |at: &[u8; 16]| [word(at, 0), word(at, 4), word(at, 8), word(at, 12)];
    let (sport, dport) = (u16::from_ne_bytes(key.sport), u16::from_ne_bytes(key.dport));
    let (ends, size) = match family(&key.dst) {
        Family::V4 => {
            let ends = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: word(&key.src, 12),
                daddr: word(&key.dst, 12),
                sport,
                dport,
            };
            (bpf_sock_tuple__bindgen_ty_1 { ipv4: ends }, size_of_val(&ends))
        }
        Family::V6 => {
            let ends = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: words(&key.src),
                daddr: words(&key.dst),
                sport,
                dport,
            };
            (bpf_sock_tuple__bindgen_ty_1 { ipv6: ends }, size_of_val(&ends))
        }
    };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: ends };
    // SAFETY: the tuple has `size` bytes at least; what is found is released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(context, &raw mut tuple, size as u32, HERE, 0);
        if socket.is_null() {
            return false;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state != LISTEN
    }
}

/// Counts what a packet came to, and hands on what is done with it.
#[inline(always)]
pub fn count<A>(reason: PacketReason, action: A) -> A {
    if let Some(counter) = REASONS.get_ptr_mut(reason.index() as u32) {
        // SAFETY: this core's own; a softirq does not interrupt another of its kind.
        unsafe { *counter += 1 };
    }
    action
}

/// Tells of a packet while somebody listens; without room for it, only counts that.
// A frame of its own: programs have 512 bytes of stack.
#[inline(never)]
pub fn told(packet: &Packet, reason: u32, frontend: u32, backend: u32) -> i32 {
    /// Who listens looks from time to time.
    const BPF_RB_NO_WAKEUP: u64 = 1;
    if LISTENED.get(0).is_none_or(|listened| *listened == 0) {
        return 0;
    }
    let notice = Notice { key: packet.key, reason, frontend, backend, reserved: 0 };
    if NOTICES.output::<Notice>(&notice, BPF_RB_NO_WAKEUP).is_err()
        && let Some(lost) = UNTOLD.get_ptr_mut(0)
    {
        // SAFETY: this core's own; a softirq does not interrupt another of its kind.
        unsafe { *lost += 1 };
    }
    0
}

/// Counts what a packet came to, tells of it if that is one to be told, and hands on what is done with it.
#[inline(always)]
pub fn count_told<A>(packet: &Packet, reason: PacketReason, flow: Option<&Flow>, action: A) -> A {
    if reason.is_told() {
        let (frontend, backend) = flow.map_or((NOBODY, NOBODY), |flow| (flow.frontend, flow.backend));
        told(packet, reason.index() as u32, frontend, backend);
    }
    count(reason, action)
}

/// Counts a flow that was opened.
#[inline(always)]
pub fn opened(flow: &Flow) {
    if let Some(counter) = OPENED.get_ptr_mut(opened_key(flow.frontend, flow.backend)) {
        // SAFETY: this core's own; a softirq does not interrupt another of its kind.
        unsafe { *counter += 1 };
    }
}
