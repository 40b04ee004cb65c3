//! From configuration and health to the dispatch table: pure, deterministic and total on a valid configuration.
//!
//! The previous table serves only to keep indices and live cells, and to share every entry that did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lemonade_common::{BackendIx, FrontendIx};

use crate::health::port::HealthView;
use crate::model::config::{Status, WhenAllDown};
use crate::model::{Backend, Config, Frontend, Name, Pool, Resolution, Target};
use crate::strategy;
use crate::strategy::port::Candidate;

use super::indices::Indices;
use super::table::{BackendEntry, BackendId, DispatchTable, FrontendEntry, PoolEntry};

/// Compiles the table that follows `previous`.
///
/// A pool or frontend whose settings, addresses and statuses are the same is shared with `previous`, so what is
/// built anew is what changed. Nothing live is touched; [`commit_cells`] does that once the table is taken.
pub fn compile(
    config: &Arc<Config>,
    config_version: u64,
    health: &HealthView,
    resolution: &Resolution,
    previous: &DispatchTable,
) -> DispatchTable {
    let mut given = Given { next: previous.next_ix, remembered: &previous.remembered };
    let pools: BTreeMap<Name, Arc<PoolEntry>> = config
        .pools
        .iter()
        .map(|(name, pool)| {
            let before = previous.pools.get(name);
            let same = before.filter(|before| unchanged(before, pool, health, resolution));
            let entry = same.map_or_else(
                || Arc::new(pool_entry(pool, health, resolution, before.map(AsRef::as_ref), &mut given)),
                Arc::clone,
            );
            (name.clone(), entry)
        })
        .collect();
    let before: BTreeMap<&Name, &Arc<FrontendEntry>> =
        previous.frontends.values().map(|entry| (&entry.frontend.name, entry)).collect();
    let frontends = config
        .frontends
        .values()
        .filter_map(|frontend| {
            let pool = pools.get(&frontend.pool)?;
            let entry = frontend_entry(frontend, pool, before.get(&frontend.name).copied(), &mut given);
            Some((entry.ix, entry))
        })
        .collect();
    DispatchTable {
        version: previous.version + 1,
        config_version,
        config: Some(Arc::clone(config)),
        frontends,
        pools,
        next_ix: given.next,
        remembered: Indices::default(),
    }
}

/// Indices as they are given out.
struct Given<'a> {
    next: u32,
    remembered: &'a Indices,
}

impl Given<'_> {
    fn frontend(&mut self, name: &Name) -> FrontendIx {
        self.remembered.frontend(name).unwrap_or_else(|| FrontendIx(self.another()))
    }

    fn backend(&mut self, id: &BackendId) -> BackendIx {
        self.remembered.backend(id).unwrap_or_else(|| BackendIx(self.another()))
    }

    const fn another(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }
}

/// Opens the cells of the candidates of `next`.
///
/// Call it before `next` is taken, so that its first pick finds them open; `previous` picks only its own candidates.
pub fn open_cells(previous: &DispatchTable, next: &DispatchTable) {
    for (_, entry) in changed_pools(next, previous) {
        for candidate in &entry.candidates {
            candidate.cell.closed.store(false, Ordering::Release);
        }
    }
}

/// Opens the cells of the candidates of `next` and closes those of all other backends, those that left included.
///
/// Call it after `next` was taken: workers still on `previous` see at once what may no longer be picked, and
/// connections that wait for a backend look again.
pub fn commit_cells(previous: &DispatchTable, next: &DispatchTable) {
    open_cells(previous, next);
    for (name, entry) in changed_pools(next, previous) {
        let before = previous.pools.get(name).into_iter().flat_map(|before| &before.backends);
        close_others(entry.backends.iter().chain(before), &entry.candidates);
        mark_down(entry);
        entry.cell.waiting.wake_all();
    }
    for (_, entry) in previous.pools.iter().filter(|(name, _)| !next.pools.contains_key(*name)) {
        close_others(&entry.backends, &[]);
        entry.cell.waiting.wake_all();
    }
}

/// Pools of `table` that it does not share with `other`.
fn changed_pools<'a>(
    table: &'a DispatchTable,
    other: &DispatchTable,
) -> impl Iterator<Item = (&'a Name, &'a Arc<PoolEntry>)> {
    table
        .pools
        .iter()
        .filter(|(name, entry)| !other.pools.get(*name).is_some_and(|there| Arc::ptr_eq(there, entry)))
}

fn close_others<'a>(backends: impl IntoIterator<Item = &'a BackendEntry>, candidates: &[Candidate]) {
    let open: BTreeSet<BackendIx> = candidates.iter().map(|candidate| candidate.ix).collect();
    for backend in backends.into_iter().filter(|backend| !open.contains(&backend.ix)) {
        backend.cell.closed.store(true, Ordering::Release);
    }
}

