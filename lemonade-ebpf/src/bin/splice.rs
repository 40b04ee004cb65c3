//! Programs of relay `splice`: each entry hands over to the module that knows.

#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lemonade_ebpf::{maps, splice};

/// Sees every packet that arrives on an interface.
#[classifier]
fn splice_in(ctx: TcContext) -> i32 {
    if maps::fit() { splice::arrived(&ctx) } else { TC_ACT_UNSPEC }
}

/// Sees every packet that leaves by an interface.
#[classifier]
fn splice_out(ctx: TcContext) -> i32 {
    if maps::fit() { splice::leaves(&ctx) } else { TC_ACT_UNSPEC }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
