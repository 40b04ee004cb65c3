//! Live state of table entries: atomics that the data plane writes and that outlive the table they were made for.
//!
//! A cell is carried to the next table by the identity of its entry, so counters and averages survive a reload.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use lemonade_common::Reason;

use super::ewma::{FailureRatio, PeakEwma};
use super::forward::{ForwardCell, PlaneCell, RingCell};
use super::relay::{KernelRelay, RelayCell, RelayState};
use super::tcp::TcpCell;
use super::time::Moment;
use super::wait::WaitQueue;

/// Live state of one backend.
#[derive(Debug, Default)]
pub struct BackendCell {
    /// Connections that exist or are being made.
    pub live: AtomicU32,
    /// Of `live`, those not yet connected.
    pub connecting: AtomicU32,
    /// Times it was picked.
    pub picks: AtomicU64,
    /// Connections established.
    pub opened: AtomicU64,
    /// Connects that failed or timed out.
    pub failures: AtomicU64,
    /// Connections that it reset.
    pub resets: AtomicU64,
    /// Of `resets`, those before a byte went either way.
    pub early_resets: AtomicU64,
    /// Bytes from client to backend.
    pub bytes_up: AtomicU64,
    /// Bytes from backend to client.
    pub bytes_down: AtomicU64,
    /// Latency of the way to it: as TCP tells, or the time of connects.
    pub connect: PeakEwma,
    /// Time from the first byte sent to the first byte received.
    pub first_byte: PeakEwma,
    /// Share of connects that failed lately.
    pub failure_ratio: FailureRatio,
    /// Moment (microseconds) of the last pick by a strategy that goes by latency; 0: none.
    pub tried_at: AtomicU64,
    /// Failures in a row; those during a back-off count as one with its first.
    pub streak: AtomicU32,
    /// Moment (microseconds) before which it is avoided because it has just failed; 0: none.
    pub retry_at: AtomicU64,
    /// What TCP tells of its connections.
    pub tcp: TcpCell,
    /// Set for good when the entry left the table, and while it is disabled or down: no new connection.
    pub closed: AtomicBool,
    /// Set while it is down and not to be tried either: sessions of datagrams leave it.
    pub down: AtomicBool,
}

