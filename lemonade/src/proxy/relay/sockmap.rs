//! Relay `sockmap`: a program in the kernel sends on what each socket receives; userspace looks after the rest.
//!
//! The rest is what a program cannot do: it passes FIN on once every byte before it has left, takes a direction back
//! whose reader is slow, gives it back when that reader has caught up, passes resets on, and counts. Each rule here
//! answers a way in which bytes were seen to be lost; docs/adr/0012 lists them.

#![cfg(target_os = "linux")]

mod leg;

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lemonade_common::abi::RelayFlow;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::sync::Notify;

use super::copy::{Broken, Meter, Side};
use super::lookout::Lookout;
use crate::metrics::port::End;
use crate::model::relay::RelayCell;
use crate::proxy::adapters::bpf::Sockmap;
use crate::proxy::flow::Direction;
use crate::proxy::socket::{look_again, progress, unread};
use leg::{Leg, Step};

/// Time that bytes on their way get to reach the survivor's socket before a reset is passed on.
const SETTLE: Duration = Duration::from_millis(100);

/// Longest time between two looks at a connection: a lost wake-up costs no more.
const LOOK: Duration = Duration::from_secs(2);

/// The maps, and who is woken for which socket.
#[derive(Debug)]
pub struct Relay {
    maps: Sockmap,
    lookout: Lookout,
    /// Bytes of a buffer for what userspace has to move.
    buffer: usize,
}

/// How a connection left the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// It ended.
    End(End),
    /// The kernel would not take it; nothing has changed.
    Refused,
}

impl Relay {
    /// Makes a relay over attached maps; `buffer` is the size of a relay buffer in bytes.
    ///
    /// # Errors
    /// As epoll_create(2).
    pub fn new(maps: Sockmap, buffer: usize) -> io::Result<Self> {
        let lookout = Lookout::new(&maps)?;
        Ok(Self { maps, lookout, buffer })
    }

    /// Asks sockets that are connected from now on to tell of acknowledgements, or not to.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn want(&self, wanted: bool) -> io::Result<()> {
        self.maps.want_acks(wanted)
    }

    /// Wakes connections for ever.
    ///
    /// # Errors
    /// When the kernel cannot be waited for.
    pub async fn run(&self) -> io::Result<()> {
        let program = || {
            while let Some(cookie) = self.maps.next_event() {
                self.lookout.wake(cookie);
            }
        };
        self.lookout.run(program).await
    }

    /// Carries a connection to its end, which `ordered` may tell too.
    ///
    /// Both sockets are non-blocking and out of every other set of events, userspace holds none of their bytes, and a
    /// read of each would block. They must be closed afterwards.
    pub async fn carry(
        &self,
        client: &TcpStream,
        backend: &TcpStream,
        meter: &impl Meter,
        cell: &RelayCell,
        idle: Duration,
        ordered: impl Future<Output = End>,
    ) -> Carried {
        let Ok(mut pair) = Pair::join(self, client, backend) else {
            cell.kept.fetch_add(1, Ordering::Relaxed);
            return Carried::Refused;
        };
        cell.promoted.fetch_add(1, Ordering::Relaxed);
        cell.live.fetch_add(1, Ordering::Relaxed);
        let end = pair.serve(meter, cell, idle, ordered).await;
        pair.count(meter, cell);
        cell.live.fetch_sub(1, Ordering::Relaxed);
        Carried::End(end)
    }
}

/// A connection that the kernel carries; dropping it takes it out of the maps.
struct Pair<'a> {
    relay: &'a Relay,
    up: Leg<'a>,
    down: Leg<'a>,
    notify: Arc<Notify>,
}

impl<'a> Pair<'a> {
    fn join(relay: &'a Relay, client: &'a TcpStream, backend: &'a TcpStream) -> io::Result<Self> {
        let cookies = [SockRef::from(client).cookie()?, SockRef::from(backend).cookie()?];
        let sockets = [client, backend];
        let leg = |direction, from: usize| -> io::Result<(Leg<'a>, RelayFlow)> {
            let to = 1 - from;
            // Nobody writes now, so `written` stands still. Acknowledged between its two parts it comes out too small, and
            // with such a base bytes would seem to be in the target before they are: userspace would overtake them.
            let target = loop {
                let target = progress(sockets[to])?;
                if progress(sockets[to])?.acknowledged == target.acknowledged {
                    break target;
                }
            };
            let base = target.written;
            // What is unread now, the kernel sends on too.
            let received = loop {
                let before = progress(sockets[from])?.received;
                let waiting = unread(sockets[from])?;
                if progress(sockets[from])?.received == before {
                    break before - waiting;
                }
            };
            let flow =
                RelayFlow { target: cookies[to], base, acked: target.acknowledged, ..RelayFlow::default() };
            let leg =
                Leg::new(direction, sockets[from], sockets[to], cookies[from], flow.target, base, received);
            Ok((leg, flow))
        };
        let ((up, up_flow), (down, down_flow)) = (leg(Direction::Up, 0)?, leg(Direction::Down, 1)?);
        relay.maps.join([client.as_fd(), backend.as_fd()], [up_flow, down_flow])?;
        let mut pair = Self { relay, up, down, notify: Arc::default() };
        let watched = cookies
            .into_iter()
            .zip(sockets)
            .try_for_each(|(cookie, socket)| relay.lookout.watch(cookie, socket, &pair.notify));
        // From the first armed socket on there is no way back: a direction that cannot be armed is copied here.
        if let Err(error) = watched.and_then(|()| relay.maps.arm(pair.up.cookie, client.as_fd())) {
            relay.maps.part(cookies);
            return Err(error);
        }
        if let Err(error) = relay.maps.arm(pair.down.cookie, backend.as_fd()) {
            tracing::debug!(%error, "one direction of a connection stays in userspace");
            pair.down.unarmed();
        }
        for socket in sockets {
            // Fails only on a socket that is gone, which the first look sees.
            let _ = look_again(socket);
        }
        Ok(pair)
    }

