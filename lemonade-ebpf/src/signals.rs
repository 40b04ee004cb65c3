//! What TCP tells of the connections to backends, added up for each address and port.
//!
//! Sockets that the process opened count, those it accepted do not. Three calls of a connection do something: when its
//! connect begins, when it is established, and when it leaves that state. Others come only for segments sent again, and
//! for later changes of its state, where they end at once.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE,
    BPF_TCP_ESTABLISHED, BPF_TCP_SYN_SENT,
};
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_getsockopt, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use lemonade_common::abi::{BackendSignals, Endpoint, OWN_RESET, PROBE};

use crate::maps::add;

/// What was counted, by backend.
#[map]
pub static BACKENDS: LruHashMap<Endpoint, BackendSignals> = LruHashMap::with_max_entries(16_384, 0);

/// When connects began whose SYN was sent again, in nanoseconds, by socket cookie.
#[map]
pub static LATE: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16_384, 0);

/// `AF_INET`
const INET: u32 = 2;

/// `SOL_SOCKET` and `SO_RCVLOWAT`.
const RECEIVE_LOW_WATER: (i32, i32) = (1, 18);

/// `SOL_TCP` and `TCP_SYNCNT`.
const SYN_COUNT: (i32, i32) = (6, 7);

/// Nanoseconds after which the kernel sends a SYN again for the first time (`TCP_TIMEOUT_INIT`).
const FIRST_TIMEOUT: u64 = 1_000_000_000;

/// A connect begins: asks to see its SYN when it is sent again.
pub fn connecting(ctx: &SockOpsContext) {
    ask(ctx, BPF_SOCK_OPS_RETRANS_CB_FLAG);
}

/// The handshake of a connect is over: asks to see the end.
pub fn established(ctx: &SockOpsContext) {
    ask(ctx, BPF_SOCK_OPS_RETRANS_CB_FLAG | BPF_SOCK_OPS_STATE_CB_FLAG);
    let Some(signals) = backend(ctx) else { return };
    smooth(ctx, signals);
    let Some(took) = handshake(ctx) else { return };
    // SAFETY: `signals` points into the map, whose values are aligned to eight bytes.
    unsafe {
        add(&raw mut (*signals).connects, 1);
        add(&raw mut (*signals).connect_us_sum, u64::from(took));
        (*signals).connect_us_last = took;
    }
}

/// Microseconds of the handshake: its round trip is the first that the kernel measures, unless a SYN was lost.
fn handshake(ctx: &SockOpsContext) -> Option<u32> {
    // SAFETY: a word of the context.
    if unsafe { read_volatile(&raw const (*ctx.ops).total_retrans) } == 0 {
        return Some(round_trip(ctx));
    }
    // SAFETY: both helpers are allowed in programs of this type, and the context is the kernel's.
    let (cookie, now) = unsafe { (bpf_get_socket_cookie(ctx.ops.cast()), bpf_ktime_get_ns()) };
    // SAFETY: the entry is this socket's own, so nobody else writes it; a word is read whole.
    let began = unsafe { LATE.get(&cookie) }.copied()?;
    let _ = LATE.remove(&cookie);
    Some((now.saturating_sub(began) / 1000) as u32)
}

/// Segments were sent again; the kernel tells how many.
pub fn retransmitted(ctx: &SockOpsContext) {
    // SAFETY: a word of the context.
    if unsafe { read_volatile(&raw const (*ctx.ops).state) } == BPF_TCP_SYN_SENT {
        // SAFETY: as in `handshake`.
        let (cookie, now) = unsafe { (bpf_get_socket_cookie(ctx.ops.cast()), bpf_ktime_get_ns()) };
        // Refused when there is one: only the first tells when the connect began. Full, it drops the oldest.
        let _ = LATE.insert(&cookie, &now.saturating_sub(FIRST_TIMEOUT), u64::from(BPF_NOEXIST));
        let [_, _, high, low] = ctx.remote_port().to_ne_bytes();
        debug!(ctx, "a SYN to port {} of a backend was sent again", u16::from_be_bytes([high, low]));
    }
    let Some(signals) = backend(ctx) else { return };
    // SAFETY: as in `established`.
    unsafe { add(&raw mut (*signals).retransmits, u64::from(ctx.arg(1))) };
}

