//! A fair queue of tasks that wait for a slot; std only, so that a cell can hold it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Tasks waiting for a slot, first come first woken.
#[derive(Debug, Default)]
pub struct WaitQueue {
    waiting: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next_ticket: u64,
    queue: VecDeque<(u64, Option<Waker>)>,
}

impl WaitQueue {
    /// Wakes the first waiter, if there is one.
    pub fn wake_one(&self) {
        // Orders the release of a slot before the look at the queue, as `join` orders the opposite way.
        fence(Ordering::SeqCst);
        // One load when nobody waits: this runs at the end of every connection.
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let first = self.lock().queue.pop_front();
        if let Some((_, Some(waker))) = first {
            waker.wake();
        }
    }

    /// Wakes every waiter: what they wait for has changed.
    pub fn wake_all(&self) {
        let all = std::mem::take(&mut self.lock().queue);
        for waker in all.into_iter().filter_map(|(_, waker)| waker) {
            waker.wake();
        }
    }

    /// Joins the queue now; the future waits to be woken once.
    ///
    /// Join, look for a free slot once more, then wait: a slot that comes free in between is not missed.
    pub fn join(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut inner = self.lock();
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        inner.queue.push_back((ticket, None));
        drop(inner);
        fence(Ordering::SeqCst);
        Waiting { queue: self, ticket, woken: false }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing inside panics half-way, so a poisoned lock still holds a whole queue.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Place in a [`WaitQueue`]; dropping it leaves, and passes a wake-up on that it did not use.
#[derive(Debug)]
pub struct Waiting<'a> {
    queue: &'a WaitQueue,
    ticket: u64,
    woken: bool,
}

impl Future for Waiting<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.queue.lock();
        let place = inner.queue.iter_mut().find(|(held, _)| *held == self.ticket);
        if let Some((_, waker)) = place {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(inner);
        self.woken = true;
        Poll::Ready(())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, Ordering::SeqCst);
        if self.woken {
            return;
        }
        let mut inner = self.queue.lock();
        let before = inner.queue.len();
        inner.queue.retain(|(held, _)| *held != self.ticket);
        let was_woken = inner.queue.len() == before;
        drop(inner);
        if was_woken {
            self.queue.wake_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(waiting: &mut Waiting<'_>) -> Poll<()> {
        Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn waiters_are_woken_in_order_and_one_at_a_time() {
        let queue = WaitQueue::default();
        let (mut first, mut second) = (queue.join(), queue.join());
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        queue.wake_one();
        assert!(poll(&mut second).is_pending());
        assert!(poll(&mut first).is_ready());
        queue.wake_one();
        assert!(poll(&mut second).is_ready());
    }

    #[test]
    fn a_slot_freed_between_joining_and_waiting_is_not_missed() {
        let queue = WaitQueue::default();
        let mut waiter = queue.join();
        queue.wake_one();
        assert!(poll(&mut waiter).is_ready());
    }

    #[test]
    fn a_waiter_that_leaves_passes_its_wake_up_on() {
        let queue = WaitQueue::default();
        let (mut first, mut second) = (queue.join(), queue.join());
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        queue.wake_one();
        drop(first);
        assert!(poll(&mut second).is_ready());
    }
}
