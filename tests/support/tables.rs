//! The tables of the forward plane in memory, and its rewriting on a slice.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};

use lemonade_common::decide::{Inserted, TableView};
use lemonade_common::forward::{DSR_IPIP, DSR_L2, Flow, Service, ServiceKey, Target};
use lemonade_common::half_open::HalfOpen;
use lemonade_common::least::{Choices, Load};
use lemonade_common::packet::{Family, Kind, Packet, family};
use lemonade_common::{FlowKey, rewrite};

/// Tables in memory.
#[derive(Default)]
pub struct Tables {
    /// Flows; leaked, since a decision lends them for as long as the table lives.
    pub flows: RefCell<HashMap<FlowKey, &'static Flow>>,
    /// Flows at most.
    pub room: usize,
    /// Handshakes that have begun, the oldest first.
    pub half_open: RefCell<VecDeque<HalfOpen>>,
    /// Handshakes at most.
    pub half_open_room: usize,
    /// Handshakes that had to make room for others.
    pub replaced: Cell<u64>,
    /// Services.
    pub services: HashMap<ServiceKey, Service>,
    /// Rings, by number.
    pub rings: Vec<Vec<u32>>,
    /// Their backends, where what each has decides, by number.
    pub choices: HashMap<u32, Choices>,
    /// Which of equals is next, by ring.
    pub turns: RefCell<HashMap<u32, u64>>,
    /// What counts at backends, by index.
    pub loads: RefCell<HashMap<u32, Load>>,
    /// Live flows of frontends, by index.
    pub frontends: RefCell<HashMap<u32, u64>>,
    /// Connections that are counted elsewhere.
    pub elsewhere: HashMap<u64, u32>,
    /// Now, in nanoseconds, as the clock of the counts tells it.
    pub now: Cell<u64>,
    /// Targets, by index of the backend.
    pub targets: HashMap<u32, Target>,
    /// Seed of the hash.
    pub seed: u64,
    /// Interface that packets arrive on.
    pub outside: u32,
    /// Connections of the host itself.
    pub own: HashSet<FlowKey>,
    /// Flows that may still be written down where that is limited; `None` without a limit.
    pub admitted: Cell<Option<u32>>,
    /// The entry that is kept aside.
    pub lent: Cell<Option<&'static Flow>>,
}

impl TableView for Tables {
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.borrow().get(key).copied()
    }

    fn insert(&self, key: &FlowKey, flow: &Flow) -> Inserted {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Inserted::Exists;
        }
        if flows.len() >= self.room {
            return Inserted::Full;
        }
        flows.insert(*key, Box::leak(Box::new(Flow::from_bytes(&bytes_of(flow)))));
        Inserted::Done
    }

    fn remove(&self, key: &FlowKey) -> bool {
        let removed = self.flows.borrow_mut().remove(key);
        if let Some(flow) = removed {
            self.leave(flow);
        }
        removed.is_some()
    }

    fn enter(&self, backend: u32, most: u64) -> bool {
        more(&mut self.loads.borrow_mut().entry(backend).or_default().live, most)
    }

    fn enter_frontend(&self, frontend: u32, most: u64) -> bool {
        more(self.frontends.borrow_mut().entry(frontend).or_default(), most)
    }

    fn leave_backend(&self, backend: u32) {
        let mut loads = self.loads.borrow_mut();
        less(loads.get_mut(&backend).map(|load| &mut load.live));
    }

    fn leave_frontend(&self, frontend: u32) {
        less(self.frontends.borrow_mut().get_mut(&frontend));
    }

    fn elsewhere(&self, whose: u64) -> u32 {
        self.elsewhere.get(&whose).copied().unwrap_or(0)
    }

    fn since(&self) -> u64 {
        self.now.get().max(1)
    }

    fn leave(&self, flow: &Flow) {
        if flow.counted.replace(0) != 0 {
            self.leave_backend(flow.backend);
            self.leave_frontend(flow.frontend);
        }
    }

    fn answered(&self, flow: &Flow) {
        if flow.counted.get() != 0 {
            let mut loads = self.loads.borrow_mut();
            let load = loads.entry(flow.backend).or_default();
            load.answers += 1;
            load.waited += self.now.get().max(1) - flow.counted.get();
        }
    }

    fn refused(&self, flow: &Flow) {
        self.loads.borrow_mut().entry(flow.backend).or_default().refused += 1;
    }

    fn live(&self, backend: u32) -> u32 {
        self.loads.borrow().get(&backend).map_or(0, |load| load.live as u32)
    }

    fn choices(&self, ring: u32) -> Option<&Choices> {
        self.choices.get(&ring)
    }

    fn turn(&self, ring: u32) -> u64 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(ring).or_default();
        *turn += 1;
        *turn - 1
    }

    fn lend(&self, flow: &Flow) {
        self.lent.set(Some(Box::leak(Box::new(Flow::from_bytes(&bytes_of(flow))))));
    }

    fn lent(&self) -> Option<&Flow> {
        self.lent.get()
    }

    fn is_own(&self, key: &FlowKey) -> bool {
        self.own.contains(key)
    }

    fn admits(&self, _: u64) -> bool {
        let left = self.admitted.get();
        self.admitted.set(left.map(|left| left.saturating_sub(1)));
        left != Some(0)
    }

    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    fn any_ports(&self) -> bool {
        self.services.keys().any(|key| *key == key.any_port() && *key != ServiceKey::whole(key.address))
    }

    fn slot(&self, ring: u32, slot: u32) -> Option<u32> {
        self.rings.get(ring as usize)?.get(slot as usize).copied()
    }

    fn target(&self, backend: u32) -> Option<&Target> {
        self.targets.get(&backend)
    }

    fn begin(&self, begun: &HalfOpen) -> bool {
        let mut half_open = self.half_open.borrow_mut();
        let has_room = half_open.len() < self.half_open_room;
        if has_room {
            half_open.push_back(*begun);
        }
        has_room
    }

    fn oldest(&self) -> Option<HalfOpen> {
        self.half_open.borrow().front().copied()
    }

    fn shift(&self) -> Option<HalfOpen> {
        self.half_open.borrow_mut().pop_front()
    }

    fn replaced(&self) {
        self.replaced.set(self.replaced.get() + 1);
    }

    fn seed(&self) -> u64 {
        self.seed
    }
}

