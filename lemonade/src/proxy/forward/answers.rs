//! How long backends take to answer a SYN, as the kernel sees it in the flows that it forwards.

use std::collections::BTreeMap;
use std::time::Duration;

use lemonade_common::BackendIx;
use lemonade_common::least::Load;

use crate::control::table::DispatchTable;
use crate::model::Moment;

/// What was read last of each backend.
#[derive(Debug, Default)]
pub(super) struct Answers(BTreeMap<BackendIx, Load>);

impl Answers {
    /// Notes at the cells of `table` the mean of the answers since the last call. The first reading of a backend is none:
    /// what was counted before may be a former process' and old.
    pub(super) fn note(
        &mut self,
        table: &DispatchTable,
        load: impl Fn(BackendIx) -> Option<Load>,
        now: Moment,
    ) {
        let mut read = BTreeMap::new();
        for backend in table.pools.values().flat_map(|pool| &pool.backends) {
            let Some(load) = load(backend.ix) else { continue };
            if let Some(mean) = self.0.get(&backend.ix).and_then(|last| mean(last, &load)) {
                backend.cell.told(mean, now);
            }
            read.insert(backend.ix, load);
        }
        self.0 = read;
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
        assert_eq!(note(Load { live: 1, answers: 100, waited: 100 * 9_000_000 }), None, "of the past");
        let later = Load { live: 3, answers: 104, waited: 100 * 9_000_000 + 4 * 250_000 };
        assert_eq!(note(later), Some(Duration::from_micros(250)));
        assert_eq!(note(later), Some(Duration::from_micros(250)), "nothing is new");
        assert_eq!(b.cell.connect.read(), None);
    }
}
