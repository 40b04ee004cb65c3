//! Clocks and processor time, read from the kernel's tables.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

const TICKS_PER_SECOND: f64 = 100.0;

/// Returns nanoseconds of the monotonic clock, equal in all processes.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Sums user and system seconds of processes; one that is gone counts nothing.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| ticks(&format!("/proc/{pid}/stat"))).sum::<f64>() / TICKS_PER_SECOND
}

fn ticks(path: &str) -> Option<f64> {
    let stat = fs::read_to_string(path).ok()?;
    // The name may hold spaces and brackets: fields count from the last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Sums the seconds in which the processors of the machine were not idle.
pub fn machine_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let Some(line) = stat.lines().next() else { return 0.0 };
    let fields: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|f| f.parse().ok()).collect();
    let idle: f64 = fields.iter().skip(3).take(2).sum();
    (fields.iter().sum::<f64>() - idle) / TICKS_PER_SECOND
}

/// Processor time at one moment.
#[derive(Clone, Debug)]
pub(super) struct Usage {
    watched: f64,
    machine: f64,
    own: f64,
}

impl Usage {
    /// Reads the clocks of the watched processes, the machine and this process.
    pub(super) fn read(watch: &[u32]) -> Self {
        Self {
            watched: cpu_seconds(watch),
            machine: machine_seconds(),
            own: cpu_seconds(&[std::process::id()]),
        }
    }

    /// Returns watched, machine and own seconds since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> (f64, f64, f64) {
        (self.watched - earlier.watched, self.machine - earlier.machine, self.own - earlier.own)
    }
}
