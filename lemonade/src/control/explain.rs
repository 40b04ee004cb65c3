//! What a pick would be, without making it: for the operator's questions. Pure.
//!
//! It picks among copies of the live cells, by the strategy itself, so what it says is what would happen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lemonade_common::decide::source_hash;
use lemonade_common::hash::{flow_hash, mix};
use lemonade_common::{BackendIx, FlowKey, maglev};

use super::table::{BackendEntry, FrontendEntry, PoolEntry};
use crate::model::config::{Protocol, Status, WhenAllDown};
use crate::model::{Moment, StrategyKind};
use crate::strategy;
use crate::strategy::port::{Basis, Candidate, PoolView};

/// Picks that shares are counted from.
pub const SAMPLES: u32 = 1_000;

/// Addresses of clients that shares of a ring are counted from.
pub const CLIENTS: u32 = 1 << 15;

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
    // Before the pick: one restores the averages of what it picks.
    let costs: Vec<_> = pool.backends.iter().map(|backend| copies.cost(backend.ix, asked.now)).collect();
    let next = copies.pick(&Draw { now: asked.now, entropy: entropy(1), seed: asked.seed, key });
    // Other clients, other draws.
    let shares = shares(pool, asked.now, |pick| mix(entropy(1).wrapping_add(pick)), &key);
    let standings = pool.backends.iter().zip(costs).zip(shares);
    let backends = standings.map(|((backend, cost), share)| Standing {
        verdict: verdict(pool, backend, asked.now),
        cost,
        share,
    });
    Explanation { next, backends: backends.collect() }
}

/// Explains where the kernel sends the next flow to `entry`; `None`: it has no ring for it.
///
/// Without a port of the client the flow is unknown, and so is the slot, unless the address alone is hashed.
pub fn explain_forwarded(entry: &FrontendEntry, asked: Asked) -> Option<Explanation> {
    let pool = &entry.pool;
    let ring = pool.cell.rings.read(asked.local.ip().to_canonical().is_ipv6())?;
    if pool.pool.strategy == StrategyKind::LeastConnections {
        return Some(explain(pool, asked));
    }
    let key = match entry.frontend.protocol {
        Protocol::Tcp => FlowKey::tcp(asked.client, asked.local),
        Protocol::Udp => FlowKey::udp(asked.client, asked.local),
    };
    let by_source = pool.pool.strategy == StrategyKind::SourceHash;
    let hash = if by_source { source_hash(&key, asked.seed) } else { flow_hash(&key, asked.seed) };
    let slot = maglev::slot(hash);
    let position = |ix: u32| pool.backends.iter().position(|backend| backend.ix.0 == ix);
    let known = by_source || asked.client.port() != 0;
    let full = |at: usize| {
        let own = &pool.backends[at];
        let most = own.backend.max_connections;
        most > 0 && own.cell.live.load(Ordering::Relaxed) >= most
    };
    let (before, from) = ring.split_at_checked(slot as usize)?;
    let slots = || from.iter().chain(before).take_while(|_| known);
    let next = slots().find_map(|ix| position(*ix).filter(|at| !full(*at)));
    let backends = pool.backends.iter().map(|backend| {
        let slots = ring.iter().filter(|ix| **ix == backend.ix.0).count();
        Standing {
            verdict: verdict(pool, backend, asked.now),
            cost: None,
            share: slots as f64 / ring.len().max(1) as f64,
        }
    });
    Some(Explanation { next: next.map(|at| (at, Basis::Slot(slot))), backends: backends.collect() })
}

/// Share of each backend of the pool in [`SAMPLES`] picks that come at once and stay; of [`CLIENTS`], where the client's
/// address decides: always the same ones, so that whoever asks is told the same.
pub fn shares(pool: &PoolEntry, now: Moment, entropy: impl Fn(u64) -> u64, key: &FlowKey) -> Vec<f64> {
    let copies = Copies::of(pool);
    let mut counts = vec![0_u32; pool.backends.len()];
    let by_source = pool.pool.strategy == StrategyKind::SourceHash;
    for pick in 0..if by_source { CLIENTS } else { SAMPLES } {
        let entropy = if by_source { mix(u64::from(pick)) } else { entropy(u64::from(pick)) };
        let key = if by_source { FlowKey { src: of_many(entropy), ..*key } } else { *key };
        let Some((position, _)) = copies.pick(&Draw { now, entropy, seed: 0, key }) else { break };
        counts[position] += 1;
        if !by_source {
            copies.hold(position);
        }
    }
    let total = counts.iter().sum::<u32>().max(1);
    counts.into_iter().map(|count| f64::from(count) / f64::from(total)).collect()
}

