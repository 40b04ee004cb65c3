//! Which pairs of connections can become one, and by which numbers packets pass between them. Nothing here touches a socket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lemonade_common::FlowKey;
use lemonade_common::csum::address_delta;
use lemonade_common::splice::{ACKED, FINISHED, Leg, RESET, STAMPED, before};

use crate::model::relay::Kept;
use crate::proxy::adapters::bpf::Seen;

/// `TCP_ESTABLISHED`
const ESTABLISHED: u8 = 1;

/// Bits of `tcpi_options` (linux/tcp.h).
const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const ECN: u8 = 8 | 16;
const SYN_DATA: u8 = 32;
const MICROSECONDS: u8 = 64;
const FAST_OPEN: u8 = 128;

/// Bytes that timestamps take of every segment.
const STAMP: u32 = 12;

/// Bytes of `struct tcp_info` that are read.
pub(super) const INFO: usize = 232;

/// What `TCP_INFO` tells of a connection, as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tcp {
    state: u8,
    options: u8,
    /// Window scale of the peer, and the one of this side.
    scales: [u8; 2],
    /// Data of a segment that the peer and the path take.
    segment: u32,
    /// Data of a segment that the peer was told it may send, options included.
    told: u32,
    /// Bytes that wait to be sent for the first time.
    unsent: u32,
    /// Bytes received in order since its start.
    received: u64,
    /// Bytes sent since its start, each once; 0 before Linux 4.19.
    sent: u64,
    /// Segments sent and not acknowledged.
    unacked: u32,
    /// Microseconds of a round trip, smoothed.
    round_trip: u32,
    /// Bytes in a second that the peer has lately acknowledged.
    rate: u64,
    /// Bytes that the peer takes from what it has acknowledged on; 0 before Linux 5.4.
    window: u32,
}

impl Tcp {
    /// Reads what the kernel wrote.
    pub(super) fn read(info: &[u8; INFO]) -> Self {
        let word = |at: usize| info[at..].first_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let long = |at: usize| info[at..].first_chunk::<8>().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        Self {
            state: info[0],
            options: info[5],
            scales: [info[6] & 15, info[6] >> 4],
            segment: word(16),
            told: word(84),
            unsent: word(144),
            received: long(128),
            // What was sent again is in both.
            sent: long(200).wrapping_sub(long(208)),
            unacked: word(24),
            round_trip: word(68),
            rate: long(160),
            window: word(228),
        }
    }

    /// Whether each segment has timestamps.
    pub(super) const fn stamped(&self) -> bool {
        self.options & TIMESTAMPS != 0
    }

    /// Whether neither side has closed, and nothing waits to be sent.
    pub(super) const fn quiet(&self) -> bool {
        self.state == ESTABLISHED && self.unsent == 0
    }

    /// Whether neither side has closed.
    pub(super) const fn open(&self) -> bool {
        self.state == ESTABLISHED
    }

    /// Whether the peer has all that was written.
    pub(super) const fn paid(&self) -> bool {
        self.unsent == 0 && self.unacked == 0
    }

    /// Bytes that wait to be sent for the first time.
    pub(super) const fn unsent(&self) -> u32 {
        self.unsent
    }

    /// Bytes received in order since its start.
    pub(super) const fn received(&self) -> u64 {
        self.received
    }

    /// What it was when `unread` bytes that it has received were not, and what waits to be sent was.
    pub(super) const fn settled(self, unread: u32) -> Self {
        let (received, sent) =
            (self.received.wrapping_sub(unread as u64), self.sent.wrapping_add(self.unsent as u64));
        Self { received, sent, unsent: 0, ..self }
    }

    /// Time until all of `backlog` bytes are sent and acknowledged, and as long again as a round trip; `None` when it cannot
    /// be told.
    pub(super) fn drains_in(&self, backlog: usize) -> Option<Duration> {
        let drain = (backlog as u64).saturating_mul(1_000_000).checked_div(self.rate);
        let drain = if backlog == 0 { 0 } else { drain? };
        Some(Duration::from_micros(drain.saturating_add(u64::from(self.round_trip).saturating_mul(2))))
    }

