//! One session: its backend, what passes in both directions, and how it ends.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lemonade_common::{BackendIx, FlowKey, Reason};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use super::listener::Listener;
use super::sessions::{Exchange, Key};
use super::socket::{Received, Sent, connect};
use crate::control::table::FrontendEntry;
use crate::health::port::SignalKind;
use crate::metrics::port::{Datagrams, End, Fault};
use crate::model::Moment;
use crate::proxy::admit::Slot;
use crate::proxy::conn;
use crate::proxy::establish::{Dial, Pick, Tried};
use crate::proxy::flow::{Direction, Flow, Flows, Routed};
use crate::proxy::shared::Shared;
use crate::proxy::socket::fault;
use crate::proxy::tap::EventKind;
use crate::strategy::port::Basis;

/// Backends tried for one datagram.
const TRIES: u32 = 3;

/// What a session waits for: an answer, or word that nobody listens there.
const ANSWER: Interest = Interest::READABLE.add(Interest::ERROR);

/// A silence after which a session that should go is over.
const SILENT: Duration = Duration::from_secs(5);

/// A live session. Its worker's thread alone touches it, but for observers of its flow.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) flow: Arc<Flow>,
    key: Key,
    state: Mutex<State>,
    /// Another backend, or the end.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    upstream: Option<Arc<Upstream>>,
    /// The backend that failed last.
    avoid: Option<BackendIx>,
    /// Backends so far.
    attempts: u16,
    exchange: Exchange,
    end: Option<End>,
}

/// The way to a backend.
#[derive(Debug)]
struct Upstream {
    socket: UdpSocket,
    address: SocketAddr,
    slot: Slot,
    basis: Basis,
}

impl Session {
    /// A session that has no backend yet.
    pub(super) fn new(flow: Arc<Flow>, key: Key) -> Self {
        Self { flow, key, state: Mutex::default(), changed: Notify::new() }
    }

    /// Sends on what the client sent, over another backend where the one that it had is gone.
    ///
    /// # Errors
    /// The reason why there is no backend; the session should end.
    pub(super) fn forward(
        &self,
        listener: &Listener,
        (version, entry): (u64, &Arc<FrontendEntry>),
        received: &Received<'_>,
    ) -> Result<(), Reason> {
        let shared = listener.shared();
        let mut rest = *received;
        for _ in 0..TRIES {
            let upstream = self.upstream(shared, version, entry)?;
            let sent = listener.wire.send(&upstream.socket, upstream.address, None, &rest);
            self.went_up(shared, &sent);
            let Some(error) = sent.fault else { return Ok(()) };
            self.fail(shared, &upstream, &error);
            rest = rest.after(sent.done);
        }
        Err(Reason::ConnectFailed)
    }

