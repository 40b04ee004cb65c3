//! Turns in proportion to weight, evenly spaced.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;

use lemonade_common::FlowKey;
use lemonade_common::hash::mix;

use crate::model::StrategyKind;
use crate::strategy::port::{Basis, By, Candidate, Lowering, Pick, PoolView, StrategyService};

/// Turns in a cycle above which weights are scaled down.
const LONGEST_CYCLE: u64 = 65_536;

/// Redraws before an ineligible turn is settled by a scan.
const REDRAWS: u64 = 8;

/// Gives every candidate exactly its weight in turns within one cycle, as evenly spaced as whole turns allow.
///
/// Weights are divided by their greatest common divisor; their sum `W` is the cycle. The `k`-th turn of a candidate of
/// weight `w` may not come before slot `floor(k W / w)` and must come before `ceil((k + 1) W / w)`; each slot goes to the
/// turn with the earliest such end. So after any number of picks nobody is a whole turn away from its exact share.
/// A sum of weights above 65,536 is scaled to it by largest remainder, with at least one turn each.
/// An ineligible turn is given to an evenly drawn turn of the schedule, which keeps the proportions of the rest.
#[derive(Clone, Debug)]
pub struct WeightedRoundRobin {
    schedule: Box<[u32]>,
}

impl WeightedRoundRobin {
    /// Lays out the schedule of `candidates`.
    pub fn new(candidates: &[Candidate]) -> Self {
        let turns = turns(candidates);
        let cycle: u64 = turns.iter().sum();
        let mut windows = Vec::with_capacity(cycle as usize);
        for (position, &weight) in (0_u32..).zip(&turns) {
            windows.extend((0..weight).map(|k| {
                let end = ((k + 1) * cycle).div_ceil(weight);
                (k * cycle / weight, Reverse((end, position)))
            }));
        }
        windows.sort_unstable_by_key(|&(begin, _)| begin);
        let mut windows = windows.into_iter().peekable();
        let mut open = BinaryHeap::new();
        let mut schedule = Vec::with_capacity(cycle as usize);
        for slot in 0..cycle {
            while let Some((_, turn)) = windows.next_if(|&(begin, _)| begin <= slot) {
                open.push(turn);
            }
            schedule.extend(open.pop().map(|Reverse((_, position))| position));
        }
        Self { schedule: schedule.into() }
    }

    fn at(&self, turn: u64) -> usize {
        self.schedule[(turn % self.schedule.len() as u64) as usize] as usize
    }
}

impl StrategyService for WeightedRoundRobin {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::WeightedRoundRobin
    }

    fn pick<'a>(&self, view: &PoolView<'a>, _flow: &FlowKey) -> Option<Pick<'a>> {
        let candidates = view.candidates;
        if self.schedule.is_empty() {
            return None;
        }
        let turn = view.cursor.fetch_add(1, Ordering::Relaxed);
        let eligible =
            |position: usize| candidates.get(position).filter(|candidate| view.eligible(candidate));
        let redrawn = |redraw: u64| self.at(mix(turn.wrapping_mul(REDRAWS).wrapping_add(redraw)));
        let start = redrawn(0);
        if let Some(candidate) = eligible(self.at(turn)) {
            return Some(Pick { candidate, basis: Basis::Turn(turn) });
        }
        let other = (0..REDRAWS)
            .find_map(|redraw| eligible(redrawn(redraw)))
            .or_else(|| (start..candidates.len()).chain(0..start).find_map(eligible));
        other.map(|candidate| Pick { candidate, basis: Basis::Passed(turn) })
    }

    fn lower(&self, view: &PoolView<'_>) -> Lowering {
        let weights = view.candidates.iter().map(|candidate| candidate.weight).collect();
        Lowering::Ring { weights, by: By::Flow, measured: false }
    }
}

/// Turns per cycle of each candidate.
fn turns(candidates: &[Candidate]) -> Vec<u64> {
    let divisor = candidates.iter().fold(0, |divisor, candidate| gcd(divisor, u64::from(candidate.weight)));
    let weights: Vec<u64> =
        candidates.iter().map(|candidate| u64::from(candidate.weight) / divisor.max(1)).collect();
    let total: u64 = weights.iter().sum();
    if total <= LONGEST_CYCLE {
        return weights;
    }
    let share = |weight: u64| u128::from(weight) * u128::from(LONGEST_CYCLE);
    let mut turns: Vec<u64> =
        weights.iter().map(|&weight| (share(weight) / u128::from(total)) as u64).collect();
    let left = LONGEST_CYCLE - turns.iter().sum::<u64>();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|&i| Reverse(share(weights[i]) % u128::from(total)));
    for &i in by_remainder.iter().take(left as usize) {
        turns[i] += 1;
    }
    turns.iter_mut().for_each(|turns| *turns = (*turns).max(1));
    turns
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
