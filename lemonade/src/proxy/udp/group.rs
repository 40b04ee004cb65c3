//! An address for datagrams: one socket in each worker, all opened and closed together.
//!
//! The kernel spreads clients over the sockets of an address by a hash; were one closed before the others, it would hand
//! clients of the others around. So a listener that is no longer wanted stays, for the sessions it has, until the last
//! one has ended in every worker.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The sockets of one address.
#[derive(Debug)]
pub(in crate::proxy) struct Group {
    /// Index of the frontend that takes new sessions.
    pub(super) frontend: Arc<AtomicU32>,
    state: Mutex<State>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    sessions: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Takes new sessions.
    Open,
    /// Serves those it has.
    Closing,
    /// Its sockets go.
    Closed,
}

impl Group {
    /// An address that takes sessions for `frontend`.
    pub(in crate::proxy) fn new(frontend: Arc<AtomicU32>) -> Self {
        let state = State { phase: Phase::Open, sessions: 0 };
        Self { frontend, state: Mutex::new(state), closed: CancellationToken::new() }
    }

    /// Takes no new session from now on; the sockets go with the last one.
    pub(in crate::proxy) fn close(&self) {
        let mut state = self.state();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        self.settle(state);
    }

    /// Takes new sessions again, or tells that the sockets are gone.
    pub(in crate::proxy) fn reopen(&self) -> bool {
        let mut state = self.state();
        if state.phase == Phase::Closed {
            return false;
        }
        state.phase = Phase::Open;
        true
    }

    /// Whether its sockets are gone.
    pub(in crate::proxy) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Whether it takes new sessions.
    pub(super) fn is_open(&self) -> bool {
        self.state().phase == Phase::Open
    }

    /// Waits until the sockets go.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// A place for a new session, if it takes one.
    pub(super) fn join(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return None;
        }
        state.sessions += 1;
        Some(Place(Arc::clone(self)))
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) {
        if state.phase == Phase::Closing && state.sessions == 0 {
            state.phase = Phase::Closed;
            self.closed.cancel();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing inside panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place; the sockets stay as long as there is one.
#[derive(Debug)]
pub(super) struct Place(Arc<Group>);

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.sessions -= 1;
        self.0.settle(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_stay_for_the_last_session_and_can_be_taken_back_until_then() {
        let group = Arc::new(Group::new(Arc::default()));
        let (one, two) = (group.join().unwrap(), group.join().unwrap());
        group.close();
        assert!(group.join().is_none() && !group.is_closed());
        assert!(group.reopen(), "its sockets are still there");
        let three = group.join().unwrap();
        group.close();
        drop((one, two));
        assert!(!group.is_closed());
        drop(three);
        assert!(group.is_closed() && !group.reopen() && group.join().is_none());
    }

    #[test]
    fn without_a_session_they_go_at_once() {
        let group = Group::new(Arc::default());
        group.close();
        assert!(group.is_closed());
    }
}
