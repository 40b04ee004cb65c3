//! Programs beside the proxy plane: each entry hands over to the module that knows.

#![no_std]
#![no_main]

use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use lemonade_ebpf::maps;

/// Sees the life of the sockets of Lemonade's own cgroup.
#[sock_ops]
fn sock_ops(_ctx: SockOpsContext) -> u32 {
    u32::from(maps::fit())
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
