//! Who may come in: a place within the limits for each connection, given back when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lemonade_common::Reason;

use super::flow::{Flow, Flows};
use crate::control::table::{BackendEntry, FrontendEntry};
use crate::model::{FrontendCell, PoolCell, ProcessCell};

/// Counts an accepted connection; tells the reason if it is one too many. [`leave`] takes it back.
pub(super) fn enter(
    process: &ProcessCell,
    total_limit: u32,
    frontend: &FrontendCell,
    frontend_limit: u32,
) -> Option<Reason> {
    process.opened.fetch_add(1, Ordering::Relaxed);
    frontend.opened.fetch_add(1, Ordering::Relaxed);
    let total = increase(&process.live, total_limit);
    let own = increase(&frontend.live, frontend_limit);
    match (total, own) {
        (false, _) => Some(Reason::TotalLimit),
        (true, false) => Some(Reason::FrontendLimit),
        (true, true) => None,
    }
}

/// Counts the end of a connection that [`enter`] counted, a refused one too.
pub(super) fn leave(process: &ProcessCell, frontend: &FrontendCell) {
    process.live.fetch_sub(1, Ordering::AcqRel);
    frontend.live.fetch_sub(1, Ordering::AcqRel);
    process.closed.fetch_add(1, Ordering::Relaxed);
    frontend.closed.fetch_add(1, Ordering::Relaxed);
}

fn increase(live: &AtomicU32, limit: u32) -> bool {
    let before = live.fetch_add(1, Ordering::AcqRel);
    limit == 0 || before < limit
}

/// A connection among those of its worker, for as long as its task lives.
pub(super) struct Member {
    flows: Arc<Flows>,
    process: Arc<ProcessCell>,
    flow: Arc<Flow>,
    key: usize,
}

impl Member {
    /// Joins; the connection was counted by [`enter`].
    pub(super) fn join(flows: Arc<Flows>, process: Arc<ProcessCell>, flow: Arc<Flow>) -> Self {
        let key = flows.insert(Arc::clone(&flow));
        Self { flows, process, flow, key }
    }

    /// The connection.
    pub(super) fn flow(&self) -> &Flow {
        &self.flow
    }

    /// The connections that it is among.
    pub(super) fn flows(&self) -> &Flows {
        &self.flows
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.flows.remove(self.key);
        leave(&self.process, &self.flow.frontend.cell);
    }
}

/// A slot of a backend, held from the pick to the end of the connection.
#[derive(Debug)]
pub(super) struct Slot {
    entry: Arc<FrontendEntry>,
    position: u32,
}

impl Slot {
    /// Takes a slot of the backend at `position` of the pool, or `None` when it has `max` connections (0: no limit).
    pub(super) fn take(entry: &Arc<FrontendEntry>, position: usize, max: u32) -> Option<Self> {
        let taken = entry.pool.backends[position].cell.acquire(max);
        // Fewer than 2^32 backends: each has an index of 32 bits.
        taken.then(|| Self { entry: Arc::clone(entry), position: position as u32 })
    }

    /// The table entry that it was picked from.
    pub(super) fn entry(&self) -> &Arc<FrontendEntry> {
        &self.entry
    }

    /// Its backend's position in the entry's pool.
    pub(super) fn position(&self) -> u32 {
        self.position
    }

    /// The backend.
    pub(super) fn backend(&self) -> &BackendEntry {
        &self.entry.pool.backends[self.position as usize]
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.backend().cell.release();
        self.entry.pool.cell.waiting.wake_one();
    }
}

/// A connect that is not decided yet.
pub(super) struct Undecided(Arc<FrontendEntry>, usize);

impl Undecided {
    /// Counts it for the backend of `slot`.
    pub(super) fn count(slot: &Slot) -> Self {
        slot.backend().cell.connecting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&slot.entry), slot.position as usize)
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        self.0.pool.backends[self.1].cell.connecting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in a pool's queue.
#[derive(Debug)]
pub(super) struct Queued<'a>(&'a PoolCell);

impl<'a> Queued<'a> {
    /// Joins a queue of at most `limit`, or `None` when it is full.
    pub(super) fn join(pool: &'a PoolCell, limit: u32) -> Option<Self> {
        let joined = pool
            .queued
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |queued| (queued < limit).then(|| queued + 1));
        joined.is_ok().then(|| Self(pool))
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_over_the_limit_is_refused_and_still_counted() {
        let process = ProcessCell::default();
        let frontend = FrontendCell::default();
        assert_eq!(enter(&process, 0, &frontend, 1), None);
        assert_eq!(enter(&process, 0, &frontend, 1), Some(Reason::FrontendLimit));
        assert_eq!(enter(&process, 2, &frontend, 0), Some(Reason::TotalLimit));
        for _ in 0..3 {
            leave(&process, &frontend);
        }
        assert_eq!(frontend.live.load(Ordering::Relaxed), 0);
        assert_eq!(frontend.opened.load(Ordering::Relaxed), 3);
        assert_eq!(frontend.closed.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_full_queue_takes_nobody_until_somebody_leaves() {
        let pool = PoolCell::default();
        let held = Queued::join(&pool, 1);
        assert!(held.is_some() && Queued::join(&pool, 1).is_none());
        drop(held);
        assert!(Queued::join(&pool, 1).is_some());
    }
}
