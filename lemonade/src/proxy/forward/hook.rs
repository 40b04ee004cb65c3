//! Which hook suits an interface, and what is in the way of the one that is asked for. Pure.

use std::fmt;

use super::host::Link;
use crate::model::forward::Point;

/// What a driver does for programs at XDP: bits of `enum netdev_xdp_act` of `linux/netdev.h`.
pub(super) const BASIC: u64 = 1;
pub(super) const REDIRECT: u64 = 2;
pub(super) const TRANSMIT: u64 = 4;

/// What of an interface decides on hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    /// Kind of a virtual one.
    pub(super) kind: Option<String>,
    pub(super) mtu: u32,
    /// What its driver does for programs at XDP, where the kernel tells.
    pub(super) features: Option<u64>,
    /// Whether the card joins segments.
    pub(super) joins: bool,
    /// Whether the host routes packets that come by it, over IPv4 and over IPv6; `true` for a version that is not used.
    pub(super) forwarding: [bool; 2],
    /// The other end of a veth pair, as far as it can be seen.
    pub(super) peer: Option<Peer>,
    /// Whether packets leave by the interface that they came by.
    pub(super) alone: bool,
}

/// The other end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) mtu: u32,
    /// Whether it leaves checksums to a card that there is not.
    pub(super) leaves_sums: bool,
    /// Whether it joins packets, for which it takes them from a ring.
    pub(super) joins: bool,
    /// Whether a program at XDP is attached.
    pub(super) program: bool,
}

/// Network namespace of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The process's own.
    Here,
    /// One with a name of ip-netns(8).
    Named(String),
    /// That of a process.
    Process(u32),
}

/// Something that has to change first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hindrance {
    what: String,
    /// Command that changes it; `None`: only another hook helps.
    cure: Option<String>,
}

impl Hindrance {
    fn curable(what: String, cure: String) -> Self {
        Self { what, cure: Some(cure) }
    }

    const fn final_(what: String) -> Self {
        Self { what, cure: None }
    }
}

impl Place {
    /// A command as it is run there.
    fn run(&self, command: &str) -> String {
        match self {
            Self::Here => command.to_owned(),
            Self::Named(name) => format!("ip netns exec {name} {command}"),
            Self::Process(id) => format!("nsenter --net=/proc/{id}/ns/net {command}"),
        }
    }
}

/// What is in the way of a program at XDP, in the driver if `native`.
pub(super) fn hindrances(device: &Device, native: bool) -> Vec<Hindrance> {
    let name = &device.name;
    let mut found = Vec::new();
    if native {
        found.extend(lacks_native(device));
        if device.alone && device.peer.as_ref().is_some_and(|peer| !peer.program) {
            found.push(Hindrance::final_(format!(
                "{name} is one end of a veth pair and the only interface, and what XDP sends back is dropped by a peer without a program at XDP"
            )));
        }
    }
    if device.joins {
        found.push(Hindrance::curable(
            format!("{name} joins segments to what XDP cannot send on (LRO)"),
            format!("ethtool -K {name} lro off"),
        ));
    }
    for (version, on) in ["ipv4", "ipv6"].iter().zip(device.forwarding) {
        if !on {
            // sysctl(8) takes slashes where a name has dots.
            let key = format!("net/{version}/conf/{name}/forwarding");
            let key = if name.contains('.') { key } else { key.replace('/', ".") };
            found.push(Hindrance::curable(
                format!("the host does not forward {version} on {name}, so XDP is told no next hop"),
                format!("sysctl -w {key}=1"),
            ));
        }
    }
    if device.kind.as_deref() == Some("veth") {
        found.extend(of_pair(device, native));
    }
    found
}

/// What the driver lacks, where the kernel tells.
fn lacks_native(device: &Device) -> Option<Hindrance> {
    let name = &device.name;
    if device.kind.as_deref() == Some("bond") {
        return Some(Hindrance::final_(format!("{name} is a bond, whose ports may differ")));
    }
    // Of a veth this says whether its peer takes what is sent, which is seen below.
    let needed = BASIC | REDIRECT;
    let lacks = device.features.is_some_and(|features| features & needed != needed);
    lacks.then(|| Hindrance::final_(format!("the driver of {name} has no native XDP that redirects")))
}

