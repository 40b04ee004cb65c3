//! What a pick would be, without making it: for the operator's questions. Pure.
//!
//! It picks among copies of the live cells, by the strategy itself, so what it says is what would happen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lemonade_common::hash::{flow_hash, mix};
use lemonade_common::{BackendIx, FlowKey};

use super::table::{BackendEntry, PoolEntry};
use crate::model::Moment;
use crate::model::config::{Status, WhenAllDown};
use crate::strategy;
use crate::strategy::port::{Basis, Candidate, PoolView};

/// Picks that shares are counted from.
pub const SAMPLES: u32 = 1_000;

/// A client that asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Client; port 0 is any.
    pub client: SocketAddr,
    /// Address of the frontend.
    pub local: SocketAddr,
    /// Seed of the flow hash.
    pub seed: u64,
    /// Now.
    pub now: Moment,
}

/// What a pick would be.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The next pick, as position in the pool, and what it would go by; `None`: there is none.
    pub next: Option<(usize, Basis)>,
    /// Each backend of the pool, in order.
    pub backends: Vec<Standing>,
}

/// How a backend stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Whether it may be picked now, and why (not), in words.
    pub verdict: Result<String, String>,
    /// What a connection to it costs by the formula of the strategy; `None` for turns.
    pub cost: Option<f64>,
    /// Share of the next picks, 0 to 1, if they all came now.
    pub share: f64,
}

/// Explains the next pick of `pool`.
pub fn explain(pool: &PoolEntry, asked: Asked) -> Explanation {
    let copies = Copies::of(pool);
    let key = FlowKey::tcp(asked.client, asked.local);
    let entropy = |pick: u64| mix(flow_hash(&key, asked.seed) ^ pick);
    let next = copies.pick(asked.now, entropy(1), &key);
    // Other clients, other draws.
    let shares = shares(pool, asked.now, |pick| mix(entropy(1).wrapping_add(pick)), &key);
    let backends = pool.backends.iter().zip(shares).map(|(backend, share)| Standing {
        verdict: verdict(pool, backend, asked.now),
        cost: copies.cost(backend.ix, asked.now),
        share,
    });
    Explanation { next, backends: backends.collect() }
}

/// Share of each backend of the pool in [`SAMPLES`] picks that come at once and stay.
pub fn shares(pool: &PoolEntry, now: Moment, entropy: impl Fn(u64) -> u64, key: &FlowKey) -> Vec<f64> {
    let copies = Copies::of(pool);
    let mut counts = vec![0_u32; pool.backends.len()];
    for pick in 0..SAMPLES {
        let Some((position, _)) = copies.pick(now, entropy(u64::from(pick)), key) else { break };
        counts[position] += 1;
        copies.hold(position);
    }
    let total = counts.iter().sum::<u32>().max(1);
    counts.into_iter().map(|count| f64::from(count) / f64::from(total)).collect()
}

/// A pool whose cells are copies.
struct Copies {
    candidates: Vec<Candidate>,
    strategy: Arc<dyn strategy::port::StrategyService>,
    cursor: AtomicU64,
}

impl Copies {
    fn of(pool: &PoolEntry) -> Self {
        let copy = |own: &Candidate| {
            let cell = own.cell.copy();
            // A candidate of a table that is not in force yet is closed until it is.
            cell.closed.store(false, Ordering::Relaxed);
            Candidate { cell: Arc::new(cell), ..own.clone() }
        };
        let candidates: Vec<Candidate> = pool.candidates.iter().map(copy).collect();
        let strategy = strategy::build(pool.pool.strategy, &candidates);
        let cursor = AtomicU64::new(pool.cell.cursor.load(Ordering::Relaxed));
        Self { candidates, strategy, cursor }
    }

    fn pick(&self, now: Moment, entropy: u64, key: &FlowKey) -> Option<(usize, Basis)> {
        let pick = |desperate| {
            let view = PoolView {
                candidates: &self.candidates,
                cursor: &self.cursor,
                now,
                entropy,
                excluded: &[],
                desperate,
            };
            self.strategy.pick(&view, key).map(|pick| (pick.candidate.position, pick.basis))
        };
        pick(false).or_else(|| pick(true))
    }

