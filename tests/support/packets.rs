//! Packets of the forward plane's tests: made, taken apart and rewritten by code that shares nothing with Lemonade's.
//!
//! Checksums are always computed over the whole; nothing is updated.

use std::net::{IpAddr, SocketAddr};

/// What a packet is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver, of the same family.
    pub to: SocketAddr,
    /// 6 or 17.
    pub protocol: u8,
    /// Flags of TCP.
    pub flags: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Bytes after the TCP or UDP header.
    pub payload: Vec<u8>,
    /// IPv4 options or IPv6 destination options, a multiple of 4 and of 8 bytes.
    pub options: Vec<u8>,
    /// Whether UDP goes without a checksum.
    pub bare: bool,
    /// VLAN tags, outermost first.
    pub tags: Vec<u16>,
    /// Type of service or traffic class.
    pub class: u8,
}

impl Shape {
    /// A TCP segment without data.
    pub fn tcp(from: &str, to: &str, flags: u8) -> Self {
        let parse = |text: &str| text.parse().expect("an address and a port");
        Self {
            from: parse(from),
            to: parse(to),
            protocol: 6,
            flags,
            ttl: 64,
            payload: Vec::new(),
            options: Vec::new(),
            bare: false,
            tags: Vec::new(),
            class: 0,
        }
    }

    /// A datagram.
    pub fn udp(from: &str, to: &str, payload: &[u8]) -> Self {
        Self { protocol: 17, payload: payload.to_vec(), ..Self::tcp(from, to, 0) }
    }

    /// With other data.
    #[must_use]
    pub fn carrying(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Its bytes from the Ethernet header on.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in &self.tags {
            bytes.extend([0x81, 0x00]);
            bytes.extend(tag.to_be_bytes());
        }
        let segment = self.segment();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend([0x08, 0x00]);
                let mut header = vec![0x45 + (self.options.len() / 4) as u8, self.class];
                header.extend(((20 + self.options.len() + segment.len()) as u16).to_be_bytes());
                header.extend([0x12, 0x34, 0x40, 0x00, self.ttl, self.protocol, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                header.extend(&self.options);
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum);
                bytes.extend(header);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                bytes.extend([0x86, 0xdd, 0x60 | self.class >> 4, self.class << 4, 0, 0]);
                bytes.extend(((self.options.len() + segment.len()) as u16).to_be_bytes());
                bytes.extend([if self.options.is_empty() { self.protocol } else { 60 }, self.ttl]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes.extend(&self.options);
            }
            _ => panic!("{} and {} are of two families", self.from, self.to),
        }
        bytes.extend(segment);
        bytes
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        let at = if self.protocol == 6 {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        } else {
            segment.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            segment.extend([0, 0]);
            6
        };
        segment.extend(&self.payload);
        if !(self.bare && self.protocol == 17) {
            let mut sum = checksum(&pseudo(self.from.ip(), self.to.ip(), self.protocol, &segment));
            if sum == [0, 0] && self.protocol == 17 {
                sum = [0xff, 0xff];
            }
            segment[at..at + 2].copy_from_slice(&sum);
        }
        segment
    }
}

/// A TCP segment, whose checksum is computed here, behind the headers of its packet.
///
/// # Panics
/// When the addresses are of two families.
pub fn framed(from: IpAddr, to: IpAddr, ttl: u8, mut segment: Vec<u8>) -> Vec<u8> {
    segment[16..18].copy_from_slice(&[0, 0]);
    let sum = checksum(&pseudo(from, to, 6, &segment));
    segment[16..18].copy_from_slice(&sum);
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend(((20 + segment.len()) as u16).to_be_bytes());
            header.extend([0x12, 0x34, 0x40, 0x00, ttl, 6, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            bytes.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((segment.len() as u16).to_be_bytes());
            bytes.extend([6, ttl]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        _ => panic!("{from} and {to} are of two families"),
    }
    bytes.extend(segment);
    bytes
}

/// An ICMP error that `router` sends about `packet`, with `quoted` bytes of it from its IP header on.
pub fn icmp_error(router: IpAddr, kind: u8, packet: &[u8], quoted: usize) -> Vec<u8> {
    let quote = &packet[14..packet.len().min(14 + quoted)];
    let mut message = vec![kind, 4, 0, 0, 0, 0, 0x05, 0x78];
    message.extend(quote);
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3];
    match router {
        IpAddr::V4(router) => {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum);
            bytes.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend(((20 + message.len()) as u16).to_be_bytes());
            header.extend([0, 1, 0, 0, 64, 1, 0, 0]);
            header.extend(router.octets());
            header.extend(&quote[12..16]);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            bytes.extend(header);
        }
        IpAddr::V6(router) => {
            let mut to = [0; 16];
            to.copy_from_slice(&quote[8..24]);
            let sum = checksum(&pseudo(IpAddr::V6(router), IpAddr::from(to), 58, &message));
            message[2..4].copy_from_slice(&sum);
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((message.len() as u16).to_be_bytes());
            bytes.extend([58, 64]);
            bytes.extend(router.octets());
            bytes.extend(to);
        }
    }
    bytes.extend(message);
    bytes
}

