//! Exponentially decaying averages that many threads update without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::time::Moment;

/// Moving average of a latency that rises at once and decays with time (Finagle's "Peak EWMA").
///
/// A sample above the average replaces it; one below pulls it down by the weight of the time passed:
/// `avg = avg * e^(-dt/tau) + sample * (1 - e^(-dt/tau))`.
#[derive(Debug, Default)]
pub struct PeakEwma {
    /// Microseconds.
    sampled: Sampled,
}

/// Moving share of failures among outcomes, 0 to 1; it fades when outcomes stay away.
#[derive(Debug, Default)]
pub struct FailureRatio {
    sampled: Sampled,
}

/// Decay constant of [`PeakEwma`] and of the fading of [`FailureRatio`].
pub const TAU: Duration = Duration::from_secs(10);

/// Weight of the newest outcome in [`FailureRatio`].
pub const NEWEST: f32 = 0.2;

impl PeakEwma {
    /// One of its own with the same average.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { sampled: self.sampled.copy() }
    }

    /// Takes in one sample.
    pub fn observe(&self, sample: Duration, now: Moment) {
        let sample = (sample.as_micros() as f32).clamp(1.0, 1e12);
        self.sampled.update(now, |seen| match seen {
            Some((average, elapsed)) if sample < average => {
                let keep = kept(elapsed);
                average * keep + sample * (1.0 - keep)
            }
            Some(_) | None => sample,
        });
    }

    /// Begins anew with one sample, of another measure than those before.
    pub fn restart(&self, sample: Duration, now: Moment) {
        let sample = (sample.as_micros() as f32).clamp(1.0, 1e12);
        self.sampled.update(now, |_| sample);
    }

    /// Average as of the last sample, or `None` before the first.
    pub fn read(&self) -> Option<Duration> {
        self.sampled.load().map(|(average, _)| Duration::from_secs_f64(f64::from(average) / 1e6))
    }

    /// Average in microseconds, faded by the time since the last sample or since `tried`, whichever is later.
    pub fn decayed(&self, now: Moment, tried: Moment) -> Option<f64> {
        let (average, at) = self.sampled.load()?;
        let elapsed = elapsed_ms(now, at).min(now.since(tried).as_millis() as u32);
        Some(f64::from(average * kept(elapsed)))
    }

    /// Moment of the last sample, in milliseconds since start; wraps after 49 days.
    pub fn sampled_at_ms(&self) -> Option<u32> {
        self.sampled.load().map(|(_, at)| at)
    }
}

impl FailureRatio {
    /// One of its own with the same share.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { sampled: self.sampled.copy() }
    }

    /// Takes in the outcome of one connect.
    pub fn observe(&self, failed: bool, now: Moment) {
        if !failed && self.sampled.load().is_none() {
            return; // A backend that never failed costs no write.
        }
        let outcome = if failed { 1.0 } else { 0.0 };
        self.sampled.update(now, |seen| {
            let ratio = seen.map_or(0.0, |(ratio, elapsed)| ratio * kept(elapsed));
            ratio + (outcome - ratio) * NEWEST
        });
    }

    /// Share of failures now.
    pub fn read(&self, now: Moment) -> f64 {
        self.sampled.load().map_or(0.0, |(ratio, at)| f64::from(ratio * kept(elapsed_ms(now, at))))
    }
}

/// A value and when it was set, in one word, so that both change together.
///
/// High half: the value as `f32` bits; low half: milliseconds since start, wrapping. 0: never set.
#[derive(Debug, Default)]
struct Sampled {
    packed: AtomicU64,
}

impl Sampled {
    fn copy(&self) -> Self {
        Self { packed: AtomicU64::new(self.packed.load(Ordering::Relaxed)) }
    }

    fn load(&self) -> Option<(f32, u32)> {
        unpack(self.packed.load(Ordering::Relaxed))
    }

    /// Replaces the value by what `next` makes of it and of the milliseconds since it was set.
    fn update(&self, now: Moment, next: impl Fn(Option<(f32, u32)>) -> f32) {
        let at = millis(now);
        let _ = self.packed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let seen = unpack(packed);
            let value = next(seen.map(|(value, last)| (value, elapsed_ms(now, last))));
            // Threads read the clock before they get here: the newest time stays.
            let at = seen.map_or(at, |(_, last)| last.wrapping_add(elapsed_ms(now, last)));
            Some(u64::from(value.to_bits()) << 32 | u64::from(at))
        });
    }
}

fn unpack(packed: u64) -> Option<(f32, u32)> {
    (packed != 0).then(|| (f32::from_bits((packed >> 32) as u32), packed as u32))
}

const fn millis(now: Moment) -> u32 {
    (now.0 / 1000) as u32
}

/// Milliseconds from `last` to `now` on the wrapping clock; 0 if `last` is later.
const fn elapsed_ms(now: Moment, last: u32) -> u32 {
    let elapsed = millis(now).wrapping_sub(last);
    if elapsed > u32::MAX / 2 { 0 } else { elapsed }
}

/// Share of an average that is left after `elapsed` milliseconds.
fn kept(elapsed: u32) -> f32 {
    (-(elapsed as f32) / (TAU.as_millis() as f32)).exp()
}

#[cfg(test)]
mod tests;
