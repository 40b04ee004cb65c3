//! Clients: single calls, open-loop load of calls, long flows with running checks.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{socket, stream};

/// Bytes of a request header.
pub const HEADER: usize = 25;
/// Bytes of a call after its header.
pub const BODY: usize = 64;
/// Bytes of an answer: a name, padded with spaces, and a body.
const ANSWER: usize = NAME + BODY;
/// Bytes of a name in an answer, padded with spaces.
pub const NAME: usize = 16;
/// Time after which a call counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request, one answer, both ends close.
    Call,
    /// Everything is echoed.
    Flow,
    /// Two streams of given lengths, at the same time.
    Transfer,
    /// Every eight bytes are echoed behind the backend's name.
    Named,
}

impl Kind {
    /// The kind that a first byte stands for.
    pub const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Call),
            2 => Some(Self::Flow),
            3 => Some(Self::Transfer),
            4 => Some(Self::Named),
            _ => None,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Call => 1,
            Self::Flow => 2,
            Self::Transfer => 3,
            Self::Named => 4,
        }
    }
}

/// First bytes of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What it is for.
    pub kind: Kind,
    /// Seed of what the client sends; the backend sends the stream of its complement.
    pub seed: u64,
    /// Bytes that the client sends.
    pub up: u64,
    /// Bytes that the backend sends.
    pub down: u64,
}

impl Header {
    /// As bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [self.kind.byte(); HEADER];
        for (at, field) in [(1, self.seed), (9, self.up), (17, self.down)] {
            bytes[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// From bytes whose first one is a [`Kind`].
    ///
    /// # Panics
    /// When it is not.
    pub fn decode(bytes: &[u8; HEADER]) -> Self {
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let kind = Kind::of(bytes[0]).expect("a kind");
        Self { kind, seed: field(1), up: field(9), down: field(17) }
    }
}

/// What backend `name` answers to call `seed`.
pub fn answer(name: &str, seed: u64) -> [u8; ANSWER] {
    let mut bytes = [b' '; ANSWER];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    stream::fill(!seed, 0, &mut bytes[NAME..]);
    bytes
}

fn question(seed: u64) -> [u8; HEADER + BODY] {
    let mut bytes = [0; HEADER + BODY];
    let header = Header { kind: Kind::Call, seed, up: BODY as u64, down: ANSWER as u64 };
    bytes[..HEADER].copy_from_slice(&header.encode());
    stream::fill(seed, 0, &mut bytes[HEADER..]);
    bytes
}

fn read_answer(seed: u64, bytes: &[u8]) -> io::Result<String> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if bytes.len() != ANSWER {
        return Err(invalid(format!("an answer of {} bytes instead of {ANSWER}", bytes.len())));
    }
    stream::check(!seed, 0, &bytes[NAME..]).map_err(|mismatch| invalid(mismatch.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes[..NAME]).trim_end().to_owned())
}

/// One call; returns the name of the backend that answered.
pub fn call(address: SocketAddr) -> io::Result<String> {
    call_on(socket::connect(address)?)
}

/// As [`call`], on a connection that is there already.
///
/// # Errors
/// As [`call`].
pub fn call_on(mut stream: std::net::TcpStream) -> io::Result<String> {
    let seed = fastrand::u64(..);
    stream.write_all(&question(seed))?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    read_answer(seed, &bytes)
}

/// `n` calls one after the other; returns the names in order.
///
/// # Panics
/// When one fails.
pub fn calls(address: SocketAddr, n: usize) -> Vec<String> {
    (0..n).map(|n| call(address).unwrap_or_else(|error| panic!("call {n}: {error}"))).collect()
}

/// How often each name occurs.
pub fn tally(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

async fn call_async(address: SocketAddr, seed: u64) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&question(seed)).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    read_answer(seed, &bytes)
}

/// Outcome of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Calls answered, by backend.
    pub answered: BTreeMap<String, u64>,
    /// Why calls failed.
    pub failed: Vec<String>,
    /// Time from the first call to the last.
    pub took: Duration,
}

