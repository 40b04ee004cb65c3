//! When each backend is probed: intervals with jitter, first probes spread, and one budget over all pools.
//!
//! The budget bounds probes started: in no second more than `per_second + 1`. When the intervals ask for more than it
//! gives, all of them stretch by the same factor, so no backend is left out and none takes another's turn.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lemonade_common::BackendIx;

use crate::model::Moment;
use crate::model::time::micros;

#[cfg(test)]
mod tests;

/// Starts that a late timer may catch up on at once, as time. The distance between starts is longer by as much, which
/// is what keeps each second within the budget.
const CREDIT: Duration = Duration::from_millis(10);

/// Probes per second are summed in millionths, as whole numbers, so that adding and removing leaves no rest.
const MILLION: u64 = 1_000_000;

/// Time between the probes of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// While its state is sure.
    pub interval: Duration,
    /// While it is unsure.
    pub fast: Duration,
}

/// A probe that was started; hand it back with [`Schedule::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Which backend.
    pub backend: BackendIx,
    serial: u64,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start this probe and ask again.
    Start(Ticket),
    /// Nothing before this moment.
    At(Moment),
    /// Nothing until something changes.
    Idle,
}

/// The budget began or ceased to stretch intervals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stretch {
    /// Intervals are now this many times as long as configured.
    Begins(f64),
    /// Intervals are as configured.
    Ends,
}

/// When each backend is probed next.
#[derive(Debug)]
pub struct Schedule {
    slots: BTreeMap<BackendIx, Slot>,
    due: BTreeSet<(Moment, BackendIx)>,
    per_second: u32,
    /// Moment before which the budget allows no further start.
    ready_at: Moment,
    demand: u64,
    stretched: bool,
    serial: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    pace: Pace,
    unsure: bool,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Due(Moment),
    Started { at: Moment, serial: u64 },
}

impl Slot {
    fn time(&self) -> Duration {
        if self.unsure { self.pace.fast } else { self.pace.interval }
    }

    fn demand(&self) -> u64 {
        MILLION * MILLION / micros(self.time()).max(1)
    }
}

impl Schedule {
    /// An empty schedule with a budget of `per_second` starts.
    pub fn new(per_second: u32) -> Self {
        Self {
            slots: BTreeMap::new(),
            due: BTreeSet::new(),
            per_second: per_second.max(1),
            ready_at: Moment(0),
            demand: 0,
            stretched: false,
            serial: 0,
        }
    }

    /// Changes the budget.
    pub fn allow(&mut self, per_second: u32) {
        self.per_second = per_second.max(1);
    }

    /// Probes `backend` from now on, first at a random moment of its interval; a known one takes on the new pace.
    pub fn insert(&mut self, backend: BackendIx, pace: Pace, now: Moment, entropy: u64) {
        let Some(&known) = self.slots.get(&backend) else {
            let slot = Slot { pace, unsure: false, state: State::Due(now) };
            self.demand += slot.demand();
            let due = now.plus(pace.interval.mul_f64(self.stretch() * fraction(entropy)));
            self.due.insert((due, backend));
            self.slots.insert(backend, Slot { state: State::Due(due), ..slot });
            return;
        };
        if known.pace == pace {
            return;
        }
        let slot = Slot { pace, ..known };
        self.put(backend, slot);
        self.advance(backend, now.plus(self.period(&slot, entropy)));
    }

    /// Probes `backend` no more.
    pub fn remove(&mut self, backend: BackendIx) {
        let Some(slot) = self.slots.remove(&backend) else { return };
        self.demand -= slot.demand();
        if let State::Due(due) = slot.state {
            self.due.remove(&(due, backend));
        }
    }

