//! What TCP tells of the connections to one backend, and the latency that strategies make of it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::time::Moment;

/// What a segment sent again costs who waits for it: the shortest timeout of Linux (`TCP_RTO_MIN`).
pub const RESENT: Duration = Duration::from_millis(200);

/// Time for which a latency told by TCP stands; after it, connects are timed by the proxy again.
pub const STANDS: Duration = Duration::from_secs(5);

/// Time between two samples of one backend.
pub const SPACING: Duration = Duration::from_millis(250);

/// Who told.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum TcpSource {
    /// A program in the kernel, of every connection.
    Kernel,
    /// The socket option TCP_INFO, of some connections.
    TcpInfo,
}

impl TcpSource {
    /// Stable name, used in the status and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::TcpInfo => "tcp_info",
        }
    }
}

/// What TCP told of the connections to one backend, health probes included where the kernel told.
#[derive(Debug, Default)]
pub struct TcpCell {
    source: AtomicU8,
    srtt_us: AtomicU32,
    connect_us: AtomicU32,
    retransmits: AtomicU64,
    closes: AtomicU64,
    resets: AtomicU64,
    early_resets: AtomicU64,
    /// Moment (microseconds) of the newest latency; 0: none.
    told_at: AtomicU64,
    /// Moment (microseconds) from which the next sample may be taken.
    due_at: AtomicU64,
}

/// Connections as a program in the kernel counted them; in JSON the fields stand beside those of [`TcpCounters`], or lack.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
pub struct TcpCounts {
    /// Newest handshake, microseconds.
    #[schema(required = false)]
    pub connect_us: u32,
    /// Connections that left the state ESTABLISHED.
    #[schema(required = false)]
    pub closes: u64,
    /// Of `closes`, those by a reset of the backend or a timeout.
    #[schema(required = false)]
    pub resets: u64,
    /// Of `resets`, those before a byte went either way.
    #[schema(required = false)]
    pub early_resets: u64,
}

/// A [`TcpCell`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct TcpCounters {
    /// Who told.
    pub source: TcpSource,
    /// Smoothed round-trip time of the newest connection told of, microseconds; 0: none yet.
    pub srtt_us: u32,
    /// Segments sent again, on connections that were told of.
    pub retransmits: u64,
    /// What only the kernel counts.
    #[serde(flatten)]
    pub counts: Option<TcpCounts>,
}

impl TcpCell {
    /// The figures, or `None` before the first.
    pub fn read(&self) -> Option<TcpCounters> {
        let source = match self.source.load(Ordering::Acquire) {
            1 => TcpSource::Kernel,
            2 => TcpSource::TcpInfo,
            _ => return None,
        };
        let counts = TcpCounts {
            connect_us: self.connect_us.load(Ordering::Relaxed),
            closes: self.closes.load(Ordering::Relaxed),
            resets: self.resets.load(Ordering::Relaxed),
            early_resets: self.early_resets.load(Ordering::Relaxed),
        };
        Some(TcpCounters {
            source,
            srtt_us: self.srtt_us.load(Ordering::Relaxed),
            retransmits: self.retransmits.load(Ordering::Relaxed),
            counts: (source == TcpSource::Kernel).then_some(counts),
        })
    }

    /// Takes in all that the kernel counted.
    pub fn counted(&self, srtt_us: u32, retransmits: u64, counts: TcpCounts) {
        self.srtt_us.store(srtt_us, Ordering::Relaxed);
        self.retransmits.store(retransmits, Ordering::Relaxed);
        self.connect_us.store(counts.connect_us, Ordering::Relaxed);
        self.closes.store(counts.closes, Ordering::Relaxed);
        self.resets.store(counts.resets, Ordering::Relaxed);
        self.early_resets.store(counts.early_resets, Ordering::Relaxed);
        self.source.store(1, Ordering::Release);
    }

    /// Takes in a sample of one connection: its round trip, and the segments sent again since its last sample.
    pub fn sampled(&self, srtt_us: u32, retransmits: u64) {
        self.srtt_us.store(srtt_us, Ordering::Relaxed);
        self.retransmits.fetch_add(retransmits, Ordering::Relaxed);
        self.source.store(2, Ordering::Release);
    }

    /// Whether a sample may be taken; says so once in each [`SPACING`].
    pub fn due(&self, now: Moment) -> bool {
        let due = self.due_at.load(Ordering::Relaxed);
        due <= now.0
            && self
                .due_at
                .compare_exchange(due, now.plus(SPACING).0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Notes that TCP told a latency.
    pub(super) fn told(&self, now: Moment) {
        self.told_at.store(now.0.max(1), Ordering::Relaxed);
    }

    /// Whether TCP told a latency lately.
    pub(super) fn tells(&self, now: Moment) -> bool {
        let told = self.told_at.load(Ordering::Relaxed);
        told != 0 && now.since(Moment(told)) < STANDS
    }
}

/// Latency of the way to a backend: a round trip, and what segments sent again have cost a connection on average.
pub fn latency(round_trip: Duration, retransmits: u64, connections: u64) -> Duration {
    let share = retransmits as f64 / connections.max(1) as f64;
    round_trip + RESENT.mul_f64(share.min(1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_sent_again_weigh_by_connection() {
        let trip = Duration::from_millis(3);
        assert_eq!(latency(trip, 0, 0), trip);
        assert_eq!(latency(trip, 1, 10), Duration::from_millis(23));
        assert_eq!(latency(trip, 2, 0), Duration::from_millis(403));
    }

    #[test]
    fn one_backend_is_sampled_once_in_a_spacing() {
        let cell = TcpCell::default();
        let taken = (0..10_000).filter(|tenth| cell.due(Moment(1 + tenth * 100))).count();
        assert_eq!(taken, 4, "in one second");
    }

    #[test]
    fn what_only_the_kernel_counts_is_not_claimed_of_samples() {
        let cell = TcpCell::default();
        assert_eq!(cell.read(), None);
        cell.sampled(250, 2);
        cell.sampled(200, 1);
        let told = serde_json::to_value(cell.read().unwrap()).unwrap();
        assert_eq!(told, serde_json::json!({ "source": "tcp_info", "srtt_us": 200, "retransmits": 3 }));
        cell.counted(90, 1, TcpCounts { closes: 4, ..TcpCounts::default() });
        let told = serde_json::to_value(cell.read().unwrap()).unwrap();
        assert_eq!((&told["source"], &told["closes"]), (&"kernel".into(), &4.into()));
        let back: TcpCounters = serde_json::from_value(told).unwrap();
        assert_eq!(Some(back), cell.read());
    }
}
