//! From a pick to a connected backend: retries on other backends, a hedge against a late one, the queue of a full pool.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
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

use super::admit::{Queued, Slot};
use super::budget;
use super::flow::Flow;
use super::shared::Shared;
use super::socket::{ConnectFault, Liveness, connect_fault, connector};
use crate::control::table::{FrontendEntry, PoolEntry};
use crate::health::port::SignalKind;
use crate::metrics::port::Route;
use crate::model::time::micros;
use crate::model::{BackendCell, Moment};
use crate::strategy::port::PoolView;

/// A connected backend.
pub(super) struct Established {
    pub(super) stream: TcpStream,
    pub(super) slot: Slot,
    pub(super) ix: BackendIx,
    pub(super) route: Route,
}

/// Backends that one connection has tried, and what its picks have used up.
#[derive(Debug, Default)]
pub(super) struct Tried {
    backends: Vec<BackendIx>,
    picks: u64,
    attempts: u32,
    retries: u32,
}

impl Tried {
    /// Counts one more retry against the pool's limit and budget.
    pub(super) fn may_retry(&mut self, pool: &PoolEntry, now: Moment) -> bool {
        if self.retries >= pool.pool.retries {
            return false;
        }
        let mut tokens = pool.cell.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if !budget::withdraw(&mut tokens, now) {
            pool.cell.budget_exhausted.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        drop(tokens);
        self.retries += 1;
        pool.cell.retries.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// Picks and connects a backend for `flow`.
///
/// # Errors
/// The reason why there is none.
pub(super) async fn establish(
    shared: &Shared,
    entry: &FrontendEntry,
    table_version: u64,
    client: &TcpStream,
    flow: &Flow,
    tried: &mut Tried,
) -> Result<Established, Reason> {
    let dial = Dial { shared, entry, key: FlowKey::tcp(flow.client, flow.local), port: flow.local.port() };
    let settings = &entry.frontend;
    let first = dial.pick_or_wait(client, tried).await?;
    dial.deposit();
    let mut racing = [Some(dial.start(first, tried)), None];
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
                        return Ok(dial.connected(stream, connecting, lane == 1, table_version, tried));
                    }
                    Err(error) => dial.failed(&connecting, connect_fault(&error)),
                }
            }
            () = sleep_until(shared.clock.instant(wake)) => {
                let now = shared.clock.now();
                if hedge.is_some_and(|at| at <= now) {
                    hedge = None;
                    if let Pick::Found(chosen) = dial.pick(tried, false) {
                        entry.pool.cell.hedges.fetch_add(1, Ordering::Relaxed);
                        racing[1] = Some(dial.start(chosen, tried));
                    }
                }
                let late = racing.iter_mut().find(|lane| {
                    lane.as_ref().is_some_and(|one| one.started.plus(settings.connect_timeout) <= now)
                });
                match late.and_then(Option::take) {
                    Some(connecting) => dial.failed(&connecting, ConnectFault::TimedOut),
                    None => continue,
                }
            }
        };
        if racing.iter().any(Option::is_some) {
            continue;
        }
        let reason = match fault {
            ConnectFault::Failed => Reason::ConnectFailed,
            ConnectFault::TimedOut => Reason::ConnectTimeout,
            ConnectFault::NoDescriptors => return Err(Reason::NoDescriptors),
            ConnectFault::NoPorts => Reason::NoPorts,
        };
        if !dial.another_left(tried) || !tried.may_retry(&entry.pool, shared.clock.now()) {
            return Err(reason);
        }
        let next = dial.pick_or_wait(client, tried).await.map_err(|_| reason)?;
        racing[0] = Some(dial.start(next, tried));
    }
}

/// A connect on its way.
struct Connecting {
    ix: BackendIx,
    position: usize,
    address: SocketAddr,
    slot: Slot,
    _pending: Pending,
    started: Moment,
    stream: Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>,
}

/// Counts a connect that is not decided yet.
struct Pending(Arc<BackendCell>);

impl Pending {
    fn count(cell: &Arc<BackendCell>) -> Self {
        cell.connecting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(cell))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.connecting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A picked backend with its slot.
struct Chosen {
    ix: BackendIx,
    position: usize,
    slot: Slot,
}

/// What a pick found.
enum Pick {
    Found(Chosen),
    /// Some backend would do, but for its `max_connections`.
    Full,
    /// No backend is left.
    Nothing,
}

/// The constant part of one connection's way to a backend.
struct Dial<'a> {
    shared: &'a Shared,
    entry: &'a FrontendEntry,
    key: FlowKey,
    port: u16,
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

