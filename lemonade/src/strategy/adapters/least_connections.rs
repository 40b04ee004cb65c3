//! Fewest connections per weight.

use std::cmp::Ordering::Equal;
use std::sync::atomic::Ordering;

use lemonade_common::FlowKey;
use lemonade_common::least::{Burden, Lowest};

use crate::model::{Moment, StrategyKind};
use crate::strategy::port::{Basis, By, Candidate, Lowering, Pick, PoolView, StrategyService};

/// Picks the lowest `(live + 1) / weight`, connects in flight included; a candidate without connections comes first.
///
/// This is "never queue" of Linux' IPVS. Equals rotate; equals of different weight share in proportion to it.
/// A pick looks at every candidate.
#[derive(Clone, Copy, Debug)]
pub struct LeastConnections;

impl StrategyService for LeastConnections {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::LeastConnections
    }

    fn pick<'a>(&self, view: &PoolView<'a>, _flow: &FlowKey) -> Option<Pick<'a>> {
        let (mut lowest, mut first) = (Lowest::default(), None);
        for candidate in view.candidates.iter().filter(|candidate| view.eligible(candidate)) {
            if lowest.see(burden(candidate), candidate.weight) {
                first = Some(candidate);
            }
        }
        let first = first?;
        let turn = view.cursor.fetch_add(1, Ordering::Relaxed);
        let basis = Basis::Lowest { load: lowest.burden.per_weight() as f32, equals: lowest.count };
        if lowest.count == 1 {
            return Some(Pick { candidate: first, basis });
        }
        let mut skip = lowest.offset(turn);
        let equal = view.candidates.iter().find(|candidate| {
            if !view.eligible(candidate) || burden(candidate).compare(lowest.burden) != Equal {
                return false;
            }
            let width = lowest.width(candidate.weight);
            let found = skip < width;
            skip = skip.saturating_sub(width);
            found
        });
        // Loads may have changed since the first pass; its first find is still a good one.
        equal.or(Some(first)).map(|candidate| Pick { candidate, basis })
    }

    fn cost(&self, candidate: &Candidate, _now: Moment) -> Option<f64> {
        Some(burden(candidate).per_weight())
    }

    fn lower(&self, view: &PoolView<'_>) -> Lowering {
        let weights = view.candidates.iter().map(|candidate| candidate.weight).collect();
        Lowering::Ring { weights, by: By::Connections, measured: false }
    }
}

fn burden(candidate: &Candidate) -> Burden {
    Burden::of(candidate.cell.live.load(Ordering::Relaxed), candidate.weight)
}
