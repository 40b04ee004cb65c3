//! What a configuration would change, without making it so: for `lemonade plan`. Pure.

use std::collections::BTreeMap;

use lemonade_common::FlowKey;
use lemonade_common::hash::mix;
use lemonade_common::maglev::EMPTY;

use super::explain::shares;
use super::lower::lowering;
use super::table::{BackendId, DispatchTable, PoolEntry};
use crate::model::{Moment, Name, StrategyKind};
use crate::proxy::port::Connection;
use crate::strategy::maglev::{Share, ring};
use crate::strategy::port::Lowering;

/// Shares that differ by less are the same: they are counted from samples.
const NOISE: f64 = 0.02;

/// What becomes of live connections and of picks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preview {
    /// Live connections of what would leave, with what that is; they get the drain timeout.
    pub drained: BTreeMap<String, usize>,
    /// Live connections of what has left already, with what that is.
    pub leaving: BTreeMap<String, usize>,
    /// Live connections that nothing would happen to.
    pub untouched: usize,
    /// Shares of picks that would change.
    pub shares: Vec<ShareChange>,
    /// Share of the slots that would go to another backend, 0 to 1, by pool with a ring.
    pub slots: BTreeMap<Name, f64>,
}

/// The share of picks of one backend, before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct ShareChange {
    /// Pool.
    pub pool: Name,
    /// Backend.
    pub backend: Name,
    /// Share now, 0 to 1; `None`: it is new.
    pub before: Option<f64>,
    /// Share then; `None`: it leaves.
    pub after: Option<f64>,
}

/// What the step from `before` to `after` would mean at `now` for the connections `live`.
pub fn preview(before: &DispatchTable, after: &DispatchTable, live: &[Connection], now: Moment) -> Preview {
    let mut preview = Preview::default();
    for own in live {
        match leaves(after, own) {
            Some(what) if leaves(before, own).as_ref() == Some(&what) => {
                *preview.leaving.entry(what).or_default() += 1;
            }
            Some(what) => *preview.drained.entry(what).or_default() += 1,
            None => preview.untouched += 1,
        }
    }
    let names: std::collections::BTreeSet<&Name> = before.pools.keys().chain(after.pools.keys()).collect();
    for name in names {
        let (was, is) = (before.pools.get(name), after.pools.get(name));
        let same = was.zip(is).is_some_and(|(was, is)| std::sync::Arc::ptr_eq(was, is));
        if !same {
            preview.shares.extend(changes(name, was.map(AsRef::as_ref), is.map(AsRef::as_ref), now));
            let rings = was.zip(is).filter(|_| has_ring(before, name) && has_ring(after, name));
            let moved = rings.map(|(was, is)| moved(was, is, now)).filter(|moved| *moved > 0.0);
            preview.slots.extend(moved.map(|moved| (name.clone(), moved)));
        }
    }
    preview
}

/// Whether flows to the pool go by a ring: the kernel's, or that of the strategy.
fn has_ring(table: &DispatchTable, name: &Name) -> bool {
    let forwarded = |pool: &PoolEntry| {
        table
            .frontends
            .values()
            .any(|own| own.frontend.forward.is_some() && own.pool.pool.name == pool.pool.name)
    };
    let pool = table.pools.get(name);
    pool.is_some_and(|pool| pool.pool.strategy == StrategyKind::SourceHash || forwarded(pool))
}

/// Share of the slots that another backend has afterwards; each IP version has a ring.
fn moved(was: &PoolEntry, is: &PoolEntry, now: Moment) -> f64 {
    let mut numbers = BTreeMap::new();
    let [was, is] = [was, is].map(|pool| [false, true].map(|v6| slots(pool, v6, now, &mut numbers)));
    let pairs =
        || was.iter().zip(&is).flat_map(|(was, is)| was.iter().zip(is)).filter(|(was, _)| **was != EMPTY);
    let other = pairs().filter(|(was, is)| was != is).count();
    other as f64 / pairs().count().max(1) as f64
}

/// What is in the slots of a pool's ring: backends by numbers that `numbers` gives them.
fn slots(pool: &PoolEntry, v6: bool, now: Moment, numbers: &mut BTreeMap<String, u32>) -> Vec<u32> {
    let Lowering::Ring { weights, .. } = lowering(pool, now) else { return Vec::new() };
    let candidates = pool.candidates.iter().zip(weights);
    let own = candidates.filter(|(own, _)| pool.backends[own.position].id.ip.to_canonical().is_ipv6() == v6);
    let shares: Vec<Share> = own
        .map(|(own, weight)| {
            let next = numbers.len() as u32;
            let value = *numbers.entry(own.identity.to_string()).or_insert(next);
            Share { value, identity: own.identity.to_string(), weight }
        })
        .collect();
    ring(&shares)
}

/// What takes a connection along when `after` is in force: its frontend or its backend.
fn leaves(after: &DispatchTable, own: &Connection) -> Option<String> {
    if !after.frontends.values().any(|entry| entry.frontend.name == own.frontend) {
        return Some(format!("frontend {}", own.frontend));
    }
    let route = own.route.as_ref()?;
    let at = |port| BackendId {
        pool: route.pool.clone(),
        name: route.backend.clone(),
        ip: route.address.ip(),
        port,
    };
    let stays = after.has_backend(&at(Some(route.address.port()))) || after.has_backend(&at(None));
    (!stays).then(|| format!("backend {}/{}", route.pool, route.backend))
}