fn of_pair(device: &Device, native: bool) -> Vec<Hindrance> {
    let name = &device.name;
    let Some(peer) = &device.peer else {
        return vec![Hindrance::final_(format!(
            "{name} is one end of a veth pair, and what the other end does with checksums cannot be seen from here"
        ))];
    };
    let Peer { name: other, place, .. } = peer;
    let mut found = Vec::new();
    if peer.leaves_sums {
        found.push(Hindrance::curable(
            format!("{other}, the peer of {name}, leaves checksums to be completed, which XDP cannot see"),
            place.run(&format!("ethtool -K {other} tx off")),
        ));
    }
    let takes = device.features.map_or(peer.joins || peer.program, |features| features & TRANSMIT != 0);
    if native && !takes {
        found.push(Hindrance::curable(
            format!("{other}, the peer of {name}, drops what XDP sends while it does not join packets (GRO)"),
            place.run(&format!("ethtool -K {other} gro on")),
        ));
    }
    if native && device.mtu > peer.mtu {
        found.push(Hindrance::curable(
            format!("{other}, the peer of {name}, has an MTU of {} and drops what is larger", peer.mtu),
            place.run(&format!("ip link set dev {other} mtu {}", device.mtu)),
        ));
    }
    found
}

/// Why an interface is for tc, by its kind and bus alone.
pub(super) fn of_kind(link: &Link) -> Option<String> {
    let name = &link.name;
    match (&link.kind, link.bus.as_deref()) {
        (Some(kind), _) => {
            Some(format!("{name} is a {kind}, where XDP costs what is done for whole segments"))
        }
        (None, Some("virtio")) => {
            Some(format!("{name} is a virtio card, where XDP costs the guest's offloads"))
        }
        (None, _) => None,
    }
}

/// Where a program suits packets that pass all of these interfaces, none of which is one for tc by its kind, and why.
pub(super) fn automatic(devices: &[Device]) -> (Point, String) {
    for device in devices {
        let name = &device.name;
        let Some(features) = device.features else {
            return (Point::Tc, format!("this kernel does not tell what the driver of {name} does for XDP"));
        };
        if features & (BASIC | REDIRECT | TRANSMIT) != BASIC | REDIRECT | TRANSMIT {
            return (
                Point::Tc,
                format!("the driver of {name} reports no native XDP that redirects and transmits"),
            );
        }
        let found = hindrances(device, true);
        if !found.is_empty() {
            return (Point::Tc, format!("for XDP something would have to change: {}", Refusal(&found)));
        }
    }
    (Point::Native, "every driver redirects and transmits".to_owned())
}