    /// The window of this side's peer, who has all that was written, as that of the other side, `reader`, reads it in a header;
    /// rounded down.
    pub(super) fn window_for(&self, reader: &Self) -> u16 {
        u16::try_from(self.window >> reader.scales[1]).unwrap_or(u16::MAX)
    }

    /// Data of a segment that the peer may send.
    const fn most(&self) -> u32 {
        self.told.saturating_sub(if self.stamped() { STAMP } else { 0 })
    }
}

/// The addresses of a flow: peer and own, of client and backend.
pub(super) type Ends = [[SocketAddr; 2]; 2];

/// Whether packets between these addresses meet the programs and can be translated.
///
/// # Errors
/// Why not.
pub(super) fn meets(ends: &Ends) -> Result<(), Kept> {
    let mut addresses = ends.iter().flatten().map(|end| end.ip().to_canonical());
    if addresses.clone().any(|address| address.is_loopback()) {
        return Err(Kept::Path);
    }
    let fours = addresses.clone().filter(|address| matches!(address, IpAddr::V4(_))).count();
    if fours == 0 || addresses.all(|address| matches!(address, IpAddr::V4(_))) {
        Ok(())
    } else {
        Err(Kept::Families)
    }
}

/// Whether segments of each peer are ones that the other understands; both connections are as they will stay.
///
/// # Errors
/// What cannot be translated.
pub(super) fn fits(tcp: &[Tcp; 2]) -> Result<(), Kept> {
    let [client, backend] = tcp;
    let either = client.options | backend.options;
    if either & (SYN_DATA | FAST_OPEN) != 0 {
        return Err(Kept::FastOpen);
    }
    if either & ECN != 0 {
        return Err(Kept::Ecn);
    }
    if (client.options ^ backend.options) & (TIMESTAMPS | SACK | MICROSECONDS) != 0 {
        return Err(Kept::Options);
    }
    if client.most() > backend.segment || backend.most() > client.segment {
        return Err(Kept::SegmentSize);
    }
    Ok(())
}

/// Where a socket's two streams stand: the next byte that it expects, and the next that it will send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) received: u32,
    pub(super) sent: u32,
}

/// Where the streams of a socket stood at a moment at which neither it nor the relay held anything of its peer, with all that was
/// counted until then. The relay copies one to one, so what it has copied since tells where they stand, and no look is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) place: Place,
    /// What the kernel had counted.
    pub(super) tcp: Tcp,
    /// Bytes that the relay had copied from this side, and to it.
    pub(super) copied: [u64; 2],
}

impl Anchor {
    /// Where they stand now that so many bytes were `copied` from this side and to it, if the relay holds none.
    pub(super) const fn place(&self, copied: [u64; 2]) -> Place {
        let Place { received, sent } = self.place;
        let [from, to] = self.since(copied);
        Place { received: received.wrapping_add(from as u32), sent: sent.wrapping_add(to as u32) }
    }

    /// Whether the kernel has received what was copied from this side, and nothing else.
    pub(super) const fn received(&self, tcp: &Tcp, copied: [u64; 2]) -> bool {
        tcp.received.wrapping_sub(self.tcp.received) == self.since(copied)[0]
    }

    /// Whether the kernel's count of what it has sent says the same as what was copied to this side. It need not: a segment that
    /// the host itself has dropped counts twice.
    pub(super) const fn sent(&self, tcp: &Tcp, copied: [u64; 2]) -> bool {
        tcp.sent.wrapping_sub(self.tcp.sent) == self.since(copied)[1]
    }

    const fn since(&self, [from, to]: [u64; 2]) -> [u64; 2] {
        [from.wrapping_sub(self.copied[0]), to.wrapping_sub(self.copied[1])]
    }
}

