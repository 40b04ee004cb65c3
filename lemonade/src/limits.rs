//! Limits that the system sets.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for what is not a connection: log, journal, admin, probes, resolver.
const RESERVE: u64 = 256;

/// What an unlimited number of descriptors counts as.
const UNLIMITED: u64 = 1 << 31;

/// Raises the soft descriptor limit to the hard one and tells how many descriptors there are.
pub fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused only by systems whose hard limit is above what they allow; then the soft one holds.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED)
}

/// Connections that `descriptors` carry, two each, with `listeners` sockets open.
pub fn connections(descriptors: u64, listeners: usize) -> u32 {
    let reserve = RESERVE.min(descriptors / 4) + listeners as u64;
    u32::try_from((descriptors.saturating_sub(reserve) / 2).max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_limit_still_leaves_room_for_connections() {
        assert_eq!(connections(64, 2), 23);
        assert_eq!(connections(20_000, 4), 9_870);
    }
}
