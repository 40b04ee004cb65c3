//! Flows that a killed process has left to the programs, as the process after it takes them over.

#![cfg(target_os = "linux")]

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use lemonade_common::FlowKey;
use lemonade_common::splice::FINISHED;

use super::check::{Standing, standing};
use super::memo::Memo;
use super::socket::Holder;
use super::{LINGER, Legs, Lingering, Relay, Spliced, Watched};
use crate::model::Moment;

/// A flow that the programs had when they were loaded.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) slot: u32,
    legs: Legs,
    /// Peer and own address, of client and backend.
    ends: [[SocketAddr; 2]; 2],
    holders: [Holder; 2],
}

impl Found {
    /// Takes its ports, before anything else connects from them.
    pub(super) fn hold((slot, legs): (u32, Legs)) -> Self {
        let ends = legs.map(|(key, _)| [peer(&key), peer(&key.reversed())]);
        let mut holders = ends.map(|[peer, own]| Holder::vacant([own, peer]));
        for holder in &mut holders {
            if let Err(error) = holder.claim() {
                tracing::debug!(%error, "the port of a flow that was left is not held yet");
            }
        }
        Self { slot, legs, ends, holders }
    }
}

/// A flow that goes on and that nobody looks after yet.
#[derive(Debug)]
pub struct Left {
    /// The flow.
    pub spliced: Spliced,
    /// What is to hold its ports.
    pub(super) holders: [Holder; 2],
    /// Client and the address that it used.
    pub client: [SocketAddr; 2],
    /// Backend.
    pub backend: SocketAddr,
    /// What the killed process has written down.
    pub memo: Memo,
    /// Bytes up and down so far.
    pub bytes: [u64; 2],
    /// When its last packet came.
    pub active: Moment,
}

impl Left {
    /// The relay that has it.
    pub fn relay(&self) -> Arc<Relay> {
        Arc::clone(&self.spliced.flow.relay)
    }
}

impl Relay {
    /// Whether packets of flows that are over may still come.
    pub fn lingers(&self) -> bool {
        !self.lock().lingering.is_empty()
    }

    /// Flows that were there when the programs were loaded and go on. They are this process's own from now on: dropping one
    /// ends it. Asked once.
    pub fn left(self: &Arc<Self>) -> Vec<Left> {
        let found = std::mem::take(&mut self.lock().found);
        found.into_iter().filter_map(|own| self.take_over(own)).collect()
    }

    fn take_over(self: &Arc<Self>, found: Found) -> Option<Left> {
        let Found { slot, legs, ends, holders } = found;
        let seen = self.seen(slot);
        let over = standing(&seen, &legs) != Standing::Open;
        let settled = Arc::new(AtomicBool::new(true));
        let flow = Watched { relay: Arc::clone(self), slot, legs, settled };
        if over {
            // Its last packets may still be on their way.
            let until = Instant::now() + LINGER;
            self.lock().lingering.push(Lingering { until, flow, _holders: holders });
            return None;
        }
        let memo = Memo::from_words(self.programs.memo(slot));
        let finished = seen.map(|side| side.marks & FINISHED != 0);
        let base = [0, 1].map(|at| seen[at].end.wrapping_sub(finished[at].into()));
        let bytes = [0, 1].map(|at| memo.bytes(at, seen[at].end, finished[at]));
        let active = Moment(seen.iter().map(|side| side.seen).max().unwrap_or(0) / 1000);
        let [client, [backend, _]] = ends;
        Some(Left { spliced: Spliced { flow, base }, holders, client, backend, memo, bytes, active })
    }
}

/// The end that a packet of the flow comes from.
fn peer(key: &FlowKey) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(key.src).to_canonical(), u16::from_be_bytes(key.sport))
}
