//! Relay `sockmap`: what one socket of a connection receives goes on to the other without passing through userspace.
//!
//! Two maps of sockets, so that a redirect never meets a key without its socket: all of [`TARGETS`] stands before the
//! first socket is armed. Userspace writes [`FLOWS`] once, when it hands a connection over; from then on only the
//! program does, under the lock of the socket that receives. What userspace says later has a map of its own.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SOCK_OPS_RTT_CB_FLAG, bpf_sock, sk_action};
use aya_ebpf::helpers::{
    bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_skb_adjust_room, bpf_skc_to_tcp_sock,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf, SockHash};
use aya_ebpf::programs::{SkBuffContext, SockOpsContext};
use lemonade_common::abi::{
    ACKS_WANTED_AT, PLACE_CB, PLACE_COPIED_SEQ, RELAY_SEGMENTS, RELAY_SOCKETS, RELAY_UNACKED, RelayFlow,
};

/// `BPF_F_NO_PREALLOC`: memory is taken as connections come.
const ON_DEMAND: u32 = 1;

/// By the cookie of the socket that receives: the socket that sends on. No program is attached to it.
#[map]
pub static TARGETS: SockHash<u64> = SockHash::with_max_entries(RELAY_SOCKETS, 0);

/// Sockets whose received bytes the program sees, by their cookie.
#[map]
pub static ARMED: SockHash<u64> = SockHash::with_max_entries(RELAY_SOCKETS, 0);

/// One direction of a connection, by the cookie of the socket that receives.
#[map]
pub static FLOWS: HashMap<u64, RelayFlow> = HashMap::with_max_entries(RELAY_SOCKETS, ON_DEMAND);

/// Bytes that userspace has moved by itself, by the cookie of the socket that receives: with all of them moved, the
/// program goes on.
#[map]
pub static MOVED: HashMap<u64, u64> = HashMap::with_max_entries(RELAY_SOCKETS, ON_DEMAND);

/// Bytes that the peer of a socket has acknowledged, by its cookie; userspace makes and removes the entries.
#[map]
pub static ACKED: HashMap<u64, u64> = HashMap::with_max_entries(RELAY_SOCKETS, ON_DEMAND);

/// Cookies of sockets whose bytes userspace has to move for a while.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Where this kernel keeps what the program reads of it.
#[map]
pub static PLACES: Array<u32> = Array::with_max_entries(2, 0);

/// Whether acknowledgements are wanted at all; they cost each segment a look-up.
#[map]
pub static ACKS_WANTED: Array<u32> = Array::with_max_entries(1, 0);

/// Decides what happens to bytes that a socket has received.
#[inline(always)]
pub fn verdict(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the helper is allowed in programs of this type, and the context is the kernel's.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let length = u64::from(ctx.len());
    let Some(flow) = FLOWS.get_ptr_mut(&cookie) else {
        return sk_action::SK_PASS;
    };
    // A bare FIN. Sent on, it would look to the kernel like a failed write: userspace passes it on itself.
    if length == 0 {
        return sk_action::SK_DROP;
    }
    // SAFETY: the entry is of this socket, whose lock is held: nobody else writes it.
    let flow = unsafe { &mut *flow };
    let length = match fresh(ctx, flow, length as u32) {
        Some(0) => return sk_action::SK_DROP,
        Some(length) => u64::from(length),
        None => {
            flow.lost += length;
            let _ = EVENTS.output::<u64>(cookie, 0);
            return sk_action::SK_DROP;
        }
    };
    if flow.held != 0 {
        // SAFETY: a word of the map, read whole.
        let moved = unsafe { MOVED.get(&cookie) }.copied();
        if moved != Some(flow.passed) {
            flow.passed += length;
            return sk_action::SK_PASS;
        }
        flow.held = 0;
    }
    if over(flow, length) {
        // SAFETY: a word of the map, read whole.
        if let Some(acked) = unsafe { ACKED.get(&flow.target) }.copied() {
            flow.acked = acked;
        }
        turn(flow);
        if over(flow, length) {
            flow.held = 1;
            flow.passed += length;
            // A lost event is made up for: userspace looks at each connection every few seconds.
            let _ = EVENTS.output::<u64>(cookie, 0);
            return sk_action::SK_PASS;
        }
    }
    let action = TARGETS.redirect_skb(ctx, cookie, 0) as u32;
    if action == sk_action::SK_PASS {
        flow.redirected += length;
        flow.young += 1;
    } else {
        // The sender takes these bytes for delivered: userspace must reset the connection.
        flow.lost += length;
        let _ = EVENTS.output::<u64>(cookie, 0);
    }
    action
}

