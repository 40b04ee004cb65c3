//! What becomes of a packet: the one decision that the programs in the kernel and the model in tests share.

use crate::flow::{FlowKey, TCP};
use crate::forward::{
    ADOPTED, ANSWER_ECHO, ANSWERED, DOWN, ESTABLISHED, FIN_DOWN, FIN_UP, Flow, NAT, NAT_GATEWAY,
    PASS_FRAGMENTS, RESET, Service, ServiceKey, Target, answers_pass_by, ended,
};
use crate::half_open::HalfOpen;
use crate::hash::flow_hash;
use crate::least::{Choices, Scan, least};
use crate::open::{forget, open, open_gateway, open_passing};
use crate::packet::{ACK, FIN, Kind, NoFlow, Oddity, Packet, RST, SYN};
use crate::place::{Place, room_at, spare, take};
use crate::verdict::PacketReason;

pub use crate::open::{LINGER, Opening, PORT_TRIES, entry, source_hash};

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
    /// Takes an entry away, with what it counts; says whether it was there.
    fn remove(&self, key: &FlowKey) -> bool;
    /// Counts one flow more at a backend, unless `most` are there; says whether it did.
    fn enter(&self, backend: u32, most: u64) -> bool;
    /// The same of a frontend.
    fn enter_frontend(&self, frontend: u32, most: u64) -> bool;
    /// Counts one flow less at a backend.
    fn leave_backend(&self, backend: u32);
    /// The same of a frontend.
    fn leave_frontend(&self, frontend: u32);
    /// Connections of a backend or a frontend that are counted elsewhere.
    fn elsewhere(&self, whose: u64) -> u32;
    /// Now, to the nanosecond and never 0: the time since which an entry counts.
    fn since(&self) -> u64;
    /// Counts a flow that has ended no longer, given the entry of its direction from the client; a second time nothing
    /// happens.
    fn leave(&self, flow: &Flow);
    /// Counts how long a flow waited for the first answer, given the entry of its direction from the client.
    fn answered(&self, flow: &Flow);
    /// Counts a flow whose backend has answered with a reset.
    fn refused(&self, flow: &Flow);
    /// Flows that are live at a backend.
    fn live(&self, backend: u32) -> u32;
    /// The backends of a ring.
    fn choices(&self, ring: u32) -> Option<&Choices>;
    /// Which of equals in a ring is next, one later with each call.
    fn turn(&self, ring: u32) -> u64;
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
    /// Writes down that a handshake has begun, behind those that began before; says whether there was room.
    fn begin(&self, begun: &HalfOpen) -> bool;
    /// The handshake that was written down first.
    fn oldest(&self) -> Option<HalfOpen>;
    /// Takes that one off.
    fn shift(&self) -> Option<HalfOpen>;
    /// Counts a handshake that had to make room for another.
    fn replaced(&self);
    /// Seed of the flow hash.
    fn seed(&self) -> u64;

    // What follows says nothing of the tables. The kernel's verifier follows a function of the program once for each way to
    // it, and these once in all, where they are functions that it takes by themselves.

    /// Hash of a flow.
    fn hash(&self, key: &FlowKey) -> u64 {
        flow_hash(key, self.seed())
    }
    /// Backend of a ring for a new flow, by the connections that each has.
    fn least(&self, ring: u32, hash: u64) -> u32
    where
        Self: Sized,
    {
        least(self, ring, hash)
    }
    /// Takes in the backend at a place of a ring's [`Choices`].
    fn step(&self, ring: u32, at: u32, scan: &mut Scan)
    where
        Self: Sized,
    {
        if let Some(choices) = self.choices(ring) {
            scan.step(self, choices, at);
        }
    }
    /// Gives a flow a backend, as [`take`].
    fn place(&self, service: &Service, key: &FlowKey, how: u32, place: &mut Place) -> bool
    where
        Self: Sized,
    {
        take(self, service, key, how, place)
    }
    /// A backend with room behind a slot, as [`spare`].
    fn spare(&self, ring: u32, slot: u32) -> u32
    where
        Self: Sized,
    {
        spare(self, ring, slot)
    }
    /// The backend some slots behind one, if it has room, as [`room_at`].
    fn room_at(&self, ring: u32, slot: u32, step: u32) -> u32
    where
        Self: Sized,
    {
        room_at(self, ring, slot, step)
    }
    /// Puts one direction of a new flow: that of packets with the key `from`, whose answers arrive with the key `answers`.
    fn put(&self, from: &FlowKey, answers: &FlowKey, opening: &Opening) -> Inserted {
        self.insert(from, &entry(from, answers, opening))
    }
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
            if left_to_the_proxy(table, packet) {
                return Verdict::Pass(PacketReason::Fragment);
            }
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
    if reason.drops() {
        return Verdict::Drop(reason);
    }
    let flow = if reason == PacketReason::Unrecorded { table.lent() } else { table.flow(&packet.key) };
    let Some(flow) = flow else {
        return Verdict::Drop(PacketReason::TableFull);
    };
    if error {
        Verdict::Forward(flow, PacketReason::IcmpError)
    } else if !first && reason == PacketReason::Opened {
        Verdict::Forward(flow, PacketReason::Adopted)
    } else {
        Verdict::Forward(flow, reason)
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

/// Whether a fragment of a flow makes a datagram that the proxy serves.
///
/// One of TCP does not: the host would reset the connection, which its sender saves by sending again.
#[inline(never)]
fn left_to_the_proxy<T: TableView>(table: &T, packet: &Packet) -> bool {
    packet.odd == Some(Oddity::Fragment)
        && packet.key.protocol != TCP
        && served(table, &packet.key).is_some_and(|service| service.flags & PASS_FRAGMENTS != 0)
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
    let mut now = if down {
        ANSWERED
    } else if packet.flags & (SYN | ACK) != ACK {
        0
    } else if answers_pass_by(flow.mode) {
        // A client that acknowledges has had an answer.
        ANSWERED | ESTABLISHED
    } else if state & ANSWERED != 0 {
        ESTABLISHED
    } else {
        0
    };
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
    let word = u64::from(state);
    let first = flow.state() & (ANSWERED | RESET) == 0;
    flow.state.set(flow.state.get() | word);
    let mut counted = flow;
    if !answers_pass_by(flow.mode) {
        let Some(other) = table.flow(&flow.leaves().reversed()) else { return };
        other.told.set(other.told.get() | word);
        if flow.state.get() as u32 & DOWN != 0 {
            counted = other;
            if first && flow.protocol == TCP && other.state.get() as u32 & ADOPTED == 0 {
                if state & RESET == 0 {
                    table.answered(other);
                } else {
                    table.refused(other);
                }
            }
        }
    }
    if ended(flow.state()) {
        table.leave(counted);
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
