//! What the connection table holds, added up for each frontend and backend and noted at their cells.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lemonade_common::forward::{self, DOWN, Flow, ended};
use lemonade_common::{BackendIx, FrontendIx};

use crate::control::table::DispatchTable;
use crate::model::config::Protocol;
use crate::model::{BackendCell, FrontendCell};

/// A frontend and one of its backends.
pub(super) type Lane = (FrontendIx, BackendIx);

/// What a direction of flows carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Carried {
    packets: u64,
    bytes: u64,
}

impl Carried {
    fn add(&mut self, flow: &Flow) {
        self.packets += flow.packets.get();
        self.bytes += flow.bytes.get();
    }

    const fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }

    fn at_least(self, other: Self) -> Self {
        Self { packets: self.packets.max(other.packets), bytes: self.bytes.max(other.bytes) }
    }
}

/// The flows of one lane.
#[derive(Debug, Default)]
struct Lined {
    /// In this round so far.
    counting: Round,
    /// Flows that had been opened when the round began.
    begun: Option<u64>,
    /// Flows that a process before this one opened, and that have ended.
    base: u64,
    /// As noted at the cells.
    noted: Noted,
}

#[derive(Clone, Copy, Debug, Default)]
struct Round {
    live: u64,
    /// Up and down.
    carried: [Carried; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Noted {
    opened: u64,
    closed: u64,
    carried: [Carried; 2],
}

impl Noted {
    const fn live(&self) -> u64 {
        self.opened - self.closed
    }
}

/// Every lane that has or had flows.
#[derive(Debug, Default)]
pub(super) struct Tally {
    lanes: BTreeMap<Lane, Lined>,
    entries: u64,
    /// Whether the table was there before this process, and has not been counted yet.
    taken_over: bool,
}

/// What a whole round over the table came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    /// Entries in the table.
    pub(super) entries: u64,
    /// Flows that have not ended.
    pub(super) live: u64,
    /// Flows opened since the last round.
    pub(super) opened: u64,
    /// Flows ended since the last round.
    pub(super) closed: u64,
}

impl Tally {
    /// Of a table that another process has filled: flows that live count as opened by this one, and what they have carried
    /// so far as nobody's.
    pub(super) fn of_another() -> Self {
        Self { taken_over: true, ..Self::default() }
    }

    /// Begins to count a lane.
    pub(super) fn follow(&mut self, lane: Lane) {
        self.lanes.entry(lane).or_default();
    }

    /// Whether any lane leads to a backend.
    pub(super) fn has(&self, backend: BackendIx) -> bool {
        self.lanes.keys().any(|lane| lane.1 == backend)
    }

    /// Whether any lane begins at a frontend.
    pub(super) fn begins(&self, frontend: FrontendIx) -> bool {
        self.lanes.keys().any(|lane| lane.0 == frontend)
    }

    /// Begins a round, given how many flows each lane has opened in all. Those that open while the table is read may be missed
    /// there, and would be taken for ended.
    pub(super) fn begin(&mut self, opened: impl Fn(Lane) -> u64) {
        for (lane, lined) in &mut self.lanes {
            lined.begun = Some(opened(*lane));
        }
    }

    /// Takes one direction of a flow in.
    pub(super) fn see(&mut self, flow: &Flow) {
        self.entries += 1;
        let lane = (FrontendIx(flow.frontend), BackendIx(flow.backend));
        let round = &mut self.lanes.entry(lane).or_default().counting;
        let down = usize::from(flow.state() & DOWN != 0);
        round.carried[down].add(flow);
        if down == 0 && !ended(flow.state()) {
            round.live += 1;
        }
    }

    /// Flows of such lanes that have not ended, as the last round found them.
    pub(super) fn live(&self, such: impl Fn(Lane) -> bool) -> u64 {
        self.lanes.iter().filter(|(lane, _)| such(**lane)).map(|(_, lined)| lined.noted.live()).sum()
    }

