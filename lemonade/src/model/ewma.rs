//! Peak-sensitive, exponentially decaying averages that many threads update without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::time::Moment;

/// Moving average of a latency that rises at once and decays with time (Finagle's "Peak EWMA").
///
/// A sample above the average replaces it; one below pulls it down by the weight of the time passed:
/// `avg = avg * e^(-dt/tau) + sample * (1 - e^(-dt/tau))`.
#[derive(Debug, Default)]
pub struct PeakEwma {
    /// High half: average in microseconds as `f32` bits; low half: time of the last sample in milliseconds. 0: no sample.
    packed: AtomicU64,
}

/// Decay constant of [`PeakEwma`].
pub const TAU: Duration = Duration::from_secs(10);

impl PeakEwma {
    /// Takes in one sample.
    pub fn observe(&self, sample: Duration, now: Moment) {
        let sample = (sample.as_micros() as f32).max(1.0);
        let at = (now.0 / 1000) as u32;
        let _ = self.packed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let next = match unpack(packed) {
                Some((average, last)) if sample < average => {
                    let elapsed = at.saturating_sub(last) as f32 / 1000.0;
                    let keep = (-elapsed / TAU.as_secs_f32()).exp();
                    average * keep + sample * (1.0 - keep)
                }
                Some(_) | None => sample,
            };
            Some(pack(next, at))
        });
    }

    /// Average now, or `None` before the first sample.
    pub fn read(&self) -> Option<Duration> {
        unpack(self.packed.load(Ordering::Relaxed))
            .map(|(average, _)| Duration::from_secs_f64(f64::from(average) / 1e6))
    }

    /// Moment of the last sample, in milliseconds since start.
    pub fn sampled_at_ms(&self) -> Option<u32> {
        unpack(self.packed.load(Ordering::Relaxed)).map(|(_, at)| at)
    }
}

fn pack(average: f32, at: u32) -> u64 {
    u64::from(average.to_bits()) << 32 | u64::from(at)
}

fn unpack(packed: u64) -> Option<(f32, u32)> {
    (packed != 0).then(|| (f32::from_bits((packed >> 32) as u32), packed as u32))
}