/// What a sender is told of an untagged packet that is larger than `mtu`: by the address that it sent it to, at the Ethernet
/// address that it came from, with 64 bytes of it.
pub fn too_big(packet: &[u8], mtu: u32) -> Vec<u8> {
    let v4 = packet[12..14] == [0x08, 0x00];
    let mut message = if v4 { vec![3, 4, 0, 0] } else { vec![2, 0, 0, 0] };
    message.extend(mtu.to_be_bytes());
    message.extend(&packet[14..78]);
    let mut out = [&packet[6..12], &packet[..6], &packet[12..14]].concat();
    if v4 {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
        let mut header = vec![0x45, 0, 0, 92, 0, 0, 0x40, 0, 64, 1, 0, 0];
        header.extend(&packet[30..34]);
        header.extend(&packet[26..30]);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        out.extend(header);
    } else {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes"));
        let sum = checksum(&pseudo(address(38), address(22), 58, &message));
        message[2..4].copy_from_slice(&sum);
        out.extend([0x60, 0, 0, 0, 0, 72, 58, 64]);
        out.extend(&packet[38..54]);
        out.extend(&packet[22..38]);
    }
    out.extend(message);
    out
}

/// An ICMP error as it goes on from `from` about `sent`, of which it quotes as much as `error` quotes of another packet of
/// the same length; its hop limit is one less. Checksums are computed anew.
///
/// # Panics
/// When `error` is none.
pub fn readdressed_error(error: &[u8], from: IpAddr, sent: &[u8]) -> Vec<u8> {
    let header = if from.is_ipv4() { 28 } else { 48 };
    let mut out = icmp_error(from, error[14 + header - 8], sent, error.len() - 14 - header);
    let ttl = if from.is_ipv4() { 22 } else { 21 };
    out[ttl] = error[ttl] - 1;
    if from.is_ipv4() {
        out[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&out[14..34]);
        out[24..26].copy_from_slice(&sum);
    }
    out
}

/// A request for an echo, or the answer to it.
pub fn echo(from: IpAddr, to: IpAddr, answer: bool, ttl: u8) -> Vec<u8> {
    let kind = match (from.is_ipv4(), answer) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    let mut message = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
    message.extend(b"whatever was sent");
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum);
            bytes.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend(((20 + message.len()) as u16).to_be_bytes());
            header.extend([0, 1, 0, 0, ttl, 1, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            bytes.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let sum = checksum(&pseudo(IpAddr::V6(from), IpAddr::V6(to), 58, &message));
            message[2..4].copy_from_slice(&sum);
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((message.len() as u16).to_be_bytes());
            bytes.extend([58, ttl]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        _ => panic!("{from} and {to} are of two families"),
    }
    bytes.extend(message);
    bytes
}

/// What a well-formed packet without tags says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// TCP or UDP.
    pub protocol: u8,
}

/// Takes a packet apart and checks every length and checksum of it.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Said, String> {
    let ip = bytes.get(14..).ok_or("no IP header")?;
    let field = |at: usize, length: usize| ip.get(at..at + length).ok_or("it ends in its IP header");
    let word = |at: usize| field(at, 2).map(|two| usize::from(u16::from_be_bytes([two[0], two[1]])));
    let (from, to, ttl, protocol, segment): (IpAddr, IpAddr, u8, u8, &[u8]) = match bytes[12..14] {
        [0x08, 0x00] => {
            let header = usize::from(field(0, 20)?[0] & 15) * 4;
            let total = word(2)?;
            if ip[0] >> 4 != 4 || header < 20 || header > total || total > ip.len() {
                return Err(format!("an IPv4 header of {header} bytes, {total} of {} in all", ip.len()));
            }
            if checksum(&ip[..header]) != [0, 0] {
                return Err("the checksum of the IPv4 header is wrong".to_owned());
            }
            let address = |at: usize| IpAddr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
            (address(12), address(16), ip[8], ip[9], &ip[header..total])
        }
        [0x86, 0xdd] => {
            let end = 40 + word(4)?;
            if field(0, 40)?[0] >> 4 != 6 || end > ip.len() {
                return Err(format!("{end} bytes of IPv6, of {} in all", ip.len()));
            }
            let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("16 bytes"));
            let (mut next, mut at) = (ip[6], 40);
            while next == 60 || next == 0 {
                let head = field(at, 2)?;
                (next, at) = (head[0], at + 8 + usize::from(head[1]) * 8);
            }
            let segment = ip.get(at..end).ok_or("extension headers beyond its end")?;
            (address(8), address(24), ip[7], next, segment)
        }
        _ => return Err("not IP".to_owned()),
    };
    let (at, least) = match protocol {
        6 => (16, 20),
        17 => (6, 8),
        _ => return Err(format!("protocol {protocol}")),
    };
    if segment.len() < least {
        return Err(format!("{} bytes of protocol {protocol}", segment.len()));
    }
    let bare = protocol == 17 && segment[at..at + 2] == [0, 0];
    if !bare && checksum(&pseudo(from, to, protocol, segment)) != [0, 0] {
        return Err(format!("the checksum of protocol {protocol} is wrong"));
    }
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    Ok(Said { from: (from, port(0)).into(), to: (to, port(2)).into(), ttl, protocol })
}

