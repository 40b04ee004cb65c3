//! What was measured, and what follows from it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::args::Placement;
use super::figures::{Better, Figure};
use super::peers::Peer;

/// Differences below this are noise even when the ranges are apart.
const NOISE: f64 = 0.05;
/// The same with fewer than three rounds.
const NOISE_OF_FEW: f64 = 0.15;

/// All readings of one figure of one peer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cell {
    /// One number per round that worked.
    pub values: Vec<f64>,
    /// Why a round gave no number.
    pub notes: Vec<String>,
}

impl Cell {
    /// Middle of the readings.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let (upper, lower) = (sorted.get(sorted.len() / 2)?, sorted.get((sorted.len() - 1) / 2)?);
        Some(f64::midpoint(*upper, *lower))
    }

    /// Least and greatest reading.
    pub fn range(&self) -> Option<(f64, f64)> {
        let least = self.values.iter().copied().min_by(f64::total_cmp)?;
        let most = self.values.iter().copied().max_by(f64::total_cmp)?;
        Some((least, most))
    }
}

/// How Lemonade compares with the best peer in the same run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The best peer that is a process.
    pub best: Peer,
    /// Lemonade's median over the best peer's; nothing when that is 0.
    pub ratio: Option<f64>,
    /// Which way it goes.
    pub outcome: Comparison,
}

/// Which way a comparison goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Comparison {
    /// Better than the best peer, outside the noise.
    Win,
    /// Within the noise.
    Tie,
    /// Worse than the best peer, outside the noise.
    Loss,
}

/// Readings by figure, placement and peer.
#[derive(Clone, Debug, Default)]
pub struct Results {
    cells: BTreeMap<(&'static str, Placement, Peer), Cell>,
    /// The scale rows: title and value in words.
    pub scale: Vec<(String, String)>,
}

impl Results {
    /// Adds a number.
    pub fn add(&mut self, id: &'static str, placement: Placement, peer: Peer, value: f64) {
        self.cells.entry((id, placement, peer)).or_default().values.push(value);
    }

    /// Adds the reason why there is no number.
    pub fn note(&mut self, id: &'static str, placement: Placement, peer: Peer, why: &str) {
        self.cells.entry((id, placement, peer)).or_default().notes.push(why.to_owned());
    }

    /// Returns what was read.
    pub fn cell(&self, id: &'static str, placement: Placement, peer: Peer) -> Option<&Cell> {
        self.cells.get(&(id, placement, peer))
    }

    /// Compares Lemonade with the best other process; kernel planes are references, not peers.
    pub fn verdict(&self, figure: &Figure, placement: Placement) -> Option<Verdict> {
        let ours = self.cell(figure.id, placement, Peer::Lemonade)?;
        let (best, theirs) = Peer::ALL
            .into_iter()
            .filter(|peer| peer.is_process() && !peer.is_own())
            .filter_map(|peer| Some((peer, self.cell(figure.id, placement, peer)?)))
            .filter(|(_, cell)| cell.median().is_some())
            .min_by(|(_, a), (_, b)| {
                let ascending = a.median().partial_cmp(&b.median()).unwrap_or(std::cmp::Ordering::Equal);
                if figure.better == Better::Lower { ascending } else { ascending.reverse() }
            })?;
        let (our, their) = (ours.median()?, theirs.median()?);
        let ratio = (their != 0.0).then(|| our / their);
        Some(Verdict { best, ratio, outcome: compare(figure, ours, theirs)? })
    }
}

/// Decides whether two cells differ by more than the noise of the run.
pub fn compare(figure: &Figure, ours: &Cell, theirs: &Cell) -> Option<Comparison> {
    let (our, their) = (ours.median()?, theirs.median()?);
    let ((our_least, our_most), (their_least, their_most)) = (ours.range()?, theirs.range()?);
    let overlap = our_least <= their_most && their_least <= our_most;
    let few = ours.values.len().min(theirs.values.len()) < 3;
    let share = if few { NOISE_OF_FEW } else { NOISE };
    let noise = (their.abs() * share).max(figure.grain);
    if overlap || (our - their).abs() <= noise {
        return Some(Comparison::Tie);
    }
    let ahead = if figure.better == Better::Higher { our > their } else { our < their };
    Some(if ahead { Comparison::Win } else { Comparison::Loss })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::by_id;

    fn cell(values: &[f64]) -> Cell {
        Cell { values: values.to_vec(), notes: Vec::new() }
    }

    #[track_caller]
    fn check(id: &str, ours: &[f64], theirs: &[f64], expected: Comparison) {
        let figure = by_id(id).expect("a known figure");
        assert_eq!(compare(figure, &cell(ours), &cell(theirs)), Some(expected));
    }

    #[test]
    fn ranges_that_overlap_are_a_tie() {
        check("small.rate", &[60.0, 70.0, 80.0], &[78.0, 90.0, 95.0], Comparison::Tie);
    }

    #[test]
    fn direction_decides_who_wins() {
        check("small.rate", &[90.0, 91.0, 92.0], &[60.0, 61.0, 62.0], Comparison::Win);
        check("small.cpu", &[90.0, 91.0, 92.0], &[60.0, 61.0, 62.0], Comparison::Loss);
    }

    #[test]
    fn one_round_needs_a_larger_difference() {
        check("small.rate", &[100.0], &[110.0], Comparison::Tie);
        check("small.rate", &[100.0, 100.0, 100.0], &[110.0, 110.0, 110.0], Comparison::Loss);
    }

    #[test]
    fn a_failure_beside_none_is_a_loss_without_a_ratio() {
        let mut results = Results::default();
        let figure = by_id("silent.failed").expect("a known figure");
        for _ in 0..3 {
            results.add(figure.id, Placement::Pinned, Peer::Lemonade, 4.0);
            results.add(figure.id, Placement::Pinned, Peer::Nginx, 0.0);
            results.add(figure.id, Placement::Pinned, Peer::Envoy, 60.0);
            results.add(figure.id, Placement::Pinned, Peer::Nft, 0.0);
        }
        let verdict = results.verdict(figure, Placement::Pinned).expect("both have readings");
        assert_eq!(verdict, Verdict { best: Peer::Nginx, ratio: None, outcome: Comparison::Loss });
    }
}
