use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lemonade_common::hash::mix;
use lemonade_common::{BackendIx, FlowKey};
use proptest::collection::vec;
use proptest::prelude::*;

use super::build;
use super::port::{Candidate, PoolView, StrategyService};
use crate::model::{BackendCell, Moment, StrategyKind};

mod latency;

const KINDS: [StrategyKind; 5] = [
    StrategyKind::RoundRobin,
    StrategyKind::WeightedRoundRobin,
    StrategyKind::LeastConnections,
    StrategyKind::FastestResponseTime,
    StrategyKind::Adaptive,
];

/// A pool as a worker sees it, with a clock and a source of entropy that tests turn.
struct Bench {
    candidates: Vec<Candidate>,
    strategy: Arc<dyn StrategyService>,
    cursor: AtomicU64,
    now: Moment,
    entropy: u64,
    excluded: Vec<BackendIx>,
}

impl Bench {
    fn new(kind: StrategyKind, weights: &[u32]) -> Self {
        let candidates: Vec<Candidate> = weights
            .iter()
            .enumerate()
            .map(|(position, &weight)| Candidate {
                ix: BackendIx(100 + position as u32),
                identity: format!("pool/{position}").into(),
                position,
                weight,
                max_connections: 0,
                cell: Arc::new(BackendCell::default()),
            })
            .collect();
        let strategy = build(kind, &candidates);
        Self {
            candidates,
            strategy,
            cursor: AtomicU64::new(0),
            now: Moment(1_000_000),
            entropy: 1,
            excluded: Vec::new(),
        }
    }

    fn cell(&self, position: usize) -> &BackendCell {
        &self.candidates[position].cell
    }

    fn measured(self, connect: &[u64], first_byte: &[u64]) -> Self {
        for (position, (&connect, &first_byte)) in connect.iter().zip(first_byte).enumerate() {
            self.cell(position).connect.observe(Duration::from_micros(connect), self.now);
            self.cell(position).first_byte.observe(Duration::from_micros(first_byte), self.now);
        }
        self
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    /// Position of the next pick.
    fn pick(&mut self) -> Option<usize> {
        self.entropy = mix(self.entropy);
        let view = PoolView {
            candidates: &self.candidates,
            cursor: &self.cursor,
            now: self.now,
            entropy: self.entropy,
            seed: 0,
            excluded: &self.excluded,
            desperate: false,
        };
        let flow = FlowKey::tcp(([198, 51, 100, 7], 5000).into(), ([192, 0, 2, 1], 80).into());
        self.strategy.pick(&view, &flow).map(|pick| pick.candidate.position)
    }

    /// Picks that open a connection and leave it open.
    fn hold(&mut self) -> Option<usize> {
        let position = self.pick()?;
        self.cell(position).acquire(0);
        Some(position)
    }

    fn picks(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.pick().expect("one is eligible")).collect()
    }

    fn counts(&mut self, picks: usize) -> Vec<usize> {
        let mut counts = vec![0; self.candidates.len()];
        self.picks(picks).into_iter().for_each(|position| counts[position] += 1);
        counts
    }
}

fn kinds() -> impl Strategy<Value = StrategyKind> {
    proptest::sample::select(&KINDS[..])
}

/// Longest run of one position in an endlessly repeated cycle.
fn longest_run(cycle: &[usize]) -> usize {
    let mut longest = 0;
    let mut run = 0;
    for i in 0..2 * cycle.len() {
        let again = i > 0 && cycle[(i - 1) % cycle.len()] == cycle[i % cycle.len()];
        run = if again { run + 1 } else { 1 };
        longest = longest.max(run);
    }
    longest.min(cycle.len())
}

/// Largest distance, in turns, of anyone's turns so far from its exact share, over all beginnings of `cycle`.
fn worst_error(cycle: &[usize], weights: &[u32]) -> f64 {
    let mut taken = vec![0.0; weights.len()];
    let mut worst = 0.0_f64;
    for (slot, &position) in (1_u32..).zip(cycle) {
        taken[position] += 1.0;
        for (taken, &weight) in taken.iter().zip(weights) {
            worst = worst.max((taken - f64::from(slot * weight) / cycle.len() as f64).abs());
        }
    }
    worst
}

