//! Gives memory back to the system after a crowd has left; allocators keep it otherwise.

/// A crowd: fewer connections than this are not worth a walk through the heap.
const CROWD: u64 = 1024;

/// Decides when there is enough to give back.
#[derive(Debug, Default)]
pub(super) struct Tide {
    high: u64,
}

impl Tide {
    /// Takes in the number of connections now; `true` when at least half of a crowd has left since the last time.
    pub(super) fn turned(&mut self, live: u64) -> bool {
        self.high = self.high.max(live);
        let turned = self.high >= CROWD && live <= self.high / 2;
        if turned {
            self.high = live;
        }
        turned
    }
}

/// Gives free pages back, in a thread of its own: the walk takes some milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn give_back() {
    let walk = || {
        // SAFETY: malloc_trim(3) takes the allocator's own locks and touches free pages only.
        unsafe { libc::malloc_trim(0) };
    };
    if let Err(error) = std::thread::Builder::new().name("trim".to_owned()).spawn(walk) {
        tracing::debug!(%error, "no thread to give memory back");
    }
}

/// Gives free pages back where the allocator does not do so by itself; elsewhere it does.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) const fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_per_crowd_that_leaves() {
        let mut tide = Tide::default();
        assert!(!tide.turned(10_000));
        assert!(!tide.turned(6_000), "the greater part is still here");
        assert!(tide.turned(4_000));
        assert!(!tide.turned(3_000));
        assert!(tide.turned(0));
        assert!(!tide.turned(0));
        assert!(!tide.turned(1_000) && !tide.turned(0), "too few to be a crowd");
    }
}
