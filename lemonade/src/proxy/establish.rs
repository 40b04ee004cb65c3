//! From a pick to a connected backend: retries on other backends, a hedge against a late one, the queue of a full pool.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use lemonade_common::hash::{flow_hash, mix};
use lemonade_common::{BackendIx, FlowKey, Reason};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout_at};

use super::admit::{Queued, Slot, Undecided};
use super::budget;
use super::flow::{Flow, Routed};
#[cfg(target_os = "linux")]
use super::relay::splice::Spliced;
use super::shared::Shared;
use super::socket::{acknowledge_with_data, connect, connector, fault, has_bytes};
use crate::control::table::{FrontendEntry, PoolEntry};
use crate::health::port::SignalKind;
use crate::metrics::port::Fault;
use crate::model::Moment;
use crate::model::time::micros;
use crate::strategy::port::{Basis, Candidate, PoolView};

/// A connected backend; how it was come by is told to the flow.
pub(super) struct Established<S = TcpStream> {
    pub(super) stream: S,
    pub(super) slot: Slot,
    /// The flow that it has become, until the relay has it.
    #[cfg(target_os = "linux")]
    pub(super) spliced: Option<Box<Spliced>>,
}

impl<S> Established<S> {
    fn new(stream: S, slot: Slot) -> Self {
        Self {
            stream,
            slot,
            #[cfg(target_os = "linux")]
            spliced: None,
        }
    }

    /// The same backend over another stream, and the stream until now.
    pub(super) fn replace<T>(self, stream: T) -> (S, Established<T>) {
        let Self { stream: before, slot, .. } = self;
        let after = Established {
            stream,
            slot,
            #[cfg(target_os = "linux")]
            spliced: self.spliced,
        };
        (before, after)
    }
}

/// What a connection has used up on its way to a backend; kept for a retry after a reset.
///
/// Every connection holds one for life, so it is packed into 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    /// Connects made.
    attempts: u16,
    /// Of them, those that were retries.
    retries: u16,
    /// The backend to avoid: it reset the connection before its first byte.
    avoid: BackendIx,
    /// When it began to wait in the pool's queue; 0: it has not.
    queued: Moment,
}

/// An index that no backend has: the table gives them out from 0.
const NOBODY: BackendIx = BackendIx(u32::MAX);

impl Default for Spent {
    fn default() -> Self {
        Self { attempts: 0, retries: 0, avoid: NOBODY, queued: Moment(0) }
    }
}

