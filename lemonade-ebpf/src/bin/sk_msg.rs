//! Programs of relay `sk_msg`: each entry hands over to the module that knows.

#![no_std]
#![no_main]

use aya_ebpf::macros::{sk_msg, sock_ops};
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};
use lemonade_ebpf::maps;
use lemonade_ebpf::sk_msg as relay;

/// Sees the life of the sockets of Lemonade's own cgroup.
#[sock_ops]
fn own_ends(ctx: SockOpsContext) -> u32 {
    if maps::fit() {
        relay::own(&ctx);
    }
    1
}

/// Sees the life of the sockets of a cgroup that the user named.
#[sock_ops]
fn foreign_ends(ctx: SockOpsContext) -> u32 {
    if maps::fit() {
        relay::foreign(&ctx);
    }
    1
}

/// Sees every send on a socket that joined.
#[sk_msg]
fn short_way(ctx: SkMsgContext) -> u32 {
    relay::sent(&ctx)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
