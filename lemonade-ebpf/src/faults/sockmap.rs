//! Relay `sockmap` with a fault, for tests of its self-tests.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::sk_action;
use aya_ebpf::helpers::{
    bpf_get_socket_cookie, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::SkBuffContext;

use crate::sockmap::{FLOWS, verdict};

/// One segment in so many meets the fault.
const EVERY: u32 = 5;

/// Bytes that are doubled.
const DOUBLED: usize = 16;

/// Segments so far.
#[map]
pub static SEGMENTS: Array<u32> = Array::with_max_entries(1, 0);

/// Whether the fault is due for this segment.
fn due(ctx: &SkBuffContext) -> bool {
    let Some(segments) = SEGMENTS.get_ptr_mut(0) else { return false };
    // SAFETY: a value of the map; a count that is lost to another core only moves the fault.
    let count = unsafe {
        *segments += 1;
        *segments
    };
    ctx.len() > 0 && count % EVERY == 0
}

/// Loses whole segments, and counts them as sent on.
pub fn drops(ctx: &SkBuffContext) -> u32 {
    if due(ctx) {
        // SAFETY: as in `verdict`.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        if let Some(flow) = FLOWS.get_ptr_mut(&cookie) {
            // SAFETY: as in `verdict`.
            unsafe { (*flow).redirected += u64::from(ctx.len()) };
            return sk_action::SK_DROP;
        }
    }
    verdict(ctx)
}

/// Leaves segments where nobody looks for them.
pub fn holds(ctx: &SkBuffContext) -> u32 {
    if due(ctx) { sk_action::SK_PASS } else { verdict(ctx) }
}

/// Sends the first bytes of a segment a second time behind it.
pub fn doubles(ctx: &SkBuffContext) -> u32 {
    let length = ctx.len();
    if due(ctx) && length as usize >= DOUBLED {
        let mut bytes = [0_u8; DOUBLED];
        let (at, size) = (bytes.as_mut_ptr().cast(), DOUBLED as u32);
        // SAFETY: the helpers are allowed in programs of this type, and `bytes` has room for `size`.
        unsafe {
            if bpf_skb_load_bytes(ctx.as_ptr(), 0, at, size) == 0
                && bpf_skb_change_tail(ctx.skb.skb, length + size, 0) == 0
            {
                let _ = bpf_skb_store_bytes(ctx.skb.skb, length, at, size, 0);
            }
        }
    }
    verdict(ctx)
}