impl Outcome {
    /// Calls answered.
    pub fn total(&self) -> u64 {
        self.answered.values().sum()
    }
}

/// Calls at a constant rate, whatever becomes of earlier ones.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Outcome>,
}

impl Load {
    /// Starts `rate` calls per second.
    pub fn start(address: SocketAddr, rate: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(open_loop(address, rate, &stopped, &counted))
        });
        Self { stop, done, thread }
    }

    /// Calls answered so far.
    pub fn answered(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Stops and waits for the calls under way.
    ///
    /// # Panics
    /// When the load panicked.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load does not panic")
    }
}

async fn open_loop(address: SocketAddr, rate: u32, stop: &AtomicBool, done: &Arc<AtomicU64>) -> Outcome {
    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut under_way = tokio::task::JoinSet::new();
    let mut outcome = Outcome::default();
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let done = Arc::clone(done);
        under_way.spawn(async move {
            let begun = start.elapsed();
            let seed = fastrand::u64(..);
            match timeout(PATIENCE, call_async(address, seed)).await {
                Ok(Ok(name)) => {
                    done.fetch_add(1, Ordering::Relaxed);
                    Ok(name)
                }
                Ok(Err(error)) => Err(format!("call begun at {begun:?}: {error}")),
                Err(_) => Err(format!("call begun at {begun:?}: no answer within {PATIENCE:?}")),
            }
        });
        while let Some(ended) = under_way.try_join_next() {
            note(&mut outcome, ended.expect("a call does not panic"));
        }
    }
    outcome.took = start.elapsed();
    while let Some(ended) = under_way.join_next().await {
        note(&mut outcome, ended.expect("a call does not panic"));
    }
    outcome
}

fn note(outcome: &mut Outcome, call: Result<String, String>) {
    match call {
        Ok(name) => *outcome.answered.entry(name).or_default() += 1,
        Err(why) => outcome.failed.push(why),
    }
}

/// Long connections on which tagged bytes go to and fro until they are stopped.
pub struct Flows {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<u64, String>>>,
}

impl Flows {
    /// Opens `n` flows; each sends a chunk, waits for its echo, pauses for `pause`, and so on.
    pub fn start(address: SocketAddr, n: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let threads = (0..n)
            .map(|seed| {
                let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
                std::thread::spawn(move || {
                    flow(address, seed, pause, &stop, &rounds)
                        .map_err(|error| format!("flow {seed}: {error}"))
                })
            })
            .collect();
        let flows = Self { stop, rounds, threads };
        crate::wait::until("every flow has made a round", crate::wait::SOON, || {
            flows.rounds.load(Ordering::Relaxed) >= n
        });
        flows
    }

    /// Rounds made by all flows together.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Ends all flows in order; returns the bytes that went each way, or why one broke.
    ///
    /// # Panics
    /// When a flow panicked.
    pub fn stop(self) -> Vec<Result<u64, String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("a flow does not panic")).collect()
    }
}

fn flow(
    address: SocketAddr,
    seed: u64,
    pause: Duration,
    stop: &AtomicBool,
    rounds: &AtomicU64,
) -> io::Result<u64> {
    let mut stream = socket::connect(address)?;
    stream.write_all(&Header { kind: Kind::Flow, seed, up: 0, down: 0 }.encode())?;
    let mut at = 0;
    let mut sizes = fastrand::Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let mut chunk = vec![0; sizes.usize(1..8192)];
        stream::fill(seed, at, &mut chunk);
        stream.write_all(&chunk)?;
        stream.read_exact(&mut chunk)?;
        stream::check(seed, at, &chunk)
            .map_err(|mismatch| io::Error::new(io::ErrorKind::InvalidData, mismatch))?;
        at += chunk.len() as u64;
        rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(pause);
    }
    let reset = |_| io::Error::new(io::ErrorKind::ConnectionReset, "reset before its end");
    stream.shutdown(Shutdown::Write).map_err(reset)?;
    match socket::read(&mut stream, &mut [0; 1])? {
        0 => Ok(at),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes after the last echo")),
    }
}
