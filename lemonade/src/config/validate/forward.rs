//! What a frontend asks of the forward plane.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::config::raw::{Fallback, RawForward};
use crate::config::report::{Report, Spot};
use crate::config::value::Texts;
use crate::model::forward::{Forwarding, Hook, Mode};
use crate::model::{Frontend, Name, Pool};

/// Keys of a frontend that say nothing where packets pass through the kernel, each with the reason.
pub(in crate::config) const KEYS_OF_PROXY: [(&str, &str); 5] = [
    ("relay", "there are no two connections to relay between"),
    ("connect_timeout", "the client's own connect reaches the backend"),
    ("hedge_after", "the kernel picks at the first packet and races no second connect"),
    ("keepalive", "client and backend keep their one connection alive themselves"),
    ("user_timeout", "client and backend acknowledge each other themselves"),
];

/// Keys of a pool that say nothing there.
pub(in crate::config) const KEYS_OF_PICKS: [(&str, &str); 4] = [
    ("retries", "the kernel picks once, at the first packet"),
    ("retry_budget", "the kernel picks once, at the first packet"),
    ("queue", "packets do not wait for a backend"),
    ("queue_timeout", "packets do not wait for a backend"),
];

/// Flows that a frontend may ask room for.
const ROOM: RangeInclusive<u32> = 256..=8_388_608;

/// Ports that a backend's address needs at least, so that new flows find a free one.
const FEWEST_PORTS: usize = 64;

/// Checks the table; it is read with data_plane = "proxy" too, so that one word changes the plane.
pub(super) fn forwarding(raw: RawForward, fallback: Fallback, spot: &mut Spot<'_, '_>) -> Forwarding {
    let interfaces = raw.interfaces.0.map(|Texts(names)| names);
    if interfaces.as_ref().is_some_and(|names| names.is_empty() || names.iter().any(String::is_empty)) {
        spot.wrong("interfaces", "names no interface", "write such as [\"eth0\", \"eth1\"], or \"auto\"");
    }
    let snat_addresses = raw.snat_addresses.0.map(|Texts(texts)| addresses(&texts, spot));
    let snat_ports = raw.snat_ports.0.and_then(|text| ports(&text, spot));
    if !ROOM.contains(&raw.connection_table) {
        let message = format!("is not from {} to {}", ROOM.start(), ROOM.end());
        spot.wrong("connection_table", message, "write the flows that there may be at once, such as 262144");
    }
    let mode = Mode::from(raw.mode);
    let rewritten = [
        ("snat_addresses", snat_addresses.is_some(), matches!(mode, Mode::Nat | Mode::DsrIpip)),
        ("snat_ports", snat_ports.is_some(), mode == Mode::Nat),
    ];
    for (key, said, fits) in rewritten {
        if said && !fits {
            let message =
                format!("{key} means nothing with mode = {:?}: packets keep the client's", mode.as_str());
            spot.wrong(key, message, "remove it, or write mode = \"nat\"");
        }
    }
    let hook = Hook::from(raw.hook);
    let of_packets = [
        ("mode", mode != Mode::Nat),
        ("interfaces", interfaces.is_some()),
        ("snat_addresses", snat_addresses.is_some()),
        ("snat_ports", snat_ports.is_some()),
    ];
    for (key, _) in of_packets.into_iter().filter(|(_, said)| *said && hook == Hook::Connect) {
        let message = format!("{key} means nothing with hook = \"connect\": it is about packets");
        spot.wrong(key, message, "remove it, or write hook = \"auto\"");
    }
    Forwarding {
        fallback: fallback.into(),
        hook,
        mode,
        interfaces,
        snat_addresses,
        snat_ports,
        connection_table: raw.connection_table,
        fragments: raw.fragments.into(),
    }
}

fn addresses(texts: &[String], spot: &mut Spot<'_, '_>) -> Vec<IpAddr> {
    const HINT: &str = "write addresses of this host without ports, or \"auto\"";
    if texts.is_empty() {
        spot.wrong("snat_addresses", "names no address", HINT);
    }
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse::<IpAddr>() {
            Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback() => addresses.push(ip),
            Ok(_) | Err(_) => {
                let message = format!("{text:?} is no address that a backend could answer to");
                spot.wrong_item("snat_addresses", index, message, HINT);
            }
        }
    }
    addresses
}

fn ports(text: &str, spot: &mut Spot<'_, '_>) -> Option<RangeInclusive<u16>> {
    let parsed = text
        .split_once('-')
        .and_then(|(from, to)| Some((from.trim().parse::<u16>().ok()?, to.trim().parse::<u16>().ok()?)));
    let Some((from, to)) = parsed.filter(|(from, _)| *from > 0) else {
        let message = format!("{text:?} is no range of ports from 1 to 65535");
        spot.wrong("snat_ports", message, "write such as \"20000-30000\", or \"auto\"");
        return None;
    };
    let range = from..=to;
    if range.len() < FEWEST_PORTS {
        let message = format!("{text:?} has fewer than {FEWEST_PORTS} ports");
        spot.wrong("snat_ports", message, "write a larger range, such as \"20000-30000\"");
    }
    Some(range)
}