    /// Picks a backend and takes its slot. `insist`: rather one that has just failed than none.
    fn pick(&self, tried: &mut Tried, insist: bool) -> Pick {
        let pool = self.pool();
        let now = self.shared.clock.now();
        for desperate in [false, true] {
            if desperate && !insist {
                break;
            }
            // A slot can go to another worker between the pick and the take: look again, but not for ever.
            for _ in 0..=pool.candidates.len().min(8) {
                tried.picks += 1;
                let view = PoolView {
                    candidates: &pool.candidates,
                    cursor: &pool.cell.cursor,
                    now,
                    entropy: mix(flow_hash(&self.key, self.shared.seed) ^ tried.picks),
                    excluded: &tried.backends,
                    desperate,
                };
                let Some(candidate) = pool.strategy.pick(&view, &self.key) else { break };
                if let Some(slot) = Slot::take(&candidate.cell, &pool.cell, candidate.max_connections) {
                    candidate.cell.picks.fetch_add(1, Ordering::Relaxed);
                    return Pick::Found(Chosen { ix: candidate.ix, position: candidate.position, slot });
                }
            }
        }
        if self.another_left(tried) { Pick::Full } else { Pick::Nothing }
    }

    /// Whether a backend is left that was not tried, full or not.
    fn another_left(&self, tried: &Tried) -> bool {
        self.pool().candidates.iter().any(|candidate| {
            !tried.backends.contains(&candidate.ix) && !candidate.cell.closed.load(Ordering::Relaxed)
        })
    }

    /// Picks a backend, waiting in the pool's queue when all are full.
    async fn pick_or_wait(&self, client: &TcpStream, tried: &mut Tried) -> Result<Chosen, Reason> {
        match self.pick(tried, true) {
            Pick::Found(chosen) => return Ok(chosen),
            Pick::Nothing => return Err(Reason::NoBackendUp),
            Pick::Full => {}
        }
        let pool = self.pool();
        if pool.pool.queue == 0 {
            return Err(Reason::BackendsFull);
        }
        let Some(_place) = Queued::join(&pool.cell, pool.pool.queue) else { return Err(Reason::QueueFull) };
        let deadline = self.shared.clock.instant(self.shared.clock.now().plus(pool.pool.queue_timeout));
        loop {
            let turn = pool.cell.waiting.join();
            match self.pick(tried, true) {
                Pick::Found(chosen) => return Ok(chosen),
                Pick::Nothing => return Err(Reason::NoBackendUp),
                Pick::Full => {}
            }
            tokio::select! {
                woken = timeout_at(deadline, turn) => {
                    if woken.is_err() {
                        return Err(Reason::QueueTimeout);
                    }
                }
                _ = client.ready(Interest::ERROR) => return Err(Reason::ClientGone),
            }
        }
    }

    fn start(&self, chosen: Chosen, tried: &mut Tried) -> Connecting {
        let Chosen { ix, position, slot } = chosen;
        let pool = self.pool();
        tried.backends.push(ix);
        tried.attempts += 1;
        let address = pool.backends[position].id.address(self.port);
        let source = pool.pool.source.filter(|source| source.is_ipv4() == address.is_ipv4());
        let connector = connector(address, source, Liveness::from(&*self.entry.frontend));
        let stream: Pin<Box<dyn Future<Output = _> + Send>> = match connector {
            Ok(socket) => Box::pin(socket.connect(address)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        };
        Connecting {
            ix,
            position,
            address,
            _pending: Pending::count(slot.cell()),
            slot,
            started: self.shared.clock.now(),
            stream,
        }
    }

    /// Blames the backend for a failed connect, unless this host was at fault.
    fn failed(&self, connecting: &Connecting, fault: ConnectFault) -> ConnectFault {
        let kind = match fault {
            ConnectFault::Failed => SignalKind::ConnectFailed,
            ConnectFault::TimedOut => SignalKind::ConnectTimedOut,
            ConnectFault::NoDescriptors | ConnectFault::NoPorts => return fault,
        };
        connecting.slot.cell().failed(self.shared.clock.now());
        self.shared.signal(connecting.ix, kind);
        fault
    }

    /// Lets the losers of a race go. One that was late by the hedge's own measure is avoided for a while.
    fn leave_behind(&self, racing: [Option<Connecting>; 2]) {
        let now = self.shared.clock.now();
        let late = self.entry.frontend.hedge_after.unwrap_or(Duration::MAX);
        for loser in racing.into_iter().flatten() {
            if now.since(loser.started) >= late {
                loser.slot.cell().failed(now);
            }
        }
    }

    fn connected(
        &self,
        stream: TcpStream,
        connecting: Connecting,
        hedged: bool,
        table_version: u64,
        tried: &Tried,
    ) -> Established {
        let now = self.shared.clock.now();
        let took = now.since(connecting.started);
        let pool = self.pool();
        let backend = &pool.backends[connecting.position];
        let cell = &backend.cell;
        if cell.streak.load(Ordering::Relaxed) > 0 {
            self.shared.signal(connecting.ix, SignalKind::Connected);
        }
        cell.connected(took, now);
        cell.opened.fetch_add(1, Ordering::Relaxed);
        self.entry.cell.connect_seconds.observe(micros(took));
        let route = Route {
            pool: pool.pool.name.clone(),
            backend: backend.id.name.clone(),
            address: connecting.address,
            strategy: pool.strategy.strategy(),
            candidates: pool.candidates.len() as u32,
            attempts: tried.attempts,
            hedged,
            table_version,
            connect: took,
        };
        Established { stream, slot: connecting.slot, ix: connecting.ix, route }
    }
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
