//! Who may come in: a place within the limits for each connection, given back when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lemonade_common::Reason;

use crate::model::{BackendCell, FrontendCell, PoolCell, ProcessCell};

/// A place within the limits of frontend and process. Each accepted connection holds one, a refused one too.
#[derive(Debug)]
pub(super) struct Place {
    process: Arc<ProcessCell>,
    frontend: Arc<FrontendCell>,
}

impl Place {
    /// Counts an accepted connection; tells the reason if it is one too many.
    pub(super) fn take(
        process: &Arc<ProcessCell>,
        total_limit: u32,
        frontend: &Arc<FrontendCell>,
        frontend_limit: u32,
    ) -> (Self, Option<Reason>) {
        process.opened.fetch_add(1, Ordering::Relaxed);
        frontend.opened.fetch_add(1, Ordering::Relaxed);
        let total = increase(&process.live, total_limit);
        let own = increase(&frontend.live, frontend_limit);
        let place = Self { process: Arc::clone(process), frontend: Arc::clone(frontend) };
        let reason = match (total, own) {
            (false, _) => Some(Reason::TotalLimit),
            (true, false) => Some(Reason::FrontendLimit),
            (true, true) => None,
        };
        (place, reason)
    }
}

fn increase(live: &AtomicU32, limit: u32) -> bool {
    let before = live.fetch_add(1, Ordering::AcqRel);
    limit == 0 || before < limit
}

impl Drop for Place {
    fn drop(&mut self) {
        self.process.live.fetch_sub(1, Ordering::AcqRel);
        self.frontend.live.fetch_sub(1, Ordering::AcqRel);
        self.process.closed.fetch_add(1, Ordering::Relaxed);
        self.frontend.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A slot of a backend, held from the pick to the end of the connection.
#[derive(Debug)]
pub(super) struct Slot {
    cell: Arc<BackendCell>,
    pool: Arc<PoolCell>,
}

impl Slot {
    /// Takes a slot, or `None` when the backend is full.
    pub(super) fn take(cell: &Arc<BackendCell>, pool: &Arc<PoolCell>, max: u32) -> Option<Self> {
        cell.acquire(max).then(|| Self { cell: Arc::clone(cell), pool: Arc::clone(pool) })
    }

    /// The backend.
    pub(super) fn cell(&self) -> &Arc<BackendCell> {
        &self.cell
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.cell.release();
        self.pool.waiting.wake_one();
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
        let process = Arc::new(ProcessCell::default());
        let frontend = Arc::new(FrontendCell::default());
        let first = Place::take(&process, 0, &frontend, 1);
        let second = Place::take(&process, 0, &frontend, 1);
        assert_eq!((first.1, second.1), (None, Some(Reason::FrontendLimit)));
        drop((first, second));
        assert_eq!(frontend.live.load(Ordering::Relaxed), 0);
        assert_eq!(frontend.opened.load(Ordering::Relaxed), 2);
        assert_eq!(frontend.closed.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_full_backend_gives_no_slot_until_one_comes_free() {
        let (cell, pool) = (Arc::new(BackendCell::default()), Arc::new(PoolCell::default()));
        let held = Slot::take(&cell, &pool, 1);
        assert!(held.is_some() && Slot::take(&cell, &pool, 1).is_none());
        drop(held);
        assert!(Slot::take(&cell, &pool, 1).is_some());
    }
}
