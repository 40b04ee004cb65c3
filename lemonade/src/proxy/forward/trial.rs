//! Behavioural self-test of the forward plane: a packet of each IP version is run through the program, and what would
//! leave is read. Nothing is attached and nothing is sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lemonade_common::csum;
use lemonade_common::flow::mapped;
use lemonade_common::forward::{Service, ServiceKey, Target};
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{ETHERNET, SYN, parse};

use crate::proxy::adapters::bpf::Forward;

/// `linux/pkt_cls.h`
const TC_ACT_REDIRECT: u32 = 7;

/// Index of loopback, to which nothing is sent.
const LOOPBACK: u32 = 1;

/// Addresses for documentation (RFC 5737, RFC 3849): client, service, own towards the backend, backend.
const V4: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
];
const V6: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2)),
];

/// Whether packets of each IP version are rewritten as they should be on this kernel.
#[derive(Clone, Debug)]
pub(super) struct Proven {
    /// IPv4, or what went wrong.
    pub(super) v4: Result<(), String>,
    /// IPv6, or what went wrong.
    pub(super) v6: Result<(), String>,
}

/// Runs the self-test on maps of its own.
///
/// # Errors
/// The program cannot be loaded.
pub(super) fn run() -> Result<Proven, String> {
    let mut forward = Forward::load(64, 1, 1).map_err(|error| error.to_string())?;
    forward.fill_ring(0, &vec![0; SLOTS as usize]);
    Ok(Proven { v4: one(&mut forward, V4), v6: one(&mut forward, V6) })
}

fn one(forward: &mut Forward, [client, service, own, backend]: [IpAddr; 4]) -> Result<(), String> {
    let words = |error: crate::proxy::adapters::bpf::Unavailable| error.to_string();
    let target = Target {
        address: mapped(backend),
        snat: mapped(own),
        port: 81_u16.to_be_bytes(),
        first_port: 1_024_u16.to_be_bytes(),
        ports: 1_000,
        interface: LOOPBACK,
    };
    forward.put_target(0, target).map_err(words)?;
    let key = ServiceKey { address: mapped(service), port: 80_u16.to_be_bytes(), protocol: [0, 6] };
    forward.put_service(key, Service::default()).map_err(words)?;
    let trial = forward.trial(&segment(client, service), 1).map_err(words)?;
    if trial.action != TC_ACT_REDIRECT {
        return Err(format!("a packet for a service came to action {} of tc", trial.action));
    }
    let out = parse(&trial.packet[..]).map_err(|why| format!("what leaves is no packet: {why:?}"))?;
    if (out.key.src, out.key.dst, out.key.dport) != (target.snat, target.address, target.port) {
        return Err("what leaves has other addresses than it should".to_owned());
    }
    let segment = trial.packet.get(usize::from(out.transport)..).unwrap_or_default();
    if checksum(own, backend, segment) != [0, 0] {
        return Err("what leaves has a wrong checksum".to_owned());
    }
    Ok(())
}

/// A SYN with its Ethernet header.
fn segment(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut tcp = vec![0x1f, 0x90, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0];
    let sum = checksum(from, to, &tcp);
    tcp[16..18].copy_from_slice(&sum);
    let mut packet = vec![2; ETHERNET];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet[12..].copy_from_slice(&[0x08, 0x00]);
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = csum::finish(csum::sum(&header));
            header[10..12].copy_from_slice(&sum);
            packet.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet[12..].copy_from_slice(&[0x86, 0xdd]);
            packet.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => {}
    }
    packet.extend(tcp);
    packet
}

/// Checksum of a segment with its pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1); zero for one that has its own in it.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> [u8; 2] {
    // The prefix of mapped addresses is two words of ones, which are zero in one's complement.
    let mut bytes = [mapped(from), mapped(to)].concat();
    bytes.extend([0, 6, 0, segment.len() as u8]);
    bytes.extend(segment);
    csum::finish(csum::sum(&bytes))
}
