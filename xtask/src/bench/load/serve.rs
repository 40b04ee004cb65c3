//! The backend: swallows requests, answers with bytes that carry its number.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept_with, bind, listen as listen_on, socket_with, sockopt,
};

use super::poll::Poll;
use super::wire::{CHUNK, HEADER, Moved, parse, read, write};

const LISTENER: usize = usize::MAX;
/// Calls on one connection before the others get their turn.
const TURN: usize = 16;

struct Conn {
    sock: OwnedFd,
    header: [u8; HEADER],
    header_have: usize,
    body_left: u64,
    answer_left: u64,
    sink: bool,
}

#[derive(PartialEq, Eq)]
enum Next {
    Wait,
    Again,
    Close,
}

/// Serves until the process is killed.
pub(super) fn run(address: SocketAddrV4, id: u8) -> Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    bind(&listener, &address).with_context(|| format!("cannot listen on {address}"))?;
    listen_on(&listener, 8192)?;
    let mut poll = Poll::new()?;
    poll.add_listener(&listener, LISTENER)?;
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let (mut ready, mut again) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; CHUNK];
    let answer = vec![id; CHUNK];
    loop {
        let patience = if again.is_empty() { None } else { Some(Duration::ZERO) };
        poll.wait(patience, &mut ready)?;
        let turns: Vec<(usize, bool)> =
            again.drain(..).chain(ready.drain(..).map(|r| (r.token, r.over))).collect();
        for (token, over) in turns {
            if token == LISTENER {
                accept(&listener, &poll, &mut conns, &mut free)?;
                continue;
            }
            let Some(Some(conn)) = conns.get_mut(token) else { continue };
            match conn.advance(over, &mut buffer, &answer) {
                Next::Wait => {}
                Next::Again => again.push((token, over)),
                Next::Close => {
                    conns[token] = None;
                    free.push(token);
                }
            }
        }
    }
}

fn accept(
    listener: &OwnedFd,
    poll: &Poll,
    conns: &mut Vec<Option<Conn>>,
    free: &mut Vec<usize>,
) -> Result<(), Errno> {
    for _ in 0..64 {
        let sock = match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(sock) => sock,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        sockopt::set_tcp_nodelay(&sock, true)?;
        let token = free.pop().unwrap_or_else(|| {
            conns.push(None);
            conns.len() - 1
        });
        poll.add(&sock, token)?;
        conns[token] = Some(Conn {
            sock,
            header: [0; HEADER],
            header_have: 0,
            body_left: 0,
            answer_left: 0,
            sink: false,
        });
    }
    Ok(())
}

impl Conn {
    fn advance(&mut self, over: bool, buffer: &mut [u8], answer: &[u8]) -> Next {
        for _ in 0..TURN {
            if self.answer_left > 0 && self.body_left == 0 {
                let len = answer.len().min(usize::try_from(self.answer_left).unwrap_or(usize::MAX));
                match write(&self.sock, &answer[..len]) {
                    Moved::Bytes(n) => self.answer_left -= n as u64,
                    Moved::Later => return Next::Wait,
                    Moved::Over => return Next::Close,
                }
                continue;
            }
            match read(&self.sock, buffer) {
                Moved::Bytes(n) => {
                    self.take(&buffer[..n]);
                    if self.answer_left == 0 && n < buffer.len() && !over {
                        return Next::Wait;
                    }
                }
                Moved::Later => return Next::Wait,
                Moved::Over => return Next::Close,
            }
        }
        Next::Again
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.sink {
            if self.body_left > 0 {
                let len = bytes.len().min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
                self.body_left -= len as u64;
                bytes = &bytes[len..];
            } else {
                let len = bytes.len().min(HEADER - self.header_have);
                self.header[self.header_have..self.header_have + len].copy_from_slice(&bytes[..len]);
                self.header_have += len;
                bytes = &bytes[len..];
                if self.header_have < HEADER {
                    return;
                }
                self.header_have = 0;
                let (request, answer) = parse(&self.header);
                self.sink = request == 0;
                self.body_left = request.saturating_sub(HEADER as u64);
                self.answer_left += answer;
            }
        }
    }
}