/// Refuses what forward cannot do for a frontend, as far as it was said; `local`: it names a cgroup.
pub(super) fn refuse(listen: &[SocketAddr], asked: &Forwarding, local: bool, spot: &mut Spot<'_, '_>) {
    let connect = asked.hook == Hook::Connect;
    if connect && !local {
        spot.under("forward").wrong(
            "hook",
            "\"connect\" reaches the sockets of clients on this host only in a cgroup that you name",
            "write accelerate_cgroup = \"/sys/fs/cgroup/...\" in the frontend, the folder of their cgroup",
        );
    }
    if local && asked.mode.keeps_port() {
        let mode = asked.mode.as_str();
        let message =
            format!("means nothing with mode = {mode:?}: sockets would connect to a backend's own address");
        spot.wrong("accelerate_cgroup", message, "remove it, or write mode = \"nat\"");
    }
    for (key, why) in KEYS_OF_PROXY {
        if spot.says(key) {
            let message = format!("{key} means nothing with data_plane = \"forward\": {why}");
            spot.wrong(key, message, "remove it, or write data_plane = \"proxy\"");
        }
    }
    for address in listen {
        let (what, hint) = match address.ip().to_canonical() {
            ip if ip.is_unspecified() => (
                format!("{address} is every address, and packets are matched by one"),
                "write the addresses that clients use, or data_plane = \"proxy\"",
            ),
            ip if ip.is_loopback() && !connect => (
                format!("{address} is reached from this host only, whose packets pass no interface"),
                "write an address that other hosts use, or data_plane = \"proxy\"",
            ),
            IpAddr::V4(_) | IpAddr::V6(_) if address.port() == 0 => (
                format!("{address} has no port, and packets are matched by one"),
                "write a port, or data_plane = \"proxy\"",
            ),
            IpAddr::V4(_) | IpAddr::V6(_) => continue,
        };
        return spot.wrong("listen", what, hint);
    }
}

/// Refuses what forward cannot do for a pool that only such frontends use, as far as it was said.
pub(super) fn refuse_in_pool(spot: &mut Spot<'_, '_>) {
    for (key, why) in KEYS_OF_PICKS {
        if spot.says(key) {
            let message = format!(
                "{key} means nothing where only frontends with data_plane = \"forward\" use the pool: {why}"
            );
            spot.wrong(key, message, "remove it, or write data_plane = \"proxy\" there");
        }
    }
}

/// Frontends of one pool share how its backends are reached.
pub(super) fn agree(frontends: &BTreeMap<Name, Arc<Frontend>>, report: &mut Report<'_>) {
    let mut first: BTreeMap<&Name, (&Name, &Forwarding)> = BTreeMap::new();
    for frontend in frontends.values() {
        let Some(own) = &frontend.forward else { continue };
        let (other, said) = *first.entry(&frontend.pool).or_insert((&frontend.name, own));
        let connects = |of: &Forwarding| of.hook == Hook::Connect;
        let differs = if connects(said) != connects(own) {
            "hook"
        } else if said.mode != own.mode {
            "mode"
        } else if said.snat_addresses != own.snat_addresses {
            "snat_addresses"
        } else if said.snat_ports != own.snat_ports {
            "snat_ports"
        } else {
            continue;
        };
        report.at(&["frontend", frontend.name.as_str(), "forward"]).wrong(
            differs,
            format!(
                "{differs} is another than in frontend {other:?}, which uses the same pool",
                other = other.as_str()
            ),
            "write the same in both, or give one of them a pool of its own",
        );
    }
}

/// Where packets keep their port, backends listen on it too.
pub(super) fn keep_ports(
    frontends: &BTreeMap<Name, Arc<Frontend>>,
    pools: &BTreeMap<Name, Arc<Pool>>,
    report: &mut Report<'_>,
) {
    for frontend in frontends.values() {
        let Some(mode) = frontend.forward.as_ref().map(|own| own.mode).filter(|mode| mode.keeps_port())
        else {
            continue;
        };
        let Some(pool) = pools.get(&frontend.pool) else { continue };
        let ports = pool.backends.iter().filter_map(|backend| Some((&backend.name, backend.target.port()?)));
        let other =
            ports.flat_map(|(name, port)| frontend.listen.iter().map(move |own| (name, port, own.port())));
        let Some((name, port, own)) = other.into_iter().find(|(_, port, own)| port != own) else { continue };
        report.at(&["frontend", frontend.name.as_str(), "forward"]).wrong(
            "mode",
            format!(
                "with {:?} packets keep port {own}, and backend {:?} has {port}",
                mode.as_str(),
                name.as_str()
            ),
            format!("write port {own} there or none, or mode = \"nat\""),
        );
    }
}