    /// The probe to start now, or when to ask again.
    pub fn next(&mut self, now: Moment) -> Next {
        let Some(&(due, backend)) = self.due.first() else { return Next::Idle };
        let start = due.max(self.ready_at);
        if start > now {
            return Next::At(start);
        }
        self.due.pop_first();
        let credited = Moment(now.0.saturating_sub(micros(CREDIT)));
        self.ready_at = self.ready_at.max(credited).plus(self.spacing());
        self.serial += 1;
        let serial = self.serial;
        if let Some(slot) = self.slots.get_mut(&backend) {
            slot.state = State::Started { at: now, serial };
        }
        Next::Start(Ticket { backend, serial })
    }

    /// Whether `ticket` is the probe that is under way; not if its backend was removed meanwhile.
    pub fn holds(&self, ticket: Ticket) -> bool {
        self.started(ticket).is_some()
    }

    /// Takes a probe back and plans the next; a void one changes nothing.
    pub fn finish(&mut self, ticket: Ticket, now: Moment, entropy: u64) {
        let Some((slot, at)) = self.started(ticket) else { return };
        let due = at.plus(self.period(&slot, entropy)).max(now);
        self.due.insert((due, ticket.backend));
        self.slots.insert(ticket.backend, Slot { state: State::Due(due), ..slot });
    }

    /// Tells whether the state of `backend` is unsure; if so its next probe comes within the fast interval.
    pub fn mood(&mut self, backend: BackendIx, unsure: bool, now: Moment, entropy: u64) {
        let Some(&known) = self.slots.get(&backend) else { return };
        if known.unsure == unsure {
            return;
        }
        let slot = Slot { unsure, ..known };
        self.put(backend, slot);
        if unsure {
            self.advance(backend, now.plus(self.period(&slot, entropy)));
        }
    }

    /// Tells when the budget begins or ceases to stretch intervals, each once.
    pub fn stretch_changed(&mut self) -> Option<Stretch> {
        let capacity = self.capacity();
        // The gap between beginning and end keeps a demand near the budget from being told again and again.
        let stretched = self.demand as f64 > if self.stretched { capacity * 0.9 } else { capacity };
        if stretched == self.stretched {
            return None;
        }
        self.stretched = stretched;
        Some(if stretched { Stretch::Begins(self.stretch()) } else { Stretch::Ends })
    }

    fn started(&self, ticket: Ticket) -> Option<(Slot, Moment)> {
        let slot = *self.slots.get(&ticket.backend)?;
        match slot.state {
            State::Started { at, serial } if serial == ticket.serial => Some((slot, at)),
            State::Started { .. } | State::Due(_) => None,
        }
    }

    fn put(&mut self, backend: BackendIx, slot: Slot) {
        self.demand += slot.demand();
        if let Some(old) = self.slots.insert(backend, slot) {
            self.demand -= old.demand();
        }
    }

    /// Makes a waiting backend due at `due` if that is earlier than planned.
    fn advance(&mut self, backend: BackendIx, due: Moment) {
        let Some(slot) = self.slots.get_mut(&backend) else { return };
        let State::Due(planned) = slot.state else { return };
        if due < planned {
            slot.state = State::Due(due);
            self.due.remove(&(planned, backend));
            self.due.insert((due, backend));
        }
    }

    /// Time between two starts of one backend: interval, stretched, plus or minus a tenth.
    fn period(&self, slot: &Slot, entropy: u64) -> Duration {
        slot.time().mul_f64(self.stretch() * (0.9 + 0.2 * fraction(entropy)))
    }

    fn stretch(&self) -> f64 {
        (self.demand as f64 / self.capacity()).max(1.0)
    }

    /// Starts per second that [`Self::spacing`] leaves, in millionths.
    fn capacity(&self) -> f64 {
        MILLION as f64 / self.spacing().as_secs_f64()
    }

    fn spacing(&self) -> Duration {
        let nanos = (Duration::from_secs(1) + CREDIT).as_nanos() as u64;
        Duration::from_micros(nanos.div_ceil(u64::from(self.per_second)).div_ceil(1000))
    }
}

/// `entropy` as a number from 0 up to, not including, 1.
fn fraction(entropy: u64) -> f64 {
    (entropy >> 11) as f64 / (1u64 << 53) as f64
}