    /// Ends it for `end`.
    pub(super) fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.changed.notify_one();
    }

    /// Ends it if nothing has passed for a while; for sessions that should go.
    pub(super) fn end_if_silent(&self, now: Moment) {
        if self.flow.silent(now) >= SILENT.min(self.flow.frontend.frontend.idle_timeout) {
            self.end(End::Closed);
        }
    }

    /// Carries answers to the client until the end.
    pub(super) async fn answers(&self, listener: &Listener) -> End {
        loop {
            let (upstream, end) = {
                let state = self.state();
                (state.upstream.clone(), state.end)
            };
            if let Some(end) = end {
                return end;
            }
            let Some(upstream) = upstream else {
                self.changed.notified().await;
                continue;
            };
            let ready = tokio::select! {
                biased;
                () = self.changed.notified() => continue,
                ready = upstream.socket.ready(ANSWER) => ready,
            };
            let received = ready.and_then(|ready| {
                if ready.is_readable() { self.receive(listener, &upstream) } else { upstream.error() }
            });
            match received {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => self.fail(listener.shared(), &upstream, &error),
            }
            // Its socket may always have more; the others of this worker come first.
            tokio::task::yield_now().await;
        }
    }

    fn receive(&self, listener: &Listener, upstream: &Upstream) -> io::Result<()> {
        let mut batch = listener.batch();
        let count =
            upstream.socket.try_io(Interest::READABLE, || batch.receive(&listener.wire, &upstream.socket))?;
        let from = listener.answers_from(self.key.local);
        for received in batch.received(count) {
            let sent = listener.wire.send(&listener.socket, self.key.client, from, &received);
            // The client's side says nothing of the backend: what cannot go to it is lost.
            let lost = received.datagrams().saturating_sub(sent.datagrams);
            self.went_down(listener.shared(), upstream, &sent, lost);
        }
        Ok(())
    }

    /// The way to its backend: the one it has, unless that went down, or another.
    fn upstream(
        &self,
        shared: &Shared,
        version: u64,
        entry: &Arc<FrontendEntry>,
    ) -> Result<Arc<Upstream>, Reason> {
        let mut state = self.state();
        if let Some(upstream) = &state.upstream {
            let backend = upstream.slot.backend();
            if !backend.cell.down.load(Ordering::Relaxed) {
                return Ok(Arc::clone(upstream));
            }
            state.avoid = Some(backend.ix);
            state.upstream = None;
        }
        // The address may belong to another frontend by now; this session does not.
        let entry = if entry.ix == self.flow.frontend.ix { entry } else { &self.flow.frontend };
        let found = self.route(shared, entry, state.avoid);
        // Whoever waits for answers of the one before is told, even if there is none now.
        self.changed.notify_one();
        let upstream = Arc::new(found?);
        upstream.slot.backend().cell.opened.fetch_add(1, Ordering::Relaxed);
        state.attempts = state.attempts.saturating_add(1);
        state.exchange.rerouted();
        state.upstream = Some(Arc::clone(&upstream));
        // What passed so far was the one before's.
        self.flow.fold();
        self.flow.routed(Routed {
            entry: Arc::clone(upstream.slot.entry()),
            position: upstream.slot.position(),
            attempts: state.attempts,
            hedged: false,
            connect_us: 0,
            table_version: version,
            basis: upstream.basis,
        });
        shared.tap.tell(EventKind::Decision, || self.flow.view(shared.clock.now()));
        Ok(upstream)
    }

    /// Picks a backend other than `avoid`, unless that is the only one.
    fn route(
        &self,
        shared: &Shared,
        entry: &Arc<FrontendEntry>,
        mut avoid: Option<BackendIx>,
    ) -> Result<Upstream, Reason> {
        let local = self.flow.local;
        let dial = Dial { shared, entry, key: FlowKey::udp(self.flow.client, local), port: local.port() };
        let mut tried = Tried { backends: avoid.into_iter().collect(), picks: 0 };
        let mut reason = Reason::NoBackendUp;
        for _ in 0..TRIES {
            let mut pick = dial.pick(&mut tried);
            if !matches!(pick, Pick::Found(_)) && avoid.take().is_some() {
                tried.backends.remove(0);
                pick = dial.pick(&mut tried);
            }
            let (slot, basis) = match pick {
                Pick::Found(found) => found,
                Pick::Full => return Err(Reason::BackendsFull),
                Pick::Nothing => break,
            };
            let backend = slot.backend();
            let address = backend.id.address(local.port());
            let source = entry.pool.pool.source.filter(|source| source.is_ipv4() == address.is_ipv4());
            match connect(address, source) {
                Ok(socket) => return Ok(Upstream { socket, address, slot, basis }),
                Err(error) => {
                    let fault = socket_fault(&error);
                    self.flow.failed(&backend.id.name, fault);
                    match fault {
                        Fault::NoDescriptors => return Err(Reason::NoDescriptors),
                        Fault::NoPorts => return Err(Reason::NoPorts),
                        Fault::Refused
                        | Fault::Reset
                        | Fault::Unreachable
                        | Fault::TimedOut
                        | Fault::Other => {
                            blame(shared, &slot);
                            reason = Reason::ConnectFailed;
                            tried.backends.push(backend.ix);
                        }
                    }
                }
            }
        }
        Err(reason)
    }

    /// Leaves a backend that cannot be reached; the next datagram goes to another one.
    fn fail(&self, shared: &Shared, upstream: &Arc<Upstream>, error: &io::Error) {
        let mut state = self.state();
        if !state.upstream.as_ref().is_some_and(|now| Arc::ptr_eq(now, upstream)) {
            return;
        }
        tracing::debug!(%error, backend = %upstream.slot.backend().id, "a backend of datagrams failed");
        blame(shared, &upstream.slot);
        state.avoid = Some(upstream.slot.backend().ix);
        state.upstream = None;
        state.exchange.rerouted();
        self.changed.notify_one();
    }

    fn went_up(&self, shared: &Shared, sent: &Sent) {
        let now = shared.clock.now();
        self.state().exchange.sent(sent.datagrams, now);
        self.flow.moved(Direction::Up, sent.bytes, now);
        let cell = &self.flow.frontend.cell;
        cell.datagrams_up.fetch_add(sent.datagrams, Ordering::Relaxed);
        if sent.lost > 0 {
            cell.datagrams_lost_up.fetch_add(sent.lost, Ordering::Relaxed);
        }
    }

    fn went_down(&self, shared: &Shared, upstream: &Upstream, sent: &Sent, lost: u64) {
        let now = shared.clock.now();
        let waited = self.state().exchange.answered(sent.datagrams, now);
        if let Some(waited) = waited {
            let backend = upstream.slot.backend();
            if backend.cell.streak.load(Ordering::Relaxed) > 0 {
                shared.signal(backend.ix, SignalKind::Connected);
            }
            backend.cell.answered(waited, now);
        }
        self.flow.moved(Direction::Down, sent.bytes, now);
        let cell = &self.flow.frontend.cell;
        cell.datagrams_down.fetch_add(sent.datagrams, Ordering::Relaxed);
        if lost > 0 {
            cell.datagrams_lost_down.fetch_add(lost, Ordering::Relaxed);
        }
    }

    /// Counts the end, and tells it to everybody who asks.
    pub(super) fn conclude(&self, shared: &Shared, flows: &Flows, end: End) {
        let Exchange { up, down, .. } = self.state().exchange;
        conn::conclude(shared, flows, &self.flow, end, Some(Datagrams { up, down }));
    }

    /// Gives the backend's slot back.
    pub(super) fn release(&self) {
        self.state().upstream = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing inside panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upstream {
    /// Takes what the kernel has heard of the backend; `WouldBlock` if it was nothing.
    fn error(&self) -> io::Result<()> {
        let heard = || Err(self.socket.take_error()?.unwrap_or_else(|| io::ErrorKind::WouldBlock.into()));
        self.socket.try_io(Interest::ERROR, heard)
    }
}

/// Counts a failure of the backend of `slot`.
fn blame(shared: &Shared, slot: &Slot) {
    let backend = slot.backend();
    backend.cell.failures.fetch_add(1, Ordering::Relaxed);
    backend.cell.failed(shared.clock.now());
    shared.signal(backend.ix, SignalKind::ConnectFailed);
}

/// Sorts an error of a connect of datagrams, which says in its own way that no port is left.
fn socket_fault(error: &io::Error) -> Fault {
    let no_ports = error.kind() == io::ErrorKind::WouldBlock;
    if no_ports { Fault::NoPorts } else { fault(error) }
}

/// An own address that an answer can come from; a group's address is no sender.
pub(super) fn sender(local: IpAddr) -> Option<IpAddr> {
    let canonical = local.to_canonical();
    let group = canonical.is_multicast() || canonical == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    (!group).then_some(local)
}
