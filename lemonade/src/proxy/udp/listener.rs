//! The socket of one worker on one address: receives, begins sessions, and ends them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use lemonade_common::{FrontendIx, Reason};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::group::{Group, Place};
use super::session::{Session, sender};
use super::sessions::{Key, Quota, Sessions, Ticket, limit};
use super::socket::{Batch, Received, Wire};
use crate::control::table::FrontendEntry;
use crate::metrics::port::End;
use crate::model::Moment;
use crate::proxy::admit::{Member, enter, leave};
use crate::proxy::conn::{self, Context};
use crate::proxy::flow::Flow;
use crate::proxy::shared::{Accepting, Shared};
use crate::proxy::worker::unmapped;

/// Pause after an error of a listener's socket.
const PAUSE: Duration = Duration::from_millis(10);

/// The datagram sockets of one worker.
#[derive(Default)]
pub(in crate::proxy) struct Datagrams {
    batch: Option<Arc<Mutex<Batch>>>,
    listeners: Vec<Weak<Listener>>,
}

impl Datagrams {
    /// Serves a bound socket until its group closes.
    pub(in crate::proxy) fn open(
        &mut self,
        context: &Arc<Context>,
        socket: std::net::UdpSocket,
        group: Arc<Group>,
        accepting: Accepting,
    ) {
        let batch = self.batch.get_or_insert_default();
        match Listener::new(Arc::clone(context), socket, group, Arc::clone(batch)) {
            Ok(listener) => {
                let listener = Arc::new(listener);
                self.listeners.push(Arc::downgrade(&listener));
                tokio::spawn(async move {
                    listener.serve().await;
                    drop(accepting);
                });
            }
            Err(error) => tracing::error!(%error, "a listener for datagrams could not be registered"),
        }
    }

    /// Ends silent sessions of listeners that should close.
    pub(in crate::proxy) fn sweep(&mut self, now: Moment) {
        self.listeners.retain(|listener| {
            let listener = listener.upgrade();
            if let Some(listener) = &listener {
                listener.sweep(now);
            }
            listener.is_some()
        });
    }
}

/// A socket with the sessions that came to it.
pub(super) struct Listener {
    pub(super) socket: UdpSocket,
    pub(super) wire: Wire,
    local: SocketAddr,
    context: Arc<Context>,
    group: Arc<Group>,
    batch: Arc<Mutex<Batch>>,
    sessions: Mutex<Sessions<Arc<Session>>>,
    refusals: Mutex<Quota>,
}

/// The newest entry of a listener's frontend, and the version of its table.
type Current = (u64, Arc<FrontendEntry>);

impl Listener {
    fn new(
        context: Arc<Context>,
        socket: std::net::UdpSocket,
        group: Arc<Group>,
        batch: Arc<Mutex<Batch>>,
    ) -> io::Result<Self> {
        let wire = Wire::new(&socket)?;
        let socket = UdpSocket::from_std(socket)?;
        let local = socket.local_addr()?;
        let (sessions, refusals) = Default::default();
        Ok(Self { socket, wire, local, context, group, batch, sessions, refusals })
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.context.shared
    }