fn more(live: &mut u64, most: u64) -> bool {
    let room = *live < most;
    *live += u64::from(room);
    room
}

fn less(live: Option<&mut u64>) {
    let live = live.expect("what counts has entered");
    *live = live.checked_sub(1).expect("no count is below 0");
}

/// A flow as it stands in the map.
pub fn bytes_of(flow: &Flow) -> [u8; size_of::<Flow>()] {
    let mut bytes = [0; size_of::<Flow>()];
    bytes[..16].copy_from_slice(&flow.src);
    bytes[16..32].copy_from_slice(&flow.dst);
    bytes[32..34].copy_from_slice(&flow.sport);
    bytes[34..36].copy_from_slice(&flow.dport);
    let (address_delta, port_delta) = (flow.address_delta, flow.port_delta);
    let words =
        [flow.interface, flow.backend, flow.frontend, address_delta, port_delta, flow.protocol, flow.mode];
    for (place, word) in bytes[36..64].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let cells = [&flow.state, &flow.told, &flow.seen, &flow.packets, &flow.bytes];
    let longs = cells.into_iter().map(Cell::get).chain([flow.opened, flow.counted.get()]);
    for (place, long) in bytes[64..].chunks_exact_mut(8).zip(longs) {
        place.copy_from_slice(&long.to_ne_bytes());
    }
    bytes
}

/// What a packet becomes as the entry says, in any mode.
pub fn changed(bytes: &[u8], packet: &Packet, flow: &Flow) -> Vec<u8> {
    match (flow.mode, family(&flow.dst)) {
        (DSR_L2, _) => bytes.to_vec(),
        (DSR_IPIP, Family::V4) => {
            let outer = rewrite::outer_v4(packet, flow).map(u16::to_ne_bytes).concat();
            [&bytes[..12], &outer, &bytes[14..]].concat()
        }
        (DSR_IPIP, Family::V6) => [&bytes[..12], &rewrite::outer_v6(packet, flow), &bytes[14..]].concat(),
        _ => rewritten(bytes, packet, flow),
    }
}

/// Rewrites a packet, or an error about one, as the entry says.
///
/// # Panics
/// When the packet ends too early.
pub fn rewritten(bytes: &[u8], packet: &Packet, flow: &Flow) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let whole = if packet.kind == Kind::IcmpError {
        rewrite::translate_error(&mut out[..], packet, flow)
    } else {
        rewrite::translate(&mut out[..], packet, flow)
    };
    assert!(whole, "a packet that was read has all that is rewritten");
    out
}
