//! What becomes of a packet: the one decision that the programs in the kernel and the model in tests share.

use core::sync::atomic::Ordering;

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
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// Index of the backend in a slot of a ring.
    fn slot(&self, ring: u32, slot: u32) -> Option<u32>;
    /// Where a backend is.
    fn target(&self, backend: u32) -> Option<Target>;
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

/// Decides on a packet of `length` bytes that arrived on `interface` at `now`, in nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn decide<'t, T: TableView>(
    table: &'t T,
    packet: &Packet,
    length: u64,
    interface: u32,
    now: u64,
) -> Verdict<'t> {
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
            note(table, packet, flow, length, now);
            return Verdict::Forward(flow, PacketReason::Forwarded);
        }
        table.remove(&flow.leaves().reversed());
        table.remove(&packet.key);
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
    open(table, packet, &service, length, interface, now)
}

/// Opens a flow: the ring names the backend, a port is taken for it, and both directions are written down.
#[inline(always)]
fn open<'t, T: TableView>(
    table: &'t T,
    packet: &Packet,
    service: &Service,
    length: u64,
    interface: u32,
    now: u64,
) -> Verdict<'t> {
    let key = &packet.key;
    let seed = table.seed();
    let hash = flow_hash(key, seed);
    let slot = maglev::slot(if service.flags & BY_SOURCE == 0 { hash } else { source_hash(key, seed) });
    let backend = table.slot(service.ring, slot).filter(|backend| *backend != maglev::EMPTY);
    let Some((backend, target)) = backend.and_then(|backend| Some((backend, table.target(backend)?))) else {
        return Verdict::Pass(PacketReason::NoBackend);
    };
    let mut leaves = FlowKey {
        src: target.snat,
        dst: target.address,
        sport: [0; 2],
        dport: if target.port == [0; 2] { key.dport } else { target.port },
        protocol: key.protocol,
    };
    if let Err(reason) = claim(table, key, &mut leaves, &target, hash as u32, |flow| {
        (flow.interface, flow.backend, flow.frontend) = (interface, backend, service.frontend);
        flow.state.store(DOWN, Ordering::Relaxed);
        flow.seen.store(now, Ordering::Relaxed);
    }) {
        return Verdict::Drop(reason);
    }
    let mut flow = Flow::new(key, &leaves);
    (flow.interface, flow.backend, flow.frontend) = (target.interface, backend, service.frontend);
    flow.seen.store(now, Ordering::Relaxed);
    flow.packets.store(1, Ordering::Relaxed);
    flow.bytes.store(length, Ordering::Relaxed);
    let inserted = table.insert(key, &flow);
    if inserted != Inserted::Done {
        // Full, or another core was faster with the same packet: its entry holds.
        table.remove(&leaves.reversed());
    }
    match table.flow(key) {
        Some(flow) if inserted == Inserted::Done => Verdict::Forward(flow, PacketReason::Opened),
        Some(flow) => Verdict::Forward(flow, PacketReason::Forwarded),
        None => Verdict::Drop(PacketReason::TableFull),
    }
}

/// Takes a port towards the target by putting the entry of the answers where there is none; completes `leaves` with it.
#[inline(always)]
fn claim<T: TableView>(
    table: &T,
    key: &FlowKey,
    leaves: &mut FlowKey,
    target: &Target,
    entropy: u32,
    complete: impl Fn(&mut Flow),
) -> Result<(), PacketReason> {
    let now_of = |flow: &Flow| flow.seen.load(Ordering::Relaxed);
    let first = u32::from(u16::from_be_bytes(target.first_port));
    let answers = key.reversed();
    for attempt in 0..PORT_TRIES {
        // Steps by a prime that divides no usual number of ports.
        let at = entropy.wrapping_add(attempt.wrapping_mul(7_919));
        let offset = ((u64::from(at.wrapping_mul(0x9e37_79b1)) * u64::from(target.ports)) >> 32) as u32;
        leaves.sport = ((first + offset) as u16).to_be_bytes();
        let taken = leaves.reversed();
        let mut flow = Flow::new(&taken, &answers);
        complete(&mut flow);
        match table.insert(&taken, &flow) {
            Inserted::Done => return Ok(()),
            Inserted::Full => return Err(PacketReason::TableFull),
            Inserted::Exists => {}
        }
        if attempt < PORT_TRIES / 2 {
            continue;
        }
        // The ports are scarce: those of a flow that ended a while ago may serve again.
        let Some(other) = table.flow(&taken) else { continue };
        if !ended(other.state()) || now_of(other) + LINGER > now_of(&flow) {
            continue;
        }
        table.remove(&other.leaves().reversed());
        // Of two cores one takes it away.
        if table.remove(&taken) && table.insert(&taken, &flow) == Inserted::Done {
            return Ok(());
        }
    }
    Err(PacketReason::PortsExhausted)
}

/// Hash of a client's address alone.
#[inline(always)]
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
fn note<T: TableView>(table: &T, packet: &Packet, flow: &Flow, length: u64, now: u64) {
    flow.seen.store(now, Ordering::Relaxed);
    flow.packets.store(flow.packets.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    flow.bytes.store(flow.bytes.load(Ordering::Relaxed) + length, Ordering::Relaxed);
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
        flow.mark(now);
        if let Some(other) = table.flow(&flow.leaves().reversed()) {
            other.mark(now);
        }
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
