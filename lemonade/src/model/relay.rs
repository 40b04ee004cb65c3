//! Relays in the kernel: which there are, whether each may be used, and what it carried.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// A relay whose bytes pass through programs in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KernelRelay {
    /// `sk_skb/stream_verdict` between an accepted client and its backend.
    Sockmap,
    /// `sk_msg` between sockets of this host.
    SkMsg,
    /// tc programs that pass packets between the two connections, which are one from then on.
    Splice,
}

impl KernelRelay {
    /// All of them, by index.
    pub const ALL: [Self; 3] = [Self::Sockmap, Self::SkMsg, Self::Splice];

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Name in configuration, status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sockmap => "sockmap",
            Self::SkMsg => "sk_msg",
            Self::Splice => "splice",
        }
    }

    /// Position in arrays of [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Why a connection that was due for relay `splice` stayed with `copy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Packets of a side pass by no interface with the programs.
    Path,
    /// One side speaks IPv4 and the other IPv6.
    Families,
    /// One side has timestamps or selective acknowledgements and the other has not.
    Options,
    /// A side marks congestion (ECN).
    Ecn,
    /// A connection began with data in its SYN.
    FastOpen,
    /// One side may send larger segments than the other side takes.
    SegmentSize,
    /// There is no room for more flows.
    Full,
    /// Until it ended there was no moment at which nothing was on its way.
    Busy,
    /// The kernel refused.
    Kernel,
}

impl Kept {
    /// All of them, by index.
    pub const ALL: [Self; 9] = [
        Self::Path,
        Self::Families,
        Self::Options,
        Self::Ecn,
        Self::FastOpen,
        Self::SegmentSize,
        Self::Full,
        Self::Busy,
        Self::Kernel,
    ];

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Name in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Families => "families",
            Self::Options => "options",
            Self::Ecn => "ecn",
            Self::FastOpen => "fast_open",
            Self::SegmentSize => "segment_size",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Kernel => "kernel",
        }
    }

    /// Position in arrays of [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// One behavioural self-test and how it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SelfTest {
    /// What it tries.
    pub name: String,
    /// Whether the relay did what a direct connection does.
    pub passed: bool,
    /// What went wrong; empty when it passed.
    pub detail: String,
    /// How long it took.
    pub took_ms: f64,
}

/// How it was found out whether a relay may be used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Findings {
    /// Why it may or may not, in words.
    pub why: String,
    /// The self-tests, in order; empty when none could run.
    pub tests: Vec<SelfTest>,
}

/// Whether new connections may use a relay: the data plane asks the flag, operators read the findings.
#[derive(Debug, Default)]
pub struct RelayState {
    usable: AtomicBool,
    failed: AtomicU64,
    findings: Mutex<Findings>,
}

impl RelayState {
    /// Whether new connections may use it.
    pub fn usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    /// Self-tests and canaries that failed since the start.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// What is known, and whether new connections may use it, as one moment saw both.
    pub fn read(&self) -> (bool, Findings) {
        let known = self.lock();
        (self.usable(), known.clone())
    }

    /// Turns it on or off, with the reason.
    pub fn set(&self, usable: bool, findings: Findings) {
        let failures = findings.tests.iter().filter(|test| !test.passed).count() as u64;
        self.failed.fetch_add(failures, Ordering::Relaxed);
        let mut known = self.lock();
        *known = findings;
        self.usable.store(usable, Ordering::Release);
    }

