//! Looking a flow up in a ring, a table of the Maglev kind (Eisenbud et al., NSDI 2016, 3.4).

/// Slots of a ring: a prime, more than a hundred times the backends that it is balanced for.
pub const SLOTS: u32 = 65_537;

/// What a slot holds when a pool has no backend to give.
pub const EMPTY: u32 = u32::MAX;

/// Slot of a flow by its hash: the upper half, scaled, so that no division is needed.
pub const fn slot(hash: u64) -> u32 {
    (((hash >> 32) * SLOTS as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::mix;

    #[test]
    fn every_hash_has_a_slot_and_the_ends_are_reached() {
        assert_eq!(slot(0), 0);
        assert_eq!(slot(u64::MAX), SLOTS - 1);
    }

    #[test]
    fn slots_are_hit_evenly() {
        let mut quarters = [0_u32; 4];
        for n in 0..40_000 {
            quarters[(slot(mix(n)) / (SLOTS / 4 + 1)) as usize] += 1;
        }
        assert!(quarters.iter().all(|n| (9_600..10_400).contains(n)), "{quarters:?}");
    }
}