/// What has to change, with the commands that change it.
pub(super) struct Refusal<'a>(pub(super) &'a [Hindrance]);

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: Vec<&str> = self.0.iter().map(|own| own.what.as_str()).collect();
        out.write_str(&what.join("; "))?;
        let cures: Option<Vec<&str>> = self.0.iter().map(|own| own.cure.as_deref()).collect();
        match cures {
            Some(cures) => write!(out, "; run `{}`", cures.join(" && ")),
            None => out.write_str("; write hook = \"tc\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: u64 = BASIC | REDIRECT | TRANSMIT;

    fn card(name: &str) -> Device {
        Device {
            name: name.to_owned(),
            features: Some(WHOLE),
            mtu: 1_500,
            forwarding: [true; 2],
            ..Device::default()
        }
    }

    fn pair(name: &str, place: Place) -> Device {
        let (mtu, name_of_peer) = (1_500, "eth0".to_owned());
        let peer = Peer { name: name_of_peer, place, mtu, leaves_sums: false, joins: true, program: false };
        Device { kind: Some("veth".to_owned()), peer: Some(peer), ..card(name) }
    }

    fn words(device: &Device, native: bool) -> String {
        let found = hindrances(device, native);
        if found.is_empty() { String::new() } else { Refusal(&found).to_string() }
    }

    #[test]
    fn each_hindrance_names_the_command_that_cures_it() {
        assert_eq!(words(&card("eth0"), true), "");
        assert_eq!(words(&pair("lb0", Place::Here), true), "");
        let peer = |change: fn(&mut Peer), place| {
            let mut device = pair("lb0", place);
            change(device.peer.as_mut().unwrap());
            device
        };
        let sums = peer(|peer| peer.leaves_sums = true, Place::Named("web".to_owned()));
        assert!(words(&sums, true).ends_with("; run `ip netns exec web ethtool -K eth0 tx off`"));
        assert!(words(&sums, false).ends_with("eth0 tx off`"), "generic XDP cannot see them either");
        let small = peer(|peer| peer.mtu = 1_400, Place::Process(7));
        let cure = "; run `nsenter --net=/proc/7/ns/net ip link set dev eth0 mtu 1500`";
        assert!(words(&small, true).ends_with(cure), "{}", words(&small, true));
        let asleep = Device { features: Some(BASIC | REDIRECT), ..pair("lb0", Place::Here) };
        assert!(words(&asleep, true).ends_with("; run `ethtool -K eth0 gro on`"));
        assert_eq!(words(&asleep, false), "");
        let untold = peer(|peer| peer.joins = false, Place::Here);
        let untold = Device { features: None, ..untold };
        assert!(words(&untold, true).ends_with("; run `ethtool -K eth0 gro on`"));
        let joins = Device { joins: true, ..card("eth0") };
        assert!(words(&joins, true).ends_with("; run `ethtool -K eth0 lro off`"));
        let stays = Device { forwarding: [false, false], ..card("eth0.5") };
        let cure = "run `sysctl -w net/ipv4/conf/eth0.5/forwarding=1 && sysctl -w net/ipv6/conf/eth0.5/forwarding=1`";
        assert!(words(&stays, true).ends_with(cure), "{}", words(&stays, true));
    }

    #[test]
    fn what_no_command_cures_asks_for_another_hook() {
        let write = "; write hook = \"tc\"";
        let bond = Device { kind: Some("bond".to_owned()), ..card("bond0") };
        assert!(words(&bond, true).ends_with(write));
        assert!(words(&Device { features: Some(0), ..card("eth0") }, true).ends_with(write));
        assert_eq!(words(&Device { features: Some(0), ..card("eth0") }, false), "");
        let unseen = Device { peer: None, ..pair("lb0", Place::Here) };
        assert!(words(&unseen, true).ends_with(write) && words(&unseen, false).ends_with(write));
        let one_armed = Device { alone: true, ..pair("lb0", Place::Here) };
        assert!(words(&one_armed, true).ends_with(write));
        assert_eq!(words(&Device { alone: true, ..card("eth0") }, true), "");
        // One that no command cures is enough.
        let both = Device { joins: true, ..one_armed };
        assert!(words(&both, true).ends_with(write));
    }

    #[test]
    fn cards_whose_drivers_redirect_and_transmit_take_native_xdp() {
        assert_eq!(automatic(&[card("eth0"), card("eth1")]).0, Point::Native);
        for features in [None, Some(0), Some(BASIC | REDIRECT)] {
            assert_eq!(automatic(&[card("eth0"), Device { features, ..card("eth1") }]).0, Point::Tc);
        }
        let (point, why) = automatic(&[Device { joins: true, ..card("eth0") }]);
        assert_eq!((point, why.contains("ethtool -K eth0 lro off")), (Point::Tc, true), "{why}");
    }

    #[test]
    fn virtual_interfaces_and_virtio_are_for_tc() {
        let of = |kind: Option<&str>, bus: &str| {
            let (kind, bus) = (kind.map(str::to_owned), Some(bus.to_owned()));
            of_kind(&Link { name: "eth0".to_owned(), kind, bus, ..Link::default() })
        };
        for kind in ["veth", "bridge", "bond", "tun", "vlan"] {
            assert!(of(Some(kind), "").is_some_and(|why| why.contains(kind)));
        }
        assert!(of(None, "virtio").is_some());
        assert_eq!(of(None, "pci"), None);
    }
}
