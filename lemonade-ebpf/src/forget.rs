//! Forgetting flows for the control plane: what an entry counts goes with it, which takes one step in the kernel.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use lemonade_common::forward::{FORGOTTEN, Forgotten};

use crate::global::forward_remove;

/// Forgets the directions of flows that a packet lists; says which of them were as told.
#[inline(always)]
pub fn forgotten(ctx: &TcContext) -> u32 {
    let mut gone = 0;
    for at in 0..FORGOTTEN {
        let mut asked = MaybeUninit::<Forgotten>::uninit();
        let (to, size) = (asked.as_mut_ptr().cast::<c_void>(), size_of::<Forgotten>());
        // SAFETY: there is room for so many bytes, any of which are right; all are there unless the helper fails.
        let asked = unsafe {
            if bpf_skb_load_bytes(ctx.as_ptr(), (at * size) as u32, to, size as u32) != 0 {
                break;
            }
            asked.assume_init_ref()
        };
        if forward_remove(&raw const asked.key, asked.seen) != 0 {
            gone |= 1 << at;
        }
    }
    gone
}
