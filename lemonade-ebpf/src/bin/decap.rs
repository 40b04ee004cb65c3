//! The program of `lemonade decap`.

#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lemonade_ebpf::{decap as unwrapping, maps};

/// Sees every packet that arrives on an interface of a backend's; other programs there see it afterwards.
#[classifier]
fn decap(ctx: TcContext) -> i32 {
    if maps::fit() {
        unwrapping::arrived(&ctx);
    }
    TC_ACT_UNSPEC
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
