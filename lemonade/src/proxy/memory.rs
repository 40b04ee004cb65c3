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

/// Gives this thread's free pages back to the system.
pub(super) fn give_back() {
    // SAFETY: mi_collect has no preconditions; it walks the calling thread's own heap.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

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
