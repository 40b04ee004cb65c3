//! Maps that every object has.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};

/// Version of the layout of all maps, written by the process that made them.
#[map]
pub static ABI: Array<u32> = Array::with_max_entries(1, 0);

/// Whether the maps have the layout that this program was built for.
pub fn fit() -> bool {
    ABI.get(ABI_VERSION_AT) == Some(&ABI_VERSION)
}

/// Adds in one step: a softirq may do the same on this core, in the midst of it.
///
/// # Safety
/// `at` points to an aligned value of a map.
#[cfg(any(feature = "proxy", feature = "forward"))]
#[inline(always)]
pub unsafe fn add(at: *mut u64, by: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise; nothing but the value is touched.
    unsafe {
        core::arch::asm!("lock *(u64 *)({at} + 0) += {by}", at = in(reg) at, by = in(reg) by);
    }
    // Elsewhere the module is only checked, never run.
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        *at += by;
    }
}
