//! How long a flow is kept that carries nothing. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use lemonade_common::forward::{FIN_UP, Flow, RESET, answers_pass_by, ended};
use lemonade_common::half_open::is_half_open;
use lemonade_common::{BackendIx, FrontendIx};

use super::tally::Tally;
use crate::control::table::DispatchTable;

/// A flow that was reset: nothing comes after it but what was on its way.
const AFTER_RESET: Duration = Duration::from_secs(2);

/// A flow that both sides have closed: the last acknowledgement may be lost and asked for again.
const AFTER_CLOSE: Duration = Duration::from_secs(10);

/// A connection whose handshake is not complete: six SYNs of Linux come within 63 seconds, most clients give up before.
const HALF_OPEN: Duration = Duration::from_secs(30);

/// The same three where the table is nearly full, or somebody is at the limit of its connections: clients that were invented
/// would keep out others.
const SCARCE: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(5)];

/// Who has as many connections as it may.
#[derive(Debug, Default)]
pub(super) struct Full {
    frontends: BTreeSet<u32>,
    backends: BTreeSet<u32>,
}

impl Full {
    /// By what the last round over the connection table found.
    pub(super) fn by(tally: &Tally, table: &DispatchTable) -> Self {
        let reached = |most: u32, live: u64| most > 0 && live >= u64::from(most);
        let frontend = |ix: FrontendIx| tally.live(|lane| lane.0 == ix);
        let backend = |ix: BackendIx| tally.live(|lane| lane.1 == ix);
        let frontends = table.frontends.iter();
        let backends = table.pools.values().flat_map(|pool| &pool.backends);
        Self {
            frontends: frontends
                .filter(|(ix, entry)| reached(entry.frontend.max_connections, frontend(**ix)))
                .map(|(ix, _)| ix.0)
                .collect(),
            backends: backends
                .filter(|own| reached(own.backend.max_connections, backend(own.ix)))
                .map(|own| own.ix.0)
                .collect(),
        }
    }

    /// Whether a flow takes the place of another.
    pub(super) fn has(&self, flow: &Flow) -> bool {
        self.frontends.contains(&flow.frontend) || self.backends.contains(&flow.backend)
    }
}

/// Time without a packet after which a flow is forgotten; `idle` is its frontend's, `scarce`: room is.
pub(super) fn patience(flow: &Flow, idle: Duration, scarce: bool) -> Duration {
    let [reset, closed, half_open] = if scarce { SCARCE } else { [AFTER_RESET, AFTER_CLOSE, HALF_OPEN] };
    let state = flow.state();
    if state & RESET != 0 {
        reset
    } else if ended(state) || answers_pass_by(flow.mode) && state & FIN_UP != 0 {
        // Where answers pass by, the backend's FIN is not seen. What comes later finds its backend by the ring.
        closed
    } else if is_half_open(flow) {
        half_open.min(idle)
    } else {
        idle
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use lemonade_common::flow::TCP;
    use lemonade_common::forward::{ANSWERED, DOWN, DSR_L2, ESTABLISHED, FIN_DOWN};

    use super::*;

    #[test]
    fn a_flow_is_kept_by_what_its_packets_said() {
        let idle = Duration::from_secs(600);
        let flow = |protocol, state: u32, told: u32| Flow {
            protocol,
            state: Cell::new(state.into()),
            told: Cell::new(told.into()),
            ..Flow::default()
        };
        let kept = |flow: Flow| patience(&flow, idle, false);
        assert_eq!(kept(flow(TCP, 0, 0)), HALF_OPEN);
        assert_eq!(kept(flow(TCP, 0, ANSWERED)), HALF_OPEN, "the client has not acknowledged");
        assert_eq!(kept(flow(TCP, ESTABLISHED, ANSWERED)), idle);
        assert_eq!(kept(flow(TCP, DOWN | ANSWERED | FIN_DOWN, ESTABLISHED)), idle, "half-closed");
        assert_eq!(kept(flow(TCP, FIN_UP, ANSWERED | FIN_DOWN)), AFTER_CLOSE, "each side told one");
        assert_eq!(kept(flow(TCP, RESET, 0)), AFTER_RESET);
        assert_eq!(kept(flow(17, 0, 0)), idle, "one-way datagrams");
        let passing = |state| Flow { mode: DSR_L2, ..flow(TCP, state, 0) };
        assert_eq!(kept(passing(ANSWERED | FIN_UP)), AFTER_CLOSE);
        assert_eq!(kept(passing(ANSWERED | ESTABLISHED)), idle);
        assert!(patience(&flow(TCP, FIN_UP | FIN_DOWN, 0), idle, true) < AFTER_CLOSE);
        assert_eq!(patience(&flow(TCP, ESTABLISHED, ANSWERED), idle, true), idle, "live flows stay");
    }
}
