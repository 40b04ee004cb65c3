//! Which datagram belongs to which session, and what passed in one. Pure: no socket and no clock.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::model::Moment;

/// What makes datagrams to one listener a session: who sent them, and the own address that they came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Client, as its socket address stands on the wire.
    pub(super) client: SocketAddr,
    /// Own address that the client used.
    pub(super) local: IpAddr,
}

/// The right to end one session, and no later one of the same key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    key: Key,
    serial: u64,
}

/// The sessions of one listener, at most one for each key.
#[derive(Debug)]
pub(super) struct Sessions<T> {
    by_key: HashMap<Key, (u64, T)>,
    begun: u64,
}

impl<T> Default for Sessions<T> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), begun: 0 }
    }
}

impl<T> Sessions<T> {
    /// The session that a datagram belongs to.
    pub(super) fn find(&self, key: &Key) -> Option<&T> {
        self.by_key.get(key).map(|(_, session)| session)
    }

    /// Begins a session; one of the same key is left to whoever holds its ticket.
    pub(super) fn begin(&mut self, key: Key, session: T) -> Ticket {
        self.begun += 1;
        let serial = self.begun;
        self.by_key.insert(key, (serial, session));
        Ticket { key, serial }
    }

    /// Ends a session, unless another has taken its place.
    pub(super) fn end(&mut self, ticket: &Ticket) {
        if self.by_key.get(&ticket.key).is_some_and(|(serial, _)| *serial == ticket.serial) {
            self.by_key.remove(&ticket.key);
            // What a flood has left behind is given back.
            if self.by_key.capacity() > 1024 && self.by_key.len() < self.by_key.capacity() / 8 {
                self.by_key.shrink_to(self.by_key.len() * 2);
            }
        }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_key.values().map(|(_, session)| session)
    }
}

/// Datagrams of one session, and how long its backend takes to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exchange {
    /// Datagrams from the client that went on to a backend.
    pub(super) up: u64,
    /// Datagrams from a backend that went on to the client.
    pub(super) down: u64,
    /// When the first unanswered datagram went up; 0: there is none.
    asked: Moment,
}

impl Exchange {
    /// Takes in datagrams that went up.
    pub(super) fn sent(&mut self, datagrams: u64, now: Moment) {
        self.up += datagrams;
        if datagrams > 0 && self.asked == Moment(0) {
            self.asked = now.max(Moment(1));
        }
    }

    /// Takes in datagrams that came down; tells how long the client has waited, if it had asked.
    pub(super) fn answered(&mut self, datagrams: u64, now: Moment) -> Option<Duration> {
        self.down += datagrams;
        let asked = std::mem::take(&mut self.asked);
        (asked != Moment(0)).then(|| now.since(asked))
    }

    /// Forgets what a backend that is left behind still owed.
    pub(super) fn rerouted(&mut self) {
        self.asked = Moment(0);
    }
}

/// Access records of refused datagrams that a listener writes per second; the others are only counted, since a flood
/// of forged senders would fill every log.
const REFUSALS_TOLD: u32 = 10;

/// Which refusals are told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quota {
    second: u64,
    told: u32,
}

impl Quota {
    /// Whether the refusal at `now` is told.
    pub(super) fn tell(&mut self, now: Moment) -> bool {
        let second = now.0 / 1_000_000;
        if second != self.second {
            *self = Self { second, told: 0 };
        }
        self.told += 1;
        self.told <= REFUSALS_TOLD
    }
}

/// Sessions that a frontend without a limit of its own may hold: half of all, so that forged senders leave room for
/// everybody else. 0 is no limit.
pub(super) const fn limit(own: u32, total: u32) -> u32 {
    match (own, total) {
        (0, 0 | 1) => total,
        (0, _) => total / 2,
        (own, _) => own,
    }
}

#[cfg(test)]
mod tests;
