//! Wakes the connections whose bytes pass through the kernel when something about their sockets changes.
//!
//! Tokio asks for every socket to hear that it is readable, which would wake a worker for each packet that it has
//! nothing to do with. So these sockets are in a set of their own, asked only for FIN and errors. A wake-up says that
//! something may have changed; what has, the connection looks up itself.

#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Token of the events of the program; no socket has this cookie.
const PROGRAM: u64 = 0;

/// Events taken at a time.
const BATCH: usize = 256;

/// The set of sockets, and who wants to be woken for each.
#[derive(Debug)]
pub(super) struct Lookout {
    epoll: OwnedFd,
    waiting: Mutex<HashMap<u64, Arc<Notify>>>,
}

impl Lookout {
    /// Makes a set that `events`, a descriptor that is readable while the program has something to tell, is in.
    ///
    /// # Errors
    /// As epoll_create(2) and epoll_ctl(2).
    pub(super) fn new(events: &impl AsFd) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, events, EventData::new_u64(PROGRAM), EventFlags::IN)?;
        Ok(Self { epoll, waiting: Mutex::default() })
    }

    /// Puts a socket into the set.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(super) fn watch(&self, cookie: u64, socket: &impl AsFd, notify: &Arc<Notify>) -> io::Result<()> {
        self.lock().insert(cookie, Arc::clone(notify));
        let added = epoll::add(&self.epoll, socket, EventData::new_u64(cookie), interest(false, false));
        if added.is_err() {
            self.lock().remove(&cookie);
        }
        Ok(added?)
    }

    /// Asks to hear also when the socket is readable or writable, or no longer to.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub(super) fn ask(
        &self,
        cookie: u64,
        socket: &impl AsFd,
        readable: bool,
        writable: bool,
    ) -> io::Result<()> {
        let flags = interest(readable, writable);
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(cookie), flags)?)
    }

    /// Takes a socket out of the set.
    pub(super) fn leave(&self, cookie: u64, socket: &impl AsFd) {
        self.lock().remove(&cookie);
        // Closing it would do the same.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Wakes whoever waits for the socket.
    pub(super) fn wake(&self, cookie: u64) {
        if let Some(notify) = self.lock().get(&cookie) {
            notify.notify_one();
        }
    }

    /// Passes wake-ups on for ever; `program` is called when the program has something to tell.
    ///
    /// # Errors
    /// When the set cannot be waited for.
    pub(super) async fn run(&self, program: impl Fn()) -> io::Result<()> {
        let set = self.epoll.try_clone()?;
        // SAFETY: the descriptor is owned, never replaced, and closed only when dropped, after the registration.
        let ready = unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) };
        let ready = ready.map_err(io::Error::from)?;
        loop {
            let mut guard = ready.readable().await?;
            let mut events = Vec::with_capacity(BATCH);
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now))?;
            for &Event { data, .. } in &events {
                match data.u64() {
                    PROGRAM => program(),
                    cookie => self.wake(cookie),
                }
            }
            if events.is_empty() {
                guard.clear_ready();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Notify>>> {
        // Nothing inside panics half-way, so a poisoned lock still holds a whole map.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn interest(readable: bool, writable: bool) -> EventFlags {
    let mut flags = EventFlags::RDHUP | EventFlags::ET;
    flags.set(EventFlags::IN, readable);
    flags.set(EventFlags::OUT, writable);
    flags
}
