//! New connections at a fixed rate, whatever the answers do; each one's fate is recorded.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::poll::{Poll, Ready};
use super::sample::{Outcome, Steady};
use super::usage::now_ns;
use super::wire::{Moved, dial, read, request, write};

const ANSWER: u64 = 100;
const LATE_NS: u64 = 50_000_000;
/// Sockets open at a time at most, below the descriptor limit.
const MAX_OPEN: usize = 18_000;

/// How many connections start per second, for how long.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Addresses to connect to, in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    target: Vec<SocketAddrV4>,
    /// Connections started per second.
    #[arg(long)]
    rate: f64,
    /// Seconds in which connections start.
    #[arg(long)]
    seconds: f64,
    /// Seconds after which a connection has failed.
    #[arg(long, default_value_t = 4.0)]
    give_up: f64,
}

struct Conn {
    sock: OwnedFd,
    start_ns: u64,
    asked: bool,
    got: u64,
    answer: u8,
}

struct Client<'a> {
    plan: &'a Plan,
    poll: Poll,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    /// Token and start of each connection, oldest first.
    ages: VecDeque<(usize, u64)>,
    request: Vec<u8>,
    sample: Steady,
}

/// Runs the load.
pub(super) fn run(plan: &Plan) -> Result<Steady> {
    let mut client = Client {
        plan,
        poll: Poll::new()?,
        conns: Vec::new(),
        free: Vec::new(),
        ages: VecDeque::new(),
        request: request(100, ANSWER),
        sample: Steady::default(),
    };
    let total = (plan.rate * plan.seconds) as u64;
    let gap_ns = 1e9 / plan.rate;
    let give_up_ns = (plan.give_up * 1e9) as u64;
    let start = now_ns();
    let mut started = 0;
    let mut ready: Vec<Ready> = Vec::new();
    while started < total || client.open() > 0 {
        let now = now_ns();
        while started < total {
            let due = start + (started as f64 * gap_ns) as u64;
            if due > now || client.open() >= MAX_OPEN {
                break;
            }
            client.sample.late += u64::from(now > due + LATE_NS);
            client.start(started as usize)?;
            started += 1;
        }
        client.poll.wait(Some(Duration::from_millis(1)), &mut ready)?;
        for event in ready.drain(..) {
            client.advance(event);
        }
        client.expire(now.saturating_sub(give_up_ns));
    }
    Ok(client.sample)
}

impl Client<'_> {
    fn open(&self) -> usize {
        self.conns.len() - self.free.len()
    }

    fn start(&mut self, number: usize) -> Result<()> {
        let start_ns = now_ns();
        let Ok(sock) = dial(self.plan.target[number % self.plan.target.len()]) else {
            self.sample.outcomes.push(Outcome { start_ns, took_us: 0, answer: 0 });
            return Ok(());
        };
        let token = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() - 1
        });
        self.poll.add(&sock, token)?;
        self.conns[token] = Some(Conn { sock, start_ns, asked: false, got: 0, answer: 0 });
        self.ages.push_back((token, start_ns));
        Ok(())
    }

    fn advance(&mut self, event: Ready) {
        let Some(conn) = &mut self.conns[event.token] else { return };
        if !conn.asked {
            match write(&conn.sock, &self.request) {
                _ if event.broken => self.end(event.token, false),
                Moved::Bytes(n) if n == self.request.len() => conn.asked = true,
                Moved::Later => {}
                Moved::Bytes(_) | Moved::Over => self.end(event.token, false),
            }
            return;
        }
        let mut buffer = [0; 256];
        match read(&conn.sock, &mut buffer) {
            Moved::Bytes(n) => {
                conn.got += n as u64;
                conn.answer = buffer[0];
                if conn.got >= ANSWER {
                    self.end(event.token, true);
                } else if event.over {
                    self.end(event.token, false);
                }
            }
            Moved::Later => {}
            Moved::Over => self.end(event.token, false),
        }
    }

    fn end(&mut self, token: usize, answered: bool) {
        let Some(conn) = self.conns[token].take() else { return };
        self.free.push(token);
        let took_us = u32::try_from((now_ns() - conn.start_ns) / 1000).unwrap_or(u32::MAX);
        let answer = if answered { conn.answer } else { 0 };
        self.sample.outcomes.push(Outcome { start_ns: conn.start_ns, took_us, answer });
    }

    fn expire(&mut self, before_ns: u64) {
        while let Some((token, start_ns)) = self.ages.front().copied() {
            let alive = self.conns[token].as_ref().is_some_and(|conn| conn.start_ns == start_ns);
            if alive && start_ns > before_ns {
                return;
            }
            self.ages.pop_front();
            if alive {
                self.end(token, false);
            }
        }
    }
}
