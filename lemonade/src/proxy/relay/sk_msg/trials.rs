//! Behavioural self-tests of the short way, between sockets of this process on loopback.
//!
//! Each trial makes a connection one of whose ends counts as foreign, as the sockets of local clients and backends are.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lemonade_common::sk_msg::{Count, FOREIGN, MOST_UNREAD, OWN, TRIAL};
use socket2::{Domain, SockRef, Socket, Type};

use super::unread::Unread;
use crate::model::relay::SelfTest;
use crate::proxy::adapters::bpf::SkMsg;
use crate::proxy::socket::progress;

/// Time that one step of a trial may take.
const STEP: Duration = Duration::from_secs(2);

/// The same while the relay is in use, when the host may be short of time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a trial found out; the text says what went wrong.
type Outcome = Result<(), String>;

/// Runs all trials in turn.
pub fn run(relay: &SkMsg, unread: &Arc<Unread>) -> Vec<SelfTest> {
    let bench = match Bench::new(relay, unread, STEP) {
        Ok(bench) => bench,
        Err(error) => return vec![told("sockets on loopback", Instant::now(), Err(error))],
    };
    TRIALS.iter().map(|trial| bench.run(trial)).collect()
}

/// Runs one of the trials that cost little, another each `turn`; `None` without sockets or room for them, which says
/// nothing of the relay.
pub fn canary(relay: &SkMsg, unread: &Arc<Unread>, turn: usize) -> Option<SelfTest> {
    let bench = Bench::new(relay, unread, PATIENCE).ok()?;
    let full = bench.count(Count::Full);
    let began = Instant::now();
    // Without this, those that only look at bytes would pass over TCP.
    let joined = bench.hops().ok()?.iter().try_for_each(|hop| hop.joined(relay));
    let test = match joined {
        Ok(()) => bench.run(&CANARIES[turn % CANARIES.len()]),
        Err(_) => told("sockets join", began, joined),
    };
    (test.passed || bench.count(Count::Full) == full).then_some(test)
}

fn told(name: &str, began: Instant, outcome: Outcome) -> SelfTest {
    SelfTest {
        name: name.to_owned(),
        passed: outcome.is_ok(),
        detail: outcome.err().unwrap_or_default(),
        took_ms: began.elapsed().as_secs_f64() * 1e3,
    }
}

/// A trial by name.
type Trial = (&'static str, fn(&Bench<'_>) -> Outcome);

const TRIALS: [Trial; 9] = [
    CANARIES[0],
    CANARIES[1],
    ("4 MiB each way at once", both_ways),
    ("a sender whose bytes nobody reads waits", unanswered),
    ("a balancer whose bytes nobody reads is held", held),
    CANARIES[2],
    CANARIES[3],
    CANARIES[4],
    ("32 streams at once", parallel),
];

/// Those that cost little.
const CANARIES: [Trial; 5] = [
    ("messages take the short way", turns),
    ("bytes before accept", early),
    ("half-close in both orders", half_close),
    ("a reset stays a reset", reset),
    ("a close with bytes unread is noticed", left_unread),
];

/// What the trials share.
struct Bench<'a> {
    relay: &'a SkMsg,
    listener: TcpListener,
    address: SocketAddr,
    unread: Arc<Unread>,
    /// Time that one step may take.
    step: Duration,
}

/// A connection: the end of the balancer and the end of its peer.
struct Hop {
    own: TcpStream,
    foreign: TcpStream,
}

impl<'a> Bench<'a> {
    fn new(relay: &'a SkMsg, unread: &Arc<Unread>, step: Duration) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(words)?;
        let address = listener.local_addr().map_err(words)?;
        Ok(Self { relay, listener, address, unread: Arc::clone(unread), step })
    }

    fn run(&self, (name, trial): &Trial) -> SelfTest {
        let began = Instant::now();
        told(name, began, trial(self))
    }

