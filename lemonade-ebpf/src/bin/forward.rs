//! Programs of the forward plane: each entry hands over to the module that knows.

#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_OK;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lemonade_ebpf::{forward, maps};

/// Sees every packet that arrives on an interface of the forward plane.
#[classifier]
fn forward_tc(ctx: TcContext) -> i32 {
    if maps::fit() { forward::arrived(&ctx) } else { TC_ACT_OK }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
