//! What becomes of a packet: the one decision that the programs in the kernel and the model in tests share.

use core::cell::Cell;

use crate::csum;
use crate::flow::{FlowKey, TCP};
use crate::forward::{
    ANSWERED, BY_SOURCE, DOWN, FIN_DOWN, FIN_UP, Flow, PASS_FRAGMENTS, RESET, Service, ServiceKey, Target,
    ended,
};
use crate::hash::flow_hash;
use crate::maglev;
use crate::packet::{ACK, FIN, Kind, NoFlow, Oddity, Packet, RST, SYN};
use crate::verdict::PacketReason;

/// Ports that are tried for a new flow before they count as exhausted.
pub const PORT_TRIES: u32 = 16;

/// Nanoseconds for which the ports of an ended flow are kept from others when there is a lack of them.
pub const LINGER: u64 = 1_000_000_000;

/// What an insertion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Inserted {
    /// It is there now.
    Done,
    /// There already is one.
    Exists,
    /// The table is full.
    Full,
}

/// The tables as a decision sees them: maps in the kernel, collections in a model.
pub trait TableView {
    /// Entry of a direction of a flow.
    fn flow(&self, key: &FlowKey) -> Option<&Flow>;
    /// Puts an entry where there is none.
    fn insert(&self, key: &FlowKey, flow: &Flow) -> Inserted;
    /// Takes an entry away; says whether it was there.
    fn remove(&self, key: &FlowKey) -> bool;
    /// What is served at an address.
    fn service(&self, key: &ServiceKey) -> Option<&Service>;
    /// Index of the backend in a slot of a ring.
    fn slot(&self, ring: u32, slot: u32) -> Option<u32>;
    /// Where a backend is.
    fn target(&self, backend: u32) -> Option<&Target>;
    /// Seed of the flow hash.
    fn seed(&self) -> u64;
}

/// What becomes of a packet; each has its reason, which is the index of a counter.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'t> {
    /// It goes on to the host as it is.
    Pass(PacketReason),
    /// It goes nowhere.
    Drop(PacketReason),
    /// It leaves as the entry says.
    Forward(&'t Flow, PacketReason),
}

/// Where, when and how large a packet arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Bytes with its Ethernet header.
    pub length: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub now: u64,
    /// Interface.
    pub interface: u32,
}

/// What becomes of a packet that names no flow: it is the host's to judge.
#[inline(always)]
pub const fn without_flow(why: NoFlow) -> PacketReason {
    match why {
        NoFlow::NotIp => PacketReason::NotIp,
        NoFlow::OtherProtocol => PacketReason::OtherProtocol,
        NoFlow::LaterFragment => PacketReason::LaterFragment,
        NoFlow::Torn => PacketReason::Torn,
    }
}

/// Decides on a packet that has arrived.
#[inline(always)]
pub fn decide<'t, T: TableView>(table: &'t T, packet: &Packet, arrival: &Arrival) -> Verdict<'t> {
    if packet.tagged {
        return Verdict::Pass(PacketReason::Tagged);
    }
    if let Some(flow) = table.flow(&packet.key) {
        if packet.kind == Kind::IcmpError {
            return icmp_error(flow, packet);
        }
        if let Some(odd) = packet.odd {
            return Verdict::Drop(oddity(odd));
        }
        if packet.ttl <= 1 {
            return Verdict::Drop(PacketReason::HopLimit);
        }
        if !reopens(packet, flow) {
            note(table, packet, flow, arrival);
            return Verdict::Forward(flow, PacketReason::Forwarded);
        }
        forget(table, &packet.key, flow);
    } else if packet.kind == Kind::IcmpError {
        return Verdict::Pass(PacketReason::OtherProtocol);
    }
    let Some(service) = table.service(&ServiceKey::of(&packet.key)) else {
        return Verdict::Pass(PacketReason::NotOurs);
    };
    match packet.odd {
        Some(Oddity::Fragment) if service.flags & PASS_FRAGMENTS != 0 => {
            return Verdict::Pass(PacketReason::Fragment);
        }
        Some(odd) => return Verdict::Drop(oddity(odd)),
        None => {}
    }
    if packet.ttl <= 1 {
        return Verdict::Drop(PacketReason::HopLimit);
    }
    if packet.key.protocol == TCP && packet.flags & (SYN | ACK | RST | FIN) != SYN {
        return Verdict::Pass(PacketReason::UnknownFlow);
    }
    let reason = open(table, packet, service, arrival);
    if reason == PacketReason::NoBackend {
        return Verdict::Pass(reason);
    }
    if matches!(reason, PacketReason::PortsExhausted | PacketReason::TableFull) {
        return Verdict::Drop(reason);
    }
    match table.flow(&packet.key) {
        Some(flow) => Verdict::Forward(flow, reason),
        None => Verdict::Drop(PacketReason::TableFull),
    }
}