    /// A socket that joins as `owner` and has connected.
    fn connected(&self, owner: u32) -> Result<TcpStream, String> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(words)?;
        self.relay.dial(&socket, owner | TRIAL);
        socket.connect(&self.address.into()).map_err(words)?;
        Ok(socket.into())
    }

    /// As a client of this host reaches the balancer.
    fn accepted(&self) -> Result<Hop, String> {
        let foreign = self.connected(FOREIGN)?;
        let (own, _) = self.listener.accept().map_err(words)?;
        self.prepared(Hop { own, foreign })
    }

    /// As the balancer reaches a backend of this host.
    fn dialled(&self) -> Result<Hop, String> {
        let own = self.connected(OWN)?;
        let (foreign, _) = self.listener.accept().map_err(words)?;
        self.prepared(Hop { own, foreign })
    }

    fn prepared(&self, hop: Hop) -> Result<Hop, String> {
        for stream in [&hop.own, &hop.foreign] {
            stream.set_nodelay(true).map_err(words)?;
            stream.set_read_timeout(Some(self.step)).map_err(words)?;
            stream.set_write_timeout(Some(self.step)).map_err(words)?;
        }
        Ok(hop)
    }

    fn hops(&self) -> Result<[Hop; 2], String> {
        Ok([self.accepted()?, self.dialled()?])
    }

    /// How far a counter has come, for all connections together.
    fn count(&self, what: Count) -> u64 {
        self.relay.counts()[what as usize]
    }
}

impl Hop {
    /// Both ends take part.
    fn joined(&self, relay: &SkMsg) -> Outcome {
        let ends = (self.own.local_addr().map_err(words)?, self.own.peer_addr().map_err(words)?);
        if relay.joined(ends.0, ends.1) && relay.joined(ends.1, ends.0) {
            return Ok(());
        }
        Err("new sockets do not take part".to_owned())
    }

    /// Nothing that was sent, either way, has taken TCP.
    fn all_short(&self) -> Outcome {
        for stream in [&self.own, &self.foreign] {
            let received = progress(stream).map_err(words)?.received;
            if received != 0 {
                return Err(format!("{received} bytes took TCP"));
            }
        }
        Ok(())
    }
}

/// Requests and answers of many sizes: all right, and all on the short way.
fn turns(bench: &Bench<'_>) -> Outcome {
    for mut hop in bench.hops()? {
        for turn in 0..40_u64 {
            let size = 1 + (turn * turn * 37 % 65_536) as usize;
            let sent = stream_of(turn, size);
            for back in [false, true] {
                let Hop { own, foreign } = &mut hop;
                let (from, to) = if back { (own, foreign) } else { (foreign, own) };
                from.write_all(&sent).map_err(words)?;
                let mut got = vec![0; size];
                to.read_exact(&mut got).map_err(words)?;
                same(&sent, &got)?;
            }
        }
        hop.all_short()?;
    }
    Ok(())
}

/// Bytes that a client sends before anybody has accepted it.
fn early(bench: &Bench<'_>) -> Outcome {
    let mut foreign = bench.connected(FOREIGN)?;
    let sent = stream_of(1, 3_000);
    foreign.write_all(&sent[..1_000]).map_err(words)?;
    std::thread::sleep(Duration::from_millis(5));
    let (own, _) = bench.listener.accept().map_err(words)?;
    let mut hop = bench.prepared(Hop { own, foreign })?;
    hop.foreign.write_all(&sent[1_000..]).map_err(words)?;
    let mut got = vec![0; sent.len()];
    hop.own.read_exact(&mut got).map_err(words)?;
    same(&sent, &got)
}

/// Bulk in both directions at once, through all that makes a message take TCP.
fn both_ways(bench: &Bench<'_>) -> Outcome {
    bench.hops()?.into_iter().try_for_each(|hop| exchange(hop, 4 << 20, &bench.unread))
}

/// A foreign sender whose bytes nobody reads: it must wait, as with TCP, and never see an error.
fn unanswered(bench: &Bench<'_>) -> Outcome {
    for mut hop in bench.hops()? {
        hop.foreign.set_nonblocking(true).map_err(words)?;
        let sent = stream_of(7, 32 << 20);
        let mut at = 0;
        let waited = loop {
            match hop.foreign.write(&sent[at..(at + 100_000).min(sent.len())]) {
                Ok(count) => at += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(error) => return Err(format!("send said {error} after {at} bytes")),
            }
            if at == sent.len() {
                break false;
            }
        };
        if !waited {
            return Err("32 MiB were taken although nobody read".to_owned());
        }
        hop.foreign.set_nonblocking(false).map_err(words)?;
        let Hop { mut own, mut foreign } = hop;
        let rest = sent.clone();
        let writer = std::thread::spawn(move || foreign.write_all(&rest[at..]).map(|()| foreign));
        let got = drained(&mut own, sent.len())?;
        same(&sent, &got)?;
        let _foreign = writer.join().map_err(|_| "the writer failed")?.map_err(words)?;
    }
    Ok(())
}