/// nginx's smooth weighted round robin over one cycle, as its documentation describes it.
fn nginx_cycle(weights: &[u32]) -> Vec<usize> {
    let total: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
    let mut current = vec![0_i64; weights.len()];
    (0..total)
        .map(|_| {
            for (current, &weight) in current.iter_mut().zip(weights) {
                *current += i64::from(weight);
            }
            let best = (0..weights.len()).rev().max_by_key(|&i| current[i]).expect("there are weights");
            current[best] -= total;
            best
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What makes one candidate eligible or not.
#[derive(Clone, Debug)]
struct Trouble {
    closed: bool,
    full: bool,
    backing_off: bool,
    excluded: bool,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let rarely = || proptest::bool::weighted(0.2);
    (rarely(), rarely(), rarely(), rarely()).prop_map(|(closed, full, backing_off, excluded)| Trouble {
        closed,
        full,
        backing_off,
        excluded,
    })
}

proptest! {
    #[test]
    fn only_eligible_candidates_are_picked_and_none_only_if_there_is_none(
        kind in kinds(),
        backends in vec((1_u32..20, 0_u32..5, trouble()), 0..8),
        cursor in any::<u64>(),
        entropy in any::<u64>(),
    ) {
        let weights: Vec<u32> = backends.iter().map(|backend| backend.0).collect();
        let mut bench = Bench::new(kind, &weights);
        bench.cursor = AtomicU64::new(cursor);
        bench.entropy = entropy;
        let mut eligible = Vec::new();
        for (position, (_, live, trouble)) in backends.iter().enumerate() {
            let cell = bench.cell(position);
            cell.live.store(*live, Ordering::Relaxed);
            cell.closed.store(trouble.closed, Ordering::Relaxed);
            if trouble.backing_off {
                cell.failed(bench.now);
            }
            if trouble.excluded {
                bench.excluded.push(bench.candidates[position].ix);
            }
            bench.candidates[position].max_connections = if trouble.full { *live } else { live + 1 };
            let full = trouble.full && *live > 0;
            if !(trouble.closed || full || trouble.backing_off || trouble.excluded) {
                eligible.push(position);
            }
        }
        for _ in 0..20 {
            match bench.pick() {
                Some(position) => prop_assert!(eligible.contains(&position)),
                None => prop_assert!(eligible.is_empty()),
            }
        }
    }

    #[test]
    fn equal_inputs_give_equal_picks(kind in kinds(), weights in vec(1_u32..20, 1..8), entropy in any::<u64>()) {
        let picks = || {
            let mut bench = Bench::new(kind, &weights);
            bench.entropy = entropy;
            (0..50).map(|_| bench.hold()).collect::<Vec<_>>()
        };
        prop_assert_eq!(picks(), picks());
    }

    #[test]
    fn round_robin_gives_exact_turns_whatever_the_weights(weights in vec(1_u32..20, 1..12), start in any::<u32>()) {
        let mut bench = Bench::new(StrategyKind::RoundRobin, &weights);
        bench.cursor = AtomicU64::new(u64::from(start));
        for _ in 0..5 {
            let mut cycle = bench.picks(weights.len());
            cycle.sort_unstable();
            prop_assert_eq!(cycle, (0..weights.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn round_robin_shares_the_turns_of_the_ineligible_equally(closed in vec(any::<bool>(), 2..12)) {
        let mut bench = Bench::new(StrategyKind::RoundRobin, &vec![1; closed.len()]);
        for (position, &closed) in closed.iter().enumerate() {
            bench.cell(position).closed.store(closed, Ordering::Relaxed);
        }
        let open = closed.iter().filter(|&&closed| !closed).count();
        prop_assume!(open > 0);
        let counts = bench.counts(closed.len() * open);
        for (position, &closed) in closed.iter().enumerate() {
            prop_assert_eq!(counts[position], if closed { 0 } else { counts.len() });
        }
    }

    #[test]
    fn weighted_round_robin_is_exact_in_each_cycle_and_as_smooth_as_nginx(weights in vec(1_u32..30, 1..8)) {
        let divisor = weights.iter().copied().fold(0, gcd);
        let reduced: Vec<u32> = weights.iter().map(|weight| weight / divisor).collect();
        let total: u32 = reduced.iter().sum();
        let mut bench = Bench::new(StrategyKind::WeightedRoundRobin, &weights);
        let cycle = bench.picks(total as usize);
        prop_assert_eq!(&cycle, &bench.picks(total as usize), "cycles are alike");
        for (position, &weight) in reduced.iter().enumerate() {
            let turns = cycle.iter().filter(|&&turn| turn == position).count();
            prop_assert_eq!(turns, weight as usize);
        }
        let nginx = nginx_cycle(&reduced);
        prop_assert!(worst_error(&cycle, &reduced) < 1.0, "nobody is ever a whole turn ahead or behind");
        prop_assert!(longest_run(&cycle) <= longest_run(&nginx) + 1);
    }

    #[test]
    fn least_connections_keeps_load_in_proportion_to_weight(weights in vec(1_u32..10, 1..8), rounds in 1_usize..20) {
        let mut bench = Bench::new(StrategyKind::LeastConnections, &weights);
        let total: u32 = weights.iter().sum();
        for _ in 0..total as usize * rounds {
            bench.hold();
        }
        for (position, &weight) in weights.iter().enumerate() {
            let live = bench.cell(position).live.load(Ordering::Relaxed);
            let fair = weight * rounds as u32;
            prop_assert!(live.abs_diff(fair) <= 1 + weights.len() as u32, "{live} for a fair {fair}");
        }
    }

    #[test]
    fn nobody_starves(
        kind in kinds(),
        backends in vec((1_u32..5, 100_u64..50_000), 1..6),
        entropy in any::<u64>(),
    ) {
        let weights: Vec<u32> = backends.iter().map(|backend| backend.0).collect();
        let latencies: Vec<u64> = backends.iter().map(|backend| backend.1).collect();
        let mut bench = Bench::new(kind, &weights);
        bench.entropy = entropy;
        let mut seen = vec![0; weights.len()];
        // One connection at a time, ten a second, for two minutes: the least load there is to share.
        for _ in 0..1200 {
            let position = bench.pick().expect("all are eligible");
            seen[position] += 1;
            let latency = Duration::from_micros(latencies[position]);
            bench.cell(position).connected(latency / 10, bench.now);
            bench.cell(position).first_byte.observe(latency, bench.now);
            bench.wait(Duration::from_millis(100));
        }
        prop_assert!(seen.iter().all(|&seen| seen > 0), "{seen:?}");
    }
}

#[test]
fn weighted_round_robin_spaces_turns_evenly() {
    let cycle = |weights: &[u32]| {
        let total: u32 = weights.iter().sum();
        Bench::new(StrategyKind::WeightedRoundRobin, weights).picks(total as usize)
    };
    assert_eq!(cycle(&[1, 1, 1]), [0, 1, 2]);
    assert_eq!(cycle(&[5, 1, 1]), [0, 0, 0, 1, 0, 0, 2]);
    assert_eq!(cycle(&[2, 2]), [0, 1, 0, 1]);
}

#[test]
fn huge_weights_share_a_bounded_cycle() {
    let weights = [u32::MAX, u32::MAX / 3, 1, 1_000_003];
    let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let mut bench = Bench::new(StrategyKind::WeightedRoundRobin, &weights);
    let counts = bench.counts(65_537);
    for (&count, weight) in counts.iter().zip(weights) {
        let fair = f64::from(weight) / total * 65_536.0;
        assert!(count > 0 && (count as f64 - fair).abs() <= 2.0, "{count} for a fair {fair}");
    }
}

#[test]
fn weighted_round_robin_shares_the_turns_of_the_ineligible_by_weight() {
    let mut bench = Bench::new(StrategyKind::WeightedRoundRobin, &[4, 3, 1]);
    bench.cell(0).closed.store(true, Ordering::Relaxed);
    let counts = bench.counts(8000);
    assert!(counts[0] == 0 && (5900..6100).contains(&counts[1]), "{counts:?}");
}

#[test]
fn least_connections_counts_connects_in_flight_and_rotates_equals() {
    let mut bench = Bench::new(StrategyKind::LeastConnections, &[1, 1, 1]);
    assert_eq!(bench.picks(6), [0, 1, 2, 0, 1, 2]);
    bench.cell(0).acquire(0);
    bench.cell(0).connecting.fetch_add(1, Ordering::Relaxed);
    assert_eq!(bench.picks(4), [1, 2, 1, 2]);
}

#[test]
fn idle_backends_share_by_weight() {
    let mut bench = Bench::new(StrategyKind::LeastConnections, &[3, 1]);
    let counts = bench.counts(400);
    assert!((295..=305).contains(&counts[0]), "{counts:?}");
}

#[test]
fn a_limit_is_the_backends_own_and_not_the_pools() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, &[1, 1]);
        bench.candidates[0].max_connections = 3;
        bench.cell(0).live.store(3, Ordering::Relaxed);
        bench.cell(1).live.store(1000, Ordering::Relaxed);
        assert_eq!(bench.picks(20), [1; 20], "{kind:?}");
        bench.cell(0).release();
        assert!(bench.picks(20).contains(&0), "{kind:?} sees the slot that came free");
    }
}

/// Position that a client of this number gets by its address.
fn of_source(bench: &Bench, client: u32, port: u16) -> Option<usize> {
    let view = PoolView {
        candidates: &bench.candidates,
        cursor: &bench.cursor,
        now: bench.now,
        entropy: 0,
        seed: 7,
        excluded: &bench.excluded,
        desperate: false,
    };
    let flow = FlowKey::tcp((client.to_be_bytes(), port).into(), ([192, 0, 2, 1], 80).into());
    bench.strategy.pick(&view, &flow).map(|pick| pick.candidate.position)
}

#[test]
fn a_source_keeps_its_backend_and_moves_only_when_that_one_is_out() {
    let mut bench = Bench::new(StrategyKind::SourceHash, &[1, 1, 2]);
    let before: Vec<_> =
        (0..4_000).map(|client| of_source(&bench, client, 1).expect("one is eligible")).collect();
    let again: Vec<_> =
        (0..4_000).map(|client| of_source(&bench, client, 2).expect("one is eligible")).collect();
    assert_eq!(before, again, "whatever its port");
    let share = before.iter().filter(|position| **position == 2).count();
    assert!((1_850..2_150).contains(&share), "half of 4000 are due to weight 2 of 4: {share}");
    bench.excluded = vec![bench.candidates[0].ix];
    for (client, was) in before.iter().enumerate() {
        let now = of_source(&bench, client as u32, 1).expect("two are eligible");
        assert!(now != 0 && (*was == 0 || now == *was), "client {client} went from {was} to {now}");
    }
    bench.excluded = bench.candidates.iter().map(|candidate| candidate.ix).collect();
    assert_eq!(of_source(&bench, 1, 1), None);
    assert_eq!(of_source(&Bench::new(StrategyKind::SourceHash, &[]), 1, 1), None);
}
