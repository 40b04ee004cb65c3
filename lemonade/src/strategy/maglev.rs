//! Fills the ring of a pool: weighted Maglev hashing (Eisenbud et al., NSDI 2016, 3.4).
//!
//! Each backend visits all slots in an order of its own, made from its identity, and in turn takes the first that is
//! free. A backend that goes leaves its slots to others and moves few of theirs; nodes that know the same backends fill
//! the same ring, whatever order they learned of them in.

use lemonade_common::hash::{mix, seed_from_text};
use lemonade_common::maglev::{EMPTY, SLOTS};

/// A backend as the ring sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What goes into its slots.
    pub value: u32,
    /// What its order of slots is made from: the same on every node and after every restart.
    pub identity: String,
    /// Its share of the slots relative to the others; 0 has none.
    pub weight: u32,
}

/// The backend's order of slots, and what it may take.
struct Walk {
    value: u32,
    next: u32,
    step: u32,
    weight: u64,
    credit: u64,
    /// Slots that are still due to it.
    due: u32,
}

/// Fills a ring of [`SLOTS`] slots; every slot is [`EMPTY`] where no share has a weight.
///
/// Each backend has its share of the slots to within one.
pub fn ring(shares: &[Share]) -> Vec<u32> {
    let mut slots = vec![EMPTY; SLOTS as usize];
    let mut ordered: Vec<&Share> = shares.iter().filter(|share| share.weight > 0).collect();
    ordered.sort_by(|a, b| a.identity.cmp(&b.identity));
    let Some(heaviest) = ordered.iter().map(|share| u64::from(share.weight)).max() else { return slots };
    let due = due(&ordered);
    let mut walks: Vec<Walk> = ordered.into_iter().zip(due).map(walk).collect();
    let mut free = SLOTS;
    loop {
        for walk in &mut walks {
            // The heaviest takes a slot in every round, the others in the rounds that their weight gives them.
            walk.credit += walk.weight;
            if walk.credit < heaviest {
                continue;
            }
            walk.credit -= heaviest;
            if walk.due == 0 {
                continue;
            }
            walk.due -= 1;
            while slots[walk.next as usize] != EMPTY {
                walk.advance();
            }
            slots[walk.next as usize] = walk.value;
            free -= 1;
            if free == 0 {
                return slots;
            }
        }
    }
}

/// Slots of each share by largest remainder, the first of equals first: turns alone would round up for the heavy what they
/// round down for many light ones.
fn due(shares: &[&Share]) -> Vec<u32> {
    let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
    let exact = |share: &Share| u64::from(share.weight) * u64::from(SLOTS);
    let mut due: Vec<u32> = shares.iter().map(|share| (exact(share) / total) as u32).collect();
    let left = (SLOTS - due.iter().sum::<u32>()) as usize;
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by_key(|&at| std::cmp::Reverse(exact(shares[at]) % total));
    for &at in by_remainder.iter().take(left) {
        due[at] += 1;
    }
    due
}

fn walk((share, due): (&Share, u32)) -> Walk {
    let hash = seed_from_text(&share.identity);
    let step = mix(hash) % u64::from(SLOTS - 1) + 1;
    Walk {
        value: share.value,
        next: (hash % u64::from(SLOTS)) as u32,
        // Prime to the number of slots, as everything below a prime is; so every slot is visited.
        step: step as u32,
        weight: u64::from(share.weight),
        credit: 0,
        due,
    }
}

