//! Which worker carries a connection: the one that accepted it, unless another has clearly less to carry.
//!
//! The kernel spreads connections over listeners by a hash of their addresses. With few connections at a time that is
//! uneven by chance, and who meets the busier worker waits longer.

use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;

use super::flow::Flows;

/// Connections that a worker may have above another before it passes one on; passing on costs two system calls and
/// wakes the other, so small differences are left alone.
const SLACK: usize = 4;

/// What the workers know of each other.
#[derive(Debug, Default)]
pub(super) struct Workers(OnceLock<Vec<Seat>>);

/// A worker's connections, and the runtime that serves them.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) flows: Arc<Flows>,
    pub(super) runtime: Handle,
}

impl Workers {
    /// Makes all workers known to each; only the first call counts.
    pub(super) fn seat(&self, seats: Vec<Seat>) {
        let _ = self.0.set(seats);
    }

    /// The worker with the fewest connections, once all are known.
    pub(super) fn lightest(&self) -> Option<&Seat> {
        self.0.get()?.iter().min_by_key(|seat| seat.flows.len())
    }

    /// The worker that should carry the next connection in place of that of `own`.
    pub(super) fn lighter_than(&self, own: &Flows) -> Option<&Seat> {
        let lightest = self.lightest()?;
        uneven(own.len(), lightest.flows.len()).then_some(lightest)
    }
}

/// Whether `own` connections are so many more than `other` that the next one belongs there.
const fn uneven(own: usize, other: usize) -> bool {
    let slack = if own / 8 > SLACK { own / 8 } else { SLACK };
    own >= other + slack
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Moment;
    use crate::proxy::flow::Flow;
    use crate::proxy::flow::tests::entry;

    #[test]
    fn only_a_clear_difference_moves_a_connection() {
        assert!(!uneven(0, 0) && !uneven(3, 0) && uneven(4, 0));
        assert!(!uneven(18, 15) && uneven(18, 14));
        assert!(!uneven(1000, 900) && uneven(1000, 870));
        assert!(!uneven(5, 900));
    }
    #[tokio::test]
    async fn the_lightest_worker_takes_over_from_a_heavy_one() {
        let seats: Vec<Seat> = (0..3)
            .map(|_| Seat { flows: Arc::new(Flows::share_of(3)), runtime: Handle::current() })
            .collect();
        let workers = Workers::default();
        assert!(workers.lighter_than(&seats[0].flows).is_none(), "alone until all are known");
        workers.seat(seats.clone());
        let (address, entry) = ("127.0.0.1:1".parse().unwrap(), entry());
        let flow = || Arc::new(Flow::new(1, address, address, Arc::clone(&entry), Moment(0)));
        let keys: Vec<usize> = (0..4).map(|_| seats[0].flows.insert(flow())).collect();
        seats[1].flows.insert(flow());
        let taken = workers.lighter_than(&seats[0].flows).map(|seat| Arc::as_ptr(&seat.flows));
        assert_eq!(taken, Some(Arc::as_ptr(&seats[2].flows)));
        assert!(workers.lighter_than(&seats[1].flows).is_none());
        seats[0].flows.remove(keys[0]);
        assert!(workers.lighter_than(&seats[0].flows).is_none(), "the difference is small again");
    }
}
