//! The short way between two sockets of this host: what one sends goes straight to what the other has to read.
//!
//! Four sockets serve a connection: the client's, the two of the balancer, the backend's. Each hop, client to balancer and
//! balancer to backend, is a TCP connection within this host, and each of its directions takes the short way or TCP,
//! message by message. A receiver reads what came the short way first and what came by TCP after it, so order holds by
//! three rules:
//!
//! 1. A message may take the short way only if no byte that went by TCP before it is unread. Both ends share the
//!    sequence numbers of one connection, so that is one comparison: the sender has written up to where the receiver
//!    has read. The sender's lock is held, so its side of it cannot change; the receiver's can only get nearer.
//! 2. A message may take TCP at any time: all that went the short way before it is read first.
//! 3. A foreign receiver never sees both: its direction is all short or, if its first byte was not, all TCP. It may take a
//!    short read for the end of what there is, and would then wait for bytes that it has.
//!
//! What is unread is bounded by [`MOST_UNREAD`]. Beyond that a foreign sender's message takes TCP, which makes the sender
//! wait. The balancer bounds what it sends to foreign receivers itself: no verdict can, since SK_DROP is final (the
//! kernel keeps it for every later send of the socket) and TCP would break the third rule.

use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    BPF_F_INGRESS, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, BPF_TCP_FIN_WAIT1, BPF_TCP_LAST_ACK,
    bpf_sock, sk_action,
};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_skc_to_tcp_sock,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, SockHash};
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};
use lemonade_common::abi::Endpoint;
use lemonade_common::sk_msg::{Count, End, FOREIGN, MOST_UNREAD, OWN, Socket, TRIAL};

use crate::word;

/// `BPF_F_NO_PREALLOC`
const ON_DEMAND: u32 = 1;

/// Sockets that may take part.
const MOST: u32 = 65_536;

/// Addresses of frontends that ask for this relay; the address of all zeros stands for every one.
#[map]
static FRONTENDS: HashMap<Endpoint, u32> = HashMap::with_max_entries(4_096, ON_DEMAND);

/// Sockets of the balancer that are about to connect, by cookie, and what they join as: [`OWN`] to a backend, with
/// [`TRIAL`] in a self-test.
#[map]
static DIALS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Sockets that take part.
#[map]
static ENDS: HashMap<End, Socket> = HashMap::with_max_entries(MOST, ON_DEMAND);

/// The same, as the kernel wants them for a redirect.
#[map]
static SOCKS: SockHash<End> = SockHash::with_max_entries(MOST, 0);

/// Sockets whose other end was closed with bytes unread, which TCP tells by RST and the short way cannot.
#[map]
static UNREAD: LruHashMap<End, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Counters, by [`Count`].
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Count::LEN, 0);

/// Messages that did not take the short way though their sender takes part. The proxy shares the memory: while the
/// number stands still, a reader of what came the short way has nothing else to read.
#[map]
static DETOURS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// `BPF_F_MMAPABLE`
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The network namespace of the balancer, by cookie; sockets of others have the same addresses.
#[unsafe(no_mangle)]
static NETNS: u64 = 0;

/// Offset of `copied_seq` in `struct tcp_sock`.
#[unsafe(no_mangle)]
static COPIED_SEQ: u32 = 0;

/// Offset of `write_seq` in `struct tcp_sock`.
#[unsafe(no_mangle)]
static WRITE_SEQ: u32 = 0;

/// Offset of `sk_backlog.rmem_alloc` in `struct sock`.
#[unsafe(no_mangle)]
static RMEM_ALLOC: u32 = 0;

/// Offset of `sk_user_data` in `struct sock`.
#[unsafe(no_mangle)]
static USER_DATA: u32 = 0;

/// `AF_INET`
const INET: u32 = 2;

/// The first 13 bytes of `::ffff:127.0.0.0/104`, and `::1`.
const LOOPBACK: ([u8; 13], [u8; 16]) =
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Something happened to a socket of the balancer.
#[inline(always)]
pub fn own(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => own_connected(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => own_accepted(ctx),
        BPF_SOCK_OPS_STATE_CB => changed(ctx),
        _ => {}
    }
}

/// Something happened to a socket of a cgroup that the user named.
#[inline(always)]
pub fn foreign(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => foreign_connected(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => foreign_accepted(ctx),
        BPF_SOCK_OPS_STATE_CB => changed(ctx),
        _ => {}
    }
}

/// The balancer has connected to a backend.
fn own_connected(ctx: &SockOpsContext) {
    // SAFETY: the helper is allowed in programs of this type, and the context is the kernel's.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    // SAFETY: the entry is written once, before the socket connects.
    let Some(owner) = (unsafe { DIALS.get(&cookie) }).copied() else { return };
    let _ = DIALS.remove(&cookie);
    let end = seen(ctx);
    // On the way to another host it would only cost.
    if end.local == end.remote || end.remote[..13] == LOOPBACK.0 || end.remote == LOOPBACK.1 {
        join(ctx, &end, owner);
    }
}

