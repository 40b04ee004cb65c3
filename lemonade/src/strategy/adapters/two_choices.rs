//! Power of two choices: the better of two random candidates is nearly as good as the best of all, and does not herd
//! (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 1996).

use std::sync::atomic::Ordering;

use lemonade_common::hash::mix;

use crate::model::Moment;
use crate::strategy::port::{Basis, Candidate, Pick, PoolView};

/// Picks the cheaper of two random eligible candidates; the first of two equals, and the only one if there is one.
pub(super) fn pick<'a>(
    view: &PoolView<'a>,
    costs: impl Fn(&Candidate, &Candidate) -> (f64, f64),
) -> Option<Pick<'a>> {
    let (first, second) = two(view)?;
    let picked = match second {
        Some(second) => {
            let (a, b) = costs(first, second);
            let (candidate, cost, rival, rival_cost) =
                if b < a { (second, b, first, a) } else { (first, a, second, b) };
            let (cost, rival_cost) = (cost as f32, rival_cost as f32);
            Pick { candidate, basis: Basis::Cheaper { cost, rival: rival.position as u32, rival_cost } }
        }
        None => Pick { candidate: first, basis: Basis::Only },
    };
    picked.candidate.cell.tried_at.store(view.now.0, Ordering::Relaxed);
    Some(picked)
}

/// Two different eligible candidates in random order; one if there is one.
fn two<'a>(view: &PoolView<'a>) -> Option<(&'a Candidate, Option<&'a Candidate>)> {
    let candidates = view.candidates;
    let (i, j) = draw(view.entropy, candidates.len());
    let (first, second) = (candidates.get(i)?, candidates.get(j));
    let both = view.eligible(first) && second.is_some_and(|second| view.eligible(second));
    if both {
        return Some((first, second));
    }
    let mut eligible = candidates.iter().filter(|candidate| view.eligible(candidate));
    let (i, j) = draw(view.entropy, eligible.clone().count());
    let (low, high) = (i.min(j), i.max(j));
    // Eligibility may change between the passes, so either may be missing.
    let low = eligible.by_ref().nth(low)?;
    let high = eligible.nth(high.saturating_sub(i.min(j) + 1));
    match high {
        Some(high) if j < i => Some((high, Some(low))),
        high => Some((low, high)),
    }
}

/// Two different indices below `len`, each ordered pair equally likely; the second is `len` when there is only one.
fn draw(entropy: u64, len: usize) -> (usize, usize) {
    if len < 2 {
        return (0, len);
    }
    let below = |bits: u64, len: usize| ((u128::from(bits) * len as u128) >> 64) as usize;
    let first = below(mix(entropy), len);
    let second = below(mix(!entropy), len - 1);
    (first, if second >= first { second + 1 } else { second })
}

/// Steps of worth below the most that weights tell apart, half an octave each.
const MOST: f64 = 64.0;

/// Shares of a ring: weights times what candidates are worth beside the best, in steps of half an octave, so that
/// between two looks most stay what they are and few rings are filled.
pub(super) fn weights(view: &PoolView<'_>, worth: impl Fn(&Candidate, &Standing) -> f64) -> Vec<u32> {
    let known: Vec<Standing> =
        view.candidates.iter().map(|candidate| Standing::of(candidate, view.now)).collect();
    // Who was never measured is taken to be as one who was.
    let connect = known.iter().find_map(|own| own.connect);
    let first_byte = known.iter().find_map(|own| own.first_byte);
    let worths: Vec<f64> = view
        .candidates
        .iter()
        .zip(known)
        .map(|(candidate, own)| {
            let supposed = Standing {
                connect: own.connect.or(connect),
                first_byte: own.first_byte.or(first_byte),
                ..own
            };
            worth(candidate, &supposed)
        })
        .collect();
    let most = worths.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let share = |(candidate, worth): (&Candidate, f64)| {
        let octaves = (2.0 * (worth / most).max(1.0 / MOST).log2()).round() / 2.0;
        (f64::from(candidate.weight) * MOST * octaves.exp2()).round() as u32
    };
    view.candidates.iter().zip(worths).map(share).map(|share| share.max(1)).collect()
}

/// What is known of a candidate's speed and load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    connect: Option<f64>,
    first_byte: Option<f64>,
    /// `(live + 1) / weight`
    pub(super) load: f64,
    idle: bool,
}

impl Standing {
    /// Reads the cell of `candidate`.
    pub(super) fn of(candidate: &Candidate, now: Moment) -> Self {
        let cell = &candidate.cell;
        let live = cell.live.load(Ordering::Relaxed);
        let tried = Moment(cell.tried_at.load(Ordering::Relaxed));
        Self {
            connect: cell.connect.decayed(now, tried),
            first_byte: cell.first_byte.decayed(now, tried),
            load: (f64::from(live) + 1.0) / f64::from(candidate.weight.max(1)),
            idle: live == 0,
        }
    }

    /// Whether nothing is known of it and nothing that would tell is under way.
    pub(super) const fn unexplored(&self) -> bool {
        self.connect.is_none() && self.first_byte.is_none() && self.idle
    }

    /// Latency in microseconds; a part that is not known is taken to be as in `other`.
    ///
    /// So a candidate still to be measured competes by load alone: it gets its share, not everything.
    pub(super) fn latency(&self, other: &Self) -> f64 {
        let part = |own: Option<f64>, other: Option<f64>| own.or(other).unwrap_or(0.0);
        (part(self.connect, other.connect) + part(self.first_byte, other.first_byte)).max(1.0)
    }
}
