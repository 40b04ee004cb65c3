//! What the data plane tells of connections while somebody reads it; without a reader it costs one load of a counter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::broadcast;

use super::port::Connection;

/// Events that a reader may be behind; it loses the oldest and is told how many.
pub const BACKLOG: usize = 4_096;

/// Something that happened to a connection.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// The connection as it was then.
    pub connection: Arc<Connection>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A backend was picked and connected.
    Decision,
    /// It got no backend.
    Refusal,
    /// It ended.
    End,
}

/// Where the data plane tells; clones tell the same readers.
#[derive(Clone, Debug)]
pub struct Tap {
    events: broadcast::Sender<Event>,
    readers: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
    /// Events that readers still have room for.
    room: Arc<AtomicU64>,
}

impl Tap {
    /// Tells into `events`.
    pub fn new(events: broadcast::Sender<Event>) -> Self {
        Self { events, readers: Arc::default(), lost: Arc::default(), room: Arc::default() }
    }

    /// Readers now.
    pub fn readers(&self) -> usize {
        self.readers.load(Ordering::Relaxed)
    }

    /// Reads what is told from now on.
    pub fn read(&self) -> Tapped {
        self.readers.fetch_add(1, Ordering::Relaxed);
        Tapped {
            events: self.events.subscribe(),
            readers: Arc::clone(&self.readers),
            lost: Arc::clone(&self.lost),
            room: Arc::clone(&self.room),
            known: self.lost.load(Ordering::Relaxed),
        }
    }

    /// Tells readers that so many events could not be told.
    pub(crate) fn lose(&self, events: u64) {
        self.lost.fetch_add(events, Ordering::Relaxed);
    }

    /// Tells what `connection` makes, if anybody reads and has room for it. Never waits: who is late loses.
    pub(crate) fn tell(&self, kind: EventKind, connection: impl FnOnce() -> Connection) {
        if self.readers() == 0 {
            return;
        }
        let taken =
            self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(1)).is_ok();
        if taken {
            // An error says that the last reader has just left.
            let _ = self.events.send(Event { kind, connection: Arc::new(connection()) });
        } else {
            self.lose(1);
        }
    }
}

/// One reader.
#[derive(Debug)]
pub struct Tapped {
    events: broadcast::Receiver<Event>,
    readers: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
    room: Arc<AtomicU64>,
    /// Of these, those that the reader knows of.
    known: u64,
}

/// What a reader finds.
#[derive(Debug)]
pub enum Found {
    /// The next event.
    Event(Event),
    /// So many were lost because it was late.
    Lost(u64),
    /// Nothing more for now.
    Nothing,
}

impl Tapped {
    /// Makes room for `more` events, up to `most` in all: what comes beyond is lost before it costs anything.
    pub fn make_room(&self, more: u64, most: u64) {
        let grown = |room: u64| Some(room.saturating_add(more).min(most));
        let _ = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
    }

    /// The next event that has been told already.
    ///
    /// A reader looks from time to time instead of waiting, so that the data plane never pays for waking it.
    pub fn look(&mut self) -> Found {
        use broadcast::error::TryRecvError;
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > self.known {
            return Found::Lost(lost - std::mem::replace(&mut self.known, lost));
        }
        match self.events.try_recv() {
            Ok(event) => Found::Event(event),
            Err(TryRecvError::Lagged(lost)) => Found::Lost(lost),
            Err(TryRecvError::Empty | TryRecvError::Closed) => Found::Nothing,
        }
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::recent::tests::ended;

    fn tap() -> Tap {
        Tap::new(broadcast::channel(4).0)
    }

    #[test]
    fn without_a_reader_nothing_is_made_and_nothing_is_kept() {
        let tap = tap();
        tap.tell(EventKind::End, || panic!("made for nobody"));
        drop(tap.read());
        tap.tell(EventKind::End, || panic!("the reader has left"));
        assert_eq!(tap.readers(), 0);
    }

    #[test]
    fn a_slow_reader_loses_the_oldest_is_told_how_many_and_holds_nobody_up() {
        let tap = tap();
        let mut slow = tap.read();
        slow.make_room(100, 100);
        for id in 0..10 {
            tap.tell(EventKind::End, || ended(id));
        }
        assert!(matches!(slow.look(), Found::Lost(6)));
        for id in 6..10 {
            let Found::Event(event) = slow.look() else { panic!("event {id}") };
            assert_eq!(event.connection.id, id);
        }
        assert!(matches!(slow.look(), Found::Nothing));
        tap.lose(3);
        tap.tell(EventKind::End, || ended(10));
        assert!(matches!(slow.look(), Found::Lost(3)));
        assert!(matches!(slow.look(), Found::Event(_)));
    }

    #[test]
    fn beyond_the_room_of_its_readers_nothing_is_made_and_all_is_counted() {
        let tap = tap();
        let mut reader = tap.read();
        tap.tell(EventKind::End, || panic!("there is no room"));
        reader.make_room(5, 2);
        for id in 0..2 {
            tap.tell(EventKind::End, || ended(id));
        }
        tap.tell(EventKind::End, || panic!("there is no room any more"));
        assert!(matches!(reader.look(), Found::Lost(2)));
        assert!(matches!(reader.look(), Found::Event(_)));
        assert!(matches!(reader.look(), Found::Event(_)));
        assert!(matches!(reader.look(), Found::Nothing));
    }
}
