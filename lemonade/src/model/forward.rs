//! What a frontend asks of the forward plane, where packets pass through the kernel and no proxy.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lemonade_common::PacketReason;
use lemonade_common::forward::{DSR_IPIP, DSR_L2, NAT, NAT_GATEWAY};

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

impl Forwarding {
    /// What carries its flows, in a word and in words.
    pub const fn carrier(&self) -> (&'static str, &'static str) {
        match self.hook {
            Hook::Connect => (
                self.hook.as_str(),
                "sockets of the cgroup get a backend when they connect, and their packets pass nobody",
            ),
            Hook::Auto | Hook::Tc | Hook::Xdp | Hook::XdpGeneric => (self.mode.as_str(), self.mode.words()),
        }
    }
}

/// With every key left out.
impl Default for Forwarding {
    fn default() -> Self {
        Self {
            fallback: Fallback::Proxy,
            hook: Hook::Auto,
            mode: Mode::Nat,
            interfaces: None,
            snat_addresses: None,
            snat_ports: None,
            connection_table: 262_144,
            fragments: Fragments::Drop,
        }
    }
}

/// `fallback` of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The proxy serves.
    Proxy,
    /// The configuration is not taken.
    Refuse,
}

/// `hook` of a forward frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The one that suits the devices.
    Auto,
    /// tcx ingress.
    Tc,
    /// XDP in the driver, and tcx ingress behind it.
    Xdp,
    /// XDP behind the driver, and tcx ingress behind that.
    XdpGeneric,
    /// No packets: sockets of this host when they connect.
    Connect,
}

impl Hook {
    /// Its word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tc => "tc",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Connect => "connect",
        }
    }
}

/// Where the first program sees what arrives on an interface; a later one sees it earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// tcx ingress.
    Tc,
    /// XDP behind the driver.
    Generic,
    /// XDP in the driver.
    Native,
}

impl Point {
    /// Every point.
    pub const ALL: [Self; 3] = [Self::Tc, Self::Generic, Self::Native];

    /// Its word, which is that of the hook.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tc => Hook::Tc.as_str(),
            Self::Generic => Hook::XdpGeneric.as_str(),
            Self::Native => Hook::Xdp.as_str(),
        }
    }
}

/// `mode` of a forward frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Source and destination are rewritten.
    Nat,
    /// The destination is rewritten; backends route their answers by way of the balancer.
    NatGateway,
    /// Packets go to the backend on the same link as they are; it answers the client itself.
    DsrL2,
    /// Another IP header is put in front; the backend takes it off and answers the client itself.
    DsrIpip,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Nat, Self::NatGateway, Self::DsrL2, Self::DsrIpip];

    /// Its word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::NatGateway => "nat-gateway",
            Self::DsrL2 => "dsr-l2",
            Self::DsrIpip => "dsr-ipip",
        }
    }

    /// Its number in the maps of the kernel.
    pub const fn number(self) -> u32 {
        match self {
            Self::Nat => NAT,
            Self::NatGateway => NAT_GATEWAY,
            Self::DsrL2 => DSR_L2,
            Self::DsrIpip => DSR_IPIP,
        }
    }

    /// Word of the mode with a number of the maps.
    pub fn word(number: u32) -> &'static str {
        Self::ALL.into_iter().find(|mode| mode.number() == number).map_or("-", Self::as_str)
    }

    /// What becomes of packets, in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Nat => "packets are rewritten in the kernel",
            Self::NatGateway => "packets get the backend's address in the kernel and keep the client's",
            Self::DsrL2 => "the kernel sends packets on as they are, and backends answer clients themselves",
            Self::DsrIpip => "the kernel wraps packets, and backends answer clients themselves",
        }
    }

    /// Whether packets keep the port that the client used.
    pub const fn keeps_port(self) -> bool {
        matches!(self, Self::DsrL2 | Self::DsrIpip)
    }

    /// Whether a backend of one IP version can have packets of the other or of its own: `v6` are the packets'.
    pub const fn carries(self, v6: bool, backend_v6: bool) -> bool {
        v6 == backend_v6 || matches!(self, Self::DsrIpip) && !v6
    }
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
    /// Handshakes that were not complete and had to make room for others.
    pub replaced: AtomicU64,
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
