//! A fair queue of tasks that wait for a slot; std only, so that a cell can hold it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::time::Moment;

/// Tasks waiting for a slot, called in the order of their arrival.
///
/// A place is kept until its owner leaves: one that is called and finds no slot waits on in front of those behind it.
#[derive(Debug, Default)]
pub struct WaitQueue {
    waiting: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next_ticket: u64,
    places: VecDeque<Place>,
}

#[derive(Debug)]
struct Place {
    since: Moment,
    ticket: u64,
    called: bool,
    waker: Option<Waker>,
}

impl Place {
    fn call(&mut self) -> Option<Waker> {
        self.called = true;
        self.waker.take()
    }
}

impl WaitQueue {
    /// Whether nobody waits, not even one that was called and has not looked yet.
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Calls the first that has not been called, if there is one.
    pub fn wake_one(&self) {
        // Orders the release of a slot before the look at the queue, as `join` orders the opposite way.
        fence(Ordering::SeqCst);
        // One load when nobody waits: this runs at the end of every connection.
        if !self.is_empty() {
            self.call_behind(None);
        }
    }

    /// Calls everybody: what they wait for has changed.
    pub fn wake_all(&self) {
        let mut inner = self.lock();
        let wakers: Vec<Waker> = inner.places.iter_mut().filter_map(Place::call).collect();
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes a place behind all that wait since before `since`; the future waits to be called.
    ///
    /// The first in the queue is called at once, so a slot that comes free before it looks is not missed. Poll again
    /// after a call that was of no use: the place is kept.
    pub fn join(&self, since: Moment) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut inner = self.lock();
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        let ahead = inner.places.iter().rposition(|place| place.since <= since).map_or(0, |last| last + 1);
        inner.places.insert(ahead, Place { since, ticket, called: false, waker: None });
        // The first may have no use for the slots that are free now; it then passes the call on.
        let waker = inner.places.front_mut().and_then(Place::call);
        drop(inner);
        fence(Ordering::SeqCst);
        waker.into_iter().for_each(Waker::wake);
        Waiting { queue: self, ticket }
    }

    /// Calls the first that has not been called, of all or of those behind `ticket`.
    fn call_behind(&self, ticket: Option<u64>) {
        let mut inner = self.lock();
        let own = ticket.and_then(|ticket| inner.places.iter().position(|place| place.ticket == ticket));
        let behind = inner.places.iter_mut().skip(own.map_or(0, |own| own + 1));
        let waker = behind.filter(|place| !place.called).map(Place::call).next();
        drop(inner);
        if let Some(Some(waker)) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing inside panics half-way, so a poisoned lock still holds a whole queue.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Place in a [`WaitQueue`]; dropping it leaves, and calls the next, as a slot may be left for it.
#[derive(Debug)]
pub struct Waiting<'a> {
    queue: &'a WaitQueue,
    ticket: u64,
}

impl Waiting<'_> {
    /// Calls the next one behind: what this one found no use for may suit it.
    pub fn pass_on(&self) {
        self.queue.call_behind(Some(self.ticket));
    }
}

impl Future for Waiting<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.queue.lock();
        let Some(place) = inner.places.iter_mut().find(|place| place.ticket == self.ticket) else {
            return Poll::Ready(());
        };
        if std::mem::take(&mut place.called) {
            return Poll::Ready(());
        }
        place.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        if let Some(own) = inner.places.iter().position(|place| place.ticket == self.ticket) {
            inner.places.remove(own);
        }
        drop(inner);
        self.queue.waiting.fetch_sub(1, Ordering::SeqCst);
        self.queue.wake_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_called(waiting: &mut Waiting<'_>) -> bool {
        Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_first_is_called_at_once_and_again_for_each_slot_until_it_leaves() {
        let queue = WaitQueue::default();
        let (mut first, mut second) = (queue.join(Moment(1)), queue.join(Moment(1)));
        assert!(is_called(&mut first) && !is_called(&mut first) && !is_called(&mut second));
        queue.wake_one();
        assert!(!is_called(&mut second) && is_called(&mut first));
        drop(first);
        assert!(is_called(&mut second));
    }

    #[test]
    fn the_queue_is_not_empty_before_who_was_called_has_left() {
        let queue = WaitQueue::default();
        let mut waiter = queue.join(Moment(1));
        queue.wake_one();
        assert!(!queue.is_empty(), "a newcomer would overtake it");
        assert!(is_called(&mut waiter) && !queue.is_empty());
        drop(waiter);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_slot_freed_between_a_look_and_the_wait_is_not_missed() {
        let queue = WaitQueue::default();
        let mut waiter = queue.join(Moment(1));
        assert!(is_called(&mut waiter));
        queue.wake_one();
        assert!(is_called(&mut waiter));
    }

    #[test]
    fn who_was_called_and_leaves_passes_it_on() {
        let queue = WaitQueue::default();
        let (mut first, mut second) = (queue.join(Moment(1)), queue.join(Moment(1)));
        assert!(is_called(&mut first) && !is_called(&mut second));
        queue.wake_one();
        drop(first);
        assert!(is_called(&mut second));
    }

    #[test]
    fn a_slot_of_no_use_to_the_first_reaches_those_behind() {
        let queue = WaitQueue::default();
        let (mut first, mut second) = (queue.join(Moment(1)), queue.join(Moment(1)));
        assert!(is_called(&mut first) && !is_called(&mut second));
        first.pass_on();
        assert!(!is_called(&mut first) && is_called(&mut second));
        // A newcomer makes the first look again, which may then pass on.
        let mut third = queue.join(Moment(2));
        assert!(is_called(&mut first) && !is_called(&mut second) && !is_called(&mut third));
    }

    #[test]
    fn who_comes_back_stands_where_it_stood() {
        let queue = WaitQueue::default();
        let mut newcomer = queue.join(Moment(5));
        assert!(is_called(&mut newcomer));
        let mut back = queue.join(Moment(2));
        assert!(is_called(&mut back));
        queue.wake_one();
        assert!(is_called(&mut back) && !is_called(&mut newcomer));
    }

    #[test]
    fn a_change_calls_everybody() {
        let queue = WaitQueue::default();
        let mut all = [queue.join(Moment(1)), queue.join(Moment(2)), queue.join(Moment(3))];
        queue.wake_all();
        assert!(all.iter_mut().all(is_called));
    }
}
