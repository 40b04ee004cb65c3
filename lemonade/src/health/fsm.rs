//! State machine of one backend's health: time and outcomes come in, a change of status goes out.
//!
//! What counts, for a backend that is probed:
//! - A probe decides both ways. Only probes bring it up; a good probe clears every failure before it.
//! - A connect that failed or timed out counts like a failed probe. A connect that succeeded takes back the failed
//!   connects before it and nothing else, so a sick process that still accepts is not held up by its listen queue.
//! - A reset before the first byte counts too, but resets alone never take a backend down: a client can provoke
//!   them. They make the state unsure, so that a probe follows soon and decides.
//!
//! With health `off` nothing probes: a connect that succeeded clears every failure, and a backend that is down comes
//! back by itself after a back-off that doubles while it keeps failing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::model::Moment;
use crate::model::config::{Health, HealthKind, Status};

use super::port::SignalKind;

#[cfg(test)]
mod tests;

/// Outcomes that a backend remembers.
pub const REMEMBERED: usize = 16;

/// Time that a backend which nothing probes stays down the first time.
pub const FIRST_BACK_OFF: Duration = Duration::from_secs(1);

/// Longest time that a backend which nothing probes stays down.
pub const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);

/// Thresholds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether probes are made.
    pub probed: bool,
    /// Successes in a row that bring a backend up, at least 1.
    pub rise: u32,
    /// Failures in a row that take a backend down, at least 1.
    pub fall: u32,
}

impl Policy {
    /// Thresholds of `health`.
    pub fn of(health: &Health) -> Self {
        let probed = health.kind != HealthKind::Off;
        Self { probed, rise: health.rise.max(1), fall: health.fall.max(1) }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A probe ended: what was seen, or why it failed, and how long it took.
    Probe(Result<&'a str, &'a str>, Duration),
    /// The data plane noticed something.
    Passive(SignalKind),
}

/// One remembered outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When.
    pub at: Moment,
    /// Whether it counted as success.
    pub ok: bool,
    /// What it was: `probe: HTTP 503`.
    pub detail: Arc<str>,
    /// How long it took; zero for a passive signal.
    pub took: Duration,
}

/// The status changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Status now.
    pub status: Status,
    /// Why, in words.
    pub cause: String,
}

/// Health of one backend.
#[derive(Clone, Debug)]
pub struct Machine {
    status: Status,
    /// Down from the start and never up yet: the first success brings it up.
    awaited: bool,
    since: Moment,
    successes: u32,
    failed_probes: u32,
    failed_connects: u32,
    resets: u32,
    /// Back-off of the last time it went down with nothing probing it.
    back_off: Duration,
    returns_at: Option<Moment>,
    outcomes: VecDeque<Seen>,
}

impl Machine {
    /// A backend that nothing is known of yet.
    pub fn new(initial: Status, policy: Policy, now: Moment) -> Self {
        let mut machine = Self {
            status: initial,
            awaited: initial == Status::Down,
            since: now,
            successes: 0,
            failed_probes: 0,
            failed_connects: 0,
            resets: 0,
            back_off: Duration::ZERO,
            returns_at: None,
            outcomes: VecDeque::new(),
        };
        machine.adopt(policy, now);
        machine
    }

    /// Goes on under new thresholds; status and streak stay.
    pub fn adopt(&mut self, policy: Policy, now: Moment) {
        if policy.probed || self.status == Status::Up {
            self.returns_at = None;
        } else if self.returns_at.is_none() {
            self.leave(now);
        }
    }

    /// Takes in what happened.
    pub fn step(&mut self, policy: Policy, now: Moment, input: Input<'_>) -> Option<Change> {
        match input {
            Input::Probe(Ok(seen), took) => {
                self.remember(now, true, &format!("probe: {seen}"), took);
                self.succeed();
                self.settle(policy, now, seen)
            }
            Input::Probe(Err(why), took) => {
                self.remember(now, false, &format!("probe: {why}"), took);
                self.failed_probes = self.failed_probes.saturating_add(1);
                self.successes = 0;
                self.settle(policy, now, why)
            }
            Input::Passive(SignalKind::Connected) if policy.probed => {
                self.failed_connects = 0;
                None
            }
            Input::Passive(SignalKind::Connected) => {
                self.remember(now, true, "connect: succeeded", Duration::ZERO);
                self.succeed();
                self.settle(policy, now, "connect succeeded")
            }
            Input::Passive(SignalKind::ConnectFailed) => {
                self.fail_connect(policy, now, "refused or unreachable")
            }
            Input::Passive(SignalKind::ConnectTimedOut) => self.fail_connect(policy, now, "timed out"),
            Input::Passive(SignalKind::Reset) => {
                self.remember(now, false, "reset before the first byte", Duration::ZERO);
                self.resets = self.resets.saturating_add(1);
                self.successes = 0;
                self.settle(policy, now, "reset before the first byte")
            }
        }
    }

