//! Programs that time others; never embedded.

#![no_std]
#![no_main]

use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lemonade_ebpf::restore;

/// Restores a packet and hands it to the program that is timed.
#[xdp(frags)]
fn restored(ctx: XdpContext) -> u32 {
    restore::restored(&ctx)
}

/// Takes the place of that program, to time the rest.
#[xdp(frags)]
fn sent_back(_: XdpContext) -> u32 {
    restore::sent_back()
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