/// The balancer has a new client.
fn own_accepted(ctx: &SockOpsContext) {
    let end = seen(ctx);
    // A client of this host joined when it connected, which was before; for others there is no short way.
    match owner(&end.reverse()) {
        Some(client) if client & FOREIGN != 0 => join(ctx, &end, OWN),
        Some(client) if client & TRIAL != 0 => join(ctx, &end, FOREIGN),
        _ => {}
    }
}

/// A process of the named cgroup has connected somewhere.
fn foreign_connected(ctx: &SockOpsContext) {
    let end = seen(ctx);
    let mut to = Endpoint { address: end.remote, port: end.remote_port, reserved: [0; 2] };
    // SAFETY: the values are not looked at.
    let named = unsafe {
        FRONTENDS.get(&to).is_some() || {
            to.address = [0; 16];
            FRONTENDS.get(&to).is_some()
        }
    };
    if named {
        join(ctx, &end, FOREIGN);
    }
}

/// A process of the named cgroup has a new client.
fn foreign_accepted(ctx: &SockOpsContext) {
    let end = seen(ctx);
    if owner(&end.reverse()) == Some(OWN) {
        join(ctx, &end, FOREIGN);
    }
}

/// The socket goes from one state to another.
fn changed(ctx: &SockOpsContext) {
    let to = ctx.arg(1);
    if to == BPF_TCP_CLOSE {
        let _ = ENDS.remove(&seen(ctx));
        return;
    }
    if to != BPF_TCP_FIN_WAIT1 && to != BPF_TCP_LAST_ACK {
        return;
    }
    let end = seen(ctx);
    // SAFETY: the entry is this socket's own, and is written once.
    let Some(socket) = (unsafe { ENDS.get(&end) }).copied() else { return };
    // close() takes a socket out of its maps, and its user data away, before it says FIN; shutdown() does not, and what
    // is unread then can still be read. What came by TCP is gone by now, and the kernel has looked at it itself.
    // SAFETY: these are offsets in the structures of this kernel, and the socket is alive: it is the context's.
    let (user_data, unread) =
        unsafe { (word::<u64>(socket.address, &USER_DATA), word::<u32>(socket.address, &RMEM_ALLOC)) };
    if user_data == 0 && unread > 0 {
        let _ = UNREAD.insert(&end.reverse(), &1, 0);
    }
}

/// A socket that takes part sends a message: decides its way.
pub fn sent(ctx: &SkMsgContext) -> u32 {
    let to = sender(ctx).reverse();
    // SAFETY: an entry is written once, before its socket can be found.
    let Some(receiver) = (unsafe { ENDS.get(&to) }).copied() else {
        return by_tcp(Some(Count::Alone));
    };
    // SAFETY: a word of the context.
    let socket = unsafe { read_volatile((&raw const (*ctx.msg).__bindgen_anon_3).cast::<*mut bpf_sock>()) };
    // SAFETY: the context's socket; the helper tells by null if it is none of TCP.
    let socket = unsafe { bpf_skc_to_tcp_sock(socket.cast()) } as u64;
    if socket == 0 {
        return by_tcp(None);
    }
    // SAFETY: offsets in the structures of this kernel. The receiver may be gone, and then what is read is worthless, but
    // the redirect below fails too: the kernel takes a socket out of SOCKS before it lets go of its memory.
    let receives = |at: &u32| unsafe { word::<u32>(receiver.address, at) };
    // SAFETY: a field of the context's own socket, which the verifier lets be read as it is.
    let written =
        unsafe { read_volatile((socket + u64::from(read_volatile(&raw const WRITE_SEQ))) as *const u32) };
    if written != receives(&COPIED_SEQ) || (receiver.owner & FOREIGN != 0 && written != receiver.first) {
        return by_tcp(Some(Count::Behind));
    }
    let size = ctx.size();
    if receiver.owner & OWN != 0 {
        let unread = receives(&RMEM_ALLOC);
        if unread > 0 && unread.saturating_add(size) > MOST_UNREAD {
            return by_tcp(Some(Count::Overflowed));
        }
    }
    if SOCKS.redirect_msg(ctx, to, u64::from(BPF_F_INGRESS)) as u32 != sk_action::SK_PASS {
        return by_tcp(Some(Count::Alone));
    }
    count(Count::Redirected, 1);
    count(Count::Bytes, u64::from(size));
    sk_action::SK_PASS
}

/// Lets a message take TCP. It is counted before it is sent, so who reads it can have seen that.
#[inline(always)]
fn by_tcp(why: Option<Count>) -> u32 {
    if let Some(detours) = DETOURS.get_ptr_mut(0) {
        // SAFETY: a word of the map.
        unsafe { word::count(detours) };
    }
    if let Some(why) = why {
        count(why, 1);
    }
    sk_action::SK_PASS
}

