//! Reading a packet: Ethernet, up to two VLAN tags, IPv4 or IPv6, and TCP, UDP or an ICMP error about one of them.
//!
//! Nothing is changed and nothing decided here; what is odd is told, so that it can be judged by whose packet it is.

use crate::flow::{FlowKey, TCP, UDP};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// IPv6 extension headers that are walked before a packet counts as odd.
const EXTENSIONS: usize = 4;

/// Bytes of an IPv6 extension header at most; longer ones count as odd.
const EXTENSION: usize = 256;

/// Protocol number of the fragment header of IPv6.
const FRAGMENT: u8 = 44;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// TCP flag of a side that has sent all.
pub const FIN: u8 = 0x01;
/// TCP flag that opens.
pub const SYN: u8 = 0x02;
/// TCP flag that ends a connection at once.
pub const RST: u8 = 0x04;
/// TCP flag of everything but the first packet.
pub const ACK: u8 = 0x10;

/// Bytes of a packet from its Ethernet header on, wherever they lie.
pub trait Bytes {
    /// `N` bytes from `at` on; `None` where the packet ends before.
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// Bytes of the packet.
    fn length(&self) -> usize;
}

/// Bytes of a packet that can be changed in place.
pub trait BytesMut: Bytes {
    /// Writes from `at` on; says whether the packet has room there.
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn length(&self) -> usize {
        self.len()
    }
}

impl BytesMut for [u8] {
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool {
        let place = at.checked_add(N).and_then(|end| self.get_mut(at..end));
        place.map(|place| place.copy_from_slice(bytes)).is_some()
    }
}

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It belongs to the flow of its key.
    Flow,
    /// It is an ICMP error about a packet that went the other way than its key says: the error travels with the key.
    IcmpError,
    /// It asks for an echo; there are no ports in its key.
    Echo,
    /// It is a fragment that is not the first; there are no ports in its key.
    LaterFragment,
}

/// What is odd about a packet that nevertheless names its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// First fragment of several.
    Fragment,
    /// IPv4 options, or IPv6 extension headers that are no mere options or too many.
    Options,
    /// A length that its frame does not hold, or headers shorter than they may be.
    BadLength,
}

/// Why a packet names no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFlow {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// Neither TCP nor UDP nor an ICMP error.
    OtherProtocol,
    /// It ends before its ports, or is none of what it says.
    Torn,
}

/// A packet of TCP or UDP, or an ICMP error about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its flow; see [`Kind`] for an ICMP error's.
    pub key: FlowKey,
    /// Whose packet it is.
    pub kind: Kind,
    /// IP version.
    pub family: Family,
    /// Where its IP header begins.
    pub network: u16,
    /// Where its TCP, UDP or ICMP header begins.
    pub transport: u16,
    /// Where the IP header that an ICMP error quotes begins; 0 else.
    pub quoted: u16,
    /// Where the TCP or UDP header that an ICMP error quotes begins; 0 else.
    pub quoted_transport: u16,
    /// Bytes from its IP header to its end, as the header says.
    pub length: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub service: u8,
    /// Flags of TCP; 0 else.
    pub flags: u8,
    /// Checksum of the IPv4 header; 0 else.
    pub checksum: [u8; 2],
    /// Whether it has VLAN tags.
    pub tagged: bool,
    /// What is odd about it.
    pub odd: Option<Oddity>,
}

impl Packet {
    /// A packet of which nothing is known, to be read into.
    pub const BLANK: Self = Self {
        key: FlowKey { src: [0; 16], dst: [0; 16], sport: [0; 2], dport: [0; 2], protocol: 0 },
        kind: Kind::Flow,
        family: Family::V4,
        network: 0,
        transport: 0,
        quoted: 0,
        quoted_transport: 0,
        length: 0,
        ttl: 0,
        service: 0,
        flags: 0,
        checksum: [0; 2],
        tagged: false,
        odd: None,
    };
}

/// Reads a packet from its Ethernet header on.
///
/// # Errors
/// Why it names no flow.
pub fn parse<B: Bytes + ?Sized>(bytes: &B) -> Result<Packet, NoFlow> {
    let mut packet = Packet::BLANK;
    read(bytes, &mut packet)?;
    Ok(packet)
}

/// As [`parse`], into a packet that lies elsewhere: programs in the kernel have 512 bytes of stack.
///
/// # Errors
/// Why it names no flow; then what is in `packet` says nothing.
// A frame of its own, for the same reason.
#[inline(never)]
pub fn read<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), NoFlow> {
    let ethernet: [u8; ETHERNET] = bytes.load(0).ok_or(NoFlow::Torn)?;
    let mut network = ETHERNET;
    let mut kind = [ethernet[12], ethernet[13]];
    for _ in 0..2 {
        // 802.1Q and 802.1ad.
        if kind == [0x81, 0x00] || kind == [0x88, 0xa8] {
            let tag: [u8; 4] = bytes.load(network).ok_or(NoFlow::Torn)?;
            kind = [tag[2], tag[3]];
            network += 4;
        }
    }
    packet.network = network as u16;
    packet.tagged = network != ETHERNET;
    match kind {
        [0x08, 0x00] => v4(bytes, packet),
        [0x86, 0xdd] => v6(bytes, packet),
        _ => Err(NoFlow::NotIp),
    }
}