/// An address of its own for each `entropy`, as [`FlowKey`] holds it.
fn of_many(entropy: u64) -> [u8; 16] {
    u128::from(entropy).to_be_bytes()
}

/// What one pick goes by.
struct Draw {
    now: Moment,
    entropy: u64,
    seed: u64,
    key: FlowKey,
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

    fn pick(&self, draw: &Draw) -> Option<(usize, Basis)> {
        let Draw { now, entropy, seed, key } = draw;
        let pick = |desperate| {
            let view = PoolView {
                candidates: &self.candidates,
                cursor: &self.cursor,
                now: *now,
                entropy: *entropy,
                seed: *seed,
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
                seed: asked().seed,
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

    #[test]
    fn a_forwarded_flow_goes_by_its_slot_of_the_ring_that_the_kernel_has() {
        let config = config([pool("web", [backend("a", 1), backend("b", 2)])], [frontend("f", 80, "web")]);
        let table = next(&config, &HealthView::default(), &DispatchTable::default());
        let entry = table.frontends.values().next().unwrap();
        assert_eq!(explain_forwarded(entry, asked()), None);
        let b = entry.pool.backends[1].ix.0;
        let mut ring = vec![entry.pool.backends[0].ix.0; maglev::SLOTS as usize];
        let slot = maglev::slot(flow_hash(&FlowKey::tcp(asked().client, asked().local), asked().seed));
        ring[slot as usize] = b;
        entry.pool.cell.rings.set(false, Some(ring.into()));
        let found = explain_forwarded(entry, asked()).unwrap();
        assert_eq!(found.next, Some((1, Basis::Slot(slot))));
        assert!(found.backends[1].share > 0.0 && found.backends[1].share < 0.001);
        let nowhere = Asked { client: "192.0.2.1:0".parse().unwrap(), ..asked() };
        assert_eq!(explain_forwarded(entry, nowhere).unwrap().next, None, "its port is not known");
    }

    #[test]
    fn clients_of_many_addresses_share_a_pool_by_source() {
        let pool = entry(|own| {
            own.strategy = StrategyKind::SourceHash;
            own.backends[0].weight = 2;
        });
        let found = explain(&pool, asked());
        assert!(matches!(found.next, Some((_, Basis::Slot(_)))), "{found:?}");
        let shares: Vec<f64> = found.backends.iter().map(|own| own.share).collect();
        assert!((shares[0] - 0.5).abs() < 0.06 && (shares[1] - 0.25).abs() < 0.06, "{shares:?}");
        let ring = [0.5, 0.25, 0.25];
        assert!(shares.iter().zip(ring).all(|(share, slots)| (share - slots).abs() < 0.01), "{shares:?}");
        let other = Asked { client: "198.51.100.9:1".parse().unwrap(), ..asked() };
        assert_eq!(explain(&pool, other).backends, found.backends, "whoever asks");
    }

    #[test]
    fn a_cost_is_the_one_that_the_pick_went_by() {
        let pool = entry(|own| own.strategy = StrategyKind::FastestResponseTime);
        for (own, micros) in pool.backends.iter().zip([400, 900, 900]) {
            own.cell.connect.observe(std::time::Duration::from_micros(micros), Moment(1_000_000));
            own.cell.first_byte.observe(std::time::Duration::from_micros(micros), Moment(1_000_000));
        }
        // Averages have aged by now, and the pick restores that of the backend it takes.
        let found = explain(&pool, Asked { now: Moment(9_000_000), ..asked() });
        let Some((position, Basis::Cheaper { cost, .. })) = found.next else { panic!("{found:?}") };
        let shown = found.backends[position].cost.unwrap();
        assert!((f64::from(cost) - shown).abs() < shown * 1e-5, "{cost} and {shown}");
    }
}
