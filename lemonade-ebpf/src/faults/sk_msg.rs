//! Relay `sk_msg` with a fault.

use aya_ebpf::helpers::{bpf_msg_cork_bytes, bpf_msg_pull_data};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::SkMsgContext;

use crate::sk_msg::sent;

/// One message in so many meets the fault.
const EVERY: u32 = 5;

/// Bytes that are lost or doubled.
const FEW: usize = 16;

/// Bytes for which a message waits that is held; more than any self-test sends.
const MANY: u32 = 1 << 30;

/// Messages so far.
#[map]
static MESSAGES: Array<u32> = Array::with_max_entries(1, 0);

/// Whether the fault is due for this message.
fn due(ctx: &SkMsgContext) -> bool {
    let Some(messages) = MESSAGES.get_ptr_mut(0) else { return false };
    // SAFETY: a value of the map; a count that is lost to another core only moves the fault.
    let count = unsafe {
        *messages += 1;
        *messages
    };
    ctx.size() as usize >= 2 * FEW && count % EVERY == 0
}

/// Takes bytes out of messages whose sender hears that all were sent.
pub fn drops(ctx: &SkMsgContext) -> u32 {
    if due(ctx) {
        // Refused for want of memory only; the next one is soon.
        let _ = ctx.pop_data(0, FEW as u32, 0);
    }
    sent(ctx)
}

/// Keeps messages back until more come than ever will.
pub fn holds(ctx: &SkMsgContext) -> u32 {
    if due(ctx) {
        // SAFETY: the helper is allowed in programs of this type, and the context is the kernel's.
        let _ = unsafe { bpf_msg_cork_bytes(ctx.msg, MANY) };
    }
    sent(ctx)
}

/// Sends the first bytes of a message twice.
pub fn doubles(ctx: &SkMsgContext) -> u32 {
    if due(ctx)
        && ctx.push_data(0, FEW as u32, 0).is_ok()
        // SAFETY: as in `holds`.
        && unsafe { bpf_msg_pull_data(ctx.msg, 0, 2 * FEW as u32, 0) } == 0
    {
        let (start, end) = (ctx.data(), ctx.data_end());
        if start + 2 * FEW <= end {
            let bytes = start as *mut u8;
            for at in 0..FEW {
                // SAFETY: both lie within the message, by the comparison that the verifier asks for.
                unsafe { *bytes.add(at) = *bytes.add(at + FEW) };
            }
        }
    }
    sent(ctx)
}