impl Spent {
    /// Counts one more retry against the pool's limit and budget.
    pub(super) fn may_retry(&mut self, pool: &PoolEntry, now: Moment) -> bool {
        if u32::from(self.retries) >= pool.pool.retries {
            return false;
        }
        let mut tokens = pool.cell.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if !budget::withdraw(&mut tokens, now) {
            pool.cell.budget_exhausted.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        drop(tokens);
        self.retries = self.retries.saturating_add(1);
        pool.cell.retries.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Counts a retry after `backend` reset an untouched connection, if there is another to try.
    pub(super) fn may_retry_without(&mut self, pool: &PoolEntry, backend: BackendIx, now: Moment) -> bool {
        self.avoid = backend;
        another_left(pool, &[backend]) && self.may_retry(pool, now)
    }

    /// Whether a connect was made already.
    pub(super) const fn tried(&self) -> bool {
        self.attempts > 0
    }
}

/// Backends that are not to be picked again, and picks made.
pub(super) struct Tried {
    pub(super) backends: Vec<BackendIx>,
    pub(super) picks: u64,
}

/// Picks and connects a backend for `flow`.
///
/// # Errors
/// The reason why there is none.
pub(super) async fn establish(
    shared: &Shared,
    entry: &Arc<FrontendEntry>,
    table_version: u64,
    client: &TcpStream,
    flow: &Flow,
    spent: &mut Spent,
) -> Result<(Established, Routed), Reason> {
    let key = FlowKey::tcp(flow.client, flow.local);
    let dial = Dial { shared, entry, key, port: flow.local.port() };
    let tried = &mut Tried { backends: vec![spent.avoid], picks: 0 };
    let settings = &entry.frontend;
    let first = dial.pick_or_wait(client, tried, &mut spent.queued).await?;
    dial.deposit();
    let mut racing = [Some(dial.start(client, first, tried)), None];
    spent.attempts += 1;
    let mut hedge = settings.hedge_after.and_then(|after| Some(racing[0].as_ref()?.started.plus(after)));
    loop {
        let deadline = racing.iter().flatten().map(|one| one.started.plus(settings.connect_timeout)).min();
        let Some(deadline) = deadline else { return Err(Reason::ConnectFailed) };
        let wake = hedge.map_or(deadline, |at| at.min(deadline));
        let fault = tokio::select! {
            biased;
            (lane, result) = first_of(&mut racing) => {
                let Some(connecting) = racing[lane].take() else { continue };
                match result {
                    Ok(stream) => {
                        dial.leave_behind(racing);
                        let basis = connecting.basis;
                        let (slot, connect) = dial.connected(connecting);
                        let routed = Routed {
                            entry: Arc::clone(slot.entry()),
                            position: slot.position(),
                            attempts: spent.attempts,
                            hedged: lane == 1,
                            connect_us: u32::try_from(micros(connect)).unwrap_or(u32::MAX),
                            table_version,
                            basis,
                        };
                        return Ok((Established::new(stream, slot), routed));
                    }
                    Err(error) => dial.failed(flow, &connecting, fault(&error)),
                }
            }
            () = sleep_until(shared.clock.instant(wake)) => {
                let now = shared.clock.now();
                if hedge.is_some_and(|at| at <= now) {
                    hedge = None;
                    // A race takes no slot that somebody waits for.
                    if entry.pool.cell.waiting.is_empty()
                        && let Pick::Found(found) = dial.pick(tried)
                    {
                        entry.pool.cell.hedges.fetch_add(1, Ordering::Relaxed);
                        racing[1] = Some(dial.start(client, found, tried));
                        spent.attempts += 1;
                    }
                }
                let late = racing.iter_mut().find(|lane| {
                    lane.as_ref().is_some_and(|one| one.started.plus(settings.connect_timeout) <= now)
                });
                match late.and_then(Option::take) {
                    Some(connecting) => dial.failed(flow, &connecting, Fault::TimedOut),
                    None => continue,
                }
            }
        };
        if racing.iter().any(Option::is_some) {
            continue;
        }
        let reason = match fault {
            Fault::Refused | Fault::Reset | Fault::Unreachable | Fault::Other => Reason::ConnectFailed,
            Fault::TimedOut => Reason::ConnectTimeout,
            Fault::NoDescriptors => return Err(Reason::NoDescriptors),
            Fault::NoPorts => Reason::NoPorts,
        };
        if !another_left(&entry.pool, &tried.backends) || !spent.may_retry(&entry.pool, shared.clock.now()) {
            return Err(reason);
        }
        let next = dial.pick_or_wait(client, tried, &mut spent.queued).await.map_err(|_| reason)?;
        let next = dial.start(client, next, tried);
        if let (Some(hedge), Some(after)) = (&mut hedge, settings.hedge_after) {
            *hedge = next.started.plus(after);
        }
        racing[0] = Some(next);
        spent.attempts += 1;
    }
}

/// A connect on its way.
struct Connecting {
    slot: Slot,
    basis: Basis,
    _undecided: Undecided,
    started: Moment,
    stream: Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>,
}

/// What a pick found.
pub(super) enum Pick {
    Found((Slot, Basis)),
    /// Some backend would do, but for its `max_connections`.
    Full,
    /// No backend is left.
    Nothing,
}

/// The constant part of one connection's way to a backend.
pub(super) struct Dial<'a> {
    pub(super) shared: &'a Shared,
    pub(super) entry: &'a Arc<FrontendEntry>,
    pub(super) key: FlowKey,
    pub(super) port: u16,
}

impl<'a> Dial<'a> {
    fn pool(&self) -> &'a PoolEntry {
        &self.entry.pool
    }