// This and the next have frames of their own, and find in the packet what was read before: the kernel's verifier then
// follows them once, not once for each number of tags.
#[inline(never)]
fn v4<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), NoFlow> {
    let network = usize::from(packet.network);
    let header: [u8; 20] = bytes.load(network).ok_or(NoFlow::Torn)?;
    let words = usize::from(header[0] & 0x0f);
    if header[0] >> 4 != 4 || words < 5 {
        return Err(NoFlow::Torn);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let later = fragment & 0x1fff != 0;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let frame = bytes.length().saturating_sub(network);
    let mut odd = None;
    // Segments that the network card cuts later may be longer than the field can say; it is 0 then.
    if total > frame || (total < words * 4 + 8 && !(total == 0 && frame > 0xffff)) {
        odd = Some(Oddity::BadLength);
    } else if fragment & 0x2000 != 0 {
        odd = Some(Oddity::Fragment);
    } else if words != 5 {
        odd = Some(Oddity::Options);
    }
    *packet = Packet {
        key: FlowKey {
            src: mapped([header[12], header[13], header[14], header[15]]),
            dst: mapped([header[16], header[17], header[18], header[19]]),
            sport: [0; 2],
            dport: [0; 2],
            protocol: u32::from(header[9]),
        },
        kind: if later { Kind::LaterFragment } else { Kind::Flow },
        family: Family::V4,
        network: packet.network,
        transport: (network + words * 4) as u16,
        quoted: 0,
        quoted_transport: 0,
        length: total as u32,
        ttl: header[8],
        service: header[1],
        flags: 0,
        checksum: [header[10], header[11]],
        tagged: packet.tagged,
        odd,
    };
    if later { Ok(()) } else { transport(bytes, packet) }
}

#[inline(never)]
fn v6<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), NoFlow> {
    let network = usize::from(packet.network);
    let header: [u8; 40] = bytes.load(network).ok_or(NoFlow::Torn)?;
    if header[0] >> 4 != 6 {
        return Err(NoFlow::Torn);
    }
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let frame = bytes.length().saturating_sub(network + 40);
    let mut odd = None;
    if payload > frame || (payload < 8 && !(payload == 0 && frame > 0xffff)) {
        odd = Some(Oddity::BadLength);
    }
    let (next, at) = extensions(bytes, header[6], network + 40, &mut odd)?;
    let later = next == FRAGMENT;
    let [mut src, mut dst] = [[0; 16]; 2];
    src.copy_from_slice(&header[8..24]);
    dst.copy_from_slice(&header[24..40]);
    *packet = Packet {
        key: FlowKey { src, dst, sport: [0; 2], dport: [0; 2], protocol: u32::from(next) },
        kind: if later { Kind::LaterFragment } else { Kind::Flow },
        family: Family::V6,
        network: packet.network,
        transport: at as u16,
        quoted: 0,
        quoted_transport: 0,
        length: payload as u32 + 40,
        ttl: header[7],
        service: header[0] << 4 | header[1] >> 4,
        flags: 0,
        checksum: [0; 2],
        tagged: packet.tagged,
        odd,
    };
    if later { Ok(()) } else { transport(bytes, packet) }
}

/// Protocol and place of what follows the extension headers; [`FRAGMENT`] of a fragment that is not the first.
#[inline(always)]
fn extensions<B: Bytes + ?Sized>(
    bytes: &B,
    first: u8,
    begin: usize,
    odd: &mut Option<Oddity>,
) -> Result<(u8, usize), NoFlow> {
    let (mut next, mut at) = (first, begin);
    for _ in 0..EXTENSIONS {
        match next {
            // Hop-by-hop and destination options; a routing header changes where the packet goes.
            0 | 43 | 60 => {
                if next == 43 {
                    odd.get_or_insert(Oddity::Options);
                }
                let head: [u8; 2] = bytes.load(at).ok_or(NoFlow::Torn)?;
                let length = (usize::from(head[1]) + 1) * 8;
                if length > EXTENSION {
                    return Err(NoFlow::Torn);
                }
                next = head[0];
                at += length;
            }
            FRAGMENT => {
                let head: [u8; 8] = bytes.load(at).ok_or(NoFlow::Torn)?;
                if u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0 {
                    return Ok((FRAGMENT, at));
                }
                odd.get_or_insert(Oddity::Fragment);
                next = head[0];
                at += 8;
            }
            _ => return Ok((next, at)),
        }
    }
    match next {
        0 | 43 | FRAGMENT | 60 => Err(NoFlow::OtherProtocol),
        _ => Ok((next, at)),
    }
}

