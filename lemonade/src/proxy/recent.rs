//! The connections that ended last, for whoever asks why one went where it went, or why it got nowhere.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::port::Connection;
use crate::metrics::port::End;

/// Served connections kept over all workers; a worker keeps its share. At 320 bytes each they stay small beside what
/// the connections themselves took, so that nearly all of that is given back.
pub const SERVED: usize = 2_048;

/// Refused connections kept over all workers, apart, so that a flood of good ones does not push them out.
pub const REFUSED: usize = 1_024;

/// The last connections of one worker.
#[derive(Debug)]
pub(super) struct Recent {
    served: Mutex<Last>,
    refused: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    room: usize,
    connections: VecDeque<Connection>,
    /// Connections that made room: the number of the first that is left.
    gone: usize,
}

/// Connections that are copied before the worker may go on.
const GLANCE: usize = 64;

impl Recent {
    /// Room for this worker's share of what `workers` keep together.
    pub(super) fn share_of(workers: usize) -> Self {
        let last = |all: usize| {
            Mutex::new(Last { room: (all / workers.max(1)).max(1), connections: VecDeque::new(), gone: 0 })
        };
        Self { served: last(SERVED), refused: last(REFUSED) }
    }

    /// Keeps a connection that ended; the oldest of its kind makes room.
    pub(super) fn keep(&self, connection: Connection) {
        let refused = matches!(connection.end, Some((End::Refused(_), _)));
        let mut last = lock(if refused { &self.refused } else { &self.served });
        let oldest = if last.connections.len() < last.room { None } else { last.connections.pop_front() };
        last.gone += usize::from(oldest.is_some());
        last.connections.push_back(connection);
        drop(last);
        drop(oldest);
    }

    /// All of them, refused ones last.
    pub(super) fn all(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        for kind in [&self.served, &self.refused] {
            let mut next = 0;
            loop {
                all.reserve(GLANCE);
                let last = lock(kind);
                let from = (next.max(last.gone) - last.gone).min(last.connections.len());
                let glance = last.connections.range(from..).take(GLANCE);
                let before = all.len();
                all.extend(glance.cloned());
                if all.len() == before {
                    break;
                }
                next = last.gone + from + all.len() - before;
            }
        }
        all
    }
}

fn lock(last: &Mutex<Last>) -> MutexGuard<'_, Last> {
    // Nothing inside panics half-way, so a poisoned lock still holds whole records.
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use lemonade_common::Reason;

    use super::*;
    use crate::metrics::fixture::name;
    use crate::model::Moment;

    /// A connection that ended.
    pub(in crate::proxy) fn ended_with(id: u64, end: End) -> Connection {
        let address = "192.0.2.1:1".parse().unwrap();
        Connection {
            id,
            client: address,
            local: address,
            started: Moment(id),
            frontend: name("web"),
            pool: name("web"),
            plane: "proxy",
            relay: "copy",
            route: None,
            decision: None,
            failed: Box::default(),
            bytes_up: 0,
            bytes_down: 0,
            idle_seconds: 0,
            end: Some((end, Moment(id + 1))),
        }
    }

    /// A connection that ended well.
    pub(crate) fn ended(id: u64) -> Connection {
        ended_with(id, End::Closed)
    }

    #[test]
    fn the_oldest_makes_room_and_good_ones_never_push_a_refused_one_out() {
        let recent = Recent::share_of(256);
        recent.keep(ended_with(1, End::Refused(Reason::NoBackendUp)));
        for id in 2..100 {
            recent.keep(ended_with(id, End::Closed));
        }
        let ids: Vec<u64> = recent.all().iter().map(|connection| connection.id).collect();
        assert_eq!(ids, [92, 93, 94, 95, 96, 97, 98, 99, 1]);
        for id in 100..110 {
            recent.keep(ended_with(id, End::Refused(Reason::QueueFull)));
        }
        assert_eq!(recent.all().len(), 12, "each kind has its room");
        let recent = Recent::share_of(1);
        (0..SERVED as u64 + 100).for_each(|id| recent.keep(ended(id)));
        let ids: Vec<u64> = recent.all().iter().map(|connection| connection.id).collect();
        assert_eq!(ids, (100..SERVED as u64 + 100).collect::<Vec<_>>(), "each once, over many glances");
    }
}
