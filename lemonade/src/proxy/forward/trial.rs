//! Behavioural self-test of the forward plane: a packet of each IP version is run through the program in each mode, and
//! what would leave is read. Nothing is attached and nothing is sent.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use lemonade_common::flow::mapped;
use lemonade_common::forward::{ANSWER_ECHO, Service, ServiceKey, Target};
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{ETHERNET, SYN, parse};
use lemonade_common::{PacketReason, csum};

use crate::model::forward::Mode;
use crate::proxy::adapters::bpf::Forward;

/// Time for a packet over loopback.
const PATIENCE: Duration = Duration::from_secs(2);

/// `linux/pkt_cls.h`
const TC_ACT_REDIRECT: u32 = 7;

/// `linux/bpf.h`
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

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

/// Port of the service, and that of the backend where packets do not keep theirs.
const PORTS: [[u8; 2]; 2] = [[0, 80], [0, 81]];

/// Whether packets of each IP version become what they should on this kernel, by mode, and whether the program at XDP leaves
/// and answers what it should.
#[derive(Clone, Debug)]
pub(super) struct Proven(BTreeMap<(bool, Mode), Result<(), String>>, Result<(), String>);

impl Proven {
    /// Whether they do, or what went wrong.
    pub(super) fn of(&self, v6: bool, mode: Mode) -> Result<(), String> {
        self.0.get(&(v6, mode)).cloned().unwrap_or_else(|| Err("it was not run".to_owned()))
    }

    /// Whether the program at XDP does what it should, or what went wrong.
    pub(super) fn xdp(&self) -> Result<(), String> {
        self.1.clone()
    }

    /// What went wrong at tc.
    pub(super) fn failed(&self) -> impl Iterator<Item = ((bool, Mode), &String)> {
        self.0.iter().filter_map(|(which, test)| Some((*which, test.as_ref().err()?)))
    }
}

