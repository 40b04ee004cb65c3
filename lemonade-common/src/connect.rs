//! Clients on the balancer's own host, whose packets pass no interface: their sockets get a backend when they connect.

use crate::decide::TableView;
use crate::flow::FlowKey;
use crate::forward::{BY_SOURCE, Service, ServiceKey, Target};
use crate::maglev;
use crate::open::of_source;

/// What a socket was given, by what it sees of it: key of the map `LOCALS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LocalKey {
    /// Cookie of the socket.
    pub cookie: u64,
    /// Address of the backend: IPv6, or an IPv4 address mapped into one.
    pub address: [u8; 16],
    /// Port of the backend, big-endian.
    pub port: [u8; 2],
    /// IP protocol number, big-endian.
    pub protocol: [u8; 2],
    /// Zero.
    pub reserved: u32,
}

/// What the socket asked for: value of the map `LOCALS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LocalEnd {
    /// Address of the service: IPv6, or an IPv4 address mapped into one.
    pub address: [u8; 16],
    /// Port of the service, big-endian.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<LocalKey>() == 32 && size_of::<LocalEnd>() == 20);

/// A backend that was picked for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    /// Index of the frontend.
    pub frontend: u32,
    /// Index of the backend.
    pub backend: u32,
    /// Where it is: IPv6 address, or an IPv4 address mapped into one.
    pub address: [u8; 16],
    /// Its port, big-endian.
    pub port: [u8; 2],
}

impl ServiceKey {
    /// The same address as sockets of this host connect to it: packets have no such key, so that a service is for the ones,
    /// for the others or for both.
    #[must_use]
    pub const fn at_connect(self) -> Self {
        Self { protocol: [1, self.protocol[1]], ..self }
    }
}

/// Picks a backend for the socket with this cookie, which connects to `at`; `None`: nothing is served there for sockets, or no
/// backend is up, and the proxy behind says what there is to say.
///
/// A socket that asks again has the same one while the ring is the same, since its cookie is what is hashed. Where the source
/// decides, this host is one source.
// A frame of its own: programs in the kernel have 512 bytes of stack.
#[inline(never)]
pub fn pick<T: TableView>(table: &T, at: &ServiceKey, cookie: u64) -> Option<Picked> {
    let service = table.service(&at.at_connect())?;
    let hash = spread(table, service, at, cookie);
    let backend = table.slot(service.ring, maglev::slot(hash))?;
    let Target { address, port, .. } = table.target(backend)?;
    let port = if *port == [0; 2] { at.port } else { *port };
    Some(Picked { frontend: service.frontend, backend, address: *address, port })
}

#[inline(never)]
fn spread<T: TableView>(table: &T, service: &Service, at: &ServiceKey, cookie: u64) -> u64 {
    let mut key = FlowKey {
        src: at.address,
        dst: at.address,
        sport: [0; 2],
        dport: at.port,
        protocol: at.protocol[1] as u32,
    };
    if service.flags & BY_SOURCE != 0 {
        return table.hash(&of_source(&key));
    }
    key.src = [0; 16];
    key.src[..8].copy_from_slice(&cookie.to_ne_bytes());
    table.hash(&key)
}
