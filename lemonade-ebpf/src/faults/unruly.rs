//! Networks that lose, double and hold up packets, made by programs for what leaves an interface.

use core::cell::Cell;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{TC_ACT_STOLEN, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_clone_redirect, bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::programs::TcContext;

/// Length of the IPv4 packets of which [`swallow`] takes most.
const LENGTH: u16 = 777;

/// Nanoseconds between two of them that it lets pass.
const APART: u64 = 150_000_000;

/// When it let one pass.
static PASSED: Moment = Moment(Cell::new(0));

struct Moment(Cell<u64>);

// SAFETY: a word that is read and written whole; it does not matter if two packets pass at once.
unsafe impl Sync for Moment {}

/// Mark of a double, which is left alone.
const DOUBLE: u32 = 0xd0b1e;

/// Of a thousand packets so many are held up, and so many sent twice.
const HELD_UP: u32 = 30;
const DOUBLED: u32 = 30;

/// Class of the queueing discipline in which packets are held up: 1:2.
const SLOW: u32 = 0x1_0002;

/// Lets the others overtake some packets, if the queueing discipline has a slow class, and sends some twice.
#[inline(always)]
pub fn disorder(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: words of the context, which programs may write.
    unsafe {
        if (*skb).mark == DOUBLE {
            return TC_ACT_UNSPEC;
        }
        if bpf_get_prandom_u32() % 1_000 < DOUBLED {
            (*skb).mark = DOUBLE;
            bpf_clone_redirect(skb, (*skb).ifindex, 0);
            (*skb).mark = 0;
        }
        if bpf_get_prandom_u32() % 1_000 < HELD_UP {
            (*skb).priority = SLOW;
        }
    }
    TC_ACT_UNSPEC
}

/// Loses IPv4 packets of one length, but for one now and then, without a word to their sender, who would keep one that he knows
/// he has not sent.
#[inline(always)]
pub fn swallow(ctx: &TcContext) -> i32 {
    /// Where the length stands behind the Ethernet header.
    const AT: usize = 14 + 2;
    let length: Result<u16, _> = ctx.load(AT);
    if !length.is_ok_and(|length| u16::from_be(length) == LENGTH) {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: it takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an aligned word.
    if now - unsafe { read_volatile(PASSED.0.as_ptr()) } < APART {
        return TC_ACT_STOLEN;
    }
    // SAFETY: as there.
    unsafe { write_volatile(PASSED.0.as_ptr(), now) };
    TC_ACT_UNSPEC
}
