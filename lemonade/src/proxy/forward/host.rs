//! Routes, addresses and interfaces of this host, asked of the kernel by rtnetlink(7).

#![cfg(target_os = "linux")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd as _};

use rustix::net::AddressFamily;

use super::netlink::{NLM_F_DUMP, Netlink, attribute, attributes, half, word};

/// `linux/rtnetlink.h`
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

/// `linux/if_addr.h`, `linux/if_link.h`, `linux/if.h`, `linux/if_arp.h`
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;
const IFF_UP: u32 = 1;
const ARPHRD_ETHER: u16 = 1;

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// They stay on this host.
    Local,
    /// They leave.
    Out {
        /// Index of the interface.
        interface: u32,
        /// Own address that the host would take.
        source: IpAddr,
        /// Next hop, where it is not the address itself.
        router: Option<IpAddr>,
    },
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Whether its packets begin with an Ethernet header; loopback's do not count.
    pub ethernet: bool,
    /// Whether packets come and go by it: loopback and dummies only hold addresses.
    pub carries: bool,
    /// Whether it is up.
    pub up: bool,
    /// Kind of a virtual one, such as `veth`.
    pub kind: Option<String>,
    /// Bus of the device that it is of, such as `pci` or `virtio`.
    pub bus: Option<String>,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// Index of the interface at its other end, and number of the network namespace where that is if it is another.
    pub peer: Option<(u32, Option<u32>)>,
    /// Whether a program at XDP is attached.
    pub program: bool,
}

/// The kernel's answers for the network namespace of this process.
#[derive(Debug)]
pub struct Host {
    netlink: Netlink,
}

impl Host {
    /// Opens the socket to ask by.
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::routes()? })
    }

    /// Where packets to an address go; `None`: nowhere.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn next(&mut self, to: IpAddr) -> io::Result<Option<Next>> {
        let octets = octets(to);
        let mut body = vec![family(to), octets.len() as u8 * 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        body.extend(attribute(RTA_DST, &octets));
        let answers = match self.netlink.ask(RTM_GETROUTE, 0, &body) {
            Ok(answers) => answers,
            // Unreachable and the like are answers too.
            Err(error) if error.raw_os_error().is_some_and(|code| code != libc::EAGAIN) => return Ok(None),
            Err(error) => return Err(error),
        };
        let route = answers.iter().find(|(kind, body)| *kind == RTM_NEWROUTE && body.len() >= 12);
        let Some((_, route)) = route else { return Ok(None) };
        let (mut interface, mut source, mut router) = (None, None, None);
        for (kind, value) in attributes(&route[12..]) {
            match kind {
                RTA_OIF => interface = word(value, 0),
                RTA_PREFSRC => source = address(value),
                RTA_GATEWAY => router = address(value),
                // Its family, 16 bits, comes first.
                RTA_VIA => router = value.get(2..).and_then(address),
                _ => {}
            }
        }
        Ok(match (route[7], interface.zip(source)) {
            (RTN_LOCAL, _) => Some(Next::Local),
            (RTN_UNICAST, Some((interface, source))) => Some(Next::Out { interface, source, router }),
            _ => None,
        })
    }

    /// Every address of this host with the index of its interface.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn addresses(&mut self) -> io::Result<Vec<(IpAddr, u32)>> {
        let answers = self.netlink.ask(RTM_GETADDR, NLM_F_DUMP, &[0; 8])?;
        let own = answers.iter().filter(|(kind, body)| *kind == RTM_NEWADDR && body.len() >= 8);
        let read = own.filter_map(|(_, body)| {
            let find = |wanted| attributes(&body[8..]).find(|(kind, _)| *kind == wanted);
            // On links between two, ADDRESS is the other end's.
            let (_, value) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
            Some((address(value)?, word(body, 4)?))
        });
        Ok(read.collect())
    }

    /// Every interface.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.netlink.ask(RTM_GETLINK, NLM_F_DUMP, &[0; 16])?;
        let own = answers.iter().filter(|(kind, body)| *kind == RTM_NEWLINK && body.len() >= 16);
        let read = own.filter_map(|(_, body)| {
            let find = |wanted| attributes(&body[16..]).find(|(kind, _)| *kind == wanted);
            let inside = |outer, wanted| attributes(find(outer)?.1).find(|(kind, _)| *kind == wanted);
            let kind = inside(IFLA_LINKINFO, IFLA_INFO_KIND).map(|(_, kind)| text(kind));
            let number = |wanted| word(find(wanted)?.1, 0);
            let ethernet = half(body, 2)? == ARPHRD_ETHER;
            Some(Link {
                index: word(body, 4)?,
                name: text(find(IFLA_IFNAME)?.1),
                ethernet,
                carries: ethernet && kind.as_ref().is_none_or(|kind| kind != "dummy"),
                up: word(body, 8)? & IFF_UP != 0,
                bus: find(IFLA_PARENT_DEV_BUS_NAME).map(|(_, bus)| text(bus)),
                mtu: number(IFLA_MTU)?,
                peer: number(IFLA_LINK).map(|index| (index, number(IFLA_LINK_NETNSID))),
                program: inside(IFLA_XDP, IFLA_XDP_ATTACHED).is_some_and(|(_, how)| *how != [0]),
                kind,
            })
        });
        Ok(read.collect())
    }

    /// Number that the namespace of this thread has for another one; `None`: none.
    pub fn number_of(&mut self, namespace: impl AsFd) -> Option<u32> {
        let descriptor = namespace.as_fd().as_raw_fd().to_ne_bytes();
        let body = [&[0; 4][..], &attribute(NETNSA_FD, &descriptor)].concat();
        let answers = self.netlink.ask(RTM_GETNSID, 0, &body).ok()?;
        let (_, body) = answers.first()?;
        let (_, number) = attributes(body.get(4..)?).find(|(kind, _)| *kind == NETNSA_NSID)?;
        // -1 is none.
        word(number, 0).filter(|number| *number != u32::MAX)
    }
}

/// Text that ends with a zero.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Ports that the host gives to sockets that ask for any; the kernel's default where it does not tell.
pub fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = text.split_whitespace().filter_map(|word| word.parse().ok());
    ports.next().zip(ports.next()).map_or(32_768..=60_999, |(from, to)| from..=to)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into())).ok()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

const fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => AddressFamily::INET.as_raw() as u8,
        IpAddr::V6(_) => AddressFamily::INET6.as_raw() as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_local_and_has_no_ethernet_header() {
        let mut host = Host::open().unwrap();
        let link = host.links().unwrap().into_iter().find(|link| link.name == "lo").unwrap();
        assert!(!link.ethernet);
        assert_eq!(host.next([127, 0, 0, 1].into()).unwrap(), Some(Next::Local));
        let addresses = host.addresses().unwrap();
        // A sandbox may have no address at all.
        let lo = addresses.iter().find(|(ip, _)| ip.is_loopback());
        assert!(addresses.is_empty() || lo.is_none_or(|(_, index)| *index == link.index), "{addresses:?}");
    }
}
