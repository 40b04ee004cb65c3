//! The one place where the data plane reads the clock.

use std::time::{Instant, SystemTime};

use crate::model::Moment;
use crate::model::time::micros;

/// Nanoseconds as programs in the kernel count them.
#[cfg(target_os = "linux")]
pub fn kernel_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Monotonic clock that starts with the process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall: SystemTime,
}

impl Clock {
    /// A clock that starts now.
    #[expect(clippy::new_without_default, reason = "reading the clock is not a default")]
    pub fn new() -> Self {
        Self { start: Instant::now(), wall: SystemTime::now() }
    }

    /// Microseconds since start.
    pub fn now(&self) -> Moment {
        Moment(micros(self.start.elapsed()))
    }

    /// Wall-clock time of a moment, as the wall clock stood at start.
    pub fn wall(&self, moment: Moment) -> SystemTime {
        self.wall + moment.since(Moment(0))
    }

    /// The moment as tokio's timers count.
    pub fn instant(&self, moment: Moment) -> tokio::time::Instant {
        (self.start + moment.since(Moment(0))).into()
    }
}
