//! Programs of relay `sockmap` with a fault each; never embedded.

#![no_std]
#![no_main]

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB,
};
use aya_ebpf::macros::{sock_ops, stream_verdict};
use aya_ebpf::programs::{SkBuffContext, SockOpsContext};
use lemonade_ebpf::faults::sockmap as faults;
use lemonade_ebpf::{maps, sockmap};

/// Sees the life of the sockets of Lemonade's own cgroup.
#[sock_ops]
fn sock_ops(ctx: SockOpsContext) -> u32 {
    if maps::fit() {
        match ctx.op() {
            BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
                sockmap::established(&ctx);
            }
            BPF_SOCK_OPS_RTT_CB => sockmap::acknowledged(&ctx),
            _ => {}
        }
    }
    1
}

/// Loses bytes.
#[stream_verdict]
fn drops(ctx: SkBuffContext) -> u32 {
    faults::drops(&ctx)
}

/// Keeps bytes back.
#[stream_verdict]
fn holds(ctx: SkBuffContext) -> u32 {
    faults::holds(&ctx)
}

/// Sends bytes twice.
#[stream_verdict]
fn doubles(ctx: SkBuffContext) -> u32 {
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
