//! Self-tests of relay `splice`: what the hand-over takes for granted of this kernel. Packets of loopback pass by no program, so
//! the programs are run on packets that go nowhere.

#![cfg(target_os = "linux")]

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lemonade_common::csum;

use super::check::{Anchor, Place, Tcp, legs};
use super::socket::{Holder, held as memory, info, place, stamp};
use super::{FLOWS, Relay, grace};
use crate::model::relay::SelfTest;
use crate::proxy::adapters::bpf::{Splice, Unavailable};

/// Time in which a FIN or RST would have come on loopback.
const SILENCE: Duration = Duration::from_millis(30);

/// Time after which a peer of loopback has answered.
const PATIENCE: Duration = Duration::from_secs(2);

/// `TC_ACT_REDIRECT`, and the action of a program that leaves the packet alone.
const REDIRECTED: u32 = 7;
const LEFT: u32 = u32::MAX;

/// Sends the programs through the verifier, runs the self-tests and lets go of the programs.
///
/// # Errors
/// Why nothing can be loaded, and what would change that.
pub fn once() -> Result<Vec<SelfTest>, Unavailable> {
    Relay::load(FLOWS.min(64)).map(|relay| run(&relay))
}

/// A self-test by name, and what it found wrong.
type Test<'a> = (&'static str, &'a dyn Fn() -> Result<(), String>);

/// Runs the self-tests, with a slot of the relay; blocks for a few hundred milliseconds at most.
pub fn run(relay: &Relay) -> Vec<SelfTest> {
    let tests: [Test<'_>; 5] = [
        ("streams of a socket can be read", &places),
        ("a socket falls silent", &silent),
        ("a port is held", &held),
        ("packets on their way are waited for", &|| grace().map_err(|error| said("membarrier", &error))),
        ("packets are translated", &|| translated(relay)),
    ];
    tests
        .map(|(name, test)| {
            let began = Instant::now();
            let outcome = test();
            SelfTest {
                name: name.to_owned(),
                passed: outcome.is_ok(),
                detail: outcome.err().unwrap_or_default(),
                took_ms: began.elapsed().as_micros() as f64 / 1e3,
            }
        })
        .into()
}

fn pair() -> Result<[TcpStream; 2], String> {
    let made = || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let far = TcpStream::connect(listener.local_addr()?)?;
        far.set_read_timeout(Some(PATIENCE))?;
        Ok([listener.accept()?.0, far])
    };
    made().map_err(|error: io::Error| format!("no canary: {error}"))
}

fn said(what: &str, error: &io::Error) -> String {
    format!("{what}: {error}")
}

/// What one end has sent the other has received, and looking disturbs neither.
fn places() -> Result<(), String> {
    let [mut near, mut far] = pair()?;
    let look = |near: &TcpStream, far: &TcpStream| -> io::Result<_> {
        Ok(([place(near)?, place(far)?], [info(near)?, info(far)?], stamp(near)?))
    };
    let (places, tcp, _) = look(&near, &far).map_err(|error| said("a look", &error))?;
    let anchors = [0, 1].map(|at| Anchor { place: places[at], tcp: tcp[at], copied: [0; 2] });
    for round in 1..=3 {
        let exchange = |from: &mut TcpStream, to: &mut TcpStream| {
            from.write_all(&[7; 1000])?;
            to.peek(&mut [0])?;
            let unread = memory(to)?;
            to.read_exact(&mut [0; 1000])?;
            Ok::<_, io::Error>((unread, memory(to)?))
        };
        let both = exchange(&mut near, &mut far)
            .and_then(|one| exchange(&mut far, &mut near).map(|other| [one, other]));
        let both = both.map_err(|error| said("bytes after a look", &error))?;
        if both.iter().any(|(unread, read)| *unread == 0 || *read > 0) {
            return Err(format!("bytes held before and after they were read: {both:?}"));
        }
        let (places, tcp, _) = look(&near, &far).map_err(|error| said("a look", &error))?;
        let [one, other] = places;
        if (one.sent, one.received) != (other.received, other.sent) || !tcp[0].quiet() {
            return Err(format!("after {round} exchanges {one:?} met {other:?}"));
        }
        let copied = [round * 1000; 2];
        let counted =
            |at: usize| anchors[at].place(copied) == places[at] && anchors[at].received(&tcp[at], copied);
        if !(counted(0) && counted(1)) {
            return Err(format!("after {round} exchanges the kernel had counted {tcp:?} at {places:?}"));
        }
    }
    Ok(())
}

