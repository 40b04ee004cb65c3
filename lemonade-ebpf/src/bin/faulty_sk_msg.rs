//! Programs of relay `sk_msg` as they are, and with a fault each; never embedded.

#![no_std]
#![no_main]

use aya_ebpf::macros::{sk_msg, sock_ops};
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};
use lemonade_ebpf::faults::sk_msg as faults;
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

/// Has no fault.
#[sk_msg]
fn short_way(ctx: SkMsgContext) -> u32 {
    relay::sent(&ctx)
}

/// Loses bytes.
#[sk_msg]
fn drops(ctx: SkMsgContext) -> u32 {
    faults::drops(&ctx)
}

/// Keeps bytes back.
#[sk_msg]
fn holds(ctx: SkMsgContext) -> u32 {
    faults::holds(&ctx)
}

/// Sends bytes twice.
#[sk_msg]
fn doubles(ctx: SkMsgContext) -> u32 {
    faults::doubles(&ctx)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