/// The legs of a flow that has `slot`, with the flows of packets by which they are found, at a moment at which every byte that
/// one socket has received is in the other.
pub(super) fn legs(slot: u32, ends: &Ends, tcp: &[Tcp; 2], places: &[Place; 2]) -> [(FlowKey, Leg); 2] {
    [0, 1].map(|at| {
        let ([peer, own], [to, from]) = (ends[at], ends[1 - at]);
        let (key, leaves) = (FlowKey::tcp(peer, own), FlowKey::tcp(from, to));
        let leg = Leg {
            src: leaves.src,
            dst: leaves.dst,
            sport: leaves.sport,
            dport: leaves.dport,
            slot,
            side: at as u32,
            sequence: places[1 - at].sent.wrapping_sub(places[at].received),
            acknowledgement: places[1 - at].received.wrapping_sub(places[at].sent),
            address_delta: address_delta(&key.src, &leaves.src) + address_delta(&key.dst, &leaves.dst),
            scales: [tcp[at].scales[0], tcp[1 - at].scales[1]],
            reserved: [0; 6],
        };
        (key, leg)
    })
}

/// What a moment lacks for a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacks {
    /// Packets that the programs have seen.
    Packets,
    /// Quiet: bytes are on their way to a socket, or it has closed.
    Quiet,
}

/// Whether the sockets, whose segments are `stamped` or not, have all that the programs have let through, and these know all that
/// they must.
///
/// # Errors
/// What is missing.
pub(super) fn ready(
    seen: &[Seen; 2],
    legs: &[(FlowKey, Leg); 2],
    stamped: bool,
    places: &[Place; 2],
) -> Result<(), Lacks> {
    let [client, backend] = seen;
    let stamped = |side: &Seen| !stamped || side.marks & STAMPED != 0;
    let known = |side: &Seen| side.arrives_by != 0 && side.leaves_by != 0 && stamped(side);
    if !(known(client) && known(backend)) {
        return Err(Lacks::Packets);
    }
    let closes = (client.marks | backend.marks) & (FINISHED | RESET) != 0;
    let behind = (0..2).any(|at| seen[at].end as u32 != places[at].received);
    let moved = (0..2).any(|at| places[1 - at].sent.wrapping_sub(places[at].received) != legs[at].1.sequence);
    if closes || behind || moved { Err(Lacks::Quiet) } else { Ok(()) }
}

/// How a flow stands that is spliced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Both sides may send.
    Open,
    /// Both have sent FIN, and each has the other's.
    Closed,
    /// This side has reset it.
    Reset(usize),
}

/// How the flow stands.
pub(super) fn standing(seen: &[Seen; 2], legs: &[(FlowKey, Leg); 2]) -> Standing {
    if let Some(at) = (0..2).find(|at| seen[*at].marks & RESET != 0) {
        return Standing::Reset(at);
    }
    let whole = FINISHED | ACKED;
    let over = (0..2).all(|at| {
        let acked = seen[1 - at].ack.wrapping_sub(legs[at].1.sequence);
        seen[at].marks & whole == whole && !before(acked, seen[at].fin)
    });
    if over { Standing::Closed } else { Standing::Open }
}

/// Whether the peer has acknowledged what its socket had sent.
pub(super) const fn paid(seen: &Seen) -> bool {
    seen.marks & ACKED != 0 && !before(seen.ack, seen.owed)
}

