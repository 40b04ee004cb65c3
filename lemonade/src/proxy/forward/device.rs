//! What of an interface decides on hooks, asked of the kernel: its driver, its switches, and the other end of a veth pair.

#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::hook::{Device, Peer, Place};
use super::host::{Host, Link};
use super::netlink::{GENERIC, Netlink, attribute, attributes, generic, nested};

/// `linux/netdev.h`
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// `linux/ethtool_netlink.h`
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

/// Where ip-netns(8) keeps namespaces.
const NAMED: &str = "/run/netns";

/// Looks at an interface; `versions` says which IP versions are used, IPv4 first.
///
/// # Errors
/// The kernel does not answer.
pub(super) fn device(host: &mut Host, link: &Link, versions: [bool; 2]) -> io::Result<Device> {
    let peer = match link.peer {
        Some((index, namespace)) if link.kind.as_deref() == Some("veth") => peer(host, index, namespace),
        _ => None,
    };
    let on = |version: &str, used: bool| !used || switch(version, &link.name);
    Ok(Device {
        name: link.name.clone(),
        kind: link.kind.clone(),
        mtu: link.mtu,
        features: driver(link.index),
        joins: switches(link.index)?.contains("rx-lro"),
        forwarding: [on("ipv4", versions[0]), on("ipv6", versions[1])],
        peer,
        alone: false,
    })
}

/// Whether the host routes packets of an IP version that come by an interface.
fn switch(version: &str, name: &str) -> bool {
    let file = Path::new("/proc/sys/net").join(version).join("conf").join(name).join("forwarding");
    fs::read_to_string(file).is_ok_and(|text| text.trim() != "0")
}

/// What the driver of an interface does for programs at XDP; `None`: the kernel (Linux before 6.3) does not tell.
pub(super) fn driver(index: u32) -> Option<u64> {
    let mut netlink = Netlink::generic().ok()?;
    let family = netlink.family("netdev").ok()?;
    let asked = attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    let answers = netlink.ask(family, 0, &generic(NETDEV_CMD_DEV_GET, 1, &asked)).ok()?;
    let (_, body) = answers.first()?;
    let (_, features) =
        attributes(body.get(GENERIC..)?).find(|(kind, _)| *kind == NETDEV_A_DEV_XDP_FEATURES)?;
    Some(u64::from_ne_bytes(features.try_into().ok()?))
}

/// Switches of an interface that are on, by the names of ethtool(8).
fn switches(index: u32) -> io::Result<BTreeSet<String>> {
    let mut netlink = Netlink::generic()?;
    let family = netlink.family("ethtool")?;
    let header = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &index.to_ne_bytes());
    let asked = nested(ETHTOOL_A_FEATURES_HEADER, &header);
    let answers = netlink.ask(family, 0, &generic(ETHTOOL_MSG_FEATURES_GET, 1, &asked))?;
    let body = answers.first().and_then(|(_, body)| body.get(GENERIC..)).unwrap_or_default();
    let inside = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let active = inside(body, ETHTOOL_A_FEATURES_ACTIVE).unwrap_or_default();
    let bits = attributes(inside(active, ETHTOOL_A_BITSET_BITS).unwrap_or_default());
    let names = bits.filter_map(|(_, bit)| {
        let name = inside(bit, ETHTOOL_A_BITSET_BIT_NAME)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    });
    Ok(names.collect())
}

/// The other end of a veth pair; `None`: it cannot be seen from here.
fn peer(host: &mut Host, index: u32, namespace: Option<u32>) -> Option<Peer> {
    let Some(number) = namespace else { return end(index, Place::Here) };
    let (place, file) = namespaces()
        .into_iter()
        .find(|(_, file)| File::open(file).ok().and_then(|open| host.number_of(&open)) == Some(number))?;
    let open = File::open(file).ok()?;
    // A thread of its own, since it stays where it goes.
    let look = std::thread::spawn(move || {
        move_into_link_name_space(open.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        end(index, place)
    });
    look.join().ok().flatten()
}

/// The end of a veth pair with an index in the namespace of this thread.
fn end(index: u32, place: Place) -> Option<Peer> {
    let link = Host::open().ok()?.links().ok()?.into_iter().find(|link| link.index == index)?;
    let switches = switches(index).ok()?;
    let sums = ["tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6"];
    Some(Peer {
        place,
        mtu: link.mtu,
        leaves_sums: sums.iter().any(|name| switches.contains(*name)),
        joins: switches.contains("rx-gro"),
        program: link.program,
        name: link.name,
    })
}

/// Network namespaces that can be seen from here, each once; those with names first.
fn namespaces() -> Vec<(Place, PathBuf)> {
    let entries = |folder: &str| {
        fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name, entry.path()))
        })
    };
    let named = entries(NAMED).map(|(name, file)| (Place::Named(name), file));
    let mut processes = BTreeMap::new();
    for (name, folder) in entries("/proc") {
        let Ok(id) = name.parse() else { continue };
        let file = folder.join("ns/net");
        // The link names its namespace.
        if let Ok(namespace) = fs::read_link(&file) {
            processes.entry(namespace).or_insert((Place::Process(id), file));
        }
    }
    named.chain(processes.into_values()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_switches_and_no_peer() {
        let mut host = Host::open().unwrap();
        let link = host.links().unwrap().into_iter().find(|link| link.name == "lo").unwrap();
        let looked = device(&mut host, &link, [false; 2]).unwrap();
        assert_eq!((looked.peer, looked.forwarding), (None, [true; 2]));
        assert!(switches(link.index).unwrap().contains("loopback"));
        // A kernel that does not tell is older.
        assert!(driver(link.index).is_none_or(|features| features == 0));
    }
}
