//! Programs of the forward plane: each entry hands over to the module that knows.

#![no_std]
#![no_main]

use aya_ebpf::bindings::{TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use lemonade_common::packet::Family;
use lemonade_ebpf::connect::{self, Named};
use lemonade_ebpf::{forget, forward, forward_xdp, maps};

/// Sees every packet that arrives on an interface of the forward plane.
#[classifier]
fn forward_tc(ctx: TcContext) -> i32 {
    if maps::fit() { forward::arrived(&ctx) } else { TC_ACT_UNSPEC }
}

/// Sees no packets, but lists of flows that the control plane runs it on.
#[classifier]
fn forward_forget(ctx: TcContext) -> i32 {
    if maps::fit() { forget::forgotten(&ctx) as i32 } else { 0 }
}

/// Sees every packet that arrives on an interface of the forward plane before the kernel has made anything of it.
#[xdp(frags)]
fn forward_xdp(ctx: XdpContext) -> u32 {
    if maps::fit() { forward_xdp::arrived(&ctx) } else { xdp_action::XDP_PASS }
}

/// As [`forward_xdp`], behind the driver: there the kernel (seen with 6.18) shows a program that takes packets in parts some
/// that begin in the midst of their headers, and hands them on so.
#[xdp]
fn forward_generic(ctx: XdpContext) -> u32 {
    if maps::fit() { forward_xdp::arrived(&ctx) } else { xdp_action::XDP_PASS }
}

/// Sees the sockets of a cgroup connect over IPv4.
#[cgroup_sock_addr(connect4)]
fn forward_connect4(ctx: SockAddrContext) -> i32 {
    if maps::fit() {
        connect::towards(&Named::new(ctx.sock_addr, Family::V4), true);
    }
    1
}

/// Sees them send datagrams to an address.
#[cgroup_sock_addr(sendmsg4)]
fn forward_sendmsg4(ctx: SockAddrContext) -> i32 {
    if maps::fit() {
        connect::towards(&Named::new(ctx.sock_addr, Family::V4), false);
    }
    1
}

/// Sees them receive datagrams.
#[cgroup_sock_addr(recvmsg4)]
fn forward_recvmsg4(ctx: SockAddrContext) -> i32 {
    if maps::fit() {
        connect::back(&Named::new(ctx.sock_addr, Family::V4));
    }
    1
}

/// Sees them ask who their peer is.
#[cgroup_sock_addr(getpeername4)]
fn forward_getpeername4(ctx: SockAddrContext) -> i32 {
    if maps::fit() {
        connect::back(&Named::new(ctx.sock_addr, Family::V4));
    }
    1
}

/// Sees the sockets of a cgroup connect over IPv6.
#[cgroup_sock_addr(connect6)]
fn forward_connect6(ctx: SockAddrContext) -> i32 {
    if maps::fit() {
        connect::towards(&Named::new(ctx.sock_addr, Family::V6), true);
    }
    1
}

/// Sees them send datagrams to an address.
#[cgroup_sock_addr(sendmsg6)]
fn forward_sendmsg6(ctx: SockAddrContext) -> i32 {
    if maps::fit() {
        connect::towards(&Named::new(ctx.sock_addr, Family::V6), false);
    }
    1
}

/// Sees them receive datagrams.
#[cgroup_sock_addr(recvmsg6)]
fn forward_recvmsg6(ctx: SockAddrContext) -> i32 {
    if maps::fit() {
        connect::back(&Named::new(ctx.sock_addr, Family::V6));
    }
    1
}

/// Sees them ask who their peer is.
#[cgroup_sock_addr(getpeername6)]
fn forward_getpeername6(ctx: SockAddrContext) -> i32 {
    if maps::fit() {
        connect::back(&Named::new(ctx.sock_addr, Family::V6));
    }
    1
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
