//! What becomes of a packet: the one decision that the programs in the kernel and the model in tests share.

use crate::flow::{FlowKey, TCP};
use crate::forward::{
    ANSWER_ECHO, ANSWERED, DOWN, FIN_DOWN, FIN_UP, Flow, NAT, NAT_GATEWAY, PASS_FRAGMENTS, RESET, Service,
    ServiceKey, Target, answers_pass_by, ended,
};
use crate::open::{forget, open, open_gateway, open_passing};
use crate::packet::{ACK, FIN, Kind, NoFlow, Oddity, Packet, RST, SYN};
use crate::verdict::PacketReason;

pub use crate::open::{LINGER, PORT_TRIES, source_hash};

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
    /// Keeps an entry aside, for one packet that is not written down.
    fn lend(&self, flow: &Flow);
    /// The entry that was kept aside last.
    fn lent(&self) -> Option<&Flow>;
    /// What is served at an address.
    fn service(&self, key: &ServiceKey) -> Option<&Service>;
    /// Whether anything is served at all ports of an address; else nobody looks for it.
    fn any_ports(&self) -> bool;
    /// Index of the backend in a slot of a ring.
    fn slot(&self, ring: u32, slot: u32) -> Option<u32>;
    /// Where a backend is.
    fn target(&self, backend: u32) -> Option<&Target>;
    /// Whether a connection of the host itself has this key.
    fn is_own(&self, key: &FlowKey) -> bool;
    /// Whether one more flow may be written down now, where that is limited.
    fn admits(&self, now: u64) -> bool;
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
    /// It goes back to who sent it, as the answer to a request for an echo.
    Echo,
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
        NoFlow::Torn => PacketReason::Torn,
    }
}

/// Decides on a packet that has arrived.
#[inline(always)]
pub fn decide<'t, T: TableView>(table: &'t T, packet: &Packet, arrival: &Arrival) -> Verdict<'t> {
    if packet.tagged {
        return Verdict::Pass(PacketReason::Tagged);
    }
    if matches!(packet.kind, Kind::Echo | Kind::LaterFragment) {
        return without_ports(table, packet);
    }
    let error = packet.kind == Kind::IcmpError;
    if let Some(flow) = table.flow(&packet.key) {
        if let Some(odd) = packet.odd {
            return Verdict::Drop(oddity(odd));
        }
        if packet.ttl <= 1 && !answers_pass_by(flow.mode) {
            return Verdict::Drop(PacketReason::HopLimit);
        }
        // An error says nothing of the flow's state: it may be forged.
        if error {
            return Verdict::Forward(flow, PacketReason::IcmpError);
        }
        if !reopens(packet, flow) {
            note(table, packet, flow, arrival);
            return Verdict::Forward(flow, PacketReason::Forwarded);
        }
        forget(table, &packet.key, flow);
    }
    let unknown = if error { PacketReason::OtherProtocol } else { PacketReason::NotOurs };
    let Some(service) = served(table, &packet.key) else {
        return Verdict::Pass(unknown);
    };
    match packet.odd {
        Some(Oddity::Fragment) if service.flags & PASS_FRAGMENTS != 0 => {
            return Verdict::Pass(PacketReason::Fragment);
        }
        Some(odd) => return Verdict::Drop(oddity(odd)),
        None => {}
    }
    if packet.ttl <= 1 && !answers_pass_by(service.mode) {
        return Verdict::Drop(PacketReason::HopLimit);
    }
    let first = !error && opens(packet);
    if service.mode == NAT && !first {
        // A ring says nothing of the port that a flow took.
        return Verdict::Pass(if error { PacketReason::OtherProtocol } else { PacketReason::UnknownFlow });
    }
    if !first && !error && table.is_own(&packet.key) {
        return Verdict::Pass(PacketReason::UnknownFlow);
    }
    let reason = match service.mode {
        NAT => open(table, packet, service, arrival),
        NAT_GATEWAY => open_gateway(table, packet, service, arrival, first),
        _ => open_passing(table, packet, service, arrival, first),
    };
    if reason == PacketReason::NoBackend {
        return Verdict::Pass(reason);
    }
    if matches!(reason, PacketReason::PortsExhausted | PacketReason::TableFull) {
        return Verdict::Drop(reason);
    }
    let flow = if reason == PacketReason::Unrecorded { table.lent() } else { table.flow(&packet.key) };
    let Some(flow) = flow else {
        return Verdict::Drop(PacketReason::TableFull);
    };
    if error {
        Verdict::Forward(flow, PacketReason::IcmpError)
    } else if first {
        Verdict::Forward(flow, reason)
    } else {
        Verdict::Forward(flow, PacketReason::Adopted)
    }
}

/// Decides on a packet that names an address only.
#[inline(always)]
fn without_ports<'t, T: TableView>(table: &'t T, packet: &Packet) -> Verdict<'t> {
    let later = packet.kind == Kind::LaterFragment;
    let flags = table.service(&ServiceKey::whole(packet.key.dst)).map(|service| service.flags);
    match (flags, packet.odd) {
        (None, _) if later => Verdict::Pass(PacketReason::LaterFragment),
        (Some(flags), _) if later && flags & PASS_FRAGMENTS != 0 => Verdict::Pass(PacketReason::Fragment),
        (Some(_), _) if later => Verdict::Drop(PacketReason::Fragment),
        (Some(flags), None) if flags & ANSWER_ECHO != 0 => Verdict::Echo,
        _ => Verdict::Pass(PacketReason::OtherProtocol),
    }
}

/// What is served where a packet goes.
// A frame of its own: programs in the kernel have 512 bytes of stack.
#[inline(never)]
fn served<'t, T: TableView>(table: &'t T, key: &FlowKey) -> Option<&'t Service> {
    let at = ServiceKey::of(key);
    match table.service(&at) {
        Some(service) => Some(service),
        None if table.any_ports() => table.service(&at.any_port()),
        None => None,
    }
}

/// Whether a packet may be the first of its flow.
#[inline(always)]
const fn opens(packet: &Packet) -> bool {
    packet.key.protocol != TCP || packet.flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether a packet opens a flow anew whose ports a former one has left.
#[inline(always)]
fn reopens(packet: &Packet, flow: &Flow) -> bool {
    let state = flow.state();
    // Where answers pass by, nobody sees the backend's FIN.
    let over = ended(state) || answers_pass_by(flow.mode) && state & FIN_UP != 0;
    packet.flags & (SYN | ACK) == SYN && over && state & DOWN == 0
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
    if answers_pass_by(flow.mode) {
        return;
    }
    if let Some(other) = table.flow(&flow.leaves().reversed()) {
        other.told.set(other.told.get() | state);
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
