//! Windows that are closed for a moment, so that a stream which never pauses does, and opened again.
//!
//! Only what peers are told changes. The proxy's sockets know nothing of it and take what is under way: no byte is refused that
//! was sent within a window told before.

use super::Side;
use super::header::{Header, Segment};
use super::{ACKED, before};

/// Value of [`super::Slot::lull`]: windows are told as they are.
pub const NONE: u64 = 0;

/// Value of [`super::Slot::lull`] while the proxy's sockets are made to send what opens windows. Any later one is the time
/// until which they are closed, in nanoseconds of CLOCK_MONOTONIC.
pub const OPENS: u64 = 1;

/// What an own packet tells its peer of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// What its socket has written.
    AsIs,
    /// That nothing may be sent.
    Closed,
    /// What its socket has written, from `sequence`, so that its peer listens.
    Opened {
        /// Sequence number to send it from.
        sequence: u32,
    },
}

/// What a packet of the proxy's own socket tells the peer of `side` before the hand-over, at `now`.
///
/// A process that dies leaves windows closed no longer than it meant to.
#[inline(always)]
pub fn told(lull: u64, side: &Side, segment: &Segment, now: u64) -> Told {
    if lull > OPENS {
        return if now < lull { Told::Closed } else { Told::AsIs };
    }
    // A probe comes from before what its peer has acknowledged, who would not read it.
    let sequence = segment.sequence.wrapping_add(1);
    let probe = segment.bare() && side.marks.get() & ACKED != 0 && side.ack.get() == sequence;
    if lull == OPENS && probe { Told::Opened { sequence } } else { Told::AsIs }
}

/// Whether a packet that the proxy's own socket sends to the peer of `side` behind the hand-over is the one that opens its window.
#[inline(always)]
pub fn opens(lull: u64, side: &Side, segment: &Segment) -> bool {
    lull == OPENS && segment.bare() && before(segment.sequence, side.owed.get())
}

/// Writes what is told; the checksum stays as it is.
#[inline(always)]
pub fn tell(header: &mut Header, told: Told) {
    match told {
        Told::AsIs => {}
        Told::Closed => set_window(header, 0),
        Told::Opened { sequence } => header[4..8].copy_from_slice(&sequence.to_be_bytes()),
    }
}

/// Writes a window as it stands in a header.
#[inline(always)]
pub fn set_window(header: &mut Header, window: u16) {
    header[14..16].copy_from_slice(&window.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ACK, FIN};
    use crate::splice::header::delta;

    /// A side whose peer has acknowledged up to 500, and whose socket had sent up to 900 at the hand-over.
    fn side() -> Side {
        let side = Side::default();
        side.marks.set(ACKED);
        side.ack.set(500);
        side.owed.set(900);
        side
    }

    fn own(sequence: u32, length: u32) -> Segment {
        Segment { sequence, ack: 7, flags: ACK, length, stamp: None }
    }

    #[test]
    fn windows_are_closed_until_a_moment_and_not_longer() {
        for segment in [own(500, 0), own(500, 9), Segment { flags: ACK | FIN, ..own(3, 0) }] {
            assert_eq!(told(1_000, &side(), &segment, 999), Told::Closed);
            assert_eq!(told(1_000, &side(), &segment, 1_000), Told::AsIs, "nobody may be left to open them");
            assert_eq!(told(NONE, &side(), &segment, 0), Told::AsIs);
        }
    }

    #[test]
    fn a_probe_opens_a_window_and_nothing_else_changes() {
        assert_eq!(told(OPENS, &side(), &own(499, 0), 5), Told::Opened { sequence: 500 });
        for other in [own(500, 0), own(499, 1), own(498, 0)] {
            assert_eq!(told(OPENS, &side(), &other, 5), Told::AsIs, "{other:?}");
        }
        let unknown = side();
        unknown.marks.set(0);
        assert_eq!(told(OPENS, &unknown, &own(499, 0), 5), Told::AsIs);
        // Behind the hand-over a socket may wait for acknowledgements.
        assert!(opens(OPENS, &side(), &own(499, 0)) && opens(OPENS, &side(), &own(899, 0)));
        assert!(!opens(OPENS, &side(), &own(900, 0)) && !opens(OPENS, &side(), &own(899, 1)));
        assert!(!opens(NONE, &side(), &own(499, 0)) && !opens(77, &side(), &own(499, 0)));
    }

    #[test]
    fn what_is_told_is_all_that_changes_and_the_checksum_follows() {
        let mut before = [0; 64];
        before.iter_mut().enumerate().take(32).for_each(|(at, byte)| *byte = at as u8 * 7 + 1);
        before[16..18].fill(0);
        let sum = |header: &Header| crate::csum::finish(crate::csum::sum(header));
        for (what, places) in
            [(Told::AsIs, 0..0), (Told::Closed, 14..16), (Told::Opened { sequence: 0x0102_0304 }, 4..8)]
        {
            let mut after = before;
            tell(&mut after, what);
            let changed = |at: &usize| after[*at] != before[*at];
            assert!((0..64).filter(changed).all(|at| places.contains(&at)), "{what:?}");
            assert!(places.clone().all(|at| changed(&at)), "{what:?}");
            let follows = crate::csum::update(sum(&before), delta(&before, &after));
            assert_eq!(follows, sum(&after), "{what:?}");
        }
    }
}
