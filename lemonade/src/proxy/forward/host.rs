//! Routes, addresses and interfaces of this host, asked of the kernel by rtnetlink(7).

#![cfg(target_os = "linux")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// `linux/rtnetlink.h`
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

/// `linux/netlink.h`
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

/// `linux/if_addr.h`, `linux/if_link.h`, `linux/if.h`, `linux/if_arp.h`
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFF_UP: u32 = 1;
const ARPHRD_ETHER: u16 = 1;

/// Bytes of a netlink header.
const HEADER: usize = 16;

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
    },
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// The kernel's answers for the network namespace of this process.
#[derive(Debug)]
pub struct Host {
    socket: OwnedFd,
    sequence: u32,
}

impl Host {
    /// Opens the socket to ask by.
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        // The kernel answers within the call; the limit is for one that does not.
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(1)))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Where packets to an address go; `None`: nowhere.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn next(&mut self, to: IpAddr) -> io::Result<Option<Next>> {
        let octets = octets(to);
        let mut body = vec![family(to), octets.len() as u8 * 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        body.extend(attribute(RTA_DST, &octets));
        let answers = match self.ask(RTM_GETROUTE, 0, &body) {
            Ok(answers) => answers,
            // Unreachable and the like are answers too.
            Err(error) if error.raw_os_error().is_some_and(|code| code != libc::EAGAIN) => return Ok(None),
            Err(error) => return Err(error),
        };
        let route = answers.iter().find(|(kind, body)| *kind == RTM_NEWROUTE && body.len() >= 12);
        let Some((_, route)) = route else { return Ok(None) };
        let (mut interface, mut source) = (None, None);
        for (kind, value) in attributes(&route[12..]) {
            match kind {
                RTA_OIF => interface = word(value, 0),
                RTA_PREFSRC => source = address(value),
                _ => {}
            }
        }
        Ok(match (route[7], interface.zip(source)) {
            (RTN_LOCAL, _) => Some(Next::Local),
            (RTN_UNICAST, Some((interface, source))) => Some(Next::Out { interface, source }),
            _ => None,
        })
    }

    /// Every address of this host with the index of its interface.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn addresses(&mut self) -> io::Result<Vec<(IpAddr, u32)>> {
        let answers = self.ask(RTM_GETADDR, NLM_F_DUMP, &[0; 8])?;
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
        let answers = self.ask(RTM_GETLINK, NLM_F_DUMP, &[0; 16])?;
        let own = answers.iter().filter(|(kind, body)| *kind == RTM_NEWLINK && body.len() >= 16);
        let read = own.filter_map(|(_, body)| {
            let (_, name) = attributes(&body[16..]).find(|(kind, _)| *kind == IFLA_IFNAME)?;
            let name = name.split(|byte| *byte == 0).next()?;
            let info = attributes(&body[16..]).find(|(kind, _)| *kind == IFLA_LINKINFO);
            let mut nested = info.into_iter().flat_map(|(_, info)| attributes(info));
            let kind = nested.find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, kind)| kind);
            let ethernet = half(body, 2)? == ARPHRD_ETHER;
            Some(Link {
                index: word(body, 4)?,
                name: String::from_utf8_lossy(name).into_owned(),
                ethernet,
                carries: ethernet && kind.is_none_or(|kind| !kind.starts_with(b"dummy")),
                up: word(body, 8)? & IFF_UP != 0,
            })
        });
        Ok(read.collect())
    }

    /// Sends one request and reads its answers: kinds with what follows the netlink header.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
        self.sequence += 1;
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        send(&self.socket, &request, SendFlags::empty())?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((size, kind)) = word(rest, 0).zip(half(rest, 4)) {
                let Some(message) = rest.get(HEADER..size as usize) else { break };
                let ours = word(rest, 8) == Some(self.sequence);
                match kind {
                    _ if !ours => {}
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code = word(message, 0).unwrap_or(0) as i32;
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    kind => {
                        answers.push((kind, message.to_vec()));
                        if flags & NLM_F_DUMP == 0 {
                            return Ok(answers);
                        }
                    }
                }
                rest = rest.get(aligned(size as usize)..).unwrap_or_default();
            }
        }
    }
}

/// Ports that the host gives to sockets that ask for any; the kernel's default where it does not tell.
pub fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = text.split_whitespace().filter_map(|word| word.parse().ok());
    ports.next().zip(ports.next()).map_or(32_768..=60_999, |(from, to)| from..=to)
}

const fn aligned(size: usize) -> usize {
    (size + 3) & !3
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let size = usize::from(half(bytes, 0)?);
        let value = bytes.get(4..size)?;
        let kind = half(bytes, 2)?;
        bytes = bytes.get(aligned(size)..).unwrap_or_default();
        // The upper two bits say how the value is to be read.
        Some((kind & 0x3fff, value))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
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

    #[test]
    fn attributes_end_where_the_bytes_do() {
        let mut bytes = attribute(RTA_OIF, &7_u32.to_ne_bytes());
        bytes.extend(attribute(RTA_DST, &[1, 2, 3]));
        bytes.extend([9, 0, 1]);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(RTA_OIF, &7_u32.to_ne_bytes()[..]), (RTA_DST, &[1, 2, 3][..])]);
    }
}