/// Most bytes that the kernel takes off a segment at once (`sk_skb_adjust_room`).
const TRIM: u32 = 4_095;

/// Takes off what came before: how many bytes are left, or `None` if they are not the next ones.
///
/// TCP queues a segment that begins with bytes it has already, as a retransmission may, and leaves it to the reader to skip
/// them. The kernel hands such a segment to the program whole.
#[inline(always)]
fn fresh(ctx: &SkBuffContext, flow: &mut RelayFlow, length: u32) -> Option<u32> {
    let place = |at| PLACES.get(at).copied().filter(|place| *place != 0);
    let begins: u32 = word(ctx.skb.skb as u64, place(PLACE_CB)?)?;
    if flow.redirected + flow.passed == 0 {
        // SAFETY: a word of the context.
        let socket =
            unsafe { read_volatile((&raw const (*ctx.skb.skb).__bindgen_anon_2).cast::<*mut bpf_sock>()) };
        if socket.is_null() {
            return None;
        }
        // SAFETY: the context's socket; the helper tells by null if it is none of TCP.
        let socket = unsafe { bpf_skc_to_tcp_sock(socket.cast()) } as u64;
        if socket == 0 {
            return None;
        }
        flow.next = word(socket, place(PLACE_COPIED_SEQ)?)?;
    }
    // Numbers go round: the distance is what counts.
    let known = flow.next.wrapping_sub(begins);
    if known == 0 {
        flow.next = begins.wrapping_add(length);
        return Some(length);
    }
    if known >= 1 << 31 {
        return None;
    }
    if known >= length {
        return Some(0);
    }
    let mut left = known;
    // The largest segment has 64 KiB, and coalesced ones some more.
    for _ in 0..64 {
        if left == 0 {
            flow.next = begins.wrapping_add(length);
            return Some(length - known);
        }
        let part = left.min(TRIM);
        // SAFETY: the helper is allowed in programs of this type.
        if unsafe { bpf_skb_adjust_room(ctx.skb.skb, -(part as i32), 0, 0) } != 0 {
            return None;
        }
        left -= part;
    }
    None
}

/// A word of a structure of the kernel.
#[inline(always)]
fn word(structure: u64, at: u32) -> Option<u32> {
    // SAFETY: the kernel checks the address.
    unsafe { bpf_probe_read_kernel(structure.wrapping_add(u64::from(at)) as *const u32) }.ok()
}

/// Bytes that were given to the target, counted as it counts acknowledgements.
#[inline(always)]
fn given(flow: &RelayFlow) -> u64 {
    flow.base + flow.redirected + flow.passed
}

/// Whether `length` more bytes are more than may wait for the target's peer, in bytes or in segments.
#[inline(always)]
fn over(flow: &RelayFlow, length: u64) -> bool {
    given(flow) + length > flow.acked + RELAY_UNACKED || flow.young + flow.old >= RELAY_SEGMENTS
}

/// Forgets segments that were acknowledged: the old ones are those given before `mark`.
#[inline(always)]
fn turn(flow: &mut RelayFlow) {
    let given = given(flow);
    if flow.acked >= given {
        (flow.old, flow.young) = (0, 0);
    } else if flow.acked >= flow.mark {
        flow.old = flow.young;
        flow.young = 0;
        flow.mark = given;
    }
}

/// A socket of this process is connected: asks to hear of acknowledgements, if anybody wants them.
pub fn established(ctx: &SockOpsContext) {
    if ACKS_WANTED.get(ACKS_WANTED_AT).copied().unwrap_or(0) != 0 {
        let flags = ctx.cb_flags() | BPF_SOCK_OPS_RTT_CB_FLAG;
        // Refused only for flags that this kernel does not know; this one is of Linux 5.3.
        let _ = ctx.set_cb_flags(flags as i32);
    }
}

/// An acknowledgement came.
pub fn acknowledged(ctx: &SockOpsContext) {
    // SAFETY: the helper is allowed in programs of this type, and the context is the kernel's.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if let Some(acked) = ACKED.get_ptr_mut(&cookie) {
        // SAFETY: a word of the context, and a value of the map that only this socket's callbacks write.
        unsafe { *acked = read_volatile(&raw const (*ctx.ops).bytes_acked) };
    }
}
