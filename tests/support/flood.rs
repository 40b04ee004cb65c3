//! A flood of SYNs from clients that do not exist, bounded in number and time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::packets::Shape;

/// Network that invented clients are of (RFC 2544: for benchmarks).
pub const INVENTED: &str = "198.18.0.0/16";

/// Packets between two looks at the clock.
const BATCH: u64 = 50;

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// Time that it took.
    pub took: Duration,
}

/// A flood that runs.
pub struct Flood(JoinHandle<Sent>);

impl Flood {
    /// Sends `rate` SYNs a second by an interface of this thread's namespace to `frontend`, of IPv4, for so long; fewer where
    /// the host is not fast enough.
    ///
    /// # Panics
    /// When there is no such interface, or this is not root.
    pub fn start(interface: &str, to: [u8; 6], frontend: SocketAddr, rate: u64, time: Duration) -> Self {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).expect("root may open it");
        let name = std::ffi::CString::new(interface).expect("a plain name");
        // SAFETY: the name ends with a zero, and the kernel only reads it.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert_ne!(index, 0, "no interface {interface}");
        // SAFETY: the address is written whole, and its size is told.
        let (_, address) = unsafe {
            SockAddr::try_init(|place, length| {
                let mut link: libc::sockaddr_ll = std::mem::zeroed();
                link.sll_family = libc::AF_PACKET as u16;
                link.sll_ifindex = index as i32;
                place.cast::<libc::sockaddr_ll>().write(link);
                length.write(size_of::<libc::sockaddr_ll>() as u32);
                Ok(())
            })
        }
        .expect("an address");
        socket.bind(&address).expect("the interface is there");
        Self(std::thread::spawn(move || send(&socket, &syn(to, frontend), rate, time)))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it did.
    pub fn end(self) -> Sent {
        self.0.join().expect("the flood does not panic")
    }
}

fn syn(to: [u8; 6], frontend: SocketAddr) -> Vec<u8> {
    let client = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)), 0);
    let mut packet = Shape::tcp(&client.to_string(), &frontend.to_string(), 2).build();
    packet[..6].copy_from_slice(&to);
    packet
}

fn send(socket: &Socket, template: &[u8], rate: u64, time: Duration) -> Sent {
    let start = Instant::now();
    let mut packets = 0;
    while start.elapsed() < time {
        let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
        if packets >= due {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        for _ in 0..BATCH.min(due - packets) {
            // A queue that is full loses it, as a link would.
            let _ = socket.send(&invented(template, packets));
            packets += 1;
        }
    }
    Sent { packets, took: start.elapsed() }
}

/// The template as another client sends it: host and port come from the number of the packet.
fn invented(template: &[u8], n: u64) -> Vec<u8> {
    let mut packet = template.to_vec();
    // Multiples of an odd number come once each before one comes again.
    let client = (n as u32).wrapping_mul(0x9e37_79b1);
    let (host, port) = ((client >> 16) as u16, client as u16 | 1);
    // Offsets of the header's checksum, the host, the port and the checksum of TCP.
    for (checksum, words) in [(24, &[(28, host)][..]), (50, &[(28, host), (34, port)])] {
        let mut sum = u32::from(!half(template, checksum));
        for (at, word) in words {
            // RFC 1624, equation 3.
            sum += u32::from(!half(template, *at)) + u32::from(*word);
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        packet[checksum..checksum + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    packet[28..30].copy_from_slice(&host.to_be_bytes());
    packet[34..36].copy_from_slice(&port.to_be_bytes());
    packet
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::packets::read;

    #[test]
    fn invented_clients_differ_and_their_packets_are_well_formed() {
        let frontend: SocketAddr = "10.77.1.2:8080".parse().expect("an address");
        let template = syn([2; 6], frontend);
        let clients: HashSet<_> = (0..20_000)
            .map(|n| {
                let said = read(&invented(&template, n)).expect("well-formed");
                assert_eq!(said.to, frontend);
                said.from
            })
            .collect();
        assert!(clients.len() > 19_000, "{} clients", clients.len());
    }
}
