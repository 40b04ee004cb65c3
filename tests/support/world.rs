//! Two services, IPv4 and IPv6, each for TCP and UDP with three backends, and packets of all kinds towards them.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::packets::Shape;
use crate::tables::Tables;
use fastrand::Rng;
use lemonade_common::decide::{Arrival, Verdict, decide};
use lemonade_common::flow::mapped;
use lemonade_common::forward::{DSR_IPIP, Service, ServiceKey, Target};
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{Packet, parse};

/// The service of IPv4.
pub const VIP4: &str = "192.0.2.10:80";
/// The service of IPv6.
pub const VIP6: &str = "[2001:db8::10]:80";
/// First port and number of ports for the balancer's own address.
pub const PORTS: (u16, u32) = (20_000, 10_000);
/// Interface towards backends.
pub const INSIDE: u32 = 7;
/// Interface towards clients.
pub const OUTSIDE: u32 = 3;

/// Reads an address.
pub fn parse_address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// Key of a service.
pub fn service_key(vip: &str, protocol: u8) -> ServiceKey {
    let vip = parse_address(vip);
    ServiceKey { address: mapped(vip.ip()), port: vip.port().to_be_bytes(), protocol: [0, protocol] }
}

/// Address of backend `n` in the family of the service.
pub fn backend(n: u32, v6: bool) -> SocketAddr {
    parse_address(&if v6 { format!("[fd00::{}]:8080", n + 1) } else { format!("10.0.0.{}:8080", n + 1) })
}

/// The balancer's own address towards backends.
pub fn balancer(v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 { "[fd00::ff]:0" } else { "10.0.0.254:0" };
    SocketAddr::new(parse_address(ip).ip(), port)
}

/// What is known of a backend.
pub fn target(n: u32) -> Target {
    let v6 = n >= 3;
    let address = backend(n, v6);
    Target {
        address: mapped(address.ip()),
        snat: mapped(balancer(v6, 0).ip()),
        port: address.port().to_be_bytes(),
        first_port: PORTS.0.to_be_bytes(),
        ports: PORTS.1,
        interface: INSIDE,
        weight: 1,
        most: 0,
    }
}

/// Backends 0 to 2 are of IPv4, in ring 0; 3 to 5 of IPv6, in ring 1.
pub fn world() -> Tables {
    let mut services = HashMap::new();
    for (ring, vip) in [VIP4, VIP6].into_iter().enumerate() {
        for protocol in [6, 17] {
            let service = Service { frontend: 1, ring: ring as u32, ..Service::default() };
            services.insert(service_key(vip, protocol), service);
        }
    }
    Tables {
        room: 1_000_000,
        half_open_room: 1_000_000,
        services,
        rings: vec![(0..SLOTS).map(|slot| slot % 3).collect(), (0..SLOTS).map(|slot| 3 + slot % 3).collect()],
        targets: (0..6).map(|n| (n, target(n))).collect(),
        seed: 42,
        outside: OUTSIDE,
        ..Tables::default()
    }
}

/// The services of [`world`] in another mode. Where packets are wrapped, those of IPv4 in turn go to backends of IPv6.
pub fn world_in(mode: u32) -> Tables {
    let mut tables = world();
    for service in tables.services.values_mut() {
        service.mode = mode;
    }
    if mode == DSR_IPIP {
        tables.rings[0] = (0..SLOTS).map(|slot| slot % 6).collect();
        for target in tables.targets.values_mut() {
            target.ports = 0;
        }
    }
    tables
}

/// Reads a packet of a flow.
pub fn read(bytes: &[u8]) -> Packet {
    parse(bytes).expect("a packet of a flow")
}

/// Decides on a packet from outside.
pub fn decided<'t>(tables: &'t Tables, bytes: &[u8], now: u64) -> Verdict<'t> {
    let arrival = Arrival { length: bytes.len() as u64, now, interface: tables.outside };
    decide(tables, &read(bytes), &arrival)
}

/// A packet of any kind that is carried, between addresses that no service has.
pub fn any_shape(random: &mut Rng) -> Shape {
    let v6 = random.bool();
    let address = |random: &mut Rng| {
        let port = random.u16(1..);
        if v6 {
            let mut ip = [0; 16];
            random.fill(&mut ip);
            ip[0] = 0xfd;
            SocketAddr::from((ip, port))
        } else {
            SocketAddr::from(([10, random.u8(..), random.u8(..), random.u8(..)], port))
        }
    };
    let mut payload = vec![0; random.usize(..1_200)];
    random.fill(&mut payload);
    let mut options = Vec::new();
    if v6 && random.u8(..4) == 0 {
        // Destination options: what follows, a length, a padding of four zeroes (RFC 8200, 4.2).
        options = vec![0, 0, 1, 4, 0, 0, 0, 0];
    }
    let protocol = if random.bool() { 6 } else { 17 };
    if let Some(next) = options.first_mut() {
        *next = protocol;
    }
    Shape {
        from: address(random),
        to: address(random),
        protocol,
        flags: random.u8(..64),
        ttl: random.u8(2..),
        payload,
        options,
        bare: !v6 && random.bool(),
        tags: Vec::new(),
        class: random.u8(..),
    }
}