/// Runs the self-test on maps of its own.
///
/// # Errors
/// The program cannot be loaded.
pub(super) fn run() -> Result<Proven, String> {
    let mut forward = Forward::load(64, 1, 1).map_err(|error| error.to_string())?;
    forward.fill_ring(0, &vec![0; SLOTS as usize]);
    let mut proven = BTreeMap::new();
    for mode in Mode::ALL {
        for (v6, addresses) in [(false, V4), (true, V6)] {
            proven.insert((v6, mode), one(&mut forward, mode, addresses));
        }
        // They would be those of the next mode too.
        let flows = forward.flows().map_err(|error| error.to_string())?;
        forward.forget(&flows.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    }
    let xdp = at_xdp(&mut forward);
    Ok(Proven(proven, xdp))
}

/// Runs packets through the program at XDP, for which no route leads anywhere: it opens a flow and leaves the packet to tc as
/// it is, and what it can answer without a route it answers.
fn at_xdp(forward: &mut Forward) -> Result<(), String> {
    let words = |error: crate::proxy::adapters::bpf::Unavailable| error.to_string();
    for [client, service, own, backend] in [V4, V6] {
        serve(forward, Mode::Nat, [service, own, backend])?;
        let before = forward.reasons();
        let sent = segment(client, service);
        let trial = forward.trial_xdp(&sent, 0, 1).map_err(words)?;
        let counted = |reason: PacketReason| forward.reasons()[reason.index()] - before[reason.index()];
        let left = counted(PacketReason::LeftToTc) + counted(PacketReason::NoNeighbour);
        if (trial.action, left) != (XDP_PASS, 1) || trial.packet != sent {
            return Err(format!("a packet without a route came to action {} of XDP", trial.action));
        }
    }
    if forward.flows().map_err(|error| error.to_string())?.len() != 4 {
        return Err("it opened no flows".to_owned());
    }
    let [client, service, ..] = V4;
    let whole = Service { flags: ANSWER_ECHO, ..Service::default() };
    forward.put_service(ServiceKey::whole(mapped(service)), whole).map_err(words)?;
    let answer = forward.trial_xdp(&echo(client, service, 8), 0, 1).map_err(words)?;
    if answer.action != XDP_TX || answer.packet != echo(service, client, 0) {
        return Err(format!("a request for an echo came to action {} of XDP", answer.action));
    }
    Ok(())
}

/// Behavioural self-test of the programs for sockets, on maps of their own: while they are attached to the cgroup of this
/// process, sockets of its own ask for an address that nobody has, over loopback.
///
/// # Errors
/// What went wrong.
pub(super) fn connect() -> Result<(), String> {
    let mut forward = Forward::load(64, 1, 1).map_err(|error| error.to_string())?;
    forward.fill_ring(0, &vec![0; SLOTS as usize]);
    forward.attach_own_cgroup().map_err(|error| error.to_string())?;
    let loopbacks: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for ([_, service, ..], loopback) in [V4, V6].into_iter().zip(loopbacks) {
        let version = if service.is_ipv4() { "IPv4" } else { "IPv6" };
        // A host may be without one of them.
        let Ok(server) = TcpListener::bind((loopback, 0)) else { continue };
        let asked = SocketAddr::new(service, 80);
        given(&mut forward, asked, 6, server.local_addr())?;
        let stream = TcpStream::connect_timeout(&asked, PATIENCE)
            .map_err(|error| format!("a connect over {version} met no backend: {error}"))?;
        sees(stream.peer_addr(), asked, "a connected socket")?;
        let mut datagrams = || -> io::Result<SocketAddr> {
            let server = UdpSocket::bind((loopback, 0))?;
            given(&mut forward, asked, 17, server.local_addr()).map_err(io::Error::other)?;
            let client = UdpSocket::bind((loopback, 0))?;
            [&server, &client].into_iter().try_for_each(|own| own.set_read_timeout(Some(PATIENCE)))?;
            client.send_to(&[1], asked)?;
            let (_, from) = server.recv_from(&mut [0; 8])?;
            server.send_to(&[2], from)?;
            Ok(client.recv_from(&mut [0; 8])?.1)
        };
        sees(datagrams(), asked, "a datagram")?;
    }
    Ok(())
}

/// Serves a backend at an address that sockets connect to.
fn given(
    forward: &mut Forward,
    asked: SocketAddr,
    protocol: u8,
    at: io::Result<SocketAddr>,
) -> Result<(), String> {
    let words = |error: crate::proxy::adapters::bpf::Unavailable| error.to_string();
    let at = at.map_err(|error| error.to_string())?;
    let (address, port) = (mapped(at.ip()), at.port().to_be_bytes());
    forward.put_target(0, Target { address, port, ..Target::default() }).map_err(words)?;
    let key =
        ServiceKey { address: mapped(asked.ip()), port: asked.port().to_be_bytes(), protocol: [0, protocol] };
    forward.put_service(key.at_connect(), Service::default()).map_err(words)
}

fn sees(peer: io::Result<SocketAddr>, asked: SocketAddr, who: &str) -> Result<(), String> {
    match peer {
        Ok(peer) if peer == asked => Ok(()),
        Ok(peer) => Err(format!("{who} to {asked} sees {peer}")),
        Err(error) => Err(format!("{who} to {asked}: {error}")),
    }
}

/// Serves a backend at an address.
fn serve(forward: &mut Forward, mode: Mode, [service, own, backend]: [IpAddr; 3]) -> Result<(), String> {
    let words = |error: crate::proxy::adapters::bpf::Unavailable| error.to_string();
    let target = Target {
        address: mapped(backend),
        snat: mapped(own),
        port: PORTS[1],
        first_port: 1_024_u16.to_be_bytes(),
        ports: if mode == Mode::Nat { 1_000 } else { 1 },
        interface: LOOPBACK,
        weight: 1,
        most: 0,
    };
    forward.put_target(0, target).map_err(words)?;
    let key = ServiceKey { address: mapped(service), port: PORTS[0], protocol: [0, 6] };
    forward.put_service(key, Service { mode: mode.number(), ..Service::default() }).map_err(words)
}

fn one(
    forward: &mut Forward,
    mode: Mode,
    [client, service, own, backend]: [IpAddr; 4],
) -> Result<(), String> {
    let words = |error: crate::proxy::adapters::bpf::Unavailable| error.to_string();
    serve(forward, mode, [service, own, backend])?;
    let sent = segment(client, service);
    let trial = forward.trial(&sent, 1).map_err(words)?;
    if trial.action != TC_ACT_REDIRECT {
        return Err(format!("a packet for a service came to action {} of tc", trial.action));
    }
    let right = match mode {
        Mode::Nat => rewritten(&trial.packet, own, backend),
        Mode::NatGateway => rewritten(&trial.packet, client, backend),
        Mode::DsrL2 => (trial.packet == sent).then_some(()).ok_or("it was changed"),
        Mode::DsrIpip => wrapped(&trial.packet, &sent, own, backend),
    };
    right.map_err(|why| format!("what leaves is not what should: {why}"))
}

/// Whether a packet has these addresses, the backend's port, and the checksum that goes with them.
fn rewritten(packet: &[u8], from: IpAddr, to: IpAddr) -> Result<(), &'static str> {
    let out = parse(packet).map_err(|_| "it is no packet")?;
    if (out.key.src, out.key.dst, out.key.dport) != (mapped(from), mapped(to), PORTS[1]) {
        return Err("it has other addresses");
    }
    let segment = packet.get(usize::from(out.transport)..).unwrap_or_default();
    (checksum(from, to, segment) == [0, 0]).then_some(()).ok_or("its checksum is wrong")
}

/// Whether a packet is `sent` behind an IP header with these addresses.
fn wrapped(packet: &[u8], sent: &[u8], from: IpAddr, to: IpAddr) -> Result<(), &'static str> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let addresses = [octets(from), octets(to)].concat();
    let header = if from.is_ipv4() { 20 } else { 40 };
    let inner = packet.get(ETHERNET + header..);
    if inner != sent.get(ETHERNET..) {
        return Err("what is inside was changed");
    }
    packet[..ETHERNET + header].ends_with(&addresses).then_some(()).ok_or("it has other addresses")
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

/// A request for an echo (kind 8) or its answer (kind 0), both as XDP sends the answer: between the same Ethernet addresses.
fn echo(from: IpAddr, to: IpAddr, kind: u8) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { return Vec::new() };
    let mut icmp = vec![kind, 0, 0, 0, 0, 1, 0, 1];
    let sum = csum::finish(csum::sum(&icmp));
    icmp[2..4].copy_from_slice(&sum);
    let mut header = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = csum::finish(csum::sum(&header));
    header[10..12].copy_from_slice(&sum);
    let mut packet = vec![2; ETHERNET];
    packet[12..].copy_from_slice(&[0x08, 0x00]);
    packet.extend(header);
    packet.extend(icmp);
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
