//! What a frontend asks of the forward plane, where packets pass through the kernel and no proxy.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lemonade_common::PacketReason;

/// `[frontend.NAME.forward]`, with the frontend's `fallback`.
#[derive(Clone, Debug, PartialEq)]
pub struct Forwarding {
    /// What happens where packets cannot be forwarded.
    pub fallback: Fallback,
    /// Where the program looks at packets.
    pub hook: Hook,
    /// What becomes of addresses.
    pub mode: Mode,
    /// Interfaces by name; `None` finds them by the routes to the backends and by the listen addresses.
    pub interfaces: Option<Vec<String>>,
    /// Own addresses towards backends; `None` takes the one on the way to each.
    pub snat_addresses: Option<Vec<IpAddr>>,
    /// Own ports towards backends; `None` takes a range outside the host's ephemeral ports.
    pub snat_ports: Option<RangeInclusive<u16>>,
    /// Room for flows of this frontend; what frontends ask for adds up.
    pub connection_table: u32,
    /// What becomes of fragments.
    pub fragments: Fragments,
}

/// `fallback` of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The proxy serves.
    Proxy,
    /// The configuration is not taken.
    Refuse,
}

/// `hook` of a forward frontend, as far as this build has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The one that suits the device; tc in this build.
    Auto,
    /// tcx ingress.
    Tc,
}

/// `mode` of a forward frontend, as far as this build has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Source and destination are rewritten.
    Nat,
}

/// `fragments` of a forward frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragments {
    /// They go nowhere.
    Drop,
    /// The host has them, which puts them together for the proxy behind.
    Pass,
}

/// Who serves a frontend, as it was decided last.
#[derive(Debug, Default)]
pub struct PlaneCell {
    forwarded: AtomicBool,
    why: Mutex<String>,
}

impl PlaneCell {
    /// Whether its packets pass through the kernel.
    pub fn forwarded(&self) -> bool {
        self.forwarded.load(Ordering::Acquire)
    }

    /// Why, in words; empty where nothing is to be said.
    pub fn why(&self) -> String {
        lock(&self.why).clone()
    }

    /// Says who serves it and why; tells whether that is news.
    pub fn set(&self, forwarded: bool, why: &str) -> bool {
        let mut own = lock(&self.why);
        let news = *own != why || self.forwarded() != forwarded;
        why.clone_into(&mut own);
        self.forwarded.store(forwarded, Ordering::Release);
        news
    }
}

/// The rings of a pool that the kernel has now: of its IPv4 and of its IPv6 backends.
#[derive(Debug, Default)]
pub struct RingCell {
    rings: Mutex<[Option<Arc<[u32]>>; 2]>,
}

impl RingCell {
    /// Index of the backend in each slot; `None` while the kernel has no such ring.
    pub fn read(&self, v6: bool) -> Option<Arc<[u32]>> {
        lock(&self.rings)[usize::from(v6)].clone()
    }

    /// Notes what the kernel has.
    pub fn set(&self, v6: bool, ring: Option<Arc<[u32]>>) {
        lock(&self.rings)[usize::from(v6)] = ring;
    }
}

/// What the forward plane of the process counted.
#[derive(Debug, Default)]
pub struct ForwardCell {
    /// Flows that have not ended.
    pub live: AtomicU64,
    /// Flows opened.
    pub opened: AtomicU64,
    /// Flows ended.
    pub closed: AtomicU64,
    /// Directions of flows in the connection table, ended ones that are not forgotten yet among them.
    pub entries: AtomicU64,
    /// Directions that the table has room for; 0 without a table.
    pub room: AtomicU64,
    /// Packets by reason.
    pub packets: [AtomicU64; PacketReason::COUNT],
    words: Mutex<String>,
}

impl ForwardCell {
    /// Where the program is attached, or why nowhere, in words; empty where nobody asked for it.
    pub fn words(&self) -> String {
        lock(&self.words).clone()
    }

    /// Says where the program is attached.
    pub fn say(&self, words: String) {
        *lock(&self.words) = words;
    }
}

fn lock<T>(whole: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing inside panics half-way, so a poisoned lock still holds a whole value.
    whole.lock().unwrap_or_else(PoisonError::into_inner)
}
