//! Opening a flow: the ring names the backend, and what packets of the flow become is written down.

use core::cell::Cell;

use crate::csum;
use crate::decide::{Arrival, Inserted, TableView};
use crate::flow::{FlowKey, TCP};
use crate::forward::{ADOPTED, DOWN, Flow, Service, Target, answers_pass_by, ended};
use crate::half_open::{admit, is_half_open};
use crate::hash::flow_hash;
use crate::packet::{Kind, Packet, RST};
use crate::place::{BEGUN, LOOSE, LOOSE_BEGUN, NEW, Place, give_back};
use crate::verdict::PacketReason;

/// Ports that are tried for a new flow before they count as exhausted.
pub const PORT_TRIES: u32 = 16;

/// Nanoseconds for which the ports of a flow that ended, or of one that began and is half open, are kept from others when
/// there is a lack of them.
pub const LINGER: u64 = 1_000_000_000;

/// Opens a flow in mode `nat`: the ring names the backend, a port is taken for it, and both directions are written down.
/// Says what it came to; the entry is found by the packet's key.
// This and what it calls have frames of their own: programs in the kernel have 512 bytes of stack in all. That each mode
// has its function keeps the number of paths low that the kernel's verifier follows.
#[inline(never)]
pub(crate) fn open<T: TableView>(
    table: &T,
    packet: &Packet,
    service: &Service,
    arrival: &Arrival,
) -> PacketReason {
    let mut place = Place::default();
    if !table.place(service, &packet.key, NEW, &mut place) {
        return place.why();
    }
    let reason = translated(table, packet, service, arrival, &place);
    if reason != PacketReason::Opened {
        give_back(table, service.frontend, place.backend);
    }
    reason
}

/// Takes a port and writes a flow down that has its place.
#[inline(always)]
fn translated<T: TableView>(
    table: &T,
    packet: &Packet,
    service: &Service,
    arrival: &Arrival,
    place: &Place,
) -> PacketReason {
    let key = &packet.key;
    let Some(target) = table.target(place.backend) else {
        return PacketReason::NoBackend;
    };
    if key.protocol == TCP && !admit(table, key, arrival.now) {
        return PacketReason::HalfOpenFull;
    }
    let mut opening = Opening::of(service, arrival, place);
    // The entry of the answers has the port that is taken in its key.
    let mut taken = FlowKey {
        src: target.address,
        dst: target.snat,
        sport: if target.port == [0; 2] { key.dport } else { target.port },
        dport: [0; 2],
        protocol: key.protocol,
    };
    match claim(table, &mut taken, key, target, &opening) {
        Inserted::Done => {}
        Inserted::Exists => return PacketReason::PortsExhausted,
        Inserted::Full => return PacketReason::TableFull,
    }
    opening.towards(target, arrival, table.since());
    match table.put(key, &taken, &opening) {
        Inserted::Done => PacketReason::Opened,
        // Full, or another core was faster with the same packet: its entry holds.
        other @ (Inserted::Exists | Inserted::Full) => {
            table.remove(&taken);
            if other == Inserted::Full { PacketReason::TableFull } else { PacketReason::Forwarded }
        }
    }
}

/// As [`open`] in mode `nat-gateway`: no port is taken, since the client keeps its own. A flow that began before, so that
/// `first` is false, has the backend that it had.
#[inline(never)]
pub(crate) fn open_gateway<T: TableView>(
    table: &T,
    packet: &Packet,
    service: &Service,
    arrival: &Arrival,
    first: bool,
) -> PacketReason {
    let loose = passes_unrecorded(packet);
    let how = if loose {
        LOOSE_BEGUN
    } else if first {
        NEW
    } else {
        BEGUN
    };
    let mut place = Place::default();
    if !table.place(service, &packet.key, how, &mut place) {
        return place.why();
    }
    let reason = met(table, packet, service, arrival, &place);
    if reason != PacketReason::Opened && !loose {
        give_back(table, service.frontend, place.backend);
    }
    reason
}

/// Writes a flow down that has its place and keeps its client's address and port.
#[inline(always)]
fn met<T: TableView>(
    table: &T,
    packet: &Packet,
    service: &Service,
    arrival: &Arrival,
    place: &Place,
) -> PacketReason {
    let (key, how) = (&packet.key, place.how);
    let Some(target) = table.target(place.backend) else {
        return PacketReason::NoBackend;
    };
    let mut opening = Opening::of(service, arrival, place);
    let answers = FlowKey {
        src: target.address,
        dst: key.src,
        sport: if target.port == [0; 2] { key.dport } else { target.port },
        dport: key.sport,
        protocol: key.protocol,
    };
    if how & LOOSE != 0 {
        opening.towards(target, arrival, 0);
        lend(table, key, &answers, &opening);
        return PacketReason::Unrecorded;
    }
    if how == NEW && key.protocol == TCP && !admit(table, key, arrival.now) {
        return PacketReason::HalfOpenFull;
    }
    match meet(table, &answers, key, &opening) {
        Inserted::Done => {}
        Inserted::Exists => return PacketReason::PortsExhausted,
        Inserted::Full => return PacketReason::TableFull,
    }
    opening.towards(target, arrival, table.since());
    opening.state = if how == BEGUN { ADOPTED } else { 0 };
    match table.put(key, &answers, &opening) {
        Inserted::Done => PacketReason::Opened,
        Inserted::Exists => PacketReason::Forwarded,
        Inserted::Full => {
            table.remove(&answers);
            PacketReason::TableFull
        }
    }
}

