//! How long a flow is kept that carries nothing. Pure.

use std::time::Duration;

use lemonade_common::flow::TCP;
use lemonade_common::forward::{ANSWERED, Flow, RESET, ended};

/// A flow that was reset: nothing comes after it but what was on its way.
const AFTER_RESET: Duration = Duration::from_secs(2);

/// A flow that both sides have closed: the last acknowledgement may be lost and asked for again.
const AFTER_CLOSE: Duration = Duration::from_secs(10);

/// A connection that the backend has not answered: six SYNs of Linux come within 63 seconds, most clients give up before.
const UNANSWERED: Duration = Duration::from_secs(30);

/// The same three where the table is nearly full.
const SCARCE: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(5)];

/// Time without a packet after which a flow is forgotten; `idle` is its frontend's, `scarce`: the table is nearly full.
pub(super) fn patience(flow: &Flow, idle: Duration, scarce: bool) -> Duration {
    let [reset, closed, unanswered] = if scarce { SCARCE } else { [AFTER_RESET, AFTER_CLOSE, UNANSWERED] };
    let state = flow.state();
    if state & RESET != 0 {
        reset
    } else if ended(state) {
        closed
    } else if flow.protocol == TCP && state & ANSWERED == 0 {
        unanswered.min(idle)
    } else {
        idle
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use lemonade_common::forward::{DOWN, FIN_DOWN, FIN_UP};

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
        assert_eq!(kept(flow(TCP, 0, 0)), UNANSWERED);
        assert_eq!(kept(flow(TCP, 0, ANSWERED)), idle);
        assert_eq!(kept(flow(TCP, DOWN | ANSWERED | FIN_DOWN, 0)), idle, "half-closed");
        assert_eq!(kept(flow(TCP, FIN_UP, ANSWERED | FIN_DOWN)), AFTER_CLOSE, "each side told one");
        assert_eq!(kept(flow(TCP, RESET, 0)), AFTER_RESET);
        assert_eq!(kept(flow(17, 0, 0)), idle, "one-way datagrams");
        assert!(patience(&flow(TCP, FIN_UP | FIN_DOWN, 0), idle, true) < AFTER_CLOSE);
        assert_eq!(patience(&flow(TCP, 0, ANSWERED), idle, true), idle, "live flows stay");
    }
}