    fn deposit(&self) {
        let pool = self.pool();
        let mut tokens = pool.cell.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget::deposit(&mut tokens, pool.pool.retry_budget, self.shared.clock.now());
    }

    /// Picks a backend and takes its slot: rather one that has just failed than none.
    pub(super) fn pick(&self, tried: &mut Tried) -> Pick {
        let pool = self.pool();
        let now = self.shared.clock.now();
        for desperate in [false, true] {
            // A slot can go to another worker between the pick and the take: look again, but not for ever.
            for _ in 0..=pool.candidates.len().min(8) {
                tried.picks += 1;
                let view = PoolView {
                    candidates: &pool.candidates,
                    cursor: &pool.cell.cursor,
                    now,
                    entropy: mix(flow_hash(&self.key, self.shared.seed) ^ tried.picks),
                    seed: self.shared.seed,
                    excluded: &tried.backends,
                    desperate,
                };
                let Some(picked) = pool.strategy.pick(&view, &self.key) else { break };
                let candidate = picked.candidate;
                let slot = Slot::take(self.entry, candidate.position, candidate.max_connections);
                if let Some(slot) = slot {
                    candidate.cell.picks.fetch_add(1, Ordering::Relaxed);
                    return Pick::Found((slot, picked.basis));
                }
            }
        }
        if another_left(pool, &tried.backends) { Pick::Full } else { Pick::Nothing }
    }

    /// Picks a backend, waiting in the pool's queue when all are full.
    async fn pick_or_wait(
        &self,
        client: &TcpStream,
        tried: &mut Tried,
        queued: &mut Moment,
    ) -> Result<(Slot, Basis), Reason> {
        let pool = self.pool();
        // Who comes while others wait waits behind them, even if a slot has just come free.
        if pool.cell.waiting.is_empty() {
            match self.pick(tried) {
                Pick::Found(found) => return Ok(found),
                Pick::Nothing => return Err(Reason::NoBackendUp),
                Pick::Full => {}
            }
        }
        if pool.pool.queue == 0 {
            return Err(Reason::BackendsFull);
        }
        let Some(_place) = Queued::join(&pool.cell, pool.pool.queue) else { return Err(Reason::QueueFull) };
        // Kept over a change of the table, so that a reload does not make anybody wait longer.
        if *queued == Moment(0) {
            *queued = self.shared.clock.now();
        }
        let deadline = self.shared.clock.instant(queued.plus(pool.pool.queue_timeout));
        let mut turn = pool.cell.waiting.join(*queued);
        loop {
            tokio::select! {
                called = timeout_at(deadline, &mut turn) => {
                    if called.is_err() {
                        return Err(Reason::QueueTimeout);
                    }
                }
                _ = client.ready(Interest::ERROR) => return Err(Reason::ClientGone),
            }
            if self.outdated() {
                return Err(Reason::BackendsFull);
            }
            match self.pick(tried) {
                Pick::Found(found) => return Ok(found),
                Pick::Nothing => return Err(Reason::NoBackendUp),
                Pick::Full => {}
            }
            // A slot that this one may not use, of a backend it has tried, may suit those behind it.
            if tried.backends != [NOBODY] {
                turn.pass_on();
            }
        }
    }

    /// Whether the table has another pool by now.
    fn outdated(&self) -> bool {
        let table = self.shared.table();
        let now = table.frontends.get(&self.entry.ix);
        now.is_some_and(|now| !Arc::ptr_eq(&now.pool, &self.entry.pool))
    }

