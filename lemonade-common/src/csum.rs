//! The Internet checksum, changed in place of being computed anew (RFC 1624).
//!
//! Words are taken as they lie in memory, as the kernel's own helpers take them: a one's complement sum is the same in
//! either byte order (RFC 1071, 2).

/// Sum of the 16-bit words of `bytes`, not yet folded; a last odd byte counts as if a zero followed.
pub fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, pair| {
        sum + u32::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    })
}

/// What a checksum changes by when `old` becomes `new`, of even length.
#[inline(always)]
pub fn delta<const N: usize>(old: &[u8; N], new: &[u8; N]) -> u32 {
    old.chunks_exact(2).zip(new.chunks_exact(2)).fold(0, |sum, (old, new)| {
        let (old, new) = (u16::from_ne_bytes([old[0], old[1]]), u16::from_ne_bytes([new[0], new[1]]));
        sum + u32::from(!old) + u32::from(new)
    })
}

/// As [`delta`], of addresses.
// A frame of its own: programs in the kernel have 512 bytes of stack, and the sum keeps many words at once.
#[inline(never)]
pub fn address_delta(old: &[u8; 16], new: &[u8; 16]) -> u32 {
    delta(old, new)
}

/// Folds a sum of up to 65,536 words into one.
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The checksum of bytes whose sum is `sum`.
pub const fn finish(sum: u32) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// The checksum `old` after a change by `delta` (RFC 1624, equation 3).
pub const fn update(old: [u8; 2], delta: u32) -> [u8; 2] {
    // The delta is folded first, so that the sum cannot overflow.
    finish((!u16::from_ne_bytes(old)) as u32 + fold(delta) as u32)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, 4.1: big-endian words, with the carry put back after each.
    fn reference(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0));
            sum = sum % 65_536 + sum / 65_536;
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn the_example_of_the_rfc_has_its_sum() {
        // RFC 1071, 3: the sum is ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn the_example_of_rfc_1624_is_not_the_other_zero() {
        // RFC 1624, 4: header sum cd7a + 5555 - 5555 + 3285; equation 4 gave ffff instead of 0000.
        assert_eq!(update([0xdd, 0x2f], delta(&[0x55, 0x55], &[0x32, 0x85])), [0x00, 0x00]);
    }

    proptest! {
        #[test]
        fn an_updated_checksum_is_the_one_computed_anew(
            mut bytes in prop::collection::vec(any::<u8>(), 20..200),
            new in any::<[u8; 12]>(),
            at in 0_usize..4,
        ) {
            let at = at * 2;
            // Something that is never zero, as a header has: only then have sums one form.
            bytes[0] = 0x45;
            let before = reference(&bytes);
            let old: [u8; 12] = bytes[at + 2..at + 14].try_into().unwrap();
            let change = delta(&old, &new);
            bytes[at + 2..at + 14].copy_from_slice(&new);
            prop_assert_eq!(update(before, change), reference(&bytes));
            prop_assert_eq!(finish(sum(&bytes)), reference(&bytes));
        }

        #[test]
        fn what_is_changed_and_changed_back_is_as_before(old in any::<[u8; 16]>(), new in any::<[u8; 16]>(), sum in any::<[u8; 2]>()) {
            prop_assume!(sum != [0xff, 0xff]);
            let there = update(sum, delta(&old, &new));
            prop_assert_eq!(update(there, delta(&new, &old)), sum);
        }
    }

    #[test]
    fn an_odd_length_counts_a_zero() {
        let bytes: Vec<u8> = (0..33).collect();
        assert_eq!(finish(sum(&bytes)), reference(&bytes));
    }
}
