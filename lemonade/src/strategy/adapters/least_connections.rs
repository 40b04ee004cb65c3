//! Fewest connections per weight.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::sync::atomic::Ordering;

use lemonade_common::FlowKey;

use crate::model::{Moment, StrategyKind};
use crate::strategy::port::{Basis, Candidate, Lowering, Pick, PoolView, StrategyService};

/// Picks the lowest `(live + 1) / weight`, connects in flight included; a candidate without connections comes first.
///
/// This is "never queue" of Linux' IPVS. Equals rotate; equals of different weight share in proportion to it.
/// A pick looks at every candidate.
#[derive(Clone, Copy, Debug)]
pub struct LeastConnections;

/// Those that share the lowest load, as found by one pass.
#[derive(Clone, Copy)]
struct Lowest<'a> {
    load: Load,
    first: &'a Candidate,
    count: u64,
    weight: u64,
    alike: bool,
}

impl StrategyService for LeastConnections {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::LeastConnections
    }

    fn pick<'a>(&self, view: &PoolView<'a>, _flow: &FlowKey) -> Option<Pick<'a>> {
        let mut lowest: Option<Lowest<'a>> = None;
        for candidate in view.candidates.iter().filter(|candidate| view.eligible(candidate)) {
            let load = Load::of(candidate);
            let Some(best) = &mut lowest else {
                lowest = Some(Lowest::new(load, candidate));
                continue;
            };
            match load.compare(best.load) {
                Less => *best = Lowest::new(load, candidate),
                Equal => best.admit(candidate),
                Greater => {}
            }
        }
        let lowest = lowest?;
        let turn = view.cursor.fetch_add(1, Ordering::Relaxed);
        let basis = Basis::Lowest { load: lowest.load.per_weight() as f32, equals: lowest.count as u32 };
        if lowest.count == 1 {
            return Some(Pick { candidate: lowest.first, basis });
        }
        let mut skip = lowest.offset(turn);
        let equal = view.candidates.iter().find(|candidate| {
            if !view.eligible(candidate) || Load::of(candidate).compare(lowest.load) != Equal {
                return false;
            }
            let width = if lowest.alike { 1 } else { u64::from(candidate.weight) };
            let found = skip < width;
            skip = skip.saturating_sub(width);
            found
        });
        // Loads may have changed since the first pass; its first find is still a good one.
        equal.or(Some(lowest.first)).map(|candidate| Pick { candidate, basis })
    }

    fn cost(&self, candidate: &Candidate, _now: Moment) -> Option<f64> {
        Some(Load::of(candidate).per_weight())
    }

    fn lower(&self, _view: &PoolView<'_>) -> Lowering {
        Lowering::NotOffloadable(
            "least_connections compares the connections of this moment, and a ring has none",
        )
    }
}

impl<'a> Lowest<'a> {
    fn new(load: Load, candidate: &'a Candidate) -> Self {
        Self { load, first: candidate, count: 1, weight: u64::from(candidate.weight), alike: true }
    }

    fn admit(&mut self, candidate: &Candidate) {
        self.count += 1;
        self.weight += u64::from(candidate.weight);
        self.alike &= candidate.weight == self.first.weight;
    }

    /// Where turn `turn` falls among equals: strict turns if they weigh the same, else points of a Weyl sequence
    /// (multiples of the golden ratio), which spread evenly over the weights without a schedule.
    fn offset(&self, turn: u64) -> u64 {
        if self.alike {
            return turn % self.count;
        }
        let point = u128::from(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        ((point * u128::from(self.weight)) >> 64) as u64
    }
}

/// Connections per weight, compared without division.
#[derive(Clone, Copy)]
struct Load {
    connections: u64,
    weight: u64,
}

impl Load {
    fn of(candidate: &Candidate) -> Self {
        let live = u64::from(candidate.cell.live.load(Ordering::Relaxed));
        let connections = if live == 0 { 0 } else { live + 1 };
        Self { connections, weight: u64::from(candidate.weight) }
    }

    fn per_weight(self) -> f64 {
        self.connections as f64 / self.weight as f64
    }

    fn compare(self, other: Self) -> std::cmp::Ordering {
        (self.connections * other.weight).cmp(&(other.connections * self.weight))
    }
}
