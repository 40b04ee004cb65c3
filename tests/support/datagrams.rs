//! Datagrams: a backend that echoes them, and clients that check what comes back.
//!
//! A datagram of a client is tagged through and through with the client and its number; the answer is the same with the
//! backend's letter as its first byte. So whatever is cut, doubled or handed to somebody else is noticed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest datagram over IPv4.
pub const LONGEST: usize = 65_507;

/// Bytes in front of the fill: the backend's letter, the client, the number.
pub const HEADER: usize = 1 + 4 + 8;

/// Time after which a datagram or its answer counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A backend that echoes.
pub struct Echo {
    /// Where it listens.
    pub address: SocketAddr,
    heard: Arc<Mutex<BTreeMap<SocketAddr, u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts one on a free port of `127.0.0.1`.
    pub fn start(letter: u8) -> Self {
        Self::on(letter, ([127, 0, 0, 1], 0).into())
    }

    /// Starts one on `address`.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn on(letter: u8, address: SocketAddr) -> Self {
        let socket = UdpSocket::bind(address).expect("a free address");
        let address = socket.local_addr().expect("a bound socket");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a live socket");
        let (heard, stop) = (Arc::<Mutex<BTreeMap<_, u64>>>::default(), Arc::<AtomicBool>::default());
        let (counts, stopped) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; LONGEST + 1];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                *counts.lock().expect("no panic under the lock").entry(peer).or_default() += 1;
                let answer = &mut buffer[..length];
                if let Some(first) = answer.first_mut() {
                    *first = letter;
                }
                let _ = socket.send_to(answer, peer);
            }
        });
        Self { address, heard, stop, thread: Some(thread) }
    }

    /// Datagrams heard, by who sent them.
    ///
    /// # Panics
    /// When its thread did.
    pub fn heard(&self) -> BTreeMap<SocketAddr, u64> {
        self.heard.lock().expect("no panic under the lock").clone()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A client with a socket of its own.
pub struct Client {
    /// Its socket, not connected: it sees from whom an answer comes.
    pub socket: UdpSocket,
    /// Where it sends.
    pub server: SocketAddr,
    id: u32,
    sent: u64,
}

impl Client {
    /// A client of `server`, on a port of its own.
    ///
    /// # Panics
    /// When no port is left.
    pub fn of(server: SocketAddr) -> Self {
        static CLIENTS: AtomicU32 = AtomicU32::new(1);
        let own: IpAddr = match server.ip() {
            loopback if loopback.is_loopback() => loopback,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((own, 0)).expect("a free port");
        socket.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        Self { socket, server, id: CLIENTS.fetch_add(1, Ordering::Relaxed), sent: 0 }
    }

    /// Makes the next datagram of `length` bytes; one that is shorter than its tag is cut.
    pub fn next(&mut self, length: usize) -> (u64, Vec<u8>) {
        self.sent += 1;
        (self.sent, datagram(self.id, self.sent, length))
    }

    /// Sends one datagram, without waiting for the answer; tells its number.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn say(&mut self, length: usize) -> u64 {
        let (number, bytes) = self.next(length);
        let sent = self.socket.send_to(&bytes, self.server).expect("a datagram that goes");
        assert_eq!(sent, length);
        number
    }

    /// The next answer: the backend's letter and the datagram's number, all else checked; `None` after `patience`.
    ///
    /// # Panics
    /// When it is not what this client sent, or does not come from where it sent it.
    pub fn hear(&self, patience: Duration) -> Option<(char, u64)> {
        self.socket.set_read_timeout(Some(patience)).expect("a live socket");
        let mut buffer = vec![0; LONGEST + 1];
        let end = Instant::now() + patience;
        let (length, from) = loop {
            match self.socket.recv_from(&mut buffer) {
                Ok(heard) => break heard,
                Err(_) if Instant::now() < end => {}
                Err(_) => return None,
            }
        };
        assert_eq!(from, self.server, "the answer comes from the address that was asked");
        let answer = &buffer[..length];
        if length < HEADER {
            return Some((answer.first().map_or(' ', |&letter| letter.into()), 0));
        }
        let number = u64::from_be_bytes(answer[5..HEADER].try_into().expect("eight bytes"));
        let whole = datagram(self.id, number, length);
        assert!(answer[1..] == whole[1..], "client {}: answer {number} is not what was sent", self.id);
        Some((answer[0].into(), number))
    }

    /// Sends one datagram of `length` bytes and waits for its answer: the backend's letter.
    ///
    /// # Panics
    /// When another answer comes.
    pub fn try_ask(&mut self, length: usize) -> Option<char> {
        let number = self.say(length);
        let (letter, answered) = self.hear(PATIENCE)?;
        assert!(length < HEADER || answered == number, "answer {answered} to datagram {number}");
        Some(letter)
    }

    /// As [`Self::try_ask`], for an answer that must come.
    ///
    /// # Panics
    /// When none comes.
    pub fn ask(&mut self, length: usize) -> char {
        self.try_ask(length).unwrap_or_else(|| panic!("client {}: no answer", self.id))
    }
}

fn datagram(client: u32, number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![b'?'];
    bytes.extend(client.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    // Every byte depends on its place, the client and the number.
    let mut state = u64::from(client) << 32 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend((state >> 16).to_be_bytes());
    }
    bytes.truncate(length);
    bytes
}
