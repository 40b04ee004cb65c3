//! Lowest latency under load.

use lemonade_common::FlowKey;

use crate::model::{Moment, StrategyKind};
use crate::strategy::port::{By, Candidate, Lowering, Pick, PoolView, StrategyService};

use super::two_choices::{self, Standing};

/// Picks the lower of `latency * (live + 1) / weight` of two random candidates, where latency is the peak-EWMA of
/// the time to connect plus that of the time to the first byte.
///
/// A candidate that was never measured goes first while nothing is under way to it. An average ages from the last
/// sample or pick on, whichever is later, so one that was slow once is tried again, by one connection at a time.
#[derive(Clone, Copy, Debug)]
pub struct FastestResponseTime;

impl StrategyService for FastestResponseTime {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::FastestResponseTime
    }

    fn pick<'a>(&self, view: &PoolView<'a>, _flow: &FlowKey) -> Option<Pick<'a>> {
        two_choices::pick(view, |a, b| {
            let (a, b) = (Standing::of(a, view.now), Standing::of(b, view.now));
            (cost(&a, &b), cost(&b, &a))
        })
    }

    fn cost(&self, candidate: &Candidate, now: Moment) -> Option<f64> {
        let own = Standing::of(candidate, now);
        Some(cost(&own, &own))
    }

    fn lower(&self, view: &PoolView<'_>) -> Lowering {
        let weights = two_choices::weights(view, |_, own| 1.0 / own.latency(own));
        Lowering::Ring { weights, by: By::Flow, measured: true }
    }
}

fn cost(own: &Standing, other: &Standing) -> f64 {
    if own.unexplored() { 0.0 } else { own.latency(other) * own.load }
}
