//! A fixed number of connections that each send the next request when the answer is there.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::poll::{Poll, Ready};
use super::sample::Closed;
use super::usage::Usage;
use super::wire::{CHUNK, Moved, dial, read, request, write};

const MAX_ERRORS: u64 = 200_000;

/// How many connections ask what for how long.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Addresses to connect to, in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    target: Vec<SocketAddrV4>,
    /// Connections at a time.
    #[arg(long)]
    conns: usize,
    /// Bytes of a request.
    #[arg(long, default_value_t = 100)]
    request: u32,
    /// Bytes of an answer.
    #[arg(long)]
    answer: u64,
    /// Closes after its answers and connects anew.
    #[arg(long)]
    reconnect: bool,
    /// Answers of a connection that is closed behind them.
    #[arg(long, default_value_t = 1)]
    requests: u32,
    /// Seconds measured.
    #[arg(long)]
    seconds: f64,
    /// Seconds before the measured window.
    #[arg(long, default_value_t = 0.5)]
    warm: f64,
    /// Processes whose processor time is read.
    #[arg(long, value_delimiter = ',')]
    watch: Vec<u32>,
}

struct Conn {
    sock: Option<OwnedFd>,
    asked: bool,
    got: u64,
    answered: u32,
    began: Instant,
}

struct Client<'a> {
    plan: &'a Plan,
    poll: Poll,
    conns: Vec<Conn>,
    to_dial: Vec<usize>,
    dialled: usize,
    request: Vec<u8>,
    buffer: Vec<u8>,
    latencies: Vec<u32>,
    errors: u64,
}

/// Runs the load.
pub(super) fn run(plan: &Plan) -> Result<Closed> {
    let began = Instant::now();
    let conns =
        (0..plan.conns).map(|_| Conn { sock: None, asked: false, got: 0, answered: 0, began }).collect();
    let mut client = Client {
        plan,
        poll: Poll::new()?,
        conns,
        to_dial: (0..plan.conns).collect(),
        dialled: 0,
        request: request(plan.request, plan.answer),
        buffer: vec![0; CHUNK],
        latencies: Vec::with_capacity(1 << 20),
        errors: 0,
    };
    client.until(began + Duration::from_secs_f64(plan.warm))?;
    client.latencies.clear();
    client.errors = 0;
    let before = Usage::read(&plan.watch);
    let start = Instant::now();
    client.until(start + Duration::from_secs_f64(plan.seconds))?;
    let seconds = start.elapsed().as_secs_f64();
    let (watched, machine, own) = Usage::read(&plan.watch).since(&before);
    let Client { mut latencies, errors, .. } = client;
    latencies.sort_unstable();
    let done = latencies.len() as u64;
    let (p50_us, p99_us) = (percentile(&latencies, 0.5), percentile(&latencies, 0.99));
    Ok(Closed { seconds, done, errors, p50_us, p99_us, watched, machine, own })
}

/// Picks a percentile in microseconds from sorted tenths of microseconds.
pub(super) fn percentile(sorted: &[u32], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share) as usize;
    sorted.get(rank.min(sorted.len().saturating_sub(1))).map_or(0.0, |tenths| f64::from(*tenths) / 10.0)
}

/// Turns a latency into tenths of microseconds.
pub(super) fn tenths(took: Duration) -> u32 {
    u32::try_from(took.as_nanos() / 100).unwrap_or(u32::MAX)
}

impl Client<'_> {
    fn until(&mut self, end: Instant) -> Result<()> {
        let mut ready: Vec<Ready> = Vec::new();
        while Instant::now() < end {
            for index in std::mem::take(&mut self.to_dial) {
                self.dial(index);
            }
            let patience = if self.to_dial.is_empty() { 100 } else { 1 };
            self.poll.wait(Some(Duration::from_millis(patience)), &mut ready)?;
            for event in ready.drain(..) {
                if self.advance(event).is_err() {
                    self.errors += 1;
                    self.conns[event.token].sock = None;
                    self.to_dial.push(event.token);
                }
            }
            ensure!(self.errors < MAX_ERRORS, "{MAX_ERRORS} connections failed");
        }
        Ok(())
    }

    fn dial(&mut self, index: usize) {
        let target = self.plan.target[self.dialled % self.plan.target.len()];
        self.dialled += 1;
        let conn = &mut self.conns[index];
        conn.asked = false;
        conn.got = 0;
        conn.answered = 0;
        conn.began = Instant::now();
        match dial(target) {
            Ok(sock) if self.poll.add(&sock, index).is_ok() => conn.sock = Some(sock),
            Ok(_) | Err(_) => {
                self.errors += 1;
                self.to_dial.push(index);
            }
        }
    }

    fn advance(&mut self, event: Ready) -> Result<(), ()> {
        let conn = &mut self.conns[event.token];
        let Some(sock) = &conn.sock else { return Ok(()) };
        if !conn.asked {
            if event.broken {
                return Err(());
            }
            conn.asked = ask(sock, &self.request)?;
            return Ok(());
        }
        loop {
            match read(sock, &mut self.buffer) {
                Moved::Bytes(n) => {
                    conn.got += n as u64;
                    if conn.got >= self.plan.answer || n < self.buffer.len() && !event.over {
                        break;
                    }
                }
                Moved::Later => break,
                Moved::Over => return Err(()),
            }
        }
        if conn.got < self.plan.answer {
            return Ok(());
        }
        let now = Instant::now();
        self.latencies.push(tenths(now - conn.began));
        conn.answered += 1;
        if self.plan.reconnect && conn.answered >= self.plan.requests {
            conn.sock = None;
            self.dial(event.token);
            return Ok(());
        }
        conn.got = 0;
        conn.began = now;
        conn.asked = ask(sock, &self.request)?;
        Ok(())
    }
}

/// Sends a request whole; says whether it was taken.
fn ask(sock: &OwnedFd, request: &[u8]) -> Result<bool, ()> {
    match write(sock, request) {
        Moved::Bytes(n) if n == request.len() => Ok(true),
        Moved::Later => Ok(false),
        Moved::Bytes(_) | Moved::Over => Err(()),
    }
}