/// Opens a flow: the ring names the backend, a port is taken for it, and both directions are written down. Says what
/// it came to; the entry is found by the packet's key.
// This and what it calls have frames of their own: programs in the kernel have 512 bytes of stack in all.
#[inline(never)]
fn open<T: TableView>(table: &T, packet: &Packet, service: &Service, arrival: &Arrival) -> PacketReason {
    let key = &packet.key;
    let seed = table.seed();
    let hash = flow_hash(key, seed);
    let slot = maglev::slot(if service.flags & BY_SOURCE == 0 { hash } else { source_hash(key, seed) });
    let Some(backend) = table.slot(service.ring, slot).filter(|backend| *backend != maglev::EMPTY) else {
        return PacketReason::NoBackend;
    };
    let Some(target) = table.target(backend) else {
        return PacketReason::NoBackend;
    };
    let mut opening = Opening {
        interface: arrival.interface,
        backend,
        frontend: service.frontend,
        entropy: hash as u32,
        state: u64::from(DOWN),
        now: arrival.now,
        bytes: 0,
    };
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
    (opening.interface, opening.state, opening.bytes) = (target.interface, 0, arrival.length);
    match put(table, key, &taken, &opening) {
        Inserted::Done => PacketReason::Opened,
        // Full, or another core was faster with the same packet: its entry holds.
        other @ (Inserted::Exists | Inserted::Full) => {
            table.remove(&taken);
            if other == Inserted::Full { PacketReason::TableFull } else { PacketReason::Forwarded }
        }
    }
}

/// What is not addresses and ports in the entries of a new flow.
struct Opening {
    interface: u32,
    backend: u32,
    frontend: u32,
    entropy: u32,
    state: u64,
    now: u64,
    bytes: u64,
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
        let mut inserted = put(table, taken, key, opening);
        // When ports are scarce, those of a flow that ended a while ago may serve again.
        if inserted == Inserted::Exists && attempt >= PORT_TRIES / 2 && left(table, taken, opening.now) {
            inserted = put(table, taken, key, opening);
        }
        if inserted != Inserted::Exists {
            return inserted;
        }
    }
    Inserted::Exists
}

/// Takes away the flow that has a port if it ended a while ago; of two cores one does.
#[inline(never)]
fn left<T: TableView>(table: &T, taken: &FlowKey, now: u64) -> bool {
    let Some(other) = table.flow(taken) else { return false };
    if !ended(other.state()) || other.seen.get() + LINGER > now {
        return false;
    }
    table.remove(&other.leaves().reversed());
    table.remove(taken)
}

/// Takes both directions of a flow away.
#[inline(never)]
fn forget<T: TableView>(table: &T, key: &FlowKey, flow: &Flow) {
    table.remove(&flow.leaves().reversed());
    table.remove(key);
}

/// Puts one direction of a new flow: that of packets with the key `from`, whose answers arrive with the key `answers`.
#[inline(never)]
fn put<T: TableView>(table: &T, from: &FlowKey, answers: &FlowKey, opening: &Opening) -> Inserted {
    // Written once as a whole: what is changed afterwards costs a copy on the stack.
    let flow = Flow {
        src: answers.dst,
        dst: answers.src,
        sport: answers.dport,
        dport: answers.sport,
        interface: opening.interface,
        backend: opening.backend,
        frontend: opening.frontend,
        address_delta: csum::address_delta(&from.src, &answers.dst)
            + csum::address_delta(&from.dst, &answers.src),
        port_delta: csum::delta(&from.sport, &answers.dport) + csum::delta(&from.dport, &answers.sport),
        protocol: from.protocol,
        reserved: 0,
        state: Cell::new(opening.state),
        told: Cell::new(0),
        seen: Cell::new(opening.now),
        packets: Cell::new(u64::from(opening.bytes != 0)),
        bytes: Cell::new(opening.bytes),
    };
    table.insert(from, &flow)
}

/// Hash of a client's address alone.
#[inline(never)]
pub fn source_hash(key: &FlowKey, seed: u64) -> u64 {
    flow_hash(&FlowKey { src: key.src, dst: [0; 16], sport: [0; 2], dport: [0; 2], protocol: 0 }, seed)
}

/// Whether a packet opens a flow anew whose ports a former one has left.
#[inline(always)]
fn reopens(packet: &Packet, flow: &Flow) -> bool {
    packet.flags & (SYN | ACK) == SYN && ended(flow.state()) && flow.state() & DOWN == 0
}

/// Writes down that a packet passed, and what it says of the flow's state.
#[inline(always)]
fn note<T: TableView>(table: &T, packet: &Packet, flow: &Flow, arrival: &Arrival) {
    flow.seen.set(arrival.now);
    flow.packets.set(flow.packets.get() + 1);
    flow.bytes.set(flow.bytes.get() + arrival.length);
    let state = flow.state();
    let down = state & DOWN != 0;
    let mut now = if down { ANSWERED } else { 0 };
    if packet.flags & FIN != 0 {
        now |= if down { FIN_DOWN } else { FIN_UP };
    }
    if packet.flags & RST != 0 {
        now |= RESET;
    }
    if now & !state != 0 {
        mark(table, flow, now);
    }
}

/// Adds to the state of a direction, and tells the other.
#[inline(never)]
fn mark<T: TableView>(table: &T, flow: &Flow, state: u32) {
    let state = u64::from(state);
    flow.state.set(flow.state.get() | state);
    if let Some(other) = table.flow(&flow.leaves().reversed()) {
        other.told.set(other.told.get() | state);
    }
}

/// An ICMP error says nothing of the flow's state: it may be forged.
#[inline(always)]
fn icmp_error<'t>(flow: &'t Flow, packet: &Packet) -> Verdict<'t> {
    match packet.odd {
        Some(odd) => Verdict::Drop(oddity(odd)),
        None if packet.ttl <= 1 => Verdict::Drop(PacketReason::HopLimit),
        None => Verdict::Forward(flow, PacketReason::IcmpError),
    }
}

#[inline(always)]
const fn oddity(odd: Oddity) -> PacketReason {
    match odd {
        Oddity::Fragment => PacketReason::Fragment,
        Oddity::Options => PacketReason::Options,
        Oddity::BadLength => PacketReason::BadLength,
    }
}
