//! Words that several cores count in.

/// Puts another word in the place of an aligned one that other cores may do so with at once; tells what it was.
///
/// # Safety
/// `at` points to a word of a map's value.
#[cfg(feature = "forward")]
#[inline(always)]
pub unsafe fn exchange(at: *mut u64, by: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut word = by;
        // SAFETY: the caller's promise; nothing but the word is touched.
        unsafe {
            core::arch::asm!(
                "{word} = xchg_64({at} + 0, {word})",
                at = in(reg) at,
                word = inout(reg) word,
            );
        }
        word
    }
    // Elsewhere the module is only checked, never run.
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    unsafe {
        at.replace(by)
    }
}

/// Adds one to an aligned word that other cores may add to at once; tells what it was.
///
/// # Safety
/// `at` points to a word of a map's value.
#[inline(always)]
pub unsafe fn count(at: *mut u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut word: u64 = 1;
        // SAFETY: the caller's promise; nothing but the word is touched.
        unsafe {
            core::arch::asm!(
                "{word} = atomic_fetch_add((u64 *)({at} + 0), {word})",
                at = in(reg) at,
                word = inout(reg) word,
            );
        }
        word
    }
    // Elsewhere the module is only checked, never run.
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    unsafe {
        at.replace(at.read() + 1)
    }
}

/// Zero, which the compiler takes for any word: several that it knows it would clear byte by byte.
#[cfg(feature = "forward")]
#[inline(always)]
pub fn zero() -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: nothing but the register is touched.
        unsafe { core::arch::asm!("{word} = 0", word = out(reg) word) };
        word as u32
    }
    // Elsewhere the module is only checked, never run.
    #[cfg(not(target_arch = "bpf"))]
    0
}
