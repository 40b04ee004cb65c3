//! Strict turns.

use std::sync::atomic::Ordering;

use lemonade_common::FlowKey;

use crate::model::StrategyKind;
use crate::strategy::port::{Basis, By, Lowering, Pick, PoolView, StrategyService};

/// Gives every candidate the same number of turns, whatever its weight.
///
/// A turn that falls to an ineligible candidate goes to the eligible ones in turn, not to its neighbour,
/// so shares stay equal; turns of eligible candidates cost no scan.
#[derive(Clone, Copy, Debug)]
pub struct RoundRobin;

impl StrategyService for RoundRobin {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::RoundRobin
    }

    fn pick<'a>(&self, view: &PoolView<'a>, _flow: &FlowKey) -> Option<Pick<'a>> {
        let candidates = view.candidates;
        if candidates.is_empty() {
            return None;
        }
        let turn = view.cursor.fetch_add(1, Ordering::Relaxed);
        let len = candidates.len() as u64;
        let position = (turn % len) as usize;
        if view.eligible(&candidates[position]) {
            return Some(Pick { candidate: &candidates[position], basis: Basis::Turn(turn) });
        }
        let eligible = candidates.iter().filter(|candidate| view.eligible(candidate));
        let open = eligible.clone().count() as u64;
        if open == 0 {
            return None;
        }
        let before = candidates[..position].iter().filter(|candidate| !view.eligible(candidate)).count();
        let skipped = (turn / len).wrapping_mul(len - open.min(len)).wrapping_add(before as u64);
        // Eligibility may change between the two passes; then any eligible candidate will do.
        let found = eligible.clone().nth((skipped % open) as usize).or_else(|| eligible.clone().next());
        found.map(|candidate| Pick {
            candidate,
            basis: if open == 1 { Basis::Only } else { Basis::Passed(turn) },
        })
    }

    fn lower(&self, view: &PoolView<'_>) -> Lowering {
        Lowering::Ring { weights: vec![1; view.candidates.len()], by: By::Flow, measured: false }
    }
}
