//! Streams that move bytes one way as fast as they go.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::poll::{Poll, Ready};
use super::sample::{Bulk, Direction};
use super::usage::Usage;
use super::wire::{CHUNK, ENDLESS, HEADER, Moved, dial, read, request, write};

/// Calls on one stream before the others get their turn.
const TURN: usize = 16;

/// How many streams go which way for how long.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Addresses to connect to, in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    target: Vec<SocketAddrV4>,
    /// Streams at a time.
    #[arg(long)]
    conns: usize,
    /// Which way the bytes go.
    #[arg(long)]
    direction: Direction,
    /// Questions that are asked on each stream before the bytes, a millisecond apart.
    #[arg(long, default_value_t = 0)]
    questions: u32,
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

struct Stream {
    sock: Option<OwnedFd>,
    asked: bool,
}

struct Client {
    direction: Direction,
    poll: Poll,
    streams: Vec<Stream>,
    again: Vec<Ready>,
    request: Vec<u8>,
    buffer: Vec<u8>,
    bytes: u64,
    errors: u64,
}

/// Runs the load.
pub(super) fn run(plan: &Plan) -> Result<Bulk> {
    let request = match plan.direction {
        Direction::Up => request(0, 0),
        Direction::Down => request(u32::try_from(HEADER)?, ENDLESS),
    };
    let mut client = Client {
        direction: plan.direction,
        poll: Poll::new()?,
        streams: Vec::new(),
        again: Vec::new(),
        request,
        buffer: vec![0; CHUNK],
        bytes: 0,
        errors: 0,
    };
    for index in 0..plan.conns {
        let target = plan.target[index % plan.target.len()];
        let sock = if plan.questions > 0 { lasting(target, plan.questions)? } else { dial(target)? };
        client.poll.add(&sock, index)?;
        client.streams.push(Stream { sock: Some(sock), asked: false });
    }
    client.until(Instant::now() + Duration::from_secs_f64(plan.warm))?;
    client.bytes = 0;
    let before = Usage::read(&plan.watch);
    let start = Instant::now();
    client.until(start + Duration::from_secs_f64(plan.seconds))?;
    let seconds = start.elapsed().as_secs_f64();
    let (watched, machine, own) = Usage::read(&plan.watch).since(&before);
    Ok(Bulk { seconds, bytes: client.bytes, errors: client.errors, watched, machine, own })
}

/// A connection on which questions were asked.
fn lasting(target: SocketAddrV4, questions: u32) -> Result<OwnedFd> {
    let mut stream = TcpStream::connect(target).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (question, mut answer) = (request(u32::try_from(HEADER)?, 100), [0; 100]);
    for _ in 0..questions {
        stream.write_all(&question)?;
        stream.read_exact(&mut answer).context("the answer did not come")?;
        std::thread::sleep(Duration::from_millis(1));
    }
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

impl Client {
    fn until(&mut self, end: Instant) -> Result<()> {
        let mut ready = Vec::new();
        while Instant::now() < end {
            let patience = if self.again.is_empty() { 50 } else { 0 };
            self.poll.wait(Some(Duration::from_millis(patience)), &mut ready)?;
            ready.append(&mut self.again);
            for event in ready.drain(..) {
                if self.advance(event).is_err() {
                    self.errors += 1;
                    self.streams[event.token].sock = None;
                }
            }
            if self.streams.iter().all(|s| s.sock.is_none()) {
                bail!("closed early: no stream is left");
            }
        }
        Ok(())
    }

    fn advance(&mut self, event: Ready) -> Result<(), ()> {
        let stream = &mut self.streams[event.token];
        let Some(sock) = &stream.sock else { return Ok(()) };
        if event.broken {
            return Err(());
        }
        if !stream.asked {
            match write(sock, &self.request) {
                Moved::Bytes(n) if n == self.request.len() => stream.asked = true,
                Moved::Later => return Ok(()),
                Moved::Bytes(_) | Moved::Over => return Err(()),
            }
        }
        for _ in 0..TURN {
            let moved = match self.direction {
                Direction::Up => write(sock, &self.buffer),
                Direction::Down => read(sock, &mut self.buffer),
            };
            match moved {
                Moved::Bytes(n) => self.bytes += n as u64,
                Moved::Later => return Ok(()),
                Moved::Over => return Err(()),
            }
        }
        self.again.push(event);
        Ok(())
    }
}
