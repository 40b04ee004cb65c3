//! When a stream that never pauses is made to, and for how long. Nothing here touches a socket.

use std::time::Duration;

use super::check::Tcp;
use crate::model::Moment;

/// Bytes that a connection must have carried since it was due, or since its last lull: fewer are not worth a pause.
pub(super) const WORTH: u64 = 512 * 1024;

/// Shortest and longest time that a lull lasts.
const LASTS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// Time from the first lull that came to nothing to the next, which doubles.
const PAUSE: Duration = Duration::from_millis(50);

/// Lulls of one connection at most.
const MOST: u32 = 8;

/// The lulls of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lulls {
    /// Those that came to nothing, and times at which one would have lasted too long.
    vain: u32,
    /// End of the one that is.
    until: Option<Moment>,
    /// No other before.
    next: Moment,
    /// Bytes that the connection had carried when the last one ended.
    carried: u64,
}

impl Lulls {
    /// Those of a connection that has carried so many bytes when it is due.
    pub(super) fn since(carried: u64) -> Self {
        Self { carried, ..Self::default() }
    }

    /// Whether windows are closed.
    pub(super) const fn lasts(&self) -> bool {
        self.until.is_some()
    }

    /// Whether it is time for one.
    pub(super) fn due(&self, now: Moment, carried: u64) -> bool {
        self.until.is_none()
            && self.vain < MOST
            && now >= self.next
            && carried.saturating_sub(self.carried) >= WORTH
    }

    /// Whether the one that is has lasted long enough.
    pub(super) fn over(&self, now: Moment) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    /// Begins one.
    pub(super) fn begin(&mut self, now: Moment, length: Duration) {
        self.until = Some(now.plus(length));
    }

    /// Ends the one that is, or does without one.
    pub(super) fn end(&mut self, now: Moment, carried: u64) {
        self.until = None;
        self.next = now.plus(PAUSE * (1 << self.vain.min(MOST)));
        self.vain += 1;
        self.carried = carried;
    }
}

/// How long a lull has to last for a connection of which so many bytes are sent and not acknowledged, or wait to be sent.
/// `None`: for longer than senders should wait.
pub(super) fn length(tcp: &[Tcp; 2], backlogs: [usize; 2]) -> Option<Duration> {
    let [client, backend] = [0, 1].map(|at| tcp[at].drains_in(backlogs[at]));
    let length = client?.max(backend?).max(LASTS.0);
    (length <= LASTS.1).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::relay::splice::check::INFO;

    const BEGAN: Moment = Moment(1_000_000);

    #[test]
    fn a_lull_is_due_when_enough_was_carried_and_lasts_as_long_as_it_may() {
        let mut lulls = Lulls::since(40_000);
        assert!(!lulls.due(BEGAN, 40_000 + WORTH - 1) && lulls.due(BEGAN, 40_000 + WORTH));
        lulls.begin(BEGAN, Duration::from_millis(20));
        assert!(lulls.lasts() && !lulls.due(BEGAN, u64::MAX));
        assert!(!lulls.over(Moment(1_019_999)) && lulls.over(Moment(1_020_000)));
        lulls.end(Moment(1_020_000), 2 * WORTH);
        assert!(!lulls.lasts() && !lulls.over(Moment(u64::MAX)));
        assert!(!lulls.due(Moment(1_069_999), u64::MAX) && lulls.due(Moment(1_070_000), 3 * WORTH));
        assert!(!lulls.due(Moment(1_070_000), 3 * WORTH - 1), "too little came since");
    }

    #[test]
    fn lulls_in_vain_become_rare_and_end() {
        let (mut lulls, mut now, mut pauses) = (Lulls::default(), BEGAN, Vec::new());
        while lulls.due(now, u64::MAX) {
            lulls.begin(now, Duration::from_millis(20));
            lulls.end(now, 0);
            pauses.push(lulls.next.since(now).as_millis());
            now = lulls.next;
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_600, 3_200, 6_400]);
        assert!(!lulls.due(Moment(u64::MAX), u64::MAX));
    }

    /// What the kernel tells of a connection with these round trips and rates.
    fn tcp(round_trip: u32, rate: u64) -> Tcp {
        let mut info = [0; INFO];
        info[68..72].copy_from_slice(&round_trip.to_ne_bytes());
        info[160..168].copy_from_slice(&rate.to_ne_bytes());
        Tcp::read(&info)
    }

    #[test]
    fn a_lull_lasts_until_what_is_under_way_has_arrived() {
        let (near, far) = (tcp(200, 1 << 30), tcp(40_000, 10_000_000));
        assert_eq!(length(&[near, near], [0, 4 << 20]), Some(Duration::from_millis(20)));
        assert_eq!(length(&[near, far], [0, 0]), Some(Duration::from_millis(80)));
        assert_eq!(length(&[far, near], [500_000, 0]), Some(Duration::from_millis(130)));
        assert_eq!(length(&[far, near], [4_000_000, 0]), None);
        assert_eq!(length(&[tcp(10, 0), near], [1, 0]), None, "nothing was ever acknowledged");
        assert_eq!(length(&[tcp(10, 0), near], [0, 0]), Some(Duration::from_millis(20)));
    }
}
