//! Functions that the kernel's verifier takes by themselves: it follows each once, whatever calls it, and not once for each way
//! to it. What they are handed it takes for words, and for memory of the sizes of the types, which may be missing.

use lemonade_common::FlowKey;
use lemonade_common::decide::{Inserted, Opening, TableView as _, entry};
use lemonade_common::forward::Service;
use lemonade_common::hash::flow_hash;
use lemonade_common::least::{Scan, least};
use lemonade_common::place::{Place, room_at, spare, take};

use crate::tables::{Maps, remove};

/// The tables for functions that ask no helper that wants a context.
const TABLES: Maps = Maps { context: core::ptr::null_mut() };

/// Hash of a flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_hash(key: *const FlowKey) -> u64 {
    // SAFETY: memory of the size, or null.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    flow_hash(key, TABLES.seed())
}

/// Backend of a ring for a new flow, by the connections that each has.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_least(ring: u32, hash: u64) -> u32 {
    least(&TABLES, ring, hash)
}

/// Takes in the backend at a place of a ring.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_step(ring: u32, at: u32, scan: *mut Scan) -> u32 {
    // SAFETY: memory of the size, or null.
    if let (Some(scan), Some(choices)) = (unsafe { scan.as_mut() }, TABLES.choices(ring)) {
        scan.step(&TABLES, choices, at);
    }
    0
}

/// Gives a flow a backend; says whether there was one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_place(
    service: *const Service,
    key: *const FlowKey,
    how: u32,
    place: *mut Place,
) -> u32 {
    // SAFETY: memory of the sizes, or null.
    let (Some(service), Some(key), Some(place)) =
        (unsafe { (service.as_ref(), key.as_ref(), place.as_mut()) })
    else {
        return 0;
    };
    u32::from(take(&TABLES, service, key, how, place))
}

/// A backend with room behind a slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_spare(ring: u32, slot: u32) -> u32 {
    spare(&TABLES, ring, slot)
}

/// The backend some slots behind one, if it has room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_room(ring: u32, slot: u32, step: u32) -> u32 {
    room_at(&TABLES, ring, slot, step)
}

/// Puts one direction of a new flow; what that came to, as a number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_put(from: *const FlowKey, answers: *const FlowKey, opening: *const Opening) -> u32 {
    // SAFETY: memory of the sizes, or null.
    let (Some(from), Some(answers), Some(opening)) =
        (unsafe { (from.as_ref(), answers.as_ref(), opening.as_ref()) })
    else {
        return Inserted::Full as u32;
    };
    TABLES.insert(from, &entry(from, answers, opening)) as u32
}

/// Takes an entry away, with what it counts, if its last packet came at `seen` (0: whenever that was); says whether it did.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_remove(key: *const FlowKey, seen: u64) -> u32 {
    // SAFETY: memory of the size, or null.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    u32::from(remove(key, seen))
}