    /// Room for a batch; no guard is held over an await.
    pub(super) fn batch(&self) -> MutexGuard<'_, Batch> {
        lock(&self.batch)
    }

    /// Own address to answer from; a socket of one address needs none.
    pub(super) fn answers_from(&self, local: IpAddr) -> Option<IpAddr> {
        if self.local.ip().is_unspecified() { sender(local) } else { None }
    }

    async fn serve(self: Arc<Self>) {
        let closed = self.group.closed();
        tokio::pin!(closed);
        let mut current: Option<Current> = None;
        loop {
            let ready = tokio::select! {
                biased;
                () = &mut closed => return,
                ready = self.socket.readable() => ready,
            };
            // Between two tables the kernel keeps what comes.
            tokio::select! {
                biased;
                found = self.current() => current = found.or(current),
                () = &mut closed => return,
            }
            let received = ready.and_then(|()| self.receive(current.as_ref()));
            match received {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%error, "receive of datagrams");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The frontend in the table of now, or `None` if the listener is to close.
    ///
    /// A table is committed a moment before its listeners follow, so the entry can be missing for that moment.
    async fn current(&self) -> Option<Current> {
        while self.group.is_open() {
            let table = self.shared().table();
            let ix = FrontendIx(self.group.frontend.load(Ordering::Relaxed));
            if let Some(entry) = table.frontends.get(&ix) {
                return Some((table.version, Arc::clone(entry)));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        None
    }

    fn receive(self: &Arc<Self>, current: Option<&Current>) -> io::Result<()> {
        let mut batch = self.batch();
        let count = self.socket.try_io(Interest::READABLE, || batch.receive(&self.wire, &self.socket))?;
        // Nobody has ever served it: it opened and closed within a moment.
        let Some(current) = current else { return Ok(()) };
        for received in batch.received(count) {
            self.take(&received, current);
        }
        Ok(())
    }

    /// Hands a datagram to its session.
    fn take(self: &Arc<Self>, received: &Received<'_>, current: &Current) {
        let key = Key { client: received.from, local: received.to.unwrap_or_else(|| self.local.ip()) };
        let found = lock(&self.sessions).find(&key).map(Arc::clone);
        match found {
            None => self.begin(key, received, current),
            Some(session) => {
                if let Err(reason) = session.forward(self, (current.0, &current.1), received) {
                    session.end(End::Refused(reason));
                }
            }
        }
    }

    /// Begins a session with its first datagram.
    fn begin(self: &Arc<Self>, key: Key, received: &Received<'_>, current: &Current) {
        let (version, entry) = current;
        let shared = self.shared();
        let (client, local) = (unmapped(key.client), unmapped(SocketAddr::new(key.local, self.local.port())));
        let flow = Flow::new(shared.connection_id(), client, local, Arc::clone(entry), shared.clock.now());
        let session = Arc::new(Session::new(Arc::new(flow), key));
        let total = shared.total_limit.load(Ordering::Relaxed);
        let own = limit(entry.frontend.max_connections, total);
        let refused = enter(&shared.process, total, &entry.cell, own);
        let place = self.group.join();
        let begun = match (refused, place) {
            (Some(reason), _) => Err(reason),
            (None, None) => Err(Reason::Draining),
            (None, Some(place)) => session.forward(self, (*version, entry), received).map(|()| place),
        };
        match begun {
            Ok(place) => {
                let member = Member::join(
                    Arc::clone(&self.context.flows),
                    Arc::clone(&shared.process),
                    Arc::clone(&session.flow),
                );
                let ticket = lock(&self.sessions).begin(key, Arc::clone(&session));
                tokio::spawn(carry(Arc::clone(self), session, ticket, member, place));
            }
            Err(reason) => {
                session.release();
                let (now, end) = (shared.clock.now(), End::Refused(reason));
                let told = lock(&self.refusals).tell(now);
                if told {
                    session.conclude(shared, &self.context.flows, end);
                } else {
                    conn::count(&session.flow, end, now);
                }
                leave(&shared.process, &entry.cell);
            }
        }
    }

    fn sweep(&self, now: Moment) {
        if !self.group.is_open() {
            lock(&self.sessions).iter().for_each(|session| session.end_if_silent(now));
        }
    }
}

/// Carries a session to its end.
async fn carry(listener: Arc<Listener>, session: Arc<Session>, ticket: Ticket, member: Member, place: Place) {
    let end = tokio::select! {
        biased;
        end = session.flow.ordered() => end,
        end = session.answers(&listener) => end,
    };
    lock(&listener.sessions).end(&ticket);
    session.conclude(listener.shared(), member.flows(), end);
    // Its socket closes before the session stops counting: a limit is never passed, not even for a moment.
    session.release();
    drop((member, place));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing inside panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