    async fn serve(
        &mut self,
        meter: &impl Meter,
        cell: &RelayCell,
        idle: Duration,
        ordered: impl Future<Output = End>,
    ) -> End {
        // Bytes are looked for often enough that a busy connection is never taken for an idle one.
        let look = LOOK.min(idle / 4).max(Duration::from_millis(100));
        let mut ordered = std::pin::pin!(ordered);
        let mut looked = tokio::time::Instant::now();
        loop {
            let wait = match self.step(cell) {
                Ok(Some(soon)) => soon,
                Ok(None) if self.up.over && self.down.over => return End::Closed,
                Ok(None) => look,
                Err(broken) => {
                    self.settle(broken.side()).await;
                    return broken.end();
                }
            };
            if looked.elapsed() >= look {
                self.count(meter, cell);
                looked = tokio::time::Instant::now();
            }
            tokio::select! {
                biased;
                end = &mut ordered => return end,
                () = self.notify.notified() => {}
                () = tokio::time::sleep(wait.min(look)) => {}
            }
        }
    }

    /// Does what can be done now; tells when to come back if nothing will wake it.
    fn step(&mut self, cell: &RelayCell) -> Result<Option<Duration>, Broken> {
        let [client, backend] = self.look();
        let maps = &self.relay.maps;
        let mut soon: Option<Duration> = None;
        // Before the errors: what userspace still has to read came before a reset.
        for (leg, source) in [(&mut self.up, client), (&mut self.down, backend)] {
            // After a reset too both are told; only an orderly end may be passed on as one.
            let closed =
                source.intersects(PollFlags::RDHUP | PollFlags::HUP) && !source.contains(PollFlags::ERR);
            if let Step::Later(time) = leg.step(maps, self.relay.buffer, closed, cell)? {
                soon = Some(soon.map_or(time, |soon| soon.min(time)));
            }
        }
        for (side, leg, seen) in [(Side::Client, &self.up, client), (Side::Backend, &self.down, backend)] {
            if seen.contains(PollFlags::ERR) {
                let error = SockRef::from(leg.source).take_error().ok().flatten();
                return Err(Broken::new(
                    side,
                    &error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
                ));
            }
        }
        self.ask();
        Ok(soon)
    }

    /// The state of both sockets, whatever woke the connection.
    fn look(&self) -> [PollFlags; 2] {
        let mut sockets =
            [self.up.source, self.down.source].map(|socket| PollFd::new(socket, PollFlags::RDHUP));
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Fails only for want of memory; the next look is soon.
        let _ = poll(&mut sockets, Some(&now));
        sockets.map(|socket| socket.revents())
    }

    /// Asks to hear of what the legs wait for.
    fn ask(&mut self) {
        let Self { relay, up, down, .. } = self;
        let writable = [down.wants_writable(), up.wants_writable()];
        for (leg, writable) in [up, down].into_iter().zip(writable) {
            let wanted = (leg.wants_readable(), writable);
            if wanted != leg.asked && relay.lookout.ask(leg.cookie, leg.source, wanted.0, wanted.1).is_ok() {
                leg.asked = wanted;
            }
        }
    }

    /// Gives what `side` sent before its reset a moment to get into the socket of the other.
    async fn settle(&self, side: Side) {
        let leg = match side {
            Side::Client => &self.up,
            Side::Backend => &self.down,
        };
        let mut waited = Duration::ZERO;
        while waited < SETTLE && !leg.settled(&self.relay.maps) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            waited += Duration::from_millis(1);
        }
    }

    /// Tells what was moved since the last time.
    fn count(&mut self, meter: &impl Meter, cell: &RelayCell) {
        for leg in [&mut self.up, &mut self.down] {
            let (moved, in_kernel) = leg.count(&self.relay.maps);
            if moved > 0 {
                meter.moved(leg.direction, moved);
            }
            cell.bytes.fetch_add(in_kernel, Ordering::Relaxed);
        }
    }
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        for leg in [&self.up, &self.down] {
            self.relay.lookout.leave(leg.cookie, leg.source);
        }
        self.relay.maps.forget([self.up.cookie, self.down.cookie]);
    }
}