    fn hold(&self, position: usize) {
        let picked = self.candidates.iter().find(|candidate| candidate.position == position);
        if let Some(candidate) = picked {
            candidate.cell.live.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn cost(&self, ix: BackendIx, now: Moment) -> Option<f64> {
        let candidate = self.candidates.iter().find(|candidate| candidate.ix == ix)?;
        self.strategy.cost(candidate, now)
    }
}

/// Whether `backend` may be picked now, and why.
fn verdict(pool: &PoolEntry, backend: &BackendEntry, now: Moment) -> Result<String, String> {
    let own = &backend.backend;
    let live = backend.cell.live.load(Ordering::Relaxed);
    if !own.enabled {
        return Err("out: disabled".to_owned());
    }
    if own.weight == 0 {
        return Err("out: drained, its weight is 0".to_owned());
    }
    let candidate = pool.candidates.iter().any(|candidate| candidate.ix == backend.ix);
    if !candidate {
        return Err("out: down".to_owned());
    }
    if own.max_connections > 0 && live >= own.max_connections {
        return Err(format!("out: full, {live} of {} connections", own.max_connections));
    }
    if backend.cell.backing_off(now) {
        let until = Moment(backend.cell.retry_at.load(Ordering::Relaxed));
        let left = until.since(now).as_millis();
        return Err(format!("out: it has just failed; avoided for {left} ms more, unless no other is left"));
    }
    if backend.status == Status::Down && pool.pool.when_all_down == WhenAllDown::TryAll {
        return Ok("in: all are down, and when_all_down = \"try_all\"".to_owned());
    }
    Ok("in".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::control::table::DispatchTable;
    use crate::health::port::HealthView;
    use crate::model::{Pool, StrategyKind};

    fn entry(change: impl Fn(&mut Pool)) -> Arc<PoolEntry> {
        let mut own = pool("web", [backend("a", 1), backend("b", 2), backend("c", 3)]);
        change(&mut own);
        let config = config([own], [frontend("f", 80, "web")]);
        let table = next(&config, &HealthView::default(), &DispatchTable::default());
        Arc::clone(&table.pools["web"])
    }

    fn asked() -> Asked {
        let (client, local) = ("192.0.2.1:5000".parse().unwrap(), "127.0.0.1:80".parse().unwrap());
        Asked { client, local, seed: 1, now: Moment(1_000_000) }
    }

    #[test]
    fn asking_changes_nothing_and_tells_what_comes() {
        for strategy in [StrategyKind::RoundRobin, StrategyKind::LeastConnections, StrategyKind::Adaptive] {
            let pool = entry(|own| own.strategy = strategy);
            let first = explain(&pool, asked());
            assert_eq!(explain(&pool, asked()), first, "{strategy:?}");
            assert_eq!(pool.cell.cursor.load(Ordering::Relaxed), 0);
            assert!(pool.backends.iter().all(|own| own.cell.live.load(Ordering::Relaxed) == 0));
            assert!((first.backends.iter().map(|own| own.share).sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn the_next_pick_is_the_one_that_a_connection_gets() {
        let pool = entry(|_| {});
        for _ in 0..5 {
            let told = explain(&pool, asked()).next.unwrap().0;
            let view = PoolView {
                candidates: &pool.candidates,
                cursor: &pool.cell.cursor,
                now: asked().now,
                entropy: 0,
                excluded: &[],
                desperate: false,
            };
            let key = FlowKey::tcp(asked().client, asked().local);
            assert_eq!(pool.strategy.pick(&view, &key).unwrap().candidate.position, told);
        }
    }

    #[test]
    fn each_backend_says_why_it_is_out() {
        let pool = entry(|own| {
            own.strategy = StrategyKind::LeastConnections;
            own.backends[0].enabled = false;
            own.backends[1].weight = 0;
            own.backends[2].max_connections = 1;
        });
        pool.backends[2].cell.acquire(1);
        let found = explain(&pool, asked());
        let why: Vec<&String> = found.backends.iter().map(|own| own.verdict.as_ref().unwrap_err()).collect();
        assert_eq!(why, ["out: disabled", "out: drained, its weight is 0", "out: full, 1 of 1 connections"]);
        assert_eq!(found.next, None);

        let pool = entry(|own| own.strategy = StrategyKind::LeastConnections);
        pool.backends[0].cell.failed(asked().now);
        pool.backends[1].cell.acquire(0);
        let found = explain(&pool, asked());
        assert!(found.backends[0].verdict.as_ref().unwrap_err().contains("just failed"), "{found:?}");
        assert_eq!(found.backends[1].cost, Some(2.0));
        assert_eq!(found.next.unwrap().0, 2, "the one without connections");
    }
}
