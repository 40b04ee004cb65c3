//! Bytes of a packet that are read and written where they lie, which spares a call for each.

use aya_ebpf::bindings::__sk_buff;
use lemonade_common::packet::Bytes;

use crate::skb::Skb;

/// Bytes from the begin of a packet among which it is looked for without asking the kernel.
const NEAR: usize = 511;

/// Address of `length` bytes from `at` on in the part of a packet between two addresses, if they are all there.
#[inline(always)]
pub fn within(begin: usize, end: usize, at: usize, length: usize) -> Option<usize> {
    // The verifier takes no comparison for one byte.
    if length < 2 || at > NEAR {
        return None;
    }
    let place = begin + bounded(at);
    if place + length > end { None } else { Some(place) }
}

/// What is at most [`NEAR`], in a way that the verifier follows: the compiler compares what it was made from.
#[inline(always)]
fn bounded(at: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut at = at;
        // SAFETY: nothing but the register is touched.
        unsafe { core::arch::asm!("{at} &= 511", at = inout(reg) at) };
        at
    }
    // Elsewhere the module is only checked, never run.
    #[cfg(not(target_arch = "bpf"))]
    at
}

/// A packet whose headers are read where they lie, if they lie in its first part. Each load has two ways for the verifier to
/// follow, so this is for what every packet needs.
pub struct Near(pub *mut __sk_buff);

impl Bytes for Near {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        // SAFETY: words of the context.
        let (begin, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        match within(begin, end, at, N) {
            // SAFETY: it lies before the packet's end.
            Some(place) => Some(unsafe { *(place as *const [u8; N]) }),
            None => Skb(self.0).load(at),
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        Skb(self.0).length()
    }
}
