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

/// Monotonic clock of the host: on Linux a moment means the same to the process after this one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall: SystemTime,
}

impl Clock {
    /// A clock that starts with the host on Linux, now elsewhere.
    #[expect(clippy::new_without_default, reason = "reading the clock is not a default")]
    pub fn new() -> Self {
        let (start, wall) = (Instant::now(), SystemTime::now());
        #[cfg(target_os = "linux")]
        let (start, wall) = {
            let since = std::time::Duration::from_nanos(kernel_nanos());
            (start.checked_sub(since).unwrap_or(start), wall.checked_sub(since).unwrap_or(wall))
        };
        Self { start, wall }
    }

    /// Microseconds since the clock's start.
    pub fn now(&self) -> Moment {
        Moment(micros(self.start.elapsed()))
    }

    /// Wall-clock time of a moment, as the wall clock stood when the process started.
    pub fn wall(&self, moment: Moment) -> SystemTime {
        self.wall + moment.since(Moment(0))
    }

    /// The moment as tokio's timers count.
    pub fn instant(&self, moment: Moment) -> tokio::time::Instant {
        (self.start + moment.since(Moment(0))).into()
    }
}