/// Bytes of data that came from a side since the hand-over, at which its stream ended at `base`.
pub(super) const fn bytes(seen: &Seen, base: u64) -> u64 {
    let fin = (seen.marks & FINISHED != 0) as u64;
    seen.end.saturating_sub(base).saturating_sub(fin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(texts: [&str; 4]) -> Ends {
        let [a, b, c, d] = texts.map(|text| text.parse().unwrap());
        [[a, b], [c, d]]
    }

    const V4: [&str; 4] = ["198.51.100.7:4000", "192.0.2.1:80", "10.0.0.1:8080", "10.0.0.254:5000"];

    fn tcp() -> Tcp {
        Tcp {
            state: 1,
            options: TIMESTAMPS | SACK | 4,
            scales: [7, 8],
            segment: 1448,
            told: 1460,
            ..Tcp::default()
        }
    }

    #[test]
    fn what_cannot_be_translated_is_kept_with_its_reason() {
        let with = |change: fn(&mut Tcp)| {
            let mut other = tcp();
            change(&mut other);
            [fits(&[tcp(), other]), fits(&[other, tcp()])]
        };
        assert_eq!(with(|_| ()), [Ok(()); 2]);
        assert_eq!(with(|tcp| tcp.options &= !TIMESTAMPS), [Err(Kept::Options); 2]);
        assert_eq!(with(|tcp| tcp.options &= !SACK), [Err(Kept::Options); 2]);
        assert_eq!(with(|tcp| tcp.options |= 8), [Err(Kept::Ecn); 2]);
        assert_eq!(with(|tcp| tcp.options |= SYN_DATA), [Err(Kept::FastOpen); 2]);
        assert_eq!(with(|tcp| tcp.segment = 1447), [Err(Kept::SegmentSize); 2]);
        assert_eq!(with(|tcp| tcp.told = 8960), [Err(Kept::SegmentSize); 2]);
        assert_eq!(with(|tcp| tcp.scales = [0, 14]), [Ok(()); 2], "windows are translated");
        let mixed = ["[2001:db8::7]:4000", "[2001:db8::1]:80", "10.0.0.1:8080", "10.0.0.254:5000"];
        assert_eq!(meets(&ends(mixed)), Err(Kept::Families));
        let mapped = ["[::ffff:198.51.100.7]:4000", "[::ffff:192.0.2.1]:80", V4[2], V4[3]];
        assert_eq!(meets(&ends(mapped)), Ok(()));
        let v6 = ["[2001:db8::7]:4000", "[2001:db8::1]:80", "[fd00::1]:8080", "[fd00::fe]:5000"];
        assert_eq!([meets(&ends(v6)), meets(&ends(V4))], [Ok(()); 2]);
        let local = ["127.0.0.1:4000", "127.0.0.1:80", V4[2], V4[3]];
        assert_eq!(meets(&ends(local)), Err(Kept::Path));
    }

    #[test]
    fn what_the_kernel_tells_is_read_where_it_stands() {
        let mut info = [0; INFO];
        info[..8].copy_from_slice(&[1, 0, 0, 0, 0, 7, 0x87, 0]);
        for (at, word) in [(16, 1448_u32), (84, 1460), (144, 5)] {
            info[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        for (at, word) in [(128, 1_u64 << 40), (200, 900), (208, 100)] {
            info[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        info[228..].copy_from_slice(&70_000_u32.to_ne_bytes());
        let read = Tcp::read(&info);
        assert_eq!(
            [read.window_for(&tcp()), read.window_for(&Tcp { scales: [9, 0], ..tcp() })],
            [273, 65_535]
        );
        let read = Tcp { window: 0, ..read };
        assert_eq!(read, Tcp { unsent: 5, received: 1 << 40, sent: 800, ..tcp() });
        assert!(!read.quiet() && tcp().quiet());
        assert!(!read.paid() && tcp().paid() && !Tcp { unacked: 1, ..tcp() }.paid());
        assert!(!Tcp { state: 8, ..tcp() }.quiet(), "the peer has closed");
    }

    #[test]
    fn legs_are_each_others_inverse() {
        let places = [Place { received: 5, sent: u32::MAX - 3 }, Place { received: 1 << 31, sent: 77 }];
        let [(key, up), (_, down)] = legs(9, &ends(V4), &[tcp(); 2], &places);
        assert_eq!(key, FlowKey::tcp(V4[0].parse().unwrap(), V4[1].parse().unwrap()));
        assert_eq!(up.sequence.wrapping_add(down.acknowledgement), 0);
        assert_eq!(down.sequence.wrapping_add(up.acknowledgement), 0);
        assert_eq!(up.sequence, 72);
        assert_eq!((up.side, down.side, up.slot), (0, 1, 9));
        assert_eq!(up.scales, [7, 8]);
    }

    #[test]
    fn what_was_copied_tells_where_the_streams_stand() {
        let place = Place { received: u32::MAX - 1, sent: 50 };
        let counted = |received, sent| Tcp { received, sent, ..tcp() };
        let anchor = Anchor { place, tcp: counted(300, 20), copied: [300, 20] };
        assert_eq!(anchor.place([300, 20]), place);
        let copied = [310, 25];
        assert_eq!(anchor.place(copied), Place { received: 8, sent: 55 });
        let later = counted(310, 25);
        assert!(anchor.received(&later, copied) && anchor.sent(&later, copied));
        assert!(!anchor.received(&counted(311, 25), copied), "a byte is there that nobody has read");
        assert!(!anchor.sent(&counted(310, 26), copied), "a segment was dropped here and sent again");
        let lacks = Anchor { tcp: counted(300, 0), ..anchor };
        assert!(!lacks.sent(&counted(310, 0), copied), "a kernel that does not count it");
        // Gigabytes later, and as numbers begin anew.
        assert_eq!(anchor.place([300 + (1 << 33), 20 + (1 << 34)]), place);
    }

    /// A flow at whose hand-over the client's stream had come to 100 and the backend's to 900.
    fn still() -> ([Seen; 2], [(FlowKey, Leg); 2], [Place; 2]) {
        let places = [Place { received: 100, sent: 5_900 }, Place { received: 900, sent: 70_100 }];
        let legs = legs(0, &ends(V4), &[tcp(); 2], &places);
        let side = |end| Seen { end, marks: ACKED | STAMPED, arrives_by: 2, leaves_by: 2, ..Seen::default() };
        ([side(100), side(900)], legs, places)
    }

    #[test]
    fn a_flow_is_handed_over_when_its_sockets_have_all_that_was_let_through() {
        let (seen, legs, places) = still();
        let asked = |change: fn(&mut Seen)| {
            [0, 1].map(|at| {
                let mut seen = seen;
                change(&mut seen[at]);
                ready(&seen, &legs, true, &places)
            })
        };
        assert_eq!(asked(|_| ()), [Ok(()); 2]);
        assert_eq!(asked(|side| side.end += 1), [Err(Lacks::Quiet); 2]);
        assert_eq!(asked(|side| side.end -= 1), [Err(Lacks::Quiet); 2]);
        assert_eq!(asked(|side| side.marks |= FINISHED), [Err(Lacks::Quiet); 2]);
        assert_eq!(asked(|side| side.marks |= RESET), [Err(Lacks::Quiet); 2]);
        assert_eq!(asked(|side| side.marks &= !STAMPED), [Err(Lacks::Packets); 2]);
        assert_eq!(asked(|side| side.leaves_by = 0), [Err(Lacks::Packets); 2]);
        let mut ahead = places;
        ahead[1].sent += 1;
        assert_eq!(ready(&seen, &legs, true, &ahead), Err(Lacks::Quiet));
    }

    #[test]
    fn a_flow_is_over_when_each_side_has_the_others_fin() {
        let (mut seen, legs, _) = still();
        assert_eq!(standing(&seen, &legs), Standing::Open);
        for (at, (end, acked)) in [(101, 5_901), (901, 70_101)].into_iter().enumerate() {
            seen[at].marks |= FINISHED;
            (seen[at].fin, seen[at].end, seen[at].ack) = (end, end.into(), acked - 1);
            assert_eq!(standing(&seen, &legs), Standing::Open);
        }
        assert_eq!(bytes(&seen[0], 100), 0, "FIN is no byte");
        seen[0].ack += 1;
        assert_eq!(standing(&seen, &legs), Standing::Open, "the client's is not acknowledged");
        seen[1].ack += 1;
        assert_eq!(standing(&seen, &legs), Standing::Closed);
        seen[1].marks |= RESET;
        assert_eq!(standing(&seen, &legs), Standing::Reset(1));
    }

    #[test]
    fn a_socket_has_paid_when_its_peer_has_all_that_it_sent() {
        let seen = |marks, ack| Seen { marks, ack, owed: 10, ..Seen::default() };
        assert!(paid(&seen(ACKED, 10)) && paid(&seen(ACKED, 11)));
        assert!(!paid(&seen(0, 10)) && !paid(&seen(ACKED, 9)));
    }
}
