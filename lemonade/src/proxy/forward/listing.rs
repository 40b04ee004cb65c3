//! Flows of the connection table as connections. Pure.

use lemonade_common::flow::UDP;
use lemonade_common::forward::{Flow, RESET, ended};
use lemonade_common::{BackendIx, FlowKey, FrontendIx};

use super::overhear::{decision, end, route};
use super::parting::Parted;
use crate::control::table::DispatchTable;
use crate::metrics::port::End;
use crate::model::forward::Mode;
use crate::model::{Moment, Name};
use crate::proxy::clock::kernel_nanos;
use crate::proxy::port::{Connection, Which};

/// Flows that are listed at most, about 32 MiB.
const MOST: usize = 100_000;

/// A list that is being made of the connection table.
pub(super) struct Listing<'a> {
    which: Which,
    /// The one in force, and the one before, which knows what has just left.
    tables: [&'a DispatchTable; 2],
    seed: u64,
    now: Moment,
    nanos: u64,
    /// What was taken in.
    pub(super) found: Vec<Connection>,
}

impl<'a> Listing<'a> {
    /// Nothing yet.
    pub(super) fn new(which: Which, tables: [&'a DispatchTable; 2], seed: u64, now: Moment) -> Self {
        Self { which, tables, seed, now, nanos: kernel_nanos(), found: Vec::new() }
    }

    /// Takes a flow in if it is of the kind that is listed and `such` lets it through; `flow` is its direction from the
    /// client, `other` reads the one back.
    pub(super) fn take(
        &mut self,
        key: &FlowKey,
        flow: &Flow,
        other: &dyn Fn() -> Option<Flow>,
        such: &dyn Fn(&Connection) -> bool,
    ) {
        let over = flow.protocol != UDP && ended(flow.state());
        if over != (self.which == Which::Ended) || self.found.len() >= MOST {
            return;
        }
        let connection = self.view(key, flow);
        if such(&connection) {
            let other = other();
            let how = over.then(|| how(flow));
            self.found.push(self.whole(connection, flow, other.as_ref(), how));
        }
    }

    /// A flow that the table has forgotten.
    pub(super) fn parted(&self, Parted { key, flow, other }: &Parted) -> Connection {
        // Datagrams have no end but silence.
        let closed = flow.protocol == UDP || ended(flow.state());
        let how = if closed { how(flow) } else { End::IdleTimeout };
        self.whole(self.view(key, flow), flow, other.as_ref(), Some(how))
    }

    /// `connection` with what is known of both its directions.
    fn whole(
        &self,
        mut connection: Connection,
        flow: &Flow,
        other: Option<&Flow>,
        how: Option<End>,
    ) -> Connection {
        let mut seen = flow.seen.get();
        if let Some(other) = other {
            seen = seen.max(other.seen.get());
            connection.bytes_down = other.bytes.get();
        }
        connection.idle_seconds = u32::try_from(self.ago(seen) / 1_000_000).unwrap_or(u32::MAX);
        connection.end = how.map(|how| (how, self.moment(seen)));
        connection
    }

    fn view(&self, key: &FlowKey, flow: &Flow) -> Connection {
        let ix = FrontendIx(flow.frontend);
        let entry = self.tables.iter().find_map(|table| table.frontends.get(&ix));
        let nobody = || Name::new("-");
        Connection {
            id: 0,
            client: end(key.src, key.sport),
            local: end(key.dst, key.dport),
            started: self.moment(flow.opened),
            frontend: entry.map_or_else(nobody, |entry| entry.frontend.name.clone()),
            pool: entry.map_or_else(nobody, |entry| entry.pool.pool.name.clone()),
            plane: "forward",
            relay: Mode::word(flow.mode),
            route: self
                .tables
                .iter()
                .find_map(|table| route(table.frontends.get(&ix)?, BackendIx(flow.backend), key.dport, 0)),
            decision: entry.map(|entry| decision(entry, key, self.seed)),
            failed: Box::default(),
            bytes_up: flow.bytes.get(),
            bytes_down: 0,
            idle_seconds: 0,
            end: None,
        }
    }

    /// Microseconds since a time of the kernel's clock.
    const fn ago(&self, nanos: u64) -> u64 {
        self.nanos.saturating_sub(nanos) / 1_000
    }

    const fn moment(&self, nanos: u64) -> Moment {
        Moment(self.now.0.saturating_sub(self.ago(nanos)))
    }
}

/// How a flow ended: each direction has noted what its own packets said.
fn how(flow: &Flow) -> End {
    if flow.state.get() as u32 & RESET != 0 {
        End::ClientReset
    } else if flow.told.get() as u32 & RESET != 0 {
        End::BackendReset
    } else {
        End::Closed
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use lemonade_common::flow::TCP;
    use lemonade_common::forward::{ANSWERED, ESTABLISHED, FIN_DOWN, FIN_UP};

    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::health::port::HealthView;

    const SECOND: u64 = 1_000_000_000;

    fn listed(which: Which, state: u32, told: u32, such: &dyn Fn(&Connection) -> bool) -> Vec<Connection> {
        let config =
            config([pool("web", vec![backend("a", 1), backend("b", 2)])], [frontend("web", 80, "web")]);
        let table = next(&config, &HealthView::default(), &DispatchTable::default());
        let (ix, entry) = table.frontends.first_key_value().expect("one");
        let key = FlowKey::tcp("192.0.2.7:5000".parse().unwrap(), entry.frontend.listen[0]);
        let mut listing = Listing::new(which, [&table, &table], 7, Moment(100_000_000));
        let nanos = listing.nanos;
        let at = |seconds: u64| nanos - seconds * SECOND;
        let way = |seen: u64, bytes: u64| Flow {
            protocol: TCP,
            frontend: ix.0,
            backend: entry.pool.backends[1].ix.0,
            opened: at(30),
            seen: Cell::new(at(seen)),
            bytes: Cell::new(bytes),
            state: Cell::new(state.into()),
            told: Cell::new(told.into()),
            ..Flow::default()
        };
        let (up, down) = (way(9, 100), way(4, 2_000));
        listing.take(
            &key,
            &up,
            &|| Some(Flow { bytes: down.bytes.clone(), seen: down.seen.clone(), ..way(4, 0) }),
            such,
        );
        listing.found
    }

    #[test]
    fn a_flow_is_listed_with_its_backend_its_age_and_both_directions() {
        let live = listed(Which::Live, 0, ANSWERED, &|_| true);
        let [flow] = &live[..] else { panic!("{live:?}") };
        assert_eq!((flow.plane, flow.frontend.as_str(), flow.end), ("forward", "web", None));
        assert_eq!(flow.client, "192.0.2.7:5000".parse().unwrap());
        assert_eq!(flow.route.as_ref().expect("a backend").backend.as_str(), "b");
        assert_eq!((flow.started, flow.idle_seconds), (Moment(70_000_000), 4));
        assert_eq!((flow.bytes_up, flow.bytes_down), (100, 2_000));
        assert!(listed(Which::Ended, 0, ANSWERED, &|_| true).is_empty());
        assert!(listed(Which::Live, 0, ANSWERED, &|own| own.id == 1).is_empty());
    }

    #[test]
    fn a_flow_that_has_ended_says_by_whom_and_when() {
        for (state, told, how) in [
            (FIN_UP, ANSWERED | FIN_DOWN, End::Closed),
            (RESET, ANSWERED, End::ClientReset),
            (0, RESET, End::BackendReset),
        ] {
            assert!(listed(Which::Live, state, told, &|_| true).is_empty());
            let over = listed(Which::Ended, state, told, &|_| true);
            assert_eq!(over[0].end, Some((how, Moment(96_000_000))));
        }
    }

    #[test]
    fn what_was_forgotten_in_silence_ran_into_its_timeout_and_datagrams_just_end() {
        let table = DispatchTable::default();
        let listing = Listing::new(Which::Ended, [&table, &table], 7, Moment(100_000_000));
        let how = |protocol, state: u32| {
            let flow = Flow { protocol, state: Cell::new(state.into()), ..Flow::default() };
            let key = FlowKey::tcp("192.0.2.7:5000".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
            listing.parted(&Parted { key, flow, other: None }).end.expect("an end").0
        };
        assert_eq!(how(TCP, ESTABLISHED), End::IdleTimeout);
        assert_eq!(how(TCP, FIN_UP | FIN_DOWN), End::Closed);
        assert_eq!(how(TCP, RESET), End::ClientReset);
        assert_eq!(how(UDP, 0), End::Closed);
    }
}