    /// Says in other words why it may be used; one that was turned off meanwhile keeps its reason.
    pub fn explain(&self, why: String) {
        let mut known = self.lock();
        if self.usable() {
            known.why = why;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Findings> {
        // Nothing inside panics half-way, so a poisoned lock still holds whole findings.
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one relay in the kernel carried of one frontend.
#[derive(Debug, Default)]
pub struct RelayCell {
    /// Connections that it carries.
    pub live: AtomicU32,
    /// Connections that it took over from `copy`.
    pub promoted: AtomicU64,
    /// Connections that were due and stayed with `copy`: a side had closed, a map was full, the kernel refused.
    pub kept: AtomicU64,
    /// Times that userspace took a direction back, because its reader was slow.
    pub demoted: AtomicU64,
    /// Times that the kernel went on after that.
    pub resumed: AtomicU64,
    /// Bytes of both directions that did not pass through userspace.
    pub bytes: AtomicU64,
    /// Times that windows were closed for a moment, so that a stream could be handed over.
    pub lulls: AtomicU64,
    /// Of `kept`, those for which there is a reason, by [`Kept`].
    pub reasons: [AtomicU64; Kept::COUNT],
}

/// A [`RelayCell`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "fields mirror RelayCell, documented there")]
pub struct RelayCounters {
    pub live: u64,
    pub promoted: u64,
    pub kept: u64,
    pub demoted: u64,
    pub resumed: u64,
    pub bytes: u64,
    pub lulls: u64,
    #[serde(skip)]
    pub reasons: [u64; Kept::COUNT],
}

impl RelayCell {
    /// Counts a connection that stays with `copy`.
    pub fn keep(&self, why: Kept) {
        self.kept.fetch_add(1, Ordering::Relaxed);
        self.reasons[why.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// The figures now.
    pub fn read(&self) -> RelayCounters {
        RelayCounters {
            live: self.live.load(Ordering::Relaxed).into(),
            promoted: self.promoted.load(Ordering::Relaxed),
            kept: self.kept.load(Ordering::Relaxed),
            demoted: self.demoted.load(Ordering::Relaxed),
            resumed: self.resumed.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            lulls: self.lulls.load(Ordering::Relaxed),
            reasons: self.reasons.each_ref().map(|count| count.load(Ordering::Relaxed)),
        }
    }
}

impl RelayCounters {
    /// Adds those of another frontend.
    pub fn add(&mut self, one: &Self) {
        self.live += one.live;
        self.promoted += one.promoted;
        self.kept += one.kept;
        self.demoted += one.demoted;
        self.resumed += one.resumed;
        self.bytes += one.bytes;
        self.lulls += one.lulls;
        for (sum, count) in self.reasons.iter_mut().zip(one.reasons) {
            *sum += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader between the two stores saw a relay off whose reason said that its tests had passed.
    #[test]
    fn a_reader_never_sees_the_findings_of_another_moment() {
        let state = RelayState::default();
        let why = |usable: bool| Findings { why: usable.to_string(), ..Findings::default() };
        state.set(false, why(false));
        std::thread::scope(|scope| {
            let writer =
                scope.spawn(|| (0..20_000).for_each(|turn| state.set(turn % 2 == 0, why(turn % 2 == 0))));
            while !writer.is_finished() {
                let (usable, findings) = state.read();
                assert_eq!(findings.why, usable.to_string());
            }
        });
    }

    #[test]
    fn a_failed_test_counts_and_its_reason_stays() {
        let state = RelayState::default();
        assert_eq!(state.read(), (false, Findings::default()));
        let test = |passed| SelfTest { name: "rst".to_owned(), passed, detail: String::new(), took_ms: 1.0 };
        state.set(true, Findings { why: "tested".to_owned(), tests: vec![test(true)] });
        assert!(state.usable() && state.failed() == 0);
        state.set(false, Findings { why: "rst failed".to_owned(), tests: vec![test(true), test(false)] });
        assert!(!state.usable() && state.failed() == 1 && state.read().1.why == "rst failed");
        state.explain("carries much".to_owned());
        assert_eq!(state.read().1.why, "rst failed", "what is off has one reason");
    }

    #[test]
    fn indices_follow_the_list() {
        for (at, relay) in KernelRelay::ALL.into_iter().enumerate() {
            assert_eq!(relay.index(), at);
        }
        for (at, why) in Kept::ALL.into_iter().enumerate() {
            assert_eq!(why.index(), at);
        }
    }
}
