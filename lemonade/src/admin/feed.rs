//! Events on their way to readers: taken from the data plane once and written once, however many read.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::Bytes;

use crate::proxy::clock::Clock;
use crate::proxy::tap::{BACKLOG, Event, Found, Tap, Tapped};

use super::connections::Row;
use super::events::name;

/// An event and, once a reader has wanted it, its text.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) event: Event,
    text: OnceLock<Bytes>,
}

impl Told {
    /// As readers get it, by `clock` when it is first asked for.
    pub(super) fn text(&self, clock: &Clock) -> Bytes {
        let write = || {
            let row = Row::of(&self.event.connection, clock.now(), clock);
            // A row has no key that is not text, which alone could fail.
            let row = serde_json::to_string(&row).unwrap_or_default();
            Bytes::from(format!("event: {}\ndata: {row}\n\n", name(self.event.kind)))
        };
        self.text.get_or_init(write).clone()
    }
}

/// What a reader wants that looks at each event.
pub(super) const EVERY: u32 = u32::MAX;

/// The newest events by number, while anybody reads.
#[derive(Debug, Default)]
pub struct Feed {
    tapped: Option<Tapped>,
    /// Events per second that each reader wants at most.
    readers: Vec<u32>,
    /// When room was made for more.
    roomy: Option<Instant>,
    newest: VecDeque<(u64, Arc<Told>)>,
    /// Number of the next event.
    next: u64,
}

impl Feed {
    /// Takes in a reader that wants at most `rate` events a second; returns the number of the first event that is its.
    pub(super) fn join(&mut self, tap: &Tap, rate: u32) -> u64 {
        let before = self.most();
        self.readers.push(rate);
        let most = self.most();
        self.tapped.get_or_insert_with(|| tap.read()).make_room(most - before, most);
        self.refresh();
        self.next
    }

    /// Lets a reader of that rate go; the data plane tells nothing once it was the last.
    pub(super) fn leave(&mut self, rate: u32) {
        if let Some(at) = self.readers.iter().position(|own| *own == rate) {
            self.readers.swap_remove(at);
        }
        if self.readers.is_empty() {
            (self.tapped, self.roomy) = (None, None);
            self.newest.clear();
        }
    }

    /// Events per second that any reader may get.
    fn most(&self) -> u64 {
        self.readers.iter().copied().max().unwrap_or_default().into()
    }

    /// Makes room for what readers may get in the time until `now`, and in a second at most.
    fn make_room(&mut self, now: Instant) {
        let most = self.most();
        let Some(tapped) = &self.tapped else { return };
        let then = *self.roomy.get_or_insert(now);
        let since = now.saturating_duration_since(then).min(Duration::from_secs(1));
        let more = (u128::from(most) * since.as_micros() / 1_000_000) as u64;
        tapped.make_room(more, most);
        // The time of a part of an event counts for the next.
        let rest = since.saturating_sub(Duration::from_micros(more * 1_000_000 / most.max(1)));
        self.roomy = now.checked_sub(rest);
    }

    /// Returns the events from number `from` on that are still here, how many are not, and the number after the last.
    pub(super) fn since(&mut self, from: u64) -> (impl ExactSizeIterator<Item = &Arc<Told>>, u64, u64) {
        self.refresh();
        let first = self.newest.partition_point(|(number, _)| *number < from);
        let here = self.newest.range(first..).map(|(_, told)| told);
        let missed = self.next - from - here.len() as u64;
        (here, missed, self.next)
    }

