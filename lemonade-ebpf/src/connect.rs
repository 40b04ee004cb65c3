//! Sockets of this host that ask for a service: they get a backend instead when they connect or send, and see the service
//! as their peer.

use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use lemonade_common::connect::{LocalEnd, LocalKey, Picked, pick};
use lemonade_common::forward::{ServiceKey, opened_key};
use lemonade_common::packet::Family;

use crate::maps::add;
use crate::tables::{Maps, OPENED};

/// What sockets were given; those that have asked for nothing for longest make room.
#[map]
static LOCALS: LruHashMap<LocalKey, LocalEnd> = LruHashMap::with_max_entries(1 << 15, 0);

/// What a program sees of a socket and the address that it names.
pub struct Named {
    context: *mut bpf_sock_addr,
    family: Family,
}

impl Named {
    /// The context of a program for addresses of one IP version.
    pub const fn new(context: *mut bpf_sock_addr, family: Family) -> Self {
        Self { context, family }
    }

    /// The address, its port and the protocol.
    #[inline(always)]
    fn at(&self) -> ServiceKey {
        let mut words = [0, 0, u32::from_be(0xffff), 0];
        // SAFETY: words of the context; the verifier takes no other reads, which the compiler would make of it.
        let (port, protocol) = unsafe {
            match self.family {
                Family::V4 => words[3] = read_volatile(&raw const (*self.context).user_ip4),
                Family::V6 => {
                    for (at, word) in words.iter_mut().enumerate() {
                        *word = read_volatile((&raw const (*self.context).user_ip6).cast::<u32>().add(at));
                    }
                }
            }
            (
                read_volatile(&raw const (*self.context).user_port),
                read_volatile(&raw const (*self.context).protocol),
            )
        };
        let mut address = [0; 16];
        for (bytes, word) in address.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let [high, low, ..] = port.to_ne_bytes();
        ServiceKey { address, port: [high, low], protocol: [0, protocol as u8] }
    }

    /// Puts another address in its place.
    #[inline(always)]
    fn put(&self, address: &[u8; 16], port: [u8; 2]) {
        let word =
            |n: usize| u32::from_ne_bytes([address[n], address[n + 1], address[n + 2], address[n + 3]]);
        let port = u32::from_ne_bytes([port[0], port[1], 0, 0]);
        // SAFETY: words of the context that programs of this type may write.
        unsafe {
            match self.family {
                Family::V4 => (&raw mut (*self.context).user_ip4).write_volatile(word(12)),
                Family::V6 => {
                    let words = (&raw mut (*self.context).user_ip6).cast::<u32>();
                    for n in 0..4 {
                        words.add(n).write_volatile(word(n * 4));
                    }
                }
            }
            (&raw mut (*self.context).user_port).write_volatile(port);
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is the kernel's.
        unsafe { bpf_get_socket_cookie(self.context.cast()) }
    }
}

/// A socket connects, or sends to an address without being connected: a backend takes the place of the service.
#[inline(always)]
pub fn towards(named: &Named, connects: bool) {
    let at = named.at();
    let cookie = named.cookie();
    let Some(picked) = pick(&Maps { context: named.context.cast() }, &at, cookie) else { return };
    let Picked { address, port, .. } = picked;
    let key = LocalKey { cookie, address, port, protocol: at.protocol, reserved: 0 };
    let end = LocalEnd { address: at.address, port: at.port, reserved: [0; 2] };
    // SAFETY: values of this map are replaced, never changed.
    let known = unsafe { LOCALS.get(&key) }.is_some_and(|there| *there == end);
    if !known && LOCALS.insert(&key, &end, 0).is_err() {
        // It would not know whom it talks to; the proxy serves it.
        return;
    }
    if connects || !known {
        count(picked.frontend, picked.backend);
    }
    named.put(&address, port);
}

/// A socket asks who its peer is, or whose datagram it has: the service takes the place of the backend.
#[inline(always)]
pub fn back(named: &Named) {
    let ServiceKey { address, port, protocol } = named.at();
    let key = LocalKey { cookie: named.cookie(), address, port, protocol, reserved: 0 };
    // SAFETY: as above.
    if let Some(end) = unsafe { LOCALS.get(&key) } {
        named.put(&end.address, end.port);
    }
}

/// Counts a flow that was opened.
#[inline(always)]
fn count(frontend: u32, backend: u32) {
    if let Some(counter) = OPENED.get_ptr_mut(opened_key(frontend, backend)) {
        // SAFETY: a value of the map, aligned to eight bytes. A packet may interrupt this program, so it adds in one step.
        unsafe { add(counter, 1) };
    }
}
