//! One epoll with tokens.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

const BATCH: usize = 256;

/// What happened on one socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    /// The token it was added with.
    pub(super) token: usize,
    /// The other side has closed, or the socket is in error.
    pub(super) over: bool,
    /// The connection is refused or reset.
    pub(super) broken: bool,
}

/// An epoll whose sockets report edges in both directions.
pub(super) struct Poll {
    fd: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    /// Creates one.
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self { fd: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(BATCH) })
    }

    /// Adds a socket that reports each change in either direction once.
    pub(super) fn add(&self, sock: &OwnedFd, token: usize) -> Result<(), Errno> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.fd, sock, EventData::new_u64(token as u64), flags)
    }

    /// Adds a listening socket that reports as long as connections wait.
    pub(super) fn add_listener(&self, sock: &OwnedFd, token: usize) -> Result<(), Errno> {
        epoll::add(&self.fd, sock, EventData::new_u64(token as u64), EventFlags::IN)
    }

    /// Waits for events, at most `patience`, and puts them into `ready`.
    pub(super) fn wait(&mut self, patience: Option<Duration>, ready: &mut Vec<Ready>) -> Result<(), Errno> {
        let timeout = patience.map(|p| Timespec {
            tv_sec: i64::try_from(p.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(p.subsec_nanos()),
        });
        self.events.clear();
        let room: &mut [MaybeUninit<Event>] = self.events.spare_capacity_mut();
        let found = match epoll::wait(&self.fd, room, timeout.as_ref()) {
            Ok((found, _)) => found,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        ready.extend(found.iter().map(|event| {
            let flags = event.flags;
            let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            let token = event.data.u64() as usize;
            Ready { token, over: broken || flags.contains(EventFlags::RDHUP), broken }
        }));
        Ok(())
    }
}