/// The balancer's own sends to a foreign reader who does not read: the kernel tells what is unread, and TCP has no part.
fn held(bench: &Bench<'_>) -> Outcome {
    for Hop { own, mut foreign } in bench.hops()? {
        let sent = stream_of(9, 3 * MOST_UNREAD as usize);
        let unread = |want: usize| match unread_of(bench, &own)? as usize {
            unread if unread == want => Ok(()),
            unread => Err(format!("{want} bytes are unread, the kernel says {unread}")),
        };
        for (at, part) in sent.chunks(MOST_UNREAD as usize).enumerate() {
            (&own).write_all(part).map_err(words)?;
            unread(part.len())?;
            let got = drained(&mut foreign, part.len())?;
            same(part, &got).map_err(|error| format!("part {at}: {error}"))?;
            unread(0)?;
        }
        let hop = Hop { own, foreign };
        hop.all_short()?;
        let Hop { own, mut foreign } = hop;
        own.shutdown(Shutdown::Write).map_err(words)?;
        same(&[], &to_end(&mut foreign)?)?;
    }
    Ok(())
}

/// What the other end of `own` has unread.
fn unread_of(bench: &Bench<'_>, own: &TcpStream) -> Result<u32, String> {
    let ends = (own.peer_addr().map_err(words)?, own.local_addr().map_err(words)?);
    bench.unread.of(ends.0, ends.1).ok_or_else(|| "the kernel does not tell what is unread".to_owned())
}

/// FIN comes after the last byte, and the other direction goes on.
fn half_close(bench: &Bench<'_>) -> Outcome {
    for first_own in [false, true] {
        for Hop { mut own, mut foreign } in bench.hops()? {
            let (one, other) = if first_own { (&mut own, &mut foreign) } else { (&mut foreign, &mut own) };
            let sent = stream_of(3, 50_000);
            one.write_all(&sent).map_err(words)?;
            one.shutdown(Shutdown::Write).map_err(words)?;
            same(&sent, &to_end(other)?)?;
            other.write_all(&sent).map_err(words)?;
            other.shutdown(Shutdown::Write).map_err(words)?;
            same(&sent, &to_end(one)?)?;
        }
    }
    Ok(())
}

/// RST from either end is an error at the other, after the bytes before it or instead of them.
fn reset(bench: &Bench<'_>) -> Outcome {
    for by_own in [false, true] {
        for Hop { own, foreign } in bench.hops()? {
            let (mut by, mut at) = if by_own { (own, foreign) } else { (foreign, own) };
            by.write_all(&stream_of(4, 10)).map_err(words)?;
            SockRef::from(&by).set_linger(Some(Duration::ZERO)).map_err(words)?;
            drop(by);
            match at.read_to_end(&mut Vec::new()) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => return Err(format!("the other end saw {error}")),
                Ok(_) => return Err("the other end saw FIN".to_owned()),
            }
        }
    }
    Ok(())
}

/// What TCP would answer with RST: a foreign end that closes and has not read everything.
fn left_unread(bench: &Bench<'_>) -> Outcome {
    let told = |own: &mut TcpStream, ends: (SocketAddr, SocketAddr), expected| {
        let _ = own.read(&mut [0]);
        let told = bench.relay.left_unread(ends.0, ends.1);
        if told == expected { Ok(()) } else { Err(format!("bytes unread: {expected}, told: {told}")) }
    };
    for (unread, fin) in [(false, false), (true, false), (false, true), (true, true)] {
        for Hop { mut own, mut foreign } in bench.hops()? {
            let ends = (own.local_addr().map_err(words)?, own.peer_addr().map_err(words)?);
            own.write_all(&stream_of(5, 1_000)).map_err(words)?;
            let mut got = vec![0; if unread { 999 } else { 1_000 }];
            foreign.read_exact(&mut got).map_err(words)?;
            if fin {
                // It stays unread, which is no loss.
                own.shutdown(Shutdown::Write).map_err(words)?;
            }
            drop(foreign);
            told(&mut own, ends, unread)?;
        }
    }
    // Half-closed behind the other's FIN, with bytes unread that still can be.
    for Hop { mut own, mut foreign } in bench.hops()? {
        let ends = (own.local_addr().map_err(words)?, own.peer_addr().map_err(words)?);
        own.write_all(&stream_of(5, 1_000)).map_err(words)?;
        own.shutdown(Shutdown::Write).map_err(words)?;
        foreign.shutdown(Shutdown::Write).map_err(words)?;
        told(&mut own, ends, false)?;
        same(&stream_of(5, 1_000), &to_end(&mut foreign)?)?;
    }
    Ok(())
}