/// Takes the context's socket in.
fn join(ctx: &SockOpsContext, end: &End, owner: u32) {
    // SAFETY: the helper is allowed in programs of this type; the global is written before the program is loaded.
    if unsafe { bpf_get_netns_cookie(ctx.ops.cast()) != read_volatile(&raw const NETNS) } {
        return;
    }
    // SAFETY: a word of the context, then the helper, which tells by null if the socket is none of TCP.
    let address = unsafe {
        let socket = read_volatile((&raw const (*ctx.ops).__bindgen_anon_2).cast::<*mut bpf_sock>());
        if socket.is_null() {
            return;
        }
        bpf_skc_to_tcp_sock(socket.cast()) as u64
    };
    if address == 0 {
        return;
    }
    // Bytes that came with the handshake (TCP Fast Open) are in front of all others, and a foreign reader may be at them.
    // SAFETY: words of the context.
    let (first, early, sent) = unsafe {
        (
            read_volatile(&raw const (*ctx.ops).rcv_nxt),
            read_volatile(&raw const (*ctx.ops).bytes_received),
            read_volatile(&raw const (*ctx.ops).data_segs_out),
        )
    };
    if early != 0 || sent != 0 {
        return;
    }
    // SAFETY: a word of the context.
    let flags = unsafe { read_volatile(&raw const (*ctx.ops).bpf_sock_ops_cb_flags) };
    // Refused only for flags that this kernel does not know; this one is of Linux 4.16.
    let _ = ctx.set_cb_flags((flags | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    let socket = Socket { address, first, owner };
    let known = ENDS.insert(end, &socket, 0).is_ok();
    // SAFETY: the context's own structure, which the helper wants.
    if known && SOCKS.update(*end, unsafe { &mut *ctx.ops }, 0).is_ok() {
        return count(Count::Joined, 1);
    }
    let _ = ENDS.remove(end);
    count(Count::Full, 1);
}

fn owner(end: &End) -> Option<u32> {
    // SAFETY: an entry is written once, before its socket can be found.
    unsafe { ENDS.get(end) }.map(|socket| socket.owner)
}

/// A field of a structure of the kernel.
///
/// # Safety
/// `at` is the offset of a field of this size.
#[inline(always)]
unsafe fn word<T: Default>(structure: u64, at: &u32) -> T {
    // SAFETY: the kernel checks the address.
    unsafe {
        let from = structure.wrapping_add(u64::from(read_volatile(at)));
        bpf_probe_read_kernel(from as *const T).unwrap_or_default()
    }
}

#[inline(always)]
fn count(what: Count, by: u64) {
    if let Some(count) = COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: the value is this core's own.
        unsafe { *count += by };
    }
}

/// The context's socket, as its owner sees it.
#[inline(always)]
fn seen(ctx: &SockOpsContext) -> End {
    // SAFETY: words of the context. The verifier takes neither wider reads nor computed places, which the compiler would
    // make of loops and of branches that both read: so each word is read by itself, and chosen from later.
    let (four, six) = unsafe {
        let (local, remote) = (&raw const (*ctx.ops).local_ip6, &raw const (*ctx.ops).remote_ip6);
        (
            [read_volatile(&raw const (*ctx.ops).local_ip4), read_volatile(&raw const (*ctx.ops).remote_ip4)],
            [words(local), words(remote)],
        )
    };
    end(ctx.family(), four, six, ctx.local_port(), ctx.remote_port())
}

/// The socket that sends, as its owner sees it.
#[inline(always)]
fn sender(ctx: &SkMsgContext) -> End {
    // SAFETY: as in `seen`.
    unsafe {
        let (local, remote) = (&raw const (*ctx.msg).local_ip6, &raw const (*ctx.msg).remote_ip6);
        end(
            read_volatile(&raw const (*ctx.msg).family),
            [read_volatile(&raw const (*ctx.msg).local_ip4), read_volatile(&raw const (*ctx.msg).remote_ip4)],
            [words(local), words(remote)],
            read_volatile(&raw const (*ctx.msg).local_port),
            read_volatile(&raw const (*ctx.msg).remote_port),
        )
    }
}

/// # Safety
/// `at` points into a context.
#[inline(always)]
unsafe fn words(at: *const [u32; 4]) -> [u32; 4] {
    let at = at.cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe {
        [read_volatile(at), read_volatile(at.add(1)), read_volatile(at.add(2)), read_volatile(at.add(3))]
    }
}

/// Own ports come in the host's order, those of the other end in the network's, in the upper half of a word.
#[inline(always)]
fn end(family: u32, four: [u32; 2], six: [[u32; 4]; 2], local_port: u32, remote_port: u32) -> End {
    let [local, remote] = match family {
        INET => four.map(|word| [0, 0, u32::from_be(0xffff), word]),
        _ => six,
    };
    let [_, _, high, low] = remote_port.to_ne_bytes();
    End {
        local: bytes(local),
        remote: bytes(remote),
        local_port: (local_port as u16).to_be_bytes(),
        remote_port: [high, low],
    }
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (part, word) in bytes.chunks_exact_mut(4).zip(words) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
