//! What is right and yet surely not meant.

use crate::model::{Config, Name, Pool, StrategyKind};

/// Notes at most; a configuration may have thousands of pools.
const MOST: usize = 20;

/// Where weights say what the strategy does not heed, a sentence for each pool.
pub fn notes(config: &Config) -> Vec<String> {
    config
        .pools
        .values()
        .filter(|pool| unheeded(pool))
        .map(|pool| unheeded_words(&pool.name))
        .take(MOST)
        .collect()
}

/// That the weights of a pool have no effect.
pub fn unheeded_words(pool: &Name) -> String {
    format!(
        "pool {pool}: round_robin does not go by weight, except that 0 gets no new connections; for shares by weight write strategy = \"weighted_round_robin\""
    )
}

/// Whether a pool has weights that its strategy does not heed.
pub fn unheeded(pool: &Pool) -> bool {
    let mut weights = pool.backends.iter().map(|backend| backend.weight).filter(|weight| *weight > 0);
    let first = weights.next();
    pool.strategy == StrategyKind::RoundRobin && weights.any(|weight| Some(weight) != first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::tests::{backend, config, pool};
    use crate::model::Backend;

    #[test]
    fn only_weights_that_are_meant_and_do_nothing_are_noted() {
        let noted = |strategy, weights: [u32; 2]| {
            let backends = ["a", "b"].into_iter().zip(weights);
            let backends = backends.map(|(name, weight)| Backend { weight, ..backend(name, 1) });
            notes(&config([Pool { strategy, ..pool("web", backends) }], []))
        };
        let found = noted(StrategyKind::RoundRobin, [1, 5]);
        assert!(
            found.len() == 1 && found[0].contains("pool web") && found[0].contains("weighted_round_robin")
        );
        assert!(noted(StrategyKind::RoundRobin, [1, 1]).is_empty());
        assert!(noted(StrategyKind::RoundRobin, [1, 0]).is_empty(), "0 has an effect");
        assert!(noted(StrategyKind::LeastConnections, [1, 5]).is_empty());
    }
}