// A frame of its own, as above.
#[inline(never)]
fn transport<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), NoFlow> {
    let at = usize::from(packet.transport);
    match packet.key.protocol {
        TCP => {
            let header: [u8; 14] = bytes.load(at).ok_or(NoFlow::Torn)?;
            ports(&mut packet.key, [header[0], header[1], header[2], header[3]]);
            packet.flags = header[13];
            let length = usize::from(header[12] >> 4) * 4;
            if length < 20 || at + length > bytes.length() {
                packet.odd.get_or_insert(Oddity::BadLength);
            }
            Ok(())
        }
        UDP => {
            let header: [u8; 8] = bytes.load(at).ok_or(NoFlow::Torn)?;
            ports(&mut packet.key, [header[0], header[1], header[2], header[3]]);
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let held = bytes.length().saturating_sub(at);
            // A fragment holds less than it says, and an aggregate of several more than the first of them.
            if length < 8 || (length > held && packet.odd != Some(Oddity::Fragment)) {
                packet.odd.get_or_insert(Oddity::BadLength);
            }
            Ok(())
        }
        _ => icmp(bytes, packet),
    }
}

/// An echo request keeps its addresses as key. An ICMP error takes the key of the flow in whose direction it travels: that of the packet in it, turned round.
///
/// Eight bytes of the inner packet's payload are all that a sender must include (RFC 792).
#[inline(always)]
fn icmp<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), NoFlow> {
    let protocol = packet.key.protocol as u8;
    let at = usize::from(packet.transport);
    let kind: [u8; 1] = match (packet.family, protocol) {
        (Family::V4, ICMP) | (Family::V6, ICMP_V6) => bytes.load(at).ok_or(NoFlow::Torn)?,
        _ => return Err(NoFlow::OtherProtocol),
    };
    if kind[0] == echo_request(packet.family) {
        packet.kind = Kind::Echo;
        return Ok(());
    }
    let inner = at + 8;
    let (inner_protocol, inner_at) = match (packet.family, kind[0]) {
        // Unreachable, time exceeded, parameter problem.
        (Family::V4, 3 | 11 | 12) => {
            let header: [u8; 20] = bytes.load(inner).ok_or(NoFlow::Torn)?;
            let words = usize::from(header[0] & 0x0f);
            if header[0] >> 4 != 4 || words < 5 {
                return Err(NoFlow::Torn);
            }
            packet.key.src = mapped([header[16], header[17], header[18], header[19]]);
            packet.key.dst = mapped([header[12], header[13], header[14], header[15]]);
            (header[9], inner + words * 4)
        }
        // Unreachable, too big, time exceeded, parameter problem.
        (Family::V6, 1..=4) => {
            let header: [u8; 40] = bytes.load(inner).ok_or(NoFlow::Torn)?;
            if header[0] >> 4 != 6 {
                return Err(NoFlow::Torn);
            }
            packet.key.src.copy_from_slice(&header[24..40]);
            packet.key.dst.copy_from_slice(&header[8..24]);
            (header[6], inner + 40)
        }
        _ => return Err(NoFlow::OtherProtocol),
    };
    if u32::from(inner_protocol) != TCP && u32::from(inner_protocol) != UDP {
        return Err(NoFlow::OtherProtocol);
    }
    let there: [u8; 4] = bytes.load(inner_at).ok_or(NoFlow::Torn)?;
    ports(&mut packet.key, [there[2], there[3], there[0], there[1]]);
    packet.key.protocol = u32::from(inner_protocol);
    packet.kind = Kind::IcmpError;
    (packet.quoted, packet.quoted_transport) = (inner as u16, inner_at as u16);
    Ok(())
}

/// Type of an ICMP message that asks for an echo.
#[inline(always)]
pub const fn echo_request(family: Family) -> u8 {
    match family {
        Family::V4 => 8,
        Family::V6 => 128,
    }
}

#[inline(always)]
fn ports(key: &mut FlowKey, bytes: [u8; 4]) {
    key.sport = [bytes[0], bytes[1]];
    key.dport = [bytes[2], bytes[3]];
}

/// Family of an address as [`FlowKey`] holds it.
#[inline(always)]
pub const fn family(address: &[u8; 16]) -> Family {
    let high = u64::from_ne_bytes([
        address[0], address[1], address[2], address[3], address[4], address[5], address[6], address[7],
    ]);
    match (high, [address[8], address[9], address[10], address[11]]) {
        (0, [0, 0, 0xff, 0xff]) => Family::V4,
        _ => Family::V6,
    }
}

/// An IPv4 address as [`FlowKey`] holds it.
#[inline(always)]
const fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    // As two words: programs in the kernel clear bytes one by one.
    let low = u64::from_le_bytes([0, 0, 0xff, 0xff, a, b, c, d]);
    ((low as u128) << 64).to_le_bytes()
}
