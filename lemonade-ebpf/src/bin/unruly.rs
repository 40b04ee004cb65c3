//! Programs that make a network lose, double and hold up packets; never embedded. They need no map, so that `tc` loads them.

#![no_std]
#![no_main]

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lemonade_ebpf::faults::unruly;

/// Sees every packet that leaves by an interface.
#[classifier]
fn disorder(ctx: TcContext) -> i32 {
    unruly::disorder(&ctx)
}

/// Sees every packet that leaves by an interface.
#[classifier]
fn swallow(ctx: TcContext) -> i32 {
    unruly::swallow(&ctx)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