/// Many connections at once, small and large messages mixed.
fn parallel(bench: &Bench<'_>) -> Outcome {
    let mut hops = Vec::new();
    for _ in 0..16 {
        hops.extend(bench.hops()?);
    }
    let threads: Vec<_> = hops
        .into_iter()
        .enumerate()
        .map(|(at, hop)| {
            let unread = Arc::clone(&bench.unread);
            std::thread::spawn(move || exchange(hop, 50_000 + 9_973 * at, &unread))
        })
        .collect();
    threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread failed")?)
}

/// Moves `size` bytes each way at once, in writes of many sizes, and both half-closes.
fn exchange(hop: Hop, size: usize, unread: &Arc<Unread>) -> Outcome {
    let Hop { own, foreign } = hop;
    let clone = |stream: &TcpStream| stream.try_clone().map_err(words);
    let (mut own_reader, mut foreign_reader) = (clone(&own)?, clone(&foreign)?);
    // As the relay does: the balancer never gives a foreign reader more than it may have unread.
    let ends = (own.peer_addr().map_err(words)?, own.local_addr().map_err(words)?);
    let unread = Arc::clone(unread);
    let room = move |bytes: usize| {
        unread.of(ends.0, ends.1).is_none_or(|unread| unread as usize + bytes <= MOST_UNREAD as usize)
    };
    let writers = [writer(own, 11, size, room), writer(foreign, 12, size, |_| true)];
    let reader = std::thread::spawn(move || to_end(&mut own_reader));
    let at_foreign = to_end(&mut foreign_reader)?;
    let at_own = reader.join().map_err(|_| "a reader failed")??;
    for writer in writers {
        writer.join().map_err(|_| "a writer failed")??;
    }
    same(&stream_of(11, size), &at_foreign)?;
    same(&stream_of(12, size), &at_own)
}

/// Writes a stream in pieces of many sizes, each when there is room, and closes that direction.
fn writer(
    mut stream: TcpStream,
    seed: u64,
    size: usize,
    room: impl Fn(usize) -> bool + Send + 'static,
) -> JoinHandle<Outcome> {
    std::thread::spawn(move || {
        let bytes = stream_of(seed, size);
        let (mut at, mut turn) = (0, seed | 1);
        while at < size {
            turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let next = (at + 1 + (turn >> 33) as usize % 70_000).min(size);
            while !room(next - at) {
                std::thread::sleep(Duration::from_micros(200));
            }
            stream.write_all(&bytes[at..next]).map_err(words)?;
            at = next;
        }
        stream.shutdown(Shutdown::Write).map_err(words)
    })
}

fn drained(stream: &mut TcpStream, size: usize) -> Result<Vec<u8>, String> {
    let began = Instant::now();
    let mut got = vec![0; size];
    let mut at = 0;
    while at < size {
        match stream.read(&mut got[at..(at + 70_001).min(size)]) {
            Ok(0) => return Err(format!("FIN after {at} bytes")),
            Ok(count) => at += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock && began.elapsed() < STEP => {}
            Err(error) => return Err(format!("{} after {at} of {size} bytes", words(error))),
        }
    }
    Ok(got)
}

fn to_end(stream: &mut TcpStream) -> Result<Vec<u8>, String> {
    let (mut got, began) = (Vec::new(), Instant::now());
    loop {
        match stream.read_to_end(&mut got) {
            Ok(_) => return Ok(got),
            // A blocking read may be woken for nothing: the kernel does not go on waiting.
            Err(error) if error.kind() == ErrorKind::WouldBlock && began.elapsed() < STEP => {}
            Err(error) => return Err(format!("{} after {} bytes", words(error), got.len())),
        }
    }
}

/// Bytes that depend on their place, so that a lost, doubled or moved one shows.
fn stream_of(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_ne_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn same(sent: &[u8], got: &[u8]) -> Outcome {
    if sent == got {
        return Ok(());
    }
    let at = sent
        .iter()
        .zip(got)
        .position(|(one, other)| one != other)
        .unwrap_or_else(|| got.len().min(sent.len()));
    Err(format!("byte {at} of {} is wrong; {} came", sent.len(), got.len()))
}

fn words(error: io::Error) -> String {
    if error.kind() == ErrorKind::WouldBlock {
        "nothing more came in time".to_owned()
    } else {
        error.to_string()
    }
}