    fn start(&self, client: &TcpStream, (slot, basis): (Slot, Basis), tried: &mut Tried) -> Connecting {
        let backend = slot.backend();
        tried.backends.push(backend.ix);
        let address = backend.id.address(self.port);
        let source = self.pool().pool.source.filter(|source| source.is_ipv4() == address.is_ipv4());
        let connector = connector(address, source);
        let stream: Pin<Box<dyn Future<Output = _> + Send>> = match connector {
            Ok(socket) => {
                let short_way = self.dials_short(&socket);
                // One segment less for the backend. Without bytes to send, one that speaks first would wait for it; and one of
                // this host that has no byte yet may take the short way only if it is connected by then.
                if !short_way && has_bytes(client) {
                    acknowledge_with_data(&socket);
                }
                Box::pin(connect(socket, address))
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        };
        let started = self.shared.clock.now();
        Connecting { _undecided: Undecided::count(&slot), slot, basis, started, stream }
    }

    /// Lets a socket that is about to connect take the short way within this host, if the frontend asks for it.
    fn dials_short(&self, socket: &socket2::Socket) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(short_way) = self.shared.short_way(self.entry) {
            short_way.dial(socket);
            return true;
        }
        let _ = socket;
        false
    }

    /// Notes a failed connect, and blames the backend for it unless this host was at fault.
    fn failed(&self, flow: &Flow, connecting: &Connecting, fault: Fault) -> Fault {
        let backend = connecting.slot.backend();
        flow.failed(&backend.id.name, fault);
        let kind = match fault {
            Fault::Refused | Fault::Reset | Fault::Unreachable | Fault::Other => SignalKind::ConnectFailed,
            Fault::TimedOut => SignalKind::ConnectTimedOut,
            Fault::NoDescriptors | Fault::NoPorts => return fault,
        };
        backend.cell.failures.fetch_add(1, Ordering::Relaxed);
        backend.cell.failed(self.shared.clock.now());
        self.shared.signal(backend.ix, kind);
        fault
    }

    /// Lets the losers of a race go. One that was late by the hedge's own measure is avoided for a while.
    fn leave_behind(&self, racing: [Option<Connecting>; 2]) {
        let now = self.shared.clock.now();
        let late = self.entry.frontend.hedge_after.unwrap_or(Duration::MAX);
        for loser in racing.into_iter().flatten() {
            if now.since(loser.started) >= late {
                loser.slot.backend().cell.failed(now);
            }
        }
    }

    /// Credits the backend for a connect; tells its slot and how long it took.
    fn connected(&self, connecting: Connecting) -> (Slot, Duration) {
        let now = self.shared.clock.now();
        let took = now.since(connecting.started);
        let backend = connecting.slot.backend();
        if backend.cell.streak.load(Ordering::Relaxed) > 0 {
            self.shared.signal(backend.ix, SignalKind::Connected);
        }
        backend.cell.connected(took, now);
        backend.cell.opened.fetch_add(1, Ordering::Relaxed);
        self.entry.cell.connect_seconds.observe(micros(took));
        (connecting.slot, took)
    }
}

/// Whether the pool has a backend besides `tried`, full or not.
fn another_left(pool: &PoolEntry, tried: &[BackendIx]) -> bool {
    let open = |candidate: &Candidate| !candidate.cell.closed.load(Ordering::Relaxed);
    pool.candidates.iter().any(|candidate| !tried.contains(&candidate.ix) && open(candidate))
}

/// The first of the racing connects that is decided, and its lane.
async fn first_of(racing: &mut [Option<Connecting>; 2]) -> (usize, io::Result<TcpStream>) {
    poll_fn(|cx| {
        for (lane, connecting) in racing.iter_mut().enumerate() {
            let Some(connecting) = connecting else { continue };
            if let Poll::Ready(result) = connecting.stream.as_mut().poll(cx) {
                return Poll::Ready((lane, result));
            }
        }
        Poll::Pending
    })
    .await
}