/// As [`open_gateway`] in modes whose answers pass by the balancer: there is one direction to write down. While flows open
/// faster than the table's limit, or it is full, none is.
#[inline(never)]
pub(crate) fn open_passing<T: TableView>(
    table: &T,
    packet: &Packet,
    service: &Service,
    arrival: &Arrival,
    first: bool,
) -> PacketReason {
    if !passes_unrecorded(packet) && table.admits(arrival.now) {
        let how = if first { NEW } else { BEGUN };
        let mut place = Place::default();
        if !table.place(service, &packet.key, how, &mut place) {
            return place.why();
        }
        if let Some(reason) = pass(table, packet, service, arrival, &place) {
            return reason;
        }
    }
    // The packets that follow know the ring only.
    let how = if first { LOOSE } else { LOOSE_BEGUN };
    let mut place = Place::default();
    if !table.place(service, &packet.key, how, &mut place) {
        return place.why();
    }
    pass(table, packet, service, arrival, &place).unwrap_or(PacketReason::NoBackend)
}

/// Opens a flow that has its place and whose answers pass by, and writes it down unless it is [`LOOSE`]; `None`: there is no
/// room.
#[inline(never)]
fn pass<T: TableView>(
    table: &T,
    packet: &Packet,
    service: &Service,
    arrival: &Arrival,
    place: &Place,
) -> Option<PacketReason> {
    let key = &packet.key;
    let Place { hash, backend, how, .. } = *place;
    let loose = how & LOOSE != 0;
    let Some(target) = table.target(backend) else {
        if !loose {
            give_back(table, service.frontend, backend);
        }
        return Some(PacketReason::NoBackend);
    };
    let flow = Flow {
        src: outer_source(target, hash as u32),
        dst: target.address,
        sport: key.sport,
        dport: key.dport,
        interface: target.interface,
        backend,
        frontend: service.frontend,
        address_delta: 0,
        port_delta: hash as u32 & 0xf_ffff,
        protocol: key.protocol,
        mode: service.mode,
        state: Cell::new(0),
        told: Cell::new(0),
        seen: Cell::new(arrival.now),
        packets: Cell::new(1),
        bytes: Cell::new(arrival.length),
        opened: arrival.now,
        counted: Cell::new(if loose { 0 } else { table.since() }),
    };
    if loose {
        table.lend(&flow);
        return Some(PacketReason::Unrecorded);
    }
    let inserted = table.insert(key, &flow);
    if inserted != Inserted::Done {
        give_back(table, service.frontend, backend);
    }
    match inserted {
        Inserted::Done => Some(PacketReason::Opened),
        Inserted::Exists => Some(PacketReason::Forwarded),
        Inserted::Full => None,
    }
}

/// Whether a packet of a flow that is not known leaves no entry behind: an error may be forged, and a reset is the end.
#[inline(always)]
fn passes_unrecorded(packet: &Packet) -> bool {
    packet.kind == Kind::IcmpError || packet.flags & RST != 0
}

/// What is not addresses and ports in the entries of a new flow.
// Without gaps: the kernel's verifier sees to it that all that is handed over was written.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Opening {
    interface: u32,
    backend: u32,
    frontend: u32,
    mode: u32,
    entropy: u32,
    state: u32,
    now: u64,
    bytes: u64,
    counted: u64,
}

const _: () = assert!(size_of::<Opening>() == 48);

impl Opening {
    /// Of the direction of the answers, which is written down first.
    #[inline(always)]
    fn of(service: &Service, arrival: &Arrival, place: &Place) -> Self {
        Self {
            interface: arrival.interface,
            backend: place.backend,
            frontend: service.frontend,
            mode: service.mode,
            entropy: place.hash as u32,
            state: DOWN,
            now: arrival.now,
            bytes: 0,
            counted: 0,
        }
    }

    /// Goes on to the direction of the packet, which counts since `counted`.
    #[inline(always)]
    const fn towards(&mut self, target: &Target, arrival: &Arrival, counted: u64) {
        (self.interface, self.state, self.bytes) = (target.interface, 0, arrival.length);
        self.counted = counted;
    }
}