impl Walk {
    const fn advance(&mut self) {
        self.next = (self.next + self.step) % SLOTS;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn shares(weights: &[u32]) -> Vec<Share> {
        let share = |(n, &weight): (usize, &u32)| Share {
            value: n as u32,
            identity: format!("web/backend-{n} 10.0.{}.{}:8080", n / 250, n % 250),
            weight,
        };
        weights.iter().enumerate().map(share).collect()
    }

    fn counts(ring: &[u32]) -> BTreeMap<u32, u32> {
        let mut counts = BTreeMap::new();
        for value in ring {
            *counts.entry(*value).or_insert(0) += 1;
        }
        counts
    }

    /// The paper's pseudocode, word for word: permutations written out, one slot for each backend in turn.
    fn reference(shares: &[Share]) -> Vec<u32> {
        let m = u64::from(SLOTS);
        let permutation = |share: &Share| -> Vec<u64> {
            let offset = seed_from_text(&share.identity) % m;
            let skip = mix(seed_from_text(&share.identity)) % (m - 1) + 1;
            (0..m).map(|j| (offset + j * skip) % m).collect()
        };
        let mut by_identity = shares.to_vec();
        by_identity.sort_by_key(|share| share.identity.clone());
        let permutations: Vec<Vec<u64>> = by_identity.iter().map(permutation).collect();
        let mut next = vec![0; by_identity.len()];
        let mut entry = vec![None; m as usize];
        let mut n = 0;
        loop {
            for (i, share) in by_identity.iter().enumerate() {
                let mut c = permutations[i][next[i]] as usize;
                while entry[c].is_some() {
                    next[i] += 1;
                    c = permutations[i][next[i]] as usize;
                }
                entry[c] = Some(share.value);
                next[i] += 1;
                n += 1;
                if n == m {
                    return entry.into_iter().flatten().collect();
                }
            }
        }
    }

    #[test]
    fn equal_weights_fill_the_ring_of_the_paper() {
        for n in [1, 2, 3, 7, 20] {
            let shares = shares(&vec![5; n]);
            assert_eq!(ring(&shares), reference(&shares), "{n} backends");
        }
    }

    #[test]
    fn a_hundred_backends_have_a_hundredth_each() {
        let counts = counts(&ring(&shares(&[1; 100])));
        let most = counts.values().max().copied().unwrap_or(0);
        assert_eq!(counts.len(), 100);
        assert!(f64::from(most) * 100.0 / f64::from(SLOTS) <= 1.01, "{most} slots");
    }

    /// Slots of the others that move when one backend goes, as a share of all that are the others'.
    fn moved(gone: usize, weights: &[u32]) -> f64 {
        let before = shares(weights);
        let mut after = before.clone();
        after.remove(gone);
        let (before, after) = (ring(&before), ring(&after));
        let others = before.iter().zip(&after).filter(|(was, _)| **was != gone as u32);
        let moved = others.clone().filter(|(was, is)| was != is).count();
        moved as f64 / others.count() as f64
    }

    #[test]
    fn a_backend_that_goes_moves_few_slots_of_the_others() {
        let mut worst = 0.0_f64;
        for gone in [0, 1, 17, 50, 98, 99] {
            worst = worst.max(moved(gone, &[1; 100]));
        }
        println!("one of 100 gone: at most {:.3} % of the others' slots move", worst * 100.0);
        assert!(worst <= 0.01, "{worst}");
    }

    #[test]
    fn the_order_in_which_backends_are_known_changes_nothing() {
        let mut shares = shares(&[1, 2, 3, 4, 5]);
        let before = ring(&shares);
        shares.reverse();
        assert_eq!(ring(&shares), before);
    }

    #[test]
    fn without_a_weight_there_is_nothing_in_it() {
        assert!(ring(&[]).iter().all(|value| *value == EMPTY));
        assert!(ring(&shares(&[0, 0])).iter().all(|value| *value == EMPTY));
        assert!(!ring(&shares(&[0, 1])).contains(&0));
    }

    #[test]
    fn many_light_backends_leave_a_heavy_one_no_more_than_its_share() {
        let mut weights = vec![1_000];
        weights.extend([1; 39].map(|light| light * 501));
        let has = counts(&ring(&shares(&weights)))[&0];
        let due = f64::from(SLOTS) * 1_000.0 / f64::from(weights.iter().sum::<u32>());
        assert!((f64::from(has) - due).abs() < 1.0, "{has} slots, {due} due");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn slots_follow_weights(weights in prop::collection::vec(1_u32..1_000, 1..40)) {
            let counts = counts(&ring(&shares(&weights)));
            let total: u32 = weights.iter().sum();
            for (n, weight) in weights.iter().enumerate() {
                let due = f64::from(SLOTS) * f64::from(*weight) / f64::from(total);
                let has = f64::from(counts.get(&(n as u32)).copied().unwrap_or(0));
                prop_assert!((has - due).abs() < 1.0, "weight {weight} of {total}: {has} slots, {due} due");
            }
        }
    }
}
