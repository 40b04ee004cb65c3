//! Flows whose handshake is not complete: an attacker who invents clients opens as many as packets reach here, so they are
//! bounded apart from the others, and the oldest makes room for the newest.

use crate::decide::TableView;
use crate::flow::{FlowKey, TCP};
use crate::forward::{ESTABLISHED, Flow};
use crate::open::forget;

/// A handshake that has begun: value of the queue `HALF_OPEN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HalfOpen {
    /// Flow of the SYN as it arrived.
    pub key: FlowKey,
    /// Time of that, in nanoseconds of CLOCK_MONOTONIC; the flow's own `opened`.
    pub opened: u64,
}

const _: () = assert!(size_of::<HalfOpen>() == 48);

/// Nanoseconds for which a handshake is not made to end for another: what a client on the same continent needs.
pub const PROTECTED: u64 = 50_000_000;

/// Handshakes at most, whatever the size of the table: half the ports that a backend usually has.
pub const MOST_HALF_OPEN: u32 = 1 << 14;

/// Handshakes that are written down beside a connection table with room for so many directions: a quarter of its flows.
pub const fn half_open_room(entries: u32) -> u32 {
    let quarter = entries / 8;
    if quarter > MOST_HALF_OPEN {
        MOST_HALF_OPEN
    } else if quarter == 0 {
        1
    } else {
        quarter
    }
}

/// Whether the client of a flow has not acknowledged an answer yet.
#[inline(always)]
pub fn is_half_open(flow: &Flow) -> bool {
    flow.protocol == TCP && flow.state() & ESTABLISHED == 0
}

/// Writes down that a handshake begins. Where there is no room the oldest is taken off, with its flow if that is no
/// connection yet; if it began just now, nothing is done and `false` returned.
#[inline(never)]
pub(crate) fn admit<T: TableView>(table: &T, key: &FlowKey, now: u64) -> bool {
    let begun = HalfOpen { key: *key, opened: now };
    if table.begin(&begun) {
        return true;
    }
    // Another core may do the same; then this packet is lost, and its client sends it again.
    release(table, now) && table.begin(&begun)
}

/// Takes the oldest off; says whether there may be room now.
#[inline(never)]
fn release<T: TableView>(table: &T, now: u64) -> bool {
    if let Some(oldest) = table.oldest()
        && oldest.opened + PROTECTED > now
        && waiting(table, &oldest).is_some()
    {
        return false;
    }
    if let Some(oldest) = table.shift()
        && let Some(flow) = waiting(table, &oldest)
    {
        forget(table, &oldest.key, flow);
        table.replaced();
    }
    true
}

/// The flow of a handshake, if it is half open still.
#[inline(always)]
fn waiting<'t, T: TableView>(table: &'t T, begun: &HalfOpen) -> Option<&'t Flow> {
    table.flow(&begun.key).filter(|flow| flow.opened == begun.opened && is_half_open(flow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_have_a_quarter_of_the_table_and_half_the_ports_at_most() {
        assert_eq!(half_open_room(2 * 4_096), 1_024);
        assert_eq!(half_open_room(2 * 262_144), MOST_HALF_OPEN);
        assert_eq!(half_open_room(u32::MAX), MOST_HALF_OPEN);
        assert_eq!(half_open_room(1), 1);
    }
}