    /// Takes what was told since the last time; only as much as the channel holds, so that it comes to an end.
    fn refresh(&mut self) {
        self.make_room(Instant::now());
        let Some(tapped) = &mut self.tapped else { return };
        for _ in 0..BACKLOG {
            match tapped.look() {
                Found::Nothing => break,
                Found::Lost(lost) => self.next += lost,
                Found::Event(event) => {
                    if self.newest.len() == BACKLOG {
                        self.newest.pop_front();
                    }
                    self.newest.push_back((self.next, Arc::new(Told { event, text: OnceLock::new() })));
                    self.next += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;
    use crate::proxy::recent::tests::ended;
    use crate::proxy::tap::EventKind;

    fn ids(feed: &mut Feed, from: u64) -> (Vec<u64>, u64, u64) {
        let (here, missed, next) = feed.since(from);
        (here.map(|told| told.event.connection.id).collect(), missed, next)
    }

    #[test]
    fn each_reader_gets_what_was_told_since_it_came_and_is_told_what_it_missed() {
        let tap = Tap::new(broadcast::channel(4).0);
        let mut feed = Feed::default();
        let early = feed.join(&tap, EVERY);
        (0..3).for_each(|id| tap.tell(EventKind::End, || ended(id)));
        let late = feed.join(&tap, EVERY);
        assert_eq!(tap.readers(), 1, "the data plane tells once");
        (3..5).for_each(|id| tap.tell(EventKind::End, || ended(id)));
        assert_eq!(ids(&mut feed, early), (vec![0, 1, 2, 3, 4], 0, 5));
        assert_eq!(ids(&mut feed, late), (vec![3, 4], 0, 5));
        // The channel holds four of these seven.
        (5..12).for_each(|id| tap.tell(EventKind::End, || ended(id)));
        assert_eq!(ids(&mut feed, 5), (vec![8, 9, 10, 11], 3, 12));
        feed.leave(EVERY);
        assert_eq!(tap.readers(), 1);
        feed.leave(EVERY);
        assert_eq!((tap.readers(), feed.newest.len()), (0, 0));
    }

    #[test]
    fn what_no_reader_may_get_is_not_told_and_counted_as_missed() {
        let tap = Tap::new(broadcast::channel(BACKLOG).0);
        let mut feed = Feed::default();
        let page = feed.join(&tap, 5);
        (0..100).for_each(|id| tap.tell(EventKind::End, || ended(id)));
        let (here, missed, next) = ids(&mut feed, page);
        // A few more, if more than the fifth part of a second has passed.
        assert!((5..50).contains(&here.len()), "{here:?}");
        assert_eq!((missed, next), (100 - here.len() as u64, 100));
        // One that looks at each needs each.
        let search = feed.join(&tap, EVERY);
        (100..200).for_each(|id| tap.tell(EventKind::End, || ended(id)));
        assert_eq!(ids(&mut feed, search), ((100..200).collect(), 0, 200));
        feed.leave(EVERY);
        feed.refresh();
        (200..300).for_each(|id| tap.tell(EventKind::End, || ended(id)));
        let (here, missed, _) = ids(&mut feed, 200);
        assert!(here.len() < 50 && missed == 100 - here.len() as u64, "{here:?}");
    }

    #[test]
    fn a_reader_of_few_events_gets_all_of_them_however_often_it_looks() {
        let tap = Tap::new(broadcast::channel(BACKLOG).0);
        let mut feed = Feed::default();
        feed.join(&tap, 4);
        (0..4).for_each(|id| tap.tell(EventKind::End, || ended(id)));
        let began = feed.roomy.expect("it has joined");
        let mut told = 0;
        for look in 1..=50 {
            feed.make_room(began + Duration::from_millis(200 * look));
            tap.tell(EventKind::End, || {
                told += 1;
                ended(told)
            });
        }
        assert!((39..=41).contains(&told), "{told} of 40 in ten seconds");
    }

    #[test]
    fn no_more_is_kept_than_a_reader_may_be_behind() {
        let tap = Tap::new(broadcast::channel(BACKLOG).0);
        let mut feed = Feed::default();
        let first = feed.join(&tap, EVERY);
        for _ in 0..2 {
            (0..BACKLOG as u64).for_each(|id| tap.tell(EventKind::End, || ended(id)));
            feed.refresh();
        }
        let (here, missed, next) = ids(&mut feed, first);
        assert_eq!((here.len(), missed, next), (BACKLOG, BACKLOG as u64, 2 * BACKLOG as u64));
    }
}