impl BackendCell {
    /// Takes one connection slot, or `false` when `max` (0: no limit) is reached.
    pub fn acquire(&self, max: u32) -> bool {
        let taken = self.live.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |live| {
            (max == 0 || live < max).then(|| live + 1)
        });
        taken.is_ok()
    }

    /// A cell of its own with what a pick goes by, as it is now.
    #[must_use]
    pub fn copy(&self) -> Self {
        let word = |own: &AtomicU64| AtomicU64::new(own.load(Ordering::Relaxed));
        let half = |own: &AtomicU32| AtomicU32::new(own.load(Ordering::Relaxed));
        Self {
            live: half(&self.live),
            connecting: half(&self.connecting),
            connect: self.connect.copy(),
            first_byte: self.first_byte.copy(),
            failure_ratio: self.failure_ratio.copy(),
            tried_at: word(&self.tried_at),
            streak: half(&self.streak),
            retry_at: word(&self.retry_at),
            closed: AtomicBool::new(self.closed.load(Ordering::Relaxed)),
            ..Self::default()
        }
    }

    /// Gives a slot back.
    pub fn release(&self) {
        self.live.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether it failed so recently that another one should be preferred.
    pub fn backing_off(&self, now: Moment) -> bool {
        self.retry_at.load(Ordering::Relaxed) > now.0
    }

    /// Takes in a connect that succeeded after `took`: ends the back-off. Counters are the caller's.
    pub fn connected(&self, took: Duration, now: Moment) {
        // The proxy's own delays are in `took`, so what TCP tells is better.
        if !self.tcp.tells(now) {
            self.connect.observe(took, now);
        }
        self.succeeded(now);
    }

    /// Takes in datagrams that were answered after `took`: ends the back-off. Counters are the caller's.
    pub fn answered(&self, took: Duration, now: Moment) {
        self.first_byte.observe(took, now);
        self.succeeded(now);
    }

    fn succeeded(&self, now: Moment) {
        self.streak.store(0, Ordering::Relaxed);
        self.retry_at.store(0, Ordering::Relaxed);
        self.failure_ratio.observe(false, now);
    }

    /// Takes in the latency of the way to it, as TCP tells. The first replaces what the proxy had measured, delays of its
    /// own included, so that a newcomer is compared by the same measure as those told of before.
    pub fn told(&self, latency: Duration, now: Moment) {
        if self.tcp.tells(now) {
            self.connect.observe(latency, now);
        } else {
            self.connect.restart(latency, now);
        }
        self.tcp.told(now);
    }

    /// Takes in a connect that failed: backs off, twice as long for each further failure in a row. Counters are the caller's.
    ///
    /// Failures during a back-off do not lengthen it: they are of connects made before it, many of them at once.
    pub fn failed(&self, now: Moment) {
        self.failure_ratio.observe(true, now);
        let until = self.retry_at.load(Ordering::Relaxed);
        let doublings = self.streak.load(Ordering::Relaxed).min(16);
        let pause = FIRST_BACK_OFF.saturating_mul(1 << doublings).min(LONGEST_BACK_OFF);
        let begun = until <= now.0
            && self
                .retry_at
                .compare_exchange(until, now.plus(pause).0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if begun {
            self.streak.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Time for which a backend is avoided after a first failure.
pub const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// Longest time for which a backend is avoided.
pub const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);

/// Live state of one pool.
#[derive(Debug, Default)]
pub struct PoolCell {
    /// Position of the turn-taking strategies.
    pub cursor: AtomicU64,
    /// Connections waiting for a free backend.
    pub queued: AtomicU32,
    /// Those connections, woken as slots come free.
    pub waiting: WaitQueue,
    /// Connects to another backend after a failure.
    pub retries: AtomicU64,
    /// Second connects raced against a late first.
    pub hedges: AtomicU64,
    /// Retries not made because the budget was spent.
    pub budget_exhausted: AtomicU64,
    /// Tokens of the retry budget.
    pub budget: Mutex<RetryTokens>,
    /// What the kernel picks by.
    pub rings: RingCell,
}

/// Balance of a pool's retry budget.
#[derive(Debug, Default, Clone, Copy)]
pub struct RetryTokens {
    /// Retries that may still be made.
    pub balance: f64,
    /// When it was last topped up.
    pub at: Moment,
}

/// Live state of one frontend.
#[derive(Debug, Default)]
pub struct FrontendCell {
    /// Connections accepted and not yet ended.
    pub live: AtomicU32,
    /// Connections accepted.
    pub opened: AtomicU64,
    /// Connections ended, refused ones included.
    pub closed: AtomicU64,
    /// Bytes from client to backend.
    pub bytes_up: AtomicU64,
    /// Bytes from backend to client.
    pub bytes_down: AtomicU64,
    /// Datagrams from clients to backends.
    pub datagrams_up: AtomicU64,
    /// Datagrams from backends to clients.
    pub datagrams_down: AtomicU64,
    /// Datagrams from clients that found the socket to the backend full, or were too long for the path.
    pub datagrams_lost_up: AtomicU64,
    /// Datagrams from backends that could not be sent to the client.
    pub datagrams_lost_down: AtomicU64,
    /// Connections that got no backend, by reason.
    pub refused: [AtomicU64; Reason::COUNT],
    /// Who serves it.
    pub plane: PlaneCell,
    /// What relays in the kernel carried.
    pub relays: [RelayCell; KernelRelay::COUNT],
    /// Time to connect a backend, seconds.
    pub connect_seconds: Histogram,
    /// Life of a connection, seconds.
    pub session_seconds: Histogram,
}

/// Live state of the process.
#[derive(Debug, Default)]
pub struct ProcessCell {
    /// Connections accepted and not yet ended, over all frontends that ever were.
    pub live: AtomicU32,
    /// Connections accepted.
    pub opened: AtomicU64,
    /// Connections ended.
    pub closed: AtomicU64,
    /// Times accepting was paused for want of descriptors or memory.
    pub accept_pauses: AtomicU64,
    /// Internal events dropped because a bounded channel was full.
    pub events_dropped: AtomicU64,
    /// Spans and log records that did not reach the receiver of telemetry.
    pub telemetry_dropped: AtomicU64,
    /// Requests that the receiver of telemetry did not take.
    pub telemetry_failures: AtomicU64,
    /// Health transitions.
    pub health_transitions: AtomicU64,
    /// Health probes made.
    pub probes: AtomicU64,
    /// Configurations accepted.
    pub reloads_accepted: AtomicU64,
    /// Configurations refused.
    pub reloads_refused: AtomicU64,
    /// 1 while the newest configuration seen was refused.
    pub last_reload_failed: AtomicI64,
    /// Which relays in the kernel may be used.
    pub relays: [RelayState; KernelRelay::COUNT],
    /// What the forward plane counted; the other counters of connections are the proxy's.
    pub forward: ForwardCell,
}

/// Upper bounds of [`Histogram`] buckets in seconds.
pub const BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 10.0, 60.0, 600.0];

/// Counts per bucket (not cumulative; the last is above every bound) and their sum.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Observations per bucket.
    pub counts: [AtomicU64; BUCKETS.len() + 1],
    /// Sum of observations in microseconds.
    pub sum_micros: AtomicU64,
}

impl Histogram {
    /// Takes in one observation of `micros` microseconds.
    pub fn observe(&self, micros: u64) {
        let seconds = micros as f64 / 1e6;
        let bucket = BUCKETS.partition_point(|&bound| bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
