//! How a backend is picked: the port, and the strategies.

pub mod adapters;
pub mod maglev;
pub mod port;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::model::StrategyKind;

use adapters::{Adaptive, FastestResponseTime, LeastConnections, RoundRobin, SourceHash, WeightedRoundRobin};
use port::{Candidate, StrategyService};

/// Makes the strategy `kind` for `candidates`; a pick must be given the same slice.
pub fn build(kind: StrategyKind, candidates: &[Candidate]) -> Arc<dyn StrategyService> {
    match kind {
        StrategyKind::RoundRobin => Arc::new(RoundRobin),
        StrategyKind::WeightedRoundRobin => Arc::new(WeightedRoundRobin::new(candidates)),
        StrategyKind::LeastConnections => Arc::new(LeastConnections),
        StrategyKind::FastestResponseTime => Arc::new(FastestResponseTime),
        StrategyKind::Adaptive => Arc::new(Adaptive),
        StrategyKind::SourceHash => Arc::new(SourceHash::new(candidates)),
    }
}