/// A socket that was silenced sends neither FIN nor RST when it closes.
fn silent() -> Result<(), String> {
    let [mut near, mut far] = pair()?;
    let exchange = near.write_all(b"x").and_then(|()| far.read_exact(&mut [0]));
    exchange.map_err(|error| said("a byte", &error))?;
    let mut holder = Holder::new(near);
    let until = Instant::now() + PATIENCE;
    while !holder.knows() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    holder.silence().map_err(|error| said("a socket would not fall silent", &error))?;
    drop(holder);
    hears_nothing(&mut far)
}

/// A socket that takes the place of one whose peer has not acknowledged everything holds its port, and resets it in the end.
fn held() -> Result<(), String> {
    let [near, mut far] = pair()?;
    let own = near.local_addr().map_err(|error| said("an address", &error))?;
    let peer = far.local_addr().map_err(|error| said("an address", &error))?;
    let mut holder = Holder::new(near);
    holder.silence().and_then(|()| holder.replace()).map_err(|error| said("a port is not held", &error))?;
    hears_nothing(&mut far)?;
    if holder.ends().ok() != Some([own, peer]) {
        return Err("another address is held".to_owned());
    }
    holder.reset();
    Ok(())
}

fn hears_nothing(far: &mut TcpStream) -> Result<(), String> {
    far.set_read_timeout(Some(SILENCE)).map_err(|error| said("a timeout", &error))?;
    match far.read(&mut [0; 8]) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
        Ok(count) => Err(format!("the peer read {count} bytes: an end that nobody sent")),
        Err(error) => Err(said("the peer met", &error)),
    }
}

/// A segment is left alone until the hand-over and translated afterwards.
fn translated(relay: &Relay) -> Result<(), String> {
    let slot = relay.lock().free.pop().ok_or("there is no free slot")?;
    let ends = [["198.18.0.1:4000", "198.18.0.2:80"], ["198.19.0.1:8080", "198.19.0.2:5000"]];
    let ends =
        ends.map(|side| side.map(|text| text.parse().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0)))));
    let places = [Place { received: 100, sent: 200 }, Place { received: 3_000, sent: 4_000 }];
    let legs = legs(slot, &ends, &[Tcp::default(); 2], &places);
    let programs = &relay.programs;
    programs.begin(slot, places.map(|place| place.received), places.map(|place| place.sent));
    let outcome = programs.join(&legs).map_err(|error| said("a flow", &error)).and_then(|()| {
        for (at, place) in places.iter().enumerate() {
            programs.promise(slot, at, place.received, place.sent, 0);
        }
        run_programs(programs, slot, &ends)
    });
    programs.part(&legs.map(|(key, _)| key));
    relay.lock().retired.push(slot);
    outcome
}

fn run_programs(programs: &Splice, slot: u32, ends: &[[SocketAddr; 2]; 2]) -> Result<(), String> {
    let [[client, frontend], [backend, own]] = *ends;
    let sent = segment(client, frontend, 100, 200);
    let arrives = || programs.trial(false, &sent).map_err(|error| error.to_string());
    let before = arrives()?;
    if (before.action, &before.packet) != (LEFT, &sent) {
        return Err(format!("before the hand-over a segment came to action {}", before.action));
    }
    let state = programs.state(slot);
    if programs.hand_over(slot, state.wrapping_sub(1)) || !programs.hand_over(slot, state) {
        return Err(format!("a flow in state {state} was handed over at the wrong moment"));
    }
    let after = arrives()?;
    let wanted = segment(own, backend, 4_000, 3_000);
    match (after.action, after.packet == wanted) {
        (REDIRECTED, true) => Ok(()),
        (REDIRECTED, false) => Err("a segment was translated into another".to_owned()),
        (action, _) => Err(format!("after the hand-over a segment came to action {action}")),
    }
}

/// An Ethernet frame with a segment of four bytes.
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32, ack: u32) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    tcp.extend(*b"data");
    let mut ip = vec![0x45, 0, 0, 20 + tcp.len() as u8, 0, 0, 0x40, 0, 64, 6, 0, 0];
    for end in [from, to] {
        if let SocketAddr::V4(end) = end {
            ip.extend(end.ip().octets());
        }
    }
    let pseudo = [&ip[12..20], &[0, 6, 0, tcp.len() as u8], &tcp].concat();
    let sum = csum::finish(csum::sum(&pseudo));
    tcp[16..18].copy_from_slice(&sum);
    let sum = csum::finish(csum::sum(&ip));
    ip[10..12].copy_from_slice(&sum);
    let ethernet = [&[2; 12][..], &[8, 0]].concat();
    [ethernet, ip, tcp].concat()
}
