//! What local peers may have unread of one connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lemonade_common::sk_msg::MOST_UNREAD;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::ShortWay;
use crate::control::table::FrontendEntry;
use crate::model::relay::{KernelRelay, RelayCell};
use crate::proxy::flow::Direction;

/// Time that FIN waits for a local peer to read what came before it.
const READ_OUT: Duration = Duration::from_secs(5);

/// Account of one connection. One task writes it.
#[derive(Debug)]
pub(in crate::proxy) struct Ledger {
    relay: Arc<ShortWay>,
    frontend: Arc<FrontendEntry>,
    /// Whether a hop takes the short way.
    live: bool,
    up: Receiver,
    down: Receiver,
    /// The program's count of messages that went by TCP, as each direction saw it last.
    detours: [AtomicU64; 2],
    opened: Instant,
}

/// The peer at the end of one direction.
#[derive(Debug)]
struct Receiver {
    /// Its own address.
    foreign: SocketAddr,
    /// That of the balancer's socket in front of it.
    own: SocketAddr,
    /// Bytes that it may have unread; told too large at times, never too small.
    owed: AtomicU64,
    /// It takes no part: TCP bounds what it has.
    plain: AtomicBool,
    /// When FIN began to wait for it, in milliseconds; 0: it has not.
    waits: AtomicU32,
}

impl Ledger {
    /// Opens the account of a connection, if its frontend asked for the relay or a hop takes part all the same, as happens
    /// for a moment after a reload.
    pub(in crate::proxy) fn open(
        relay: &Arc<ShortWay>,
        asked: bool,
        frontend: &Arc<FrontendEntry>,
        client: &TcpStream,
        backend: &TcpStream,
    ) -> Option<Self> {
        // A socket without a peer is gone, and whatever is done with it next says so.
        let (up, down) = (Receiver::behind(backend).ok()?, Receiver::behind(client).ok()?);
        let live = up.takes_part(relay) || down.takes_part(relay);
        let cell = &frontend.cell.relays[KernelRelay::SkMsg.index()];
        if live {
            // A process that is killed loses what its peers have not read; they must not take the rest for all.
            for socket in [client, backend] {
                let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
            cell.promoted.fetch_add(1, Ordering::Relaxed);
            cell.live.fetch_add(1, Ordering::Relaxed);
        } else if asked {
            cell.kept.fetch_add(1, Ordering::Relaxed);
        } else {
            return None;
        }
        let (relay, frontend) = (Arc::clone(relay), Arc::clone(frontend));
        // A count that the program never has: each direction looks once.
        let detours = [const { AtomicU64::new(u64::MAX) }; 2];
        Some(Self { relay, frontend, live, up, down, detours, opened: Instant::now() })
    }

    /// Whether a hop takes the short way.
    pub(in crate::proxy) const fn live(&self) -> bool {
        self.live
    }

    /// Bytes that may be sent in `direction` now.
    pub(in crate::proxy) fn room(&self, direction: Direction) -> usize {
        let receiver = self.receiver(direction);
        let most = u64::from(MOST_UNREAD);
        if receiver.owed.load(Ordering::Relaxed) >= most && !receiver.plain.load(Ordering::Relaxed) {
            receiver.ask(&self.relay);
            if receiver.owed.load(Ordering::Relaxed) >= most {
                self.cell().demoted.fetch_add(1, Ordering::Relaxed);
            }
        }
        if receiver.plain.load(Ordering::Relaxed) {
            return usize::MAX;
        }
        most.saturating_sub(receiver.owed.load(Ordering::Relaxed)) as usize
    }

    /// Bytes were sent.
    pub(in crate::proxy) fn sent(&self, direction: Direction, bytes: u64) {
        let owed = &self.receiver(direction).owed;
        // One writer: a plain load and store are enough.
        owed.store(owed.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
    }

    /// Whether everything sent was read, or was waited for long enough.
    pub(in crate::proxy) fn settled(&self, direction: Direction) -> bool {
        let receiver = self.receiver(direction);
        if receiver.owed.load(Ordering::Relaxed) == 0 {
            return true;
        }
        receiver.ask(&self.relay);
        if receiver.plain.load(Ordering::Relaxed) || receiver.owed.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let now = self.opened.elapsed().as_millis() as u32 | 1;
        match receiver.waits.load(Ordering::Relaxed) {
            0 => receiver.waits.store(now, Ordering::Relaxed),
            since => return now.saturating_sub(since) >= READ_OUT.as_millis() as u32,
        }
        false
    }

    /// Whether the source of `direction` was closed with bytes unread.
    pub(in crate::proxy) fn cut_short(&self, direction: Direction) -> bool {
        // It is the receiver of the other direction.
        let source = match direction {
            Direction::Up => &self.down,
            Direction::Down => &self.up,
        };
        self.live && self.relay.programs.left_unread(source.own, source.foreign)
    }

    /// Whether a short read of the source of `direction` may have left something.
    ///
    /// What came the short way is read before what came by TCP, by a call of its own, and a message is counted before it
    /// goes by TCP: while the count stands still, what was read was all, and what comes later is told of later.
    pub(in crate::proxy) fn more(&self, direction: Direction) -> bool {
        let seen = &self.detours[direction as usize];
        let now = self.relay.programs.detours();
        seen.swap(now, Ordering::Relaxed) != now
    }

    /// The connection has ended, `whole` if in good order: only then its sockets may close with FIN.
    pub(in crate::proxy) fn close(&self, whole: bool, client: &TcpStream, backend: &TcpStream) {
        if !(self.live && whole) {
            return;
        }
        for socket in [client, backend] {
            // Fails only on a socket that is gone.
            let _ = SockRef::from(socket).set_linger(None);
        }
    }

    const fn receiver(&self, direction: Direction) -> &Receiver {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    fn cell(&self) -> &RelayCell {
        &self.frontend.cell.relays[KernelRelay::SkMsg.index()]
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if self.live {
            self.cell().live.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Receiver {
    /// The peer of one of the balancer's sockets.
    fn behind(socket: &TcpStream) -> io::Result<Self> {
        Ok(Self {
            foreign: canonical(socket.peer_addr()?),
            own: canonical(socket.local_addr()?),
            owed: AtomicU64::new(0),
            plain: AtomicBool::new(false),
            waits: AtomicU32::new(0),
        })
    }

    fn takes_part(&self, relay: &ShortWay) -> bool {
        relay.programs.joined(self.foreign, self.own)
    }

    /// Brings what is owed up to date.
    fn ask(&self, relay: &ShortWay) {
        // Who has not joined by the time that it was sent something never will; who has gone takes nothing more.
        let unread = self.takes_part(relay).then(|| relay.unread.of(self.foreign, self.own)).flatten();
        match unread {
            Some(unread) => self.owed.store(unread.into(), Ordering::Relaxed),
            None => self.plain.store(true, Ordering::Relaxed),
        }
    }
}

/// The IPv4 address that an IPv6 socket shows as `::ffff:a.b.c.d`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
