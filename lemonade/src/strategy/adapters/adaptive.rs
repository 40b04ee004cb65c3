//! One score of connections, latency and errors.

use lemonade_common::FlowKey;

use crate::model::{Moment, StrategyKind};
use crate::strategy::port::{By, Candidate, Lowering, Pick, PoolView, StrategyService};

use super::two_choices::{self, Standing};

/// Picks the lower score of two random candidates:
/// `score = (live + 1) / weight * sqrt(latency) / (1 - failures)^2`.
///
/// Latency is that of `fastest_response_time`; its square root makes four times the latency weigh as much as twice
/// the connections, so that noise in it does not outweigh load. `failures` is the moving share of failed connects:
/// it divides by the chance of success, so a backend that fails fast, and so has few connections, draws none.
#[derive(Clone, Copy, Debug)]
pub struct Adaptive;

/// Share of failures above which more make no difference; keeps the score finite.
const WORST: f64 = 0.99;

impl StrategyService for Adaptive {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::Adaptive
    }

    fn pick<'a>(&self, view: &PoolView<'a>, _flow: &FlowKey) -> Option<Pick<'a>> {
        two_choices::pick(view, |a, b| {
            let (own, other) = (Standing::of(a, view.now), Standing::of(b, view.now));
            (score(&own, &other, failures(a, view.now)), score(&other, &own, failures(b, view.now)))
        })
    }

    fn cost(&self, candidate: &Candidate, now: Moment) -> Option<f64> {
        let own = Standing::of(candidate, now);
        Some(score(&own, &own, failures(candidate, now)))
    }

    fn lower(&self, view: &PoolView<'_>) -> Lowering {
        let weights = two_choices::weights(view, |candidate, own| {
            let success = 1.0 - failures(candidate, view.now).min(WORST);
            success * success / own.latency(own).sqrt()
        });
        Lowering::Ring { weights, by: By::Flow, measured: true }
    }
}

fn score(own: &Standing, other: &Standing, failures: f64) -> f64 {
    if own.unexplored() && failures == 0.0 {
        return 0.0;
    }
    let success = 1.0 - failures.min(WORST);
    own.load * own.latency(other).sqrt() / (success * success)
}

fn failures(candidate: &Candidate, now: Moment) -> f64 {
    candidate.cell.failure_ratio.read(now)
}