    /// Ends a round: notes at the cells of `table` what has changed, given how many flows each lane that is new has opened in
    /// all, and what those of each carried whose entries are gone.
    ///
    /// Lanes that are in no table and have no flow are forgotten; they are returned.
    pub(super) fn settle(
        &mut self,
        table: &DispatchTable,
        opened: impl Fn(Lane) -> u64,
        gone: impl Fn(Lane) -> forward::Carried,
    ) -> (Total, Vec<Lane>) {
        let mut total = Total { entries: self.entries, ..Total::default() };
        self.entries = 0;
        let backends = table.pools.values().flat_map(|pool| &pool.backends);
        let cells: BTreeMap<BackendIx, &BackendCell> =
            backends.map(|backend| (backend.ix, &*backend.cell)).collect();
        let mut left = Vec::new();
        for (lane, lined) in &mut self.lanes {
            let round = std::mem::take(&mut lined.counting);
            let counted = lined.begun.take().unwrap_or_else(|| opened(*lane));
            let gone = gone(*lane);
            let sum = |way: usize| {
                round.carried[way].plus(Carried { packets: gone.packets[way], bytes: gone.bytes[way] })
            };
            if self.taken_over {
                lined.base = counted.saturating_sub(round.live);
                lined.noted.carried = [sum(0), sum(1)];
            }
            let before = lined.noted;
            let opened = counted.saturating_sub(lined.base).max(before.opened);
            // A flow that ends while the table is read may be seen: what was noted stands.
            let closed = opened.saturating_sub(round.live).max(before.closed);
            // What goes while the table is read may be in both sums for once.
            let carried = [0, 1].map(|way| sum(way).at_least(before.carried[way]));
            let now = Noted { opened, closed, carried };
            lined.noted = now;
            total.live += now.live();
            total.opened += now.opened - before.opened;
            total.closed += now.closed - before.closed;
            let frontend = table.frontends.get(&lane.0);
            let backend = cells.get(&lane.1).copied();
            if let Some(entry) = frontend {
                note_frontend(&entry.cell, &before, &now, entry.frontend.protocol);
            }
            if let Some(cell) = backend {
                note_backend(cell, &before, &now);
            }
            if (frontend.is_none() || backend.is_none()) && now.live() == 0 {
                left.push(*lane);
            }
        }
        for lane in &left {
            self.lanes.remove(lane);
        }
        self.taken_over = false;
        (total, left)
    }
}

fn note_frontend(cell: &FrontendCell, before: &Noted, now: &Noted, protocol: Protocol) {
    let add = |counter: &AtomicU64, before: u64, now: u64| counter.fetch_add(now - before, Ordering::AcqRel);
    // Opened comes first, so that no reader sees more closed than opened.
    add(&cell.opened, before.opened, now.opened);
    add(&cell.closed, before.closed, now.closed);
    level(&cell.live, before.live(), now.live());
    add(&cell.bytes_up, before.carried[0].bytes, now.carried[0].bytes);
    add(&cell.bytes_down, before.carried[1].bytes, now.carried[1].bytes);
    if protocol == Protocol::Udp {
        add(&cell.datagrams_up, before.carried[0].packets, now.carried[0].packets);
        add(&cell.datagrams_down, before.carried[1].packets, now.carried[1].packets);
    }
}

fn note_backend(cell: &BackendCell, before: &Noted, now: &Noted) {
    let add = |counter: &AtomicU64, before: u64, now: u64| counter.fetch_add(now - before, Ordering::AcqRel);
    add(&cell.picks, before.opened, now.opened);
    add(&cell.opened, before.opened, now.opened);
    level(&cell.live, before.live(), now.live());
    add(&cell.bytes_up, before.carried[0].bytes, now.carried[0].bytes);
    add(&cell.bytes_down, before.carried[1].bytes, now.carried[1].bytes);
}

/// Moves a gauge that the proxy moves too.
fn level(gauge: &AtomicU32, before: u64, now: u64) {
    if now >= before {
        gauge.fetch_add((now - before) as u32, Ordering::AcqRel);
    } else {
        gauge.fetch_sub((before - now) as u32, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::health::port::HealthView;

    fn table() -> DispatchTable {
        let config = config([pool("web", [backend("a", 1)])], [frontend("f", 80, "web")]);
        next(&config, &HealthView::default(), &DispatchTable::default())
    }

    fn lane(table: &DispatchTable) -> Lane {
        (*table.frontends.keys().next().unwrap(), table.pools["web"].backends[0].ix)
    }

    fn flow(lane: Lane, state: u32, bytes: u64) -> Flow {
        Flow {
            frontend: lane.0.0,
            backend: lane.1.0,
            state: Cell::new(state.into()),
            packets: Cell::new(1),
            bytes: Cell::new(bytes),
            ..Flow::default()
        }
    }

    fn gone(bytes: [u64; 2]) -> forward::Carried {
        forward::Carried { packets: [1, 1], bytes }
    }

    #[test]
    fn opened_less_closed_is_live_and_bytes_outlive_their_flow() {
        let table = table();
        let own = lane(&table);
        let cells = || {
            let (entry, backend) = (&table.frontends[&own.0], &table.pools["web"].backends[0]);
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let cell = &entry.cell;
            assert_eq!(backend.cell.live.load(Ordering::Relaxed), cell.live.load(Ordering::Relaxed));
            assert_eq!(load(&cell.opened) - load(&cell.closed), u64::from(cell.live.load(Ordering::Relaxed)));
            [load(&cell.opened), load(&cell.closed), load(&cell.bytes_up), load(&cell.bytes_down)]
        };
        let mut tally = Tally::default();
        tally.follow(own);
        for up in [100, 50] {
            tally.see(&flow(own, 0, up));
            tally.see(&flow(own, DOWN, 1_000));
        }
        let (total, left) = tally.settle(&table, |_| 2, |_| gone([0, 0]));
        assert_eq!(total, Total { entries: 4, live: 2, opened: 2, closed: 0 });
        assert_eq!((left, cells()), (vec![], [2, 0, 150, 2_000]));
        // One has ended and is forgotten; another began and ended between the rounds.
        let both = |_| gone([110 + 30, 1_100 + 300]);
        tally.see(&flow(own, 0, 50));
        tally.see(&flow(own, DOWN, 1_000));
        let (total, _) = tally.settle(&table, |_| 3, both);
        assert_eq!(total, Total { entries: 2, live: 1, opened: 1, closed: 2 });
        assert_eq!(cells(), [3, 2, 190, 2_400]);
        tally.see(&flow(own, 0, 60));
        tally.settle(&table, |_| 3, both);
        assert_eq!(cells(), [3, 2, 200, 2_400], "what the forgotten flow carried still counts");
        // One that goes behind the back of a round is in both sums for once, and counts no further until they are right.
        tally.see(&flow(own, 0, 60));
        tally.settle(&table, |_| 3, |_| gone([140 + 60, 1_400]));
        assert_eq!(cells()[2], 260);
        tally.settle(&table, |_| 3, |_| gone([140 + 60, 1_400]));
        tally.see(&flow(own, 0, 70));
        tally.settle(&table, |_| 4, |_| gone([140 + 60, 1_400]));
        assert_eq!(cells()[2], 270);
    }

    #[test]
    fn a_flow_that_opens_while_the_table_is_read_has_not_ended() {
        let table = table();
        let own = lane(&table);
        let mut tally = Tally::default();
        tally.follow(own);
        let mut round = |begun: u64, seen: usize, opened: u64| {
            tally.begin(|_| begun);
            (0..seen).for_each(|_| tally.see(&flow(own, 0, 1)));
            let (total, _) = tally.settle(&table, |_| opened, |_| gone([0, 0]));
            (total.live, total.closed)
        };
        assert_eq!(round(1, 1, 2), (1, 0), "behind the reading");
        assert_eq!(round(2, 3, 3), (2, 0), "before it");
        assert_eq!(round(3, 3, 3), (3, 0));
        assert_eq!(round(3, 1, 3), (1, 2));
    }

    #[test]
    fn of_a_table_that_was_there_before_live_flows_count_and_what_they_carried_does_not() {
        let table = table();
        let own = lane(&table);
        let mut tally = Tally::of_another();
        tally.follow(own);
        tally.see(&flow(own, 0, 1_000));
        // Seven were opened in all, of which the process before has forgotten six.
        let (total, _) = tally.settle(&table, |_| 7, |_| gone([9_000, 0]));
        assert_eq!((total.live, total.opened, total.closed), (1, 1, 0));
        let cell = &table.frontends[&own.0].cell;
        assert_eq!(cell.bytes_up.load(Ordering::Relaxed), 0);
        tally.see(&flow(own, 0, 1_030));
        let (total, _) = tally.settle(&table, |_| 8, |_| gone([9_000, 0]));
        assert_eq!((total.live, total.opened, total.closed), (1, 1, 1));
        assert_eq!(cell.bytes_up.load(Ordering::Relaxed), 30);
    }

    #[test]
    fn a_lane_that_left_the_table_is_counted_until_its_last_flow_has_ended() {
        let table = table();
        let own = lane(&table);
        let nothing = |_| gone([0, 0]);
        let mut tally = Tally::default();
        tally.see(&flow(own, 0, 1));
        tally.settle(&table, |_| 1, nothing);
        assert_eq!(tally.live(|lane| lane == own), 1);
        let empty = DispatchTable::default();
        tally.see(&flow(own, 0, 1));
        assert_eq!(tally.settle(&empty, |_| 1, nothing).1, vec![]);
        assert_eq!(tally.settle(&empty, |_| 1, nothing).1, vec![own]);
        assert_eq!(tally.lanes.len(), 0);
    }
}