/// Source of the outer header, spread over as many addresses as there are.
#[inline(always)]
fn outer_source(target: &Target, entropy: u32) -> [u8; 16] {
    let mut source = target.snat;
    if target.ports > 1 {
        let offset = ((u64::from(entropy) * u64::from(target.ports)) >> 32) as u32;
        let first = u32::from_be_bytes([source[12], source[13], source[14], source[15]]);
        source[12..].copy_from_slice(&first.wrapping_add(offset).to_be_bytes());
    }
    source
}

/// Takes a port towards the target by putting the entry of the answers where there is none; completes its key.
#[inline(never)]
fn claim<T: TableView>(
    table: &T,
    taken: &mut FlowKey,
    key: &FlowKey,
    target: &Target,
    opening: &Opening,
) -> Inserted {
    let first = u32::from(u16::from_be_bytes(target.first_port));
    for attempt in 0..PORT_TRIES {
        // Steps by a prime that divides no usual number of ports.
        let at = opening.entropy.wrapping_add(attempt.wrapping_mul(7_919));
        let offset = ((u64::from(at.wrapping_mul(0x9e37_79b1)) * u64::from(target.ports)) >> 32) as u32;
        taken.dport = ((first + offset) as u16).to_be_bytes();
        let mut inserted = table.put(taken, key, opening);
        // When ports are scarce, those of a flow that ended or began a while ago, and is no connection, may serve again.
        if inserted == Inserted::Exists && attempt >= PORT_TRIES / 2 && left(table, taken, opening.now) {
            inserted = table.put(taken, key, opening);
        }
        if inserted != Inserted::Exists {
            return inserted;
        }
    }
    Inserted::Exists
}

/// Puts the entry of the answers to a client that keeps its address and port; another flow of the client may have them
/// at this backend, by way of another service.
#[inline(never)]
fn meet<T: TableView>(table: &T, taken: &FlowKey, key: &FlowKey, opening: &Opening) -> Inserted {
    let inserted = table.put(taken, key, opening);
    if inserted != Inserted::Exists {
        return inserted;
    }
    // Of two cores with the same packet one was faster, or half a flow was left.
    if table.flow(taken).is_some_and(|other| other.leaves().reversed() == *key) {
        return Inserted::Done;
    }
    if left(table, taken, opening.now) { table.put(taken, key, opening) } else { Inserted::Exists }
}

/// Takes away the flow that has a port if it ended a while ago, or began then and is half open; of two cores one does.
#[inline(never)]
fn left<T: TableView>(table: &T, taken: &FlowKey, now: u64) -> bool {
    let Some(other) = table.flow(taken) else { return false };
    let since = if is_half_open(other) {
        other.opened
    } else if ended(other.state()) {
        other.seen.get()
    } else {
        return false;
    };
    if since + LINGER > now {
        return false;
    }
    table.remove(&other.leaves().reversed());
    table.remove(taken)
}

/// Takes each direction of a flow away.
#[inline(never)]
pub(crate) fn forget<T: TableView>(table: &T, key: &FlowKey, flow: &Flow) {
    if !answers_pass_by(flow.mode) {
        table.remove(&flow.leaves().reversed());
    }
    table.remove(key);
}

/// As [`TableView::put`], but keeps the entry aside.
#[inline(never)]
fn lend<T: TableView>(table: &T, from: &FlowKey, answers: &FlowKey, opening: &Opening) {
    table.lend(&entry(from, answers, opening));
}

/// One direction of a new flow: that of packets with the key `from`, whose answers arrive with the key `answers`.
// Written once as a whole: what is changed afterwards costs a copy on the stack.
#[inline(always)]
pub fn entry(from: &FlowKey, answers: &FlowKey, opening: &Opening) -> Flow {
    Flow {
        src: answers.dst,
        dst: answers.src,
        sport: answers.dport,
        dport: answers.sport,
        interface: opening.interface,
        backend: opening.backend,
        frontend: opening.frontend,
        address_delta: csum::address_delta(&from.src, &answers.dst)
            + csum::address_delta(&from.dst, &answers.src),
        port_delta: port_delta(from, answers),
        protocol: from.protocol,
        mode: opening.mode,
        state: Cell::new(u64::from(opening.state)),
        told: Cell::new(0),
        seen: Cell::new(opening.now),
        packets: Cell::new(u64::from(opening.bytes != 0)),
        bytes: Cell::new(opening.bytes),
        opened: opening.now,
        counted: Cell::new(opening.counted),
    }
}

#[inline(never)]
fn port_delta(from: &FlowKey, answers: &FlowKey) -> u32 {
    csum::delta(&from.sport, &answers.dport) + csum::delta(&from.dport, &answers.sport)
}

/// Hash of a client's address alone.
pub fn source_hash(key: &FlowKey, seed: u64) -> u64 {
    flow_hash(&of_source(key), seed)
}

/// What of a key is the client's address.
#[inline(always)]
pub(crate) const fn of_source(key: &FlowKey) -> FlowKey {
    FlowKey { src: key.src, dst: [0; 16], sport: [0; 2], dport: [0; 2], protocol: 0 }
}
