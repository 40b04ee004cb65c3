//! Idle connections: each asks once, then stays open until the parent says so.

use std::collections::VecDeque;
use std::io::{BufRead, stdin};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use super::poll::{Poll, Ready};
use super::print;
use super::sample::Held;
use super::wire::{Moved, dial, read, request, write};

const ANSWER: u64 = 64;
/// Connections being opened at a time.
const WINDOW: usize = 64;

/// How many connections are held.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Addresses to connect to, in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    target: Vec<SocketAddrV4>,
    /// Connections to hold.
    #[arg(long)]
    conns: usize,
    /// Seconds to open them at most.
    #[arg(long)]
    seconds: f64,
}

struct Conn {
    sock: OwnedFd,
    asked: bool,
    got: u64,
}

/// Opens, reports, waits for a line, closes, reports how many were still alive.
pub(super) fn run(plan: &Plan) -> Result<()> {
    let mut poll = Poll::new()?;
    let end = Instant::now() + Duration::from_secs_f64(plan.seconds);
    let request = request(ANSWER as u32, ANSWER);
    let mut conns: Vec<Option<Conn>> = Vec::with_capacity(plan.conns);
    let mut ready: Vec<Ready> = Vec::new();
    let (mut answered, mut failed) = (0, 0);
    let mut opening: VecDeque<usize> = VecDeque::new();
    while answered + failed < plan.conns && Instant::now() < end {
        while conns.len() < plan.conns && opening.len() < WINDOW {
            let token = conns.len();
            let sock = dial(plan.target[token % plan.target.len()])?;
            poll.add(&sock, token)?;
            conns.push(Some(Conn { sock, asked: false, got: 0 }));
            opening.push_back(token);
        }
        poll.wait(Some(Duration::from_millis(50)), &mut ready)?;
        for event in ready.drain(..) {
            let Some(conn) = &mut conns[event.token] else { continue };
            let before = conn.got;
            if advance(conn, event, &request).is_err() {
                conns[event.token] = None;
                if before >= ANSWER {
                    answered -= 1;
                }
                failed += 1;
            } else if before < ANSWER && conn.got >= ANSWER {
                answered += 1;
            } else {
                continue;
            }
            opening.retain(|token| *token != event.token);
        }
    }
    print(&Held { held: answered as u64, failed: (plan.conns - answered) as u64 })?;
    stdin().lock().read_line(&mut String::new())?;
    poll.wait(Some(Duration::ZERO), &mut ready)?;
    let lost = ready.iter().filter(|event| event.over).count();
    drop(conns);
    print(&Held { held: answered.saturating_sub(lost) as u64, failed: lost as u64 })
}

fn advance(conn: &mut Conn, event: Ready, request: &[u8]) -> Result<(), ()> {
    if event.broken {
        return Err(());
    }
    if !conn.asked {
        match write(&conn.sock, request) {
            Moved::Bytes(n) if n == request.len() => conn.asked = true,
            Moved::Later => {}
            Moved::Bytes(_) | Moved::Over => return Err(()),
        }
        return Ok(());
    }
    match read(&conn.sock, &mut [0; 256]) {
        Moved::Bytes(n) => conn.got += n as u64,
        Moved::Later => {}
        Moved::Over => return Err(()),
    }
    Ok(())
}
