//! Places for new flows: a backend is chosen, and it and the frontend count the flow before it is written down, so that never
//! more live than either may have.

use crate::decide::TableView;
use crate::flow::FlowKey;
use crate::forward::{BY_PORT, BY_SOURCE, LEAST_CONNECTIONS, Service};
use crate::maglev::{self, EMPTY, SLOTS};
use crate::open::of_source;
use crate::verdict::PacketReason;

/// Slots of a ring that are looked at behind one whose backend is full.
pub const WALKED: u32 = 256;

/// The same where the backends are few enough to be looked at one by one then.
const WALKED_OF_FEW: u32 = 32;

/// Backends that are tried for one flow: another core may be faster with a place that is left.
const TRIES: u32 = 3;

/// More than any count: no limit.
pub const NO_LIMIT: u64 = i64::MAX as u64;

/// A new flow: it goes by counts where its service does, counts itself, and is refused where there is no room.
pub const NEW: u32 = 0;

/// A flow that began before it was known here: the ring before has it as long as its backend is there, and it counts, but is
/// never refused.
pub const BEGUN: u32 = 1;

/// A flow that is not written down and counts nowhere: the ring has it.
pub const LOOSE: u32 = 2;

/// A flow that is not written down and began before.
pub const LOOSE_BEGUN: u32 = LOOSE | BEGUN;

/// What a flow was given.
// Without gaps: the kernel's verifier sees to it that all that is handed over was written.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Place {
    /// Hash of the flow.
    pub hash: u64,
    /// Index of its backend; [`EMPTY`] without one.
    pub backend: u32,
    /// Its slot in the ring.
    slot: u32,
    /// Index of the reason for which it has none.
    why: u32,
    /// How it was asked for.
    pub how: u32,
}

const _: () = assert!(size_of::<Place>() == 24);

impl Place {
    /// Why there is none.
    #[inline(always)]
    pub const fn why(&self) -> PacketReason {
        const FRONTEND: u32 = PacketReason::FrontendLimit as u32;
        const BACKENDS: u32 = PacketReason::BackendsFull as u32;
        match self.why {
            FRONTEND => PacketReason::FrontendLimit,
            BACKENDS => PacketReason::BackendsFull,
            _ => PacketReason::NoBackend,
        }
    }
}

/// Key of the map `ELSEWHERE` for a backend.
#[inline(always)]
pub const fn of_backend(backend: u32) -> u64 {
    backend as u64
}

/// Key of the map `ELSEWHERE` for a frontend.
#[inline(always)]
pub const fn of_frontend(frontend: u32) -> u64 {
    1 << 32 | frontend as u64
}

/// Flows that the kernel may count where `most` connections may be (0: any number), given whose they are.
#[inline(always)]
fn limit<T: TableView>(table: &T, most: u32, whose: u64) -> u64 {
    if most == 0 { NO_LIMIT } else { u64::from(most.saturating_sub(table.elsewhere(whose))) }
}

/// Gives a flow a backend, where it counts from now on unless it is [`LOOSE`]; says whether there was one with room.
#[inline(always)]
pub fn take<T: TableView>(table: &T, service: &Service, key: &FlowKey, how: u32, place: &mut Place) -> bool {
    let (counts, begun) = (how & LOOSE == 0, how & BEGUN != 0);
    place.how = how;
    choose(table, service, key, how, place);
    // Of backends that were all looked at, none had room.
    let full = place.backend == EMPTY
        && how == NEW
        && service.flags & LEAST_CONNECTIONS != 0
        && few(table, service.ring);
    place.why = if full { PacketReason::BackendsFull as u32 } else { PacketReason::NoBackend as u32 };
    if !counts {
        return place.backend != EMPTY;
    }
    let most = if begun { NO_LIMIT } else { limit(table, service.most, of_frontend(service.frontend)) };
    if !table.enter_frontend(service.frontend, most) {
        place.why = PacketReason::FrontendLimit as u32;
        return false;
    }
    for _ in 0..TRIES {
        let Some(target) = table.target(place.backend) else { break };
        let most = if begun { NO_LIMIT } else { limit(table, target.most, of_backend(place.backend)) };
        if table.enter(place.backend, most) {
            return true;
        }
        place.why = PacketReason::BackendsFull as u32;
        place.backend = table.spare(service.ring, place.slot);
    }
    table.leave_frontend(service.frontend);
    false
}

/// Gives back what was taken for a flow that is not written down after all.
#[inline(always)]
pub fn give_back<T: TableView>(table: &T, frontend: u32, backend: u32) {
    table.leave_backend(backend);
    table.leave_frontend(frontend);
}

/// Finds the backend of a flow and its slot, whatever room there is.
#[inline(always)]
fn choose<T: TableView>(table: &T, service: &Service, key: &FlowKey, how: u32, place: &mut Place) {
    place.hash = table.hash(key);
    place.slot = maglev::slot(spread(table, service, key, place.hash));
    if how == NEW && service.flags & LEAST_CONNECTIONS != 0 {
        place.backend = table.least(service.ring, place.hash);
        return;
    }
    if how & BEGUN != 0 && service.previous != 0 {
        place.backend = table.slot(service.previous - 1, place.slot).unwrap_or(EMPTY);
        if table.target(place.backend).is_some() {
            return;
        }
    }
    place.backend = table.slot(service.ring, place.slot).unwrap_or(EMPTY);
}

/// What of a flow decides on its slot.
#[inline(always)]
fn spread<T: TableView>(table: &T, service: &Service, key: &FlowKey, hash: u64) -> u64 {
    if service.flags & BY_SOURCE != 0 {
        table.hash(&of_source(key))
    } else if service.flags & BY_PORT != 0 {
        table.hash(&FlowKey { src: [0; 16], sport: [0; 2], protocol: 0, ..*key })
    } else {
        hash
    }
}

/// A backend with room in a slot behind this one, as the proxy's `source_hash` finds it; of few backends whichever has room
/// else. [`EMPTY`]: none was found.
#[inline(always)]
pub fn spare<T: TableView>(table: &T, ring: u32, slot: u32) -> u32 {
    let few = few(table, ring);
    let most = if few { WALKED_OF_FEW } else { WALKED };
    // Nothing but the number of the step changes, so that the kernel's verifier has one way through each.
    let mut step = 1;
    while step <= most {
        let backend = table.room_at(ring, slot, step);
        if backend != EMPTY {
            return backend;
        }
        step += 1;
    }
    if few { table.least(ring, 0) } else { EMPTY }
}

/// Whether the backends of a ring are few enough to be looked at one by one.
#[inline(always)]
fn few<T: TableView>(table: &T, ring: u32) -> bool {
    table.choices(ring).is_some_and(|choices| choices.count != 0)
}

/// The backend so many slots behind this one, if it has room; else [`EMPTY`].
#[inline(always)]
pub fn room_at<T: TableView>(table: &T, ring: u32, slot: u32, step: u32) -> u32 {
    let ahead = slot.wrapping_add(step);
    let at = if ahead < SLOTS { ahead } else { ahead.wrapping_sub(SLOTS) };
    let backend = table.slot(ring, at).unwrap_or(EMPTY);
    let Some(target) = table.target(backend) else { return EMPTY };
    let most = limit(table, target.most, of_backend(backend));
    if u64::from(table.live(backend)) < most { backend } else { EMPTY }
}