/// What an untagged packet must be after a router has given it other addresses: the checksums are computed anew.
pub fn translated(bytes: &[u8], from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let v4 = out[12..14] == [0x08, 0x00];
    let (header, protocol) = if v4 { (usize::from(out[14] & 15) * 4, out[23]) } else { (40, out[20]) };
    let put = |out: &mut Vec<u8>, at: usize, ip: IpAddr| match ip {
        IpAddr::V4(ip) => out[at..at + 4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out[at..at + 16].copy_from_slice(&ip.octets()),
    };
    let (src, dst, ttl) = if v4 { (26, 30, 22) } else { (22, 38, 21) };
    put(&mut out, src, from.ip());
    put(&mut out, dst, to.ip());
    out[ttl] -= 1;
    let (mut protocol, mut segment) = (protocol, 14 + header);
    while !v4 && protocol == 60 {
        (protocol, segment) = (out[segment], segment + 8 + usize::from(out[segment + 1]) * 8);
    }
    out[segment..segment + 2].copy_from_slice(&from.port().to_be_bytes());
    out[segment + 2..segment + 4].copy_from_slice(&to.port().to_be_bytes());
    if v4 {
        out[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&out[14..14 + header]);
        out[24..26].copy_from_slice(&sum);
    }
    let at = segment + if protocol == 6 { 16 } else { 6 };
    if protocol == 17 && out[at..at + 2] == [0, 0] {
        return out;
    }
    out[at..at + 2].copy_from_slice(&[0, 0]);
    let sum = checksum(&pseudo(from.ip(), to.ip(), protocol, &out[segment..]));
    out[at..at + 2].copy_from_slice(&if protocol == 17 && sum == [0, 0] { [0xff, 0xff] } else { sum });
    out
}

/// What an untagged packet must be inside an outer header between two addresses of one family (RFC 2003, RFC 2473): hop
/// limit 64, the traffic class of the inner header, never to be cut, and over IPv6 `label` as flow label.
pub fn wrapped(bytes: &[u8], from: IpAddr, to: IpAddr, label: u32) -> Vec<u8> {
    let inner_v4 = bytes[12..14] == [0x08, 0x00];
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let length = if inner_v4 { word(16) } else { word(18) + 40 };
    let class = if inner_v4 { bytes[15] } else { ((word(14) >> 4) & 0xff) as u8 };
    let protocol = if inner_v4 { 4 } else { 41 };
    let mut out = bytes[..12].to_vec();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, class];
            header.extend((length + 20).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            out.extend([0x08, 0x00]);
            out.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.extend([0x86, 0xdd]);
            out.extend((0x6000_0000 + (u32::from(class) << 20) + label).to_be_bytes());
            out.extend(length.to_be_bytes());
            out.extend([protocol, 64]);
            out.extend(from.octets());
            out.extend(to.octets());
        }
        _ => panic!("{from} and {to} are of two families"),
    }
    out.extend(&bytes[14..]);
    out
}

/// The packet in an outer header of 20 bytes of IPv4 or 40 of IPv6, with that header's ends and flow label.
///
/// # Errors
/// What is wrong with the outer header.
pub fn unwrapped(bytes: &[u8]) -> Result<(Vec<u8>, IpAddr, IpAddr, u32), String> {
    let address = |at: usize, v4: bool| {
        if v4 {
            IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four bytes"))
        } else {
            IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen bytes"))
        }
    };
    let (header, protocol, ends, label) = match bytes[12..14] {
        [0x08, 0x00] => (20, bytes[23], (address(26, true), address(30, true)), 0),
        [0x86, 0xdd] => {
            let first = u32::from_be_bytes([bytes[14], bytes[15], bytes[16], bytes[17]]);
            (40, bytes[20], (address(22, false), address(38, false)), first & 0xf_ffff)
        }
        _ => return Err("not IP".to_owned()),
    };
    let kind = match protocol {
        4 => [0x08, 0x00],
        41 => [0x86, 0xdd],
        other => return Err(format!("protocol {other} is no IP")),
    };
    let inner = [&bytes[..12], &kind, &bytes[14 + header..]].concat();
    Ok((inner, ends.0, ends.1, label))
}

/// RFC 793 and RFC 8200, 8.1: what TCP and UDP sum besides themselves.
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend([0, protocol]);
    bytes.extend((segment.len() as u16).to_be_bytes());
    bytes.extend(segment);
    bytes
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}