/// Tells sessions of datagrams, which a dead backend would keep for ever, that it is time to leave.
fn mark_down(entry: &PoolEntry) {
    let tried: BTreeSet<BackendIx> = entry.candidates.iter().map(|candidate| candidate.ix).collect();
    for backend in &entry.backends {
        let down = backend.status == Status::Down && !tried.contains(&backend.ix);
        backend.cell.down.store(down, Ordering::Relaxed);
    }
}

fn frontend_entry(
    frontend: &Arc<Frontend>,
    pool: &Arc<PoolEntry>,
    before: Option<&Arc<FrontendEntry>>,
    given: &mut Given<'_>,
) -> Arc<FrontendEntry> {
    let (ix, cell) = match before {
        Some(before) if Arc::ptr_eq(&before.pool, pool) && same(&before.frontend, frontend) => {
            return Arc::clone(before);
        }
        Some(before) => (before.ix, Arc::clone(&before.cell)),
        None => (given.frontend(&frontend.name), Arc::default()),
    };
    Arc::new(FrontendEntry { ix, frontend: Arc::clone(frontend), pool: Arc::clone(pool), cell })
}

fn pool_entry(
    pool: &Arc<Pool>,
    health: &HealthView,
    resolution: &Resolution,
    before: Option<&PoolEntry>,
    given: &mut Given<'_>,
) -> PoolEntry {
    let known = before.map_or(&[][..], |before| &before.backends);
    let backends: Vec<BackendEntry> = expand(pool, resolution)
        .into_iter()
        .map(|(id, backend)| {
            let (ix, cell) = match known.binary_search_by(|entry| entry.id.cmp(&id)) {
                Ok(found) => (known[found].ix, Arc::clone(&known[found].cell)),
                Err(_) => (given.backend(&id), Arc::default()),
            };
            BackendEntry { ix, id, backend: backend.clone(), status: status(ix, pool, health), cell }
        })
        .collect();
    let candidates = candidates(pool, &backends);
    let strategy = strategy::build(pool.strategy, &candidates);
    let cell = before.map_or_else(Arc::default, |before| Arc::clone(&before.cell));
    PoolEntry { pool: Arc::clone(pool), backends, candidates, strategy, cell }
}

fn candidates(pool: &Pool, backends: &[BackendEntry]) -> Vec<Candidate> {
    let usable =
        || backends.iter().enumerate().filter(|(_, entry)| entry.backend.enabled && entry.backend.weight > 0);
    let fail_open =
        pool.when_all_down == WhenAllDown::TryAll && usable().all(|(_, entry)| entry.status == Status::Down);
    usable()
        .filter(|(_, entry)| fail_open || entry.status == Status::Up)
        .map(|(position, entry)| Candidate {
            ix: entry.ix,
            identity: entry.id.ring_identity(),
            position,
            weight: entry.backend.weight,
            max_connections: entry.backend.max_connections,
            cell: Arc::clone(&entry.cell),
        })
        .collect()
}

/// Whether `before` says all there is to say of `pool` now.
fn unchanged(before: &PoolEntry, pool: &Arc<Pool>, health: &HealthView, resolution: &Resolution) -> bool {
    let resolved = pool.backends.iter().any(|backend| matches!(backend.target, Target::Host(..)));
    let as_resolved = || {
        let now = expand(pool, resolution);
        now.len() == before.backends.len()
            && now.keys().zip(&before.backends).all(|(id, entry)| *id == entry.id)
    };
    same(&before.pool, pool)
        && before.backends.iter().all(|entry| entry.status == status(entry.ix, pool, health))
        && (!resolved || as_resolved())
}

/// Every address of every backend, ordered by identity.
fn expand<'a>(pool: &'a Pool, resolution: &Resolution) -> BTreeMap<BackendId, &'a Backend> {
    let id = |backend: &Backend, ip| BackendId {
        pool: pool.name.clone(),
        name: backend.name.clone(),
        ip,
        port: backend.target.port(),
    };
    let mut entries = BTreeMap::new();
    for backend in &pool.backends {
        match &backend.target {
            Target::Address(ip, _) => {
                entries.insert(id(backend, *ip), backend);
            }
            Target::Host(host, _) => {
                let addresses = resolution.hosts.get(host).into_iter().flatten();
                entries.extend(addresses.map(|ip| (id(backend, *ip), backend)));
            }
        }
    }
    entries
}

fn status(ix: BackendIx, pool: &Pool, health: &HealthView) -> Status {
    health.statuses.get(&ix).copied().unwrap_or(pool.health.initial)
}

fn same<T: PartialEq>(a: &Arc<T>, b: &Arc<T>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

#[cfg(test)]
pub(crate) mod tests;
