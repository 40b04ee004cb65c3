//! A pool of three, simulated: the real strategies pick, the clock and the clients are made up.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use lemonade::model::{BackendCell, Moment, StrategyKind};
use lemonade::strategy::build;
use lemonade::strategy::port::{Candidate, PoolView};
use lemonade_common::{BackendIx, FlowKey};

/// Seconds simulated.
pub const SECONDS: usize = 60;

/// Seconds in which `c` answers ten times as late as the others.
pub const SLOW: Range<usize> = 20..40;

/// Seconds in which `c` refuses every second connect.
pub const FAILING: Range<usize> = 45..55;

/// Weights of `a`, `b` and `c`; all are 1 for a strategy that does not go by weight.
pub const WEIGHTS: [u32; 3] = [3, 2, 1];

/// Addresses that connections come from.
const CLIENTS: u16 = 4096;

const RATE: f64 = 400.0;
const ANSWER: f64 = 0.02;

/// What became of each second.
pub struct Told {
    /// Connections that each backend got, by second.
    pub picks: Vec<[u32; 3]>,
    /// Connects that failed.
    pub failed: u32,
    /// Mean time of a connection in seconds, while `c` was slow.
    pub slow_mean: f64,
}

impl Told {
    /// Share of the connections of these seconds that a backend got.
    pub fn share(&self, backend: usize, seconds: Range<usize>) -> f64 {
        let (own, all) = self.picks[seconds]
            .iter()
            .fold((0, 0), |(own, all), picks| (own + picks[backend], all + picks.iter().sum::<u32>()));
        f64::from(own) / f64::from(all.max(1))
    }
}

/// Weights that `kind` is shown with.
pub fn weights(kind: StrategyKind) -> [u32; 3] {
    if kind == StrategyKind::WeightedRoundRobin { WEIGHTS } else { [1; 3] }
}

/// Simulates a minute.
pub fn run(kind: StrategyKind) -> Told {
    let candidates: Vec<Candidate> = weights(kind)
        .into_iter()
        .enumerate()
        .map(|(position, weight)| Candidate {
            ix: BackendIx(100 + u32::try_from(position).expect("three")),
            identity: format!("10.0.0.{position}:80").into(),
            position,
            weight,
            max_connections: 0,
            cell: Arc::new(BackendCell::default()),
        })
        .collect();
    let strategy = build(kind, &candidates);
    let (cursor, mut random) = (AtomicU64::new(0), fastrand::Rng::with_seed(5));
    let flow = |client: u16| {
        let [high, low] = client.to_be_bytes();
        FlowKey::tcp(([198, 18, high, low], 5000).into(), ([192, 0, 2, 1], 80).into())
    };
    let mut told = Told { picks: vec![[0; 3]; SECONDS], failed: 0, slow_mean: 0.0 };
    let mut open: BTreeMap<(u64, u64), (usize, u64)> = BTreeMap::new();
    let (mut slow, mut slow_count) = (0.0, 0_u32);
    // Microseconds; the first moment is not 0, which means none.
    let (start, mut now, mut number) = (1_000_000, 1_000_000_u64, 0_u64);
    while now < start + SECONDS as u64 * 1_000_000 {
        while let Some((&key, &(position, began))) =
            open.first_key_value().filter(|((end, _), _)| *end <= now)
        {
            open.remove(&key);
            let cell = &candidates[position].cell;
            cell.first_byte.observe(Duration::from_micros(key.0 - began), Moment(key.0));
            cell.release();
        }
        let second = usize::try_from((now - start) / 1_000_000).expect("a minute");
        // The others do not look at the client.
        let client = if kind == StrategyKind::SourceHash { random.u16(..CLIENTS) } else { 0 };
        let mut excluded: Vec<BackendIx> = Vec::new();
        for desperate in [false, false, false, true] {
            let view = PoolView {
                candidates: &candidates,
                cursor: &cursor,
                seed: 5,
                now: Moment(now),
                entropy: random.u64(..),
                excluded: &excluded,
                desperate,
            };
            let Some(pick) = strategy.pick(&view, &flow(client)) else { continue };
            let Candidate { position, cell, ix, .. } = pick.candidate;
            let c = *position == 2;
            if c && FAILING.contains(&second) && random.bool() {
                told.failed += 1;
                cell.failed(Moment(now));
                excluded.push(*ix);
                continue;
            }
            cell.acquire(0);
            cell.connected(Duration::from_micros(300), Moment(now));
            told.picks[second][*position] += 1;
            let usual = if c && SLOW.contains(&second) { ANSWER * 10.0 } else { ANSWER };
            let takes = usual * (0.8 + 0.4 * random.f64());
            if SLOW.contains(&second) {
                (slow, slow_count) = (slow + takes, slow_count + 1);
            }
            open.insert((now + (takes * 1e6) as u64, number), (*position, now));
            number += 1;
            break;
        }
        // Clients come independently of each other.
        let gap = -(1.0 - random.f64()).ln() / RATE;
        now += ((gap * 1e6) as u64).max(1);
    }
    told.slow_mean = slow / f64::from(slow_count.max(1));
    told
}
