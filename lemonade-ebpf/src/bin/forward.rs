//! Programs of the forward plane: each entry hands over to the module that knows.

#![no_std]
#![no_main]

use aya_ebpf::bindings::{TC_ACT_OK, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lemonade_ebpf::{forward, forward_xdp, maps};

/// Sees every packet that arrives on an interface of the forward plane.
#[classifier]
fn forward_tc(ctx: TcContext) -> i32 {
    if maps::fit() { forward::arrived(&ctx) } else { TC_ACT_OK }
}

/// Sees every packet that arrives on an interface of the forward plane before the kernel has made anything of it.
#[xdp(frags)]
fn forward_xdp(ctx: XdpContext) -> u32 {
    if maps::fit() { forward_xdp::arrived(&ctx) } else { xdp_action::XDP_PASS }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
