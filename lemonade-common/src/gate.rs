//! How often something may happen in a second, counted on each core by itself.

/// Nanoseconds of a window.
const WINDOW: u64 = 1_000_000_000;

/// What one core has let through in this second: value of the map `GATES`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Gate {
    window: u64,
    passed: u64,
}

/// Index in the maps `GATES` and `LIMITS` of flows that are written down in modes whose answers pass by.
pub const NEW_FLOWS: u32 = 0;

/// Index in the same maps of senders that are told of packets that are too big.
pub const TOLD: u32 = 1;

/// How many kinds are counted.
pub const GATE_KINDS: u32 = 2;

/// Flows a second and core that are written down at first; the figure is Katran's.
pub const NEW_FLOWS_LIMIT: u32 = 125_000;

/// Senders a second and core that are told at first: enough for each client to hear in time, too little to flood one.
pub const TOLD_LIMIT: u32 = 1_000;

impl Gate {
    /// Whether one more may pass at `now`, in nanoseconds of CLOCK_MONOTONIC, if `limit` may in a second (0: no limit).
    #[inline(always)]
    pub const fn admits(&mut self, now: u64, limit: u32) -> bool {
        let window = now / WINDOW;
        if window != self.window {
            (self.window, self.passed) = (window, 0);
        }
        if limit != 0 && self.passed >= limit as u64 {
            return false;
        }
        self.passed += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_share() {
        let mut gate = Gate::default();
        let passed = |gate: &mut Gate, now: u64| (0..50).filter(|_| gate.admits(now, 20)).count();
        assert_eq!(passed(&mut gate, 5 * WINDOW), 20);
        assert_eq!(passed(&mut gate, 6 * WINDOW - 1), 0);
        assert_eq!(passed(&mut gate, 6 * WINDOW), 20);
        assert!((0..50).all(|_| gate.admits(7 * WINDOW, 0)), "0 is no limit");
    }
}
