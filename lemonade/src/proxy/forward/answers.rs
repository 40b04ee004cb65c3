//! How long backends take to answer a SYN, and whether they refuse, as the kernel sees it in the flows that it forwards.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lemonade_common::BackendIx;
use lemonade_common::least::Load;

use crate::control::table::DispatchTable;
use crate::model::Moment;
use crate::model::ewma::FailureRatio;

/// Outcomes of connects that are noted at once; more change an average no further.
const OUTCOMES: u64 = 16;

/// What was read last of each backend.
#[derive(Debug, Default)]
pub(super) struct Answers(BTreeMap<BackendIx, Load>);

impl Answers {
    /// Notes at the cells of `table` the mean of the answers since the last call, and who has refused. The first reading of a
    /// backend is none: what was counted before may be a former process' and old.
    pub(super) fn note(
        &mut self,
        table: &DispatchTable,
        load: impl Fn(BackendIx) -> Option<Load>,
        now: Moment,
    ) {
        let mut read = BTreeMap::new();
        for backend in table.pools.values().flat_map(|pool| &pool.backends) {
            let Some(load) = load(backend.ix) else { continue };
            if let Some(last) = self.0.get(&backend.ix) {
                if let Some(mean) = mean(last, &load) {
                    backend.cell.told(mean, now);
                }
                let answers = load.answers.saturating_sub(last.answers);
                let refused = load.refused.saturating_sub(last.refused);
                backend.cell.failures.fetch_add(refused, Ordering::Relaxed);
                note(&backend.cell.failure_ratio, answers, refused, now);
            }
            read.insert(backend.ix, load);
        }
        self.0 = read;
    }
}

/// Takes in outcomes of connects, of many a few in which refusals are as frequent and as far apart: the newest decide.
fn note(ratio: &FailureRatio, answers: u64, refused: u64, now: Moment) {
    let total = answers + refused;
    // Rounded, so that a few refusals among many answers do not get lost.
    let until = |n: u64| (n * refused + total / 2).checked_div(total).unwrap_or(0);
    for n in 0..total.min(OUTCOMES) {
        ratio.observe(until(n + 1) > until(n), now);
    }
}

/// Mean wait for the answers between two readings; `None`: there were none.
fn mean(last: &Load, load: &Load) -> Option<Duration> {
    let answers = load.answers.checked_sub(last.answers)?;
    load.waited.checked_sub(last.waited)?.checked_div(answers).map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::health::port::HealthView;

    #[test]
    fn a_backend_is_told_the_mean_of_what_is_new() {
        let config = config([pool("web", [backend("a", 1), backend("b", 2)])], [frontend("f", 80, "web")]);
        let table = next(&config, &HealthView::default(), &DispatchTable::default());
        let [a, b] = [0, 1].map(|at| &table.pools["web"].backends[at]);
        let mut answers = Answers::default();
        let now = Moment(1_000_000);
        let mut note = |own: Load| {
            answers.note(&table, |ix| (ix == a.ix).then_some(own), now);
            a.cell.connect.read()
        };
        let past = Load { live: 1, answers: 100, waited: 100 * 9_000_000, refused: 7 };
        assert_eq!(note(past), None, "of the past");
        let later = Load { live: 3, answers: 104, waited: 100 * 9_000_000 + 4 * 250_000, ..past };
        assert_eq!(note(later), Some(Duration::from_micros(250)));
        assert_eq!(note(later), Some(Duration::from_micros(250)), "nothing is new");
        assert_eq!(b.cell.connect.read(), None);
        assert_eq!((a.cell.failures.load(Ordering::Relaxed), a.cell.failure_ratio.read(now)), (0, 0.0));
        note(Load { refused: 10, ..later });
        assert_eq!(a.cell.failures.load(Ordering::Relaxed), 3);
        assert!(a.cell.failure_ratio.read(now) > 0.4, "three refusals in a row");
    }

    #[test]
    fn the_share_of_refusals_is_that_of_the_outcomes_however_many() {
        for (answers, refused) in [(1, 1), (3, 1), (900, 100), (50, 950), (5_000, 5_000), (0, 40), (2_000, 0)]
        {
            let ratio = FailureRatio::default();
            for second in 1..30 {
                note(&ratio, answers, refused, Moment(second * 1_000));
            }
            let share = refused as f64 / (answers + refused) as f64;
            let noted = ratio.read(Moment(30_000));
            assert!((noted - share).abs() < 0.2, "{answers} and {refused}: {noted}");
        }
    }
}