fn changes(pool: &Name, was: Option<&PoolEntry>, is: Option<&PoolEntry>, now: Moment) -> Vec<ShareChange> {
    let (was, is) = (by_name(was, now), by_name(is, now));
    let names: std::collections::BTreeSet<&Name> = was.keys().chain(is.keys()).collect();
    let change = |backend: &&Name| {
        let (before, after) = (was.get(*backend).copied(), is.get(*backend).copied());
        let moved = (before.unwrap_or(0.0) - after.unwrap_or(0.0)).abs() >= NOISE;
        let differs = moved || before.is_some() != after.is_some();
        differs.then(|| ShareChange { pool: pool.clone(), backend: (*backend).clone(), before, after })
    };
    names.iter().filter_map(change).collect()
}

/// Shares of the backends of a pool; the addresses of one host are added up.
fn by_name(pool: Option<&PoolEntry>, now: Moment) -> BTreeMap<Name, f64> {
    let Some(pool) = pool else { return BTreeMap::new() };
    let nobody = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    let shares = shares(pool, now, mix, &FlowKey::tcp(nobody, nobody));
    let mut sums = BTreeMap::new();
    for (backend, share) in pool.backends.iter().zip(shares) {
        *sums.entry(backend.id.name.clone()).or_insert(0.0) += share;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::health::port::HealthView;
    use crate::metrics::port::Route;
    use crate::model::{Backend, Pool, StrategyKind};

    fn table(
        strategy: StrategyKind,
        backends: Vec<Backend>,
        frontends: &[&str],
        before: &DispatchTable,
    ) -> DispatchTable {
        let own = Pool { strategy, ..pool("web", backends) };
        let frontends = frontends.iter().zip(80..).map(|(name, port)| frontend(name, port, "web"));
        next(&config([own], frontends), &HealthView::default(), before)
    }

    fn connection(frontend: &str, backend: &str, host: u8) -> Connection {
        let address = std::net::SocketAddr::from(([10, 0, 0, host], 80));
        Connection {
            id: 1,
            client: address,
            local: address,
            started: Moment(0),
            frontend: Name::new(frontend),
            pool: Name::new("web"),
            plane: "proxy",
            relay: "copy",
            route: Some(Route {
                pool: Name::new("web"),
                backend: Name::new(backend),
                address,
                strategy: StrategyKind::RoundRobin,
                candidates: 2,
                attempts: 1,
                hedged: false,
                table_version: 1,
                connect: std::time::Duration::ZERO,
            }),
            decision: None,
            failed: Box::default(),
            bytes_up: 0,
            bytes_down: 0,
            idle_seconds: 0,
            end: None,
        }
    }

    #[test]
    fn what_leaves_takes_its_connections_along_and_shares_move() {
        for strategy in [StrategyKind::RoundRobin, StrategyKind::LeastConnections] {
            let none = DispatchTable::default();
            let before = table(strategy, vec![backend("a", 1), backend("b", 2)], &["f", "g"], &none);
            let after = table(strategy, vec![backend("b", 2), backend("c", 3)], &["f"], &before);
            let live = [("f", "a", 1), ("f", "b", 2), ("g", "b", 2), ("g", "a", 1)];
            let live: Vec<_> = live.map(|(frontend, own, host)| connection(frontend, own, host)).into();
            let found = preview(&before, &after, &live, Moment(1));
            let drained = [("backend web/a".to_owned(), 1), ("frontend g".to_owned(), 2)];
            assert_eq!((found.drained, found.untouched), (BTreeMap::from(drained), 1));
            let shares: Vec<_> =
                found.shares.iter().map(|own| (own.backend.as_str(), own.before, own.after)).collect();
            assert_eq!(shares, [("a", Some(0.5), None), ("c", None, Some(0.5))], "{strategy:?}");
            let again = preview(&after, &after, &live, Moment(1));
            assert_eq!((again.shares, again.drained, again.untouched), (vec![], BTreeMap::new(), 1));
            assert_eq!(
                again.leaving,
                BTreeMap::from([("backend web/a".to_owned(), 1), ("frontend g".to_owned(), 2)])
            );
        }
    }

    #[test]
    fn a_backend_that_leaves_a_ring_moves_its_slots_and_few_others() {
        let none = DispatchTable::default();
        let three = || vec![backend("a", 1), backend("b", 2), backend("c", 3)];
        let two = || vec![backend("a", 1), backend("b", 2)];
        let before = table(StrategyKind::SourceHash, three(), &["f"], &none);
        let after = table(StrategyKind::SourceHash, two(), &["f"], &before);
        let moved = preview(&before, &after, &[], Moment(1)).slots[&Name::new("web")];
        assert!((0.333..0.40).contains(&moved), "{moved}");
        assert!(preview(&after, &after, &[], Moment(1)).slots.is_empty());
        let turns = table(StrategyKind::RoundRobin, three(), &["f"], &none);
        let fewer = table(StrategyKind::RoundRobin, two(), &["f"], &turns);
        assert!(preview(&turns, &fewer, &[], Moment(1)).slots.is_empty(), "it has no ring");
    }

    #[test]
    fn a_weight_of_zero_moves_its_share_and_no_connection() {
        let none = DispatchTable::default();
        let before =
            table(StrategyKind::LeastConnections, vec![backend("a", 1), backend("b", 2)], &["f"], &none);
        let drained = Backend { weight: 0, ..backend("a", 1) };
        let after = table(StrategyKind::LeastConnections, vec![drained, backend("b", 2)], &["f"], &before);
        let found = preview(&before, &after, &[connection("f", "a", 1)], Moment(1));
        assert_eq!(found.untouched, 1);
        let shares: Vec<_> = found.shares.iter().map(|own| (own.before, own.after)).collect();
        assert_eq!(shares, [(Some(0.5), Some(0.0)), (Some(0.5), Some(1.0))]);
    }
}
