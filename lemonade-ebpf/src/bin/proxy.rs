//! Programs beside the proxy plane: each entry hands over to the module that knows.

#![no_std]
#![no_main]

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RETRANS_CB,
    BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, sk_action,
};
use aya_ebpf::macros::{sock_ops, stream_verdict};
use aya_ebpf::programs::{SkBuffContext, SockOpsContext};
use lemonade_ebpf::{maps, signals, sockmap};

/// Sees the life of the sockets of Lemonade's own cgroup.
#[sock_ops]
fn sock_ops(ctx: SockOpsContext) -> u32 {
    // Most calls ask for settings, which are the kernel's to choose; they end here.
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB if maps::fit() => signals::connecting(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB if maps::fit() => {
            sockmap::established(&ctx);
            signals::established(&ctx);
        }
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB if maps::fit() => sockmap::established(&ctx),
        BPF_SOCK_OPS_RTT_CB if maps::fit() => sockmap::acknowledged(&ctx),
        BPF_SOCK_OPS_RETRANS_CB if maps::fit() => signals::retransmitted(&ctx),
        BPF_SOCK_OPS_STATE_CB if maps::fit() => signals::changed(&ctx),
        _ => {}
    }
    1
}

/// Relay `sockmap`: sees what its sockets receive.
#[stream_verdict]
fn sockmap(ctx: SkBuffContext) -> u32 {
    if maps::fit() { sockmap::verdict(&ctx) } else { sk_action::SK_PASS }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
