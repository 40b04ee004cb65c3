//! Puts a packet back as it was and hands it to another program, so that each repeat of a trial meets the same packet. It
//! follows [`lemonade_common::restore`].

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;
use lemonade_common::restore::{Original, RESTORED};

use crate::near::within;

/// The packet.
#[map]
static ORIGINAL: Array<Original> = Array::with_max_entries(1, 0);

/// The program that is timed.
#[map]
static TIMED: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Restores the packet that the run before has left, and runs the program on it: an action of XDP.
#[inline(always)]
pub fn restored(ctx: &XdpContext) -> u32 {
    let Some(original) = ORIGINAL.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: trials run one after the other.
    let original = unsafe { &mut *original };
    if ctx.data_end() - ctx.data() != original.length as usize {
        // SAFETY: a number, which the helper judges.
        let failed = unsafe { bpf_xdp_adjust_head(ctx.ctx, original.grown as i32) };
        if failed != 0 {
            return XDP_ABORTED;
        }
    }
    if !store::<RESTORED>(ctx.ctx, 0, &original.bytes) {
        return XDP_ABORTED;
    }
    if original.mask != 0 {
        let [address, port] = original.varied(original.runs);
        original.runs = original.runs.wrapping_add(1);
        let [address_at, port_at] = original.varied_at;
        if !store(ctx.ctx, address_at, &address) || !store(ctx.ctx, port_at, &port) {
            return XDP_ABORTED;
        }
    }
    // SAFETY: it does not come back unless there is no program.
    unsafe { TIMED.tail_call(ctx, 0) };
    XDP_ABORTED
}

/// What the time of everything else is measured with.
#[inline(always)]
pub const fn sent_back() -> u32 {
    XDP_TX
}

#[inline(always)]
fn store<const N: usize>(ctx: *mut xdp_md, at: u32, bytes: &[u8; N]) -> bool {
    // SAFETY: words of the context.
    let (begin, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    let Some(place) = within(begin, end, at as usize, N) else { return false };
    // SAFETY: it lies before the packet's end.
    unsafe { *(place as *mut [u8; N]) = *bytes };
    true
}
