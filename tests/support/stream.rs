//! Position-tagged streams: each byte is a function of the stream's seed and its position.
//!
//! A receiver that compares every byte notices loss, duplication, reordering and bytes of another stream.

use std::fmt;

/// Finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over the index of an eight-byte word.
const fn word(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Writes the bytes of stream `seed` from position `at` into `buffer`.
pub fn fill(seed: u64, at: u64, buffer: &mut [u8]) {
    each_word(seed, at, buffer.len(), |range, bytes| buffer[range].copy_from_slice(bytes));
}

/// Compares `received` with the bytes of stream `seed` from position `at`.
pub fn check(seed: u64, at: u64, received: &[u8]) -> Result<(), Mismatch> {
    let mut found = None;
    each_word(seed, at, received.len(), |range, bytes| {
        if found.is_none() && received[range.clone()] != *bytes {
            let offset = received[range.clone()].iter().zip(bytes).take_while(|(a, b)| a == b).count();
            found = Some(at + (range.start + offset) as u64);
        }
    });
    found.map_or(Ok(()), |position| Err(Mismatch { seed, position, chunk_start: at, chunk: received.len() }))
}

fn each_word(seed: u64, at: u64, len: usize, mut take: impl FnMut(std::ops::Range<usize>, &[u8])) {
    let mut done = 0;
    while done < len {
        let position = at + done as u64;
        let skip = (position % 8) as usize;
        let n = (8 - skip).min(len - done);
        let bytes = word(seed, position / 8);
        take(done..done + n, &bytes[skip..skip + n]);
        done += n;
    }
}

/// First byte that differs from its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    seed: u64,
    position: u64,
    chunk_start: u64,
    chunk: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, position, chunk_start, chunk } = self;
        write!(f, "stream {seed:#x} differs at byte {position} (chunk of {chunk} bytes from {chunk_start})")
    }
}

impl std::error::Error for Mismatch {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 100_000];
        fill(7, 3, &mut bytes);
        bytes
    }

    #[test]
    fn the_same_positions_hold_the_same_bytes_however_they_are_cut() {
        let whole = sample();
        let mut pieces = vec![0; whole.len()];
        let mut at = 0;
        for n in (1..).take_while(|n| n * (n + 1) / 2 <= whole.len()) {
            fill(7, 3 + at as u64, &mut pieces[at..at + n]);
            check(7, 3 + at as u64, &whole[at..at + n]).expect("same stream");
            at += n;
        }
        assert_eq!(whole[..at], pieces[..at]);
    }

    #[test]
    fn a_lost_doubled_swapped_or_foreign_byte_is_noticed() {
        let good = sample();
        let lost = [&good[..5000], &good[5001..]].concat();
        let doubled = [&good[..5000], &good[4999..]].concat();
        let mut swapped = good.clone();
        swapped[40_000..48_192].rotate_left(4096);
        let mut foreign = good.clone();
        fill(8, 3 + 70_000, &mut foreign[70_000..70_064]);
        for bad in [lost, doubled, swapped, foreign] {
            check(7, 3, &bad).expect_err("must be noticed");
        }
        assert_eq!(check(7, 3, &good), Ok(()));
    }
}