/// The socket goes from one state to another.
pub fn changed(ctx: &SockOpsContext) {
    let (from, to) = (ctx.arg(0), ctx.arg(1));
    if from != BPF_TCP_ESTABLISHED {
        return;
    }
    let Some(signals) = backend(ctx) else { return };
    // SAFETY: as in `established`.
    unsafe { add(&raw mut (*signals).closes, 1) };
    // A close in good order passes FIN_WAIT1 or CLOSE_WAIT. What is left is tcp_reset() and tcp_write_err(), which
    // are the peer's or the network's doing, and tcp_close() with SO_LINGER 0 or bytes unread, which is ours and marked.
    if to == BPF_TCP_CLOSE && !is(ctx, RECEIVE_LOW_WATER, OWN_RESET) && !is(ctx, SYN_COUNT, PROBE) {
        // SAFETY: as in `established`, and two words of the context.
        unsafe {
            add(&raw mut (*signals).resets, 1);
            let sent = read_volatile(&raw const (*ctx.ops).data_segs_out);
            let received = read_volatile(&raw const (*ctx.ops).data_segs_in);
            if sent | received == 0 {
                add(&raw mut (*signals).early_resets, 1);
            }
        }
    }
    smooth(ctx, signals);
}

/// Keeps the round-trip time.
fn smooth(ctx: &SockOpsContext, signals: *mut BackendSignals) {
    let srtt = round_trip(ctx);
    if srtt != 0 {
        // SAFETY: a value of the map.
        unsafe { (*signals).srtt_us = srtt };
    }
}

/// Smoothed round-trip time in microseconds; the kernel holds eighths of them.
fn round_trip(ctx: &SockOpsContext) -> u32 {
    // SAFETY: a word of the context.
    unsafe { read_volatile(&raw const (*ctx.ops).srtt_us) >> 3 }
}

/// Asks for the callbacks `flags` of this socket too. None is given back: other programs may have asked for it.
fn ask(ctx: &SockOpsContext, flags: u32) {
    let flags = ctx.cb_flags() | flags;
    // Refused only for flags that this kernel does not know; these are of Linux 4.16.
    let _ = ctx.set_cb_flags(flags as i32);
}

/// Whether an option of the socket, which is one int, has this value.
fn is(ctx: &SockOpsContext, (level, option): (i32, i32), wanted: i32) -> bool {
    let mut value: i32 = 0;
    let length = size_of::<i32>() as i32;
    // SAFETY: the option is one int, and `value` has room for it.
    let failed = unsafe {
        bpf_getsockopt(ctx.ops.cast::<c_void>(), level, option, (&raw mut value).cast::<c_void>(), length)
    };
    failed == 0 && value == wanted
}

/// Entry of the socket's peer, made if there is none.
fn backend(ctx: &SockOpsContext) -> Option<*mut BackendSignals> {
    let key = endpoint(ctx);
    if let Some(found) = BACKENDS.get_ptr_mut(&key) {
        return Some(found);
    }
    // Fails when another core was faster, and then there is one.
    let _ = BACKENDS.insert(&key, &BackendSignals::default(), u64::from(BPF_NOEXIST));
    BACKENDS.get_ptr_mut(&key)
}

fn endpoint(ctx: &SockOpsContext) -> Endpoint {
    let mut words = [0, 0, u32::from_be(0xffff), ctx.remote_ip4()];
    if ctx.family() != INET {
        for (at, word) in words.iter_mut().enumerate() {
            // SAFETY: a word of the context; the verifier takes no wider reads, which the compiler would make of it.
            *word = unsafe { read_volatile((&raw const (*ctx.ops).remote_ip6).cast::<u32>().add(at)) };
        }
    }
    let mut address = [0; 16];
    for (bytes, word) in address.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let [_, _, high, low] = ctx.remote_port().to_ne_bytes();
    Endpoint { address, port: [high, low], reserved: [0; 2] }
}