    /// Brings a backend that nothing probes back when its back-off is over.
    pub fn tick(&mut self, now: Moment) -> Option<Change> {
        self.returns_at.filter(|&at| at <= now)?;
        self.clear_failures();
        self.successes = 0;
        let cause = format!("back after {}, as nothing probes it", humantime::format_duration(self.back_off));
        Some(self.flip(Status::Up, now, cause))
    }

    /// When it comes back by itself; `None` unless it is down and nothing probes it.
    pub fn returns_at(&self) -> Option<Moment> {
        self.returns_at
    }

    /// Status now.
    pub fn status(&self) -> Status {
        self.status
    }

    /// When it got this status.
    pub fn since(&self) -> Moment {
        self.since
    }

    /// Successes (positive) or failures (negative) in a row.
    pub fn streak(&self) -> i32 {
        let clamp = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
        if self.failures() > 0 { -clamp(self.failures()) } else { clamp(self.successes) }
    }

    /// Whether what was seen last speaks against the status.
    pub fn unsure(&self) -> bool {
        match self.status {
            Status::Up => self.failures() > 0,
            Status::Down => self.successes > 0,
        }
    }

    /// Last outcomes, oldest first.
    pub fn outcomes(&self) -> impl Iterator<Item = &Seen> {
        self.outcomes.iter()
    }

    fn failures(&self) -> u32 {
        self.failed_probes.saturating_add(self.failed_connects).saturating_add(self.resets)
    }

    fn clear_failures(&mut self) {
        (self.failed_probes, self.failed_connects, self.resets) = (0, 0, 0);
    }

    fn succeed(&mut self) {
        self.clear_failures();
        self.successes = self.successes.saturating_add(1);
    }

    fn fail_connect(&mut self, policy: Policy, now: Moment, why: &str) -> Option<Change> {
        self.remember(now, false, &format!("connect: {why}"), Duration::ZERO);
        self.failed_connects = self.failed_connects.saturating_add(1);
        self.successes = 0;
        self.settle(policy, now, why)
    }

    fn settle(&mut self, policy: Policy, now: Moment, detail: &str) -> Option<Change> {
        match self.status {
            Status::Up => {
                let only_resets = self.failed_probes == 0 && self.failed_connects == 0;
                if only_resets || self.failures() < policy.fall {
                    return None;
                }
                if !policy.probed {
                    self.leave(now);
                }
                let cause = format!("{} in a row: {detail}", self.tally());
                Some(self.flip(Status::Down, now, cause))
            }
            Status::Down => {
                let enough = if self.awaited { 1 } else { policy.rise };
                if self.successes < enough {
                    return None;
                }
                self.returns_at = None;
                let what = if policy.probed { "good probe" } else { "good connect" };
                let cause = format!("{} in a row: {detail}", counted(self.successes, what));
                Some(self.flip(Status::Up, now, cause))
            }
        }
    }

    /// Sets the time of return: the back-off doubles unless the backend had stayed up for longer than the last one.
    fn leave(&mut self, now: Moment) {
        let stayed = now.since(self.since);
        self.back_off = if self.back_off.is_zero() || stayed > self.back_off {
            FIRST_BACK_OFF
        } else {
            (self.back_off * 2).min(LONGEST_BACK_OFF)
        };
        self.returns_at = Some(now.plus(self.back_off));
    }

    fn flip(&mut self, status: Status, now: Moment, cause: String) -> Change {
        self.status = status;
        self.awaited = false;
        self.since = now;
        if status == Status::Up {
            self.returns_at = None;
        }
        Change { status, cause }
    }

    fn tally(&self) -> String {
        let kinds = [
            (self.failed_probes, "failed probe"),
            (self.failed_connects, "failed connect"),
            (self.resets, "reset"),
        ];
        let parts: Vec<_> =
            kinds.iter().filter(|(count, _)| *count > 0).map(|&(count, what)| counted(count, what)).collect();
        parts.join(", ")
    }

    fn remember(&mut self, at: Moment, ok: bool, detail: &str, took: Duration) {
        // Outcomes repeat; one text for a row of equal ones keeps thousands of histories small.
        let detail = match self.outcomes.back() {
            Some(last) if &*last.detail == detail => Arc::clone(&last.detail),
            Some(_) | None => Arc::from(detail),
        };
        if self.outcomes.len() == REMEMBERED {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(Seen { at, ok, detail, took });
    }
}

fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
