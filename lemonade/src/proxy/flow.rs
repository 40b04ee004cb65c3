//! A live connection as the rest of the process sees it, and the connections of one worker.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use slab::Slab;

use super::port::{Connection, Decision};
use super::recent::Recent;
use crate::control::table::{BackendId, FrontendEntry};
use crate::metrics::port::{End, Failed, Fault, Route};
use crate::model::relay::KernelRelay;
use crate::model::{Moment, Name};
use crate::strategy::port::Basis;

/// Upstream (towards the backend) or downstream (towards the client).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Client to backend.
    Up,
    /// Backend to client.
    Down,
}

/// A live connection. One task writes it; the worker's sweep and observers read it.
#[derive(Debug)]
pub struct Flow {
    /// Number, unique in the process.
    pub id: u64,
    /// Client address.
    pub client: SocketAddr,
    /// Address that the client used.
    pub local: SocketAddr,
    /// When it was accepted.
    pub started: Moment,
    /// Frontend as it was then.
    pub frontend: Arc<FrontendEntry>,
    route: Mutex<Option<Routed>>,
    /// Backends that were tried in vain; most connections have none.
    failed: Mutex<Box<[Failed]>>,
    up: AtomicU64,
    down: AtomicU64,
    folded_up: AtomicU64,
    folded_down: AtomicU64,
    /// Whole seconds since start of the last byte.
    active: AtomicU32,
    /// Segments that the backend's socket had sent again when it was sampled last; 65,535 is that many or more.
    pub(super) resent: AtomicU16,
    order: AtomicU8,
    /// 0: `copy`; else one more than the index of a relay in the kernel.
    relay: AtomicU8,
    /// Changes of direction, as far as anybody wants to know, and in the lowest bit whether bytes went up last.
    turns: AtomicU8,
    waker: AtomicWaker,
}

/// Which backend carries a connection, and how it was come by.
#[derive(Clone, Debug)]
pub struct Routed {
    /// Table entry that it was picked from.
    pub entry: Arc<FrontendEntry>,
    /// Position in the pool of `entry`.
    pub position: u32,
    /// Connects made.
    pub attempts: u16,
    /// Whether it won a race against a late first connect.
    pub hedged: bool,
    /// Microseconds its connect took.
    pub connect_us: u32,
    /// Version of the table that was consulted.
    pub table_version: u64,
    /// What the strategy went by.
    pub basis: Basis,
}

impl Routed {
    fn route(&self, port: u16) -> Route {
        let pool = &self.entry.pool;
        let backend = &pool.backends[self.position as usize];
        Route {
            pool: pool.pool.name.clone(),
            backend: backend.id.name.clone(),
            address: backend.id.address(port),
            strategy: pool.strategy.strategy(),
            candidates: u32::try_from(pool.candidates.len()).unwrap_or(u32::MAX),
            attempts: u32::from(self.attempts),
            hedged: self.hedged,
            table_version: self.table_version,
            connect: Duration::from_micros(u64::from(self.connect_us)),
        }
    }

    fn decision(&self) -> Decision {
        let rival = match self.basis {
            Basis::Cheaper { rival, .. } => self.entry.pool.backends.get(rival as usize),
            Basis::Former
            | Basis::Only
            | Basis::Turn(_)
            | Basis::Passed(_)
            | Basis::Slot(_)
            | Basis::Lowest { .. }
            | Basis::Counted => None,
        };
        Decision { basis: self.basis, rival: rival.map(|backend| backend.id.name.clone()) }
    }
}

/// Tries in vain that are kept of a connection.
const MOST_TRIES: usize = 16;

/// Changes of direction that are counted.
const MOST_TURNS: u8 = 64;

const YOUNG: u8 = 0;
const AGED: u8 = 1;
const LASTS: u8 = 2;
const IDLE: u8 = 3;
const FORCE: u8 = 4;

/// Age from which a connection counts as one that lasts; the sweep notices it within a second more.
const LASTING: Duration = Duration::from_secs(1);

impl Flow {
    /// A connection that was just accepted.
    pub fn new(
        id: u64,
        client: SocketAddr,
        local: SocketAddr,
        frontend: Arc<FrontendEntry>,
        now: Moment,
    ) -> Self {
        Self {
            id,
            client,
            local,
            started: now,
            frontend,
            route: Mutex::new(None),
            failed: Mutex::default(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            folded_up: AtomicU64::new(0),
            folded_down: AtomicU64::new(0),
            active: AtomicU32::new(seconds(now)),
            resent: AtomicU16::new(0),
            order: AtomicU8::new(YOUNG),
            relay: AtomicU8::new(0),
            turns: AtomicU8::new(0),
            waker: AtomicWaker::new(),
        }
    }

    /// Says what a process before this one has made of it: whose bytes they are is counted already.
    pub fn goes_on(self, bytes: [u64; 2], active: Moment) -> Self {
        let [up, down] = bytes;
        Self {
            up: up.into(),
            down: down.into(),
            folded_up: up.into(),
            folded_down: down.into(),
            active: seconds(active).into(),
            // Its sockets, which would have to know, are gone.
            order: LASTS.into(),
            ..self
        }
    }

    /// Says which backend carries it.
    pub fn routed(&self, routed: Routed) {
        *self.route() = Some(routed);
    }

    /// Says that a backend was tried in vain.
    pub fn failed(&self, backend: &Name, fault: Fault) {
        let mut tries = self.tries();
        // A session of datagrams may try again for as long as it lives.
        if tries.len() < MOST_TRIES {
            let mut all = std::mem::take(&mut *tries).into_vec();
            all.push(Failed { backend: backend.clone(), fault });
            *tries = all.into();
        }
    }

    fn tries(&self) -> MutexGuard<'_, Box<[Failed]>> {
        // Nothing inside panics half-way, so a poisoned lock still holds whole entries.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which relay in the kernel moves its bytes from now on; `None` is `copy`.
    pub fn relayed_by(&self, relay: Option<KernelRelay>) {
        let number = relay.map_or(0, |relay| relay.index() + 1);
        self.relay.store(u8::try_from(number).unwrap_or(0), Ordering::Relaxed);
    }

    fn relay(&self) -> &'static str {
        let number = usize::from(self.relay.load(Ordering::Relaxed));
        let relay = number.checked_sub(1).and_then(|index| KernelRelay::ALL.get(index));
        relay.map_or("copy", |relay| relay.as_str())
    }

    /// As it is at `now`.
    pub fn view(&self, now: Moment) -> Connection {
        let route = self.route();
        let (bytes_up, bytes_down) = self.bytes();
        Connection {
            id: self.id,
            client: self.client,
            local: self.local,
            started: self.started,
            frontend: self.frontend.frontend.name.clone(),
            pool: self.frontend.pool.pool.name.clone(),
            plane: "proxy",
            relay: self.relay(),
            route: route.as_ref().map(|routed| routed.route(self.local.port())),
            decision: route.as_ref().map(Routed::decision),
            failed: self.tries().clone(),
            bytes_up,
            bytes_down,
            idle_seconds: seconds(now).saturating_sub(self.active.load(Ordering::Relaxed)),
            end: None,
        }
    }

    /// Whether one of the backends `ids` carries it.
    pub fn carried_by(&self, ids: &BTreeSet<BackendId>) -> bool {
        let route = self.route();
        route
            .as_ref()
            .is_some_and(|routed| ids.contains(&routed.entry.pool.backends[routed.position as usize].id))
    }

    fn route(&self) -> MutexGuard<'_, Option<Routed>> {
        // Nothing inside panics half-way, so a poisoned lock still holds a whole route.
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes that were written. Only the connection's own task calls this.
    pub fn moved(&self, direction: Direction, bytes: u64, now: Moment) {
        let count = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        // One writer: a plain load and store are enough and cost no locked instruction.
        count.store(count.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
        self.active.store(seconds(now), Ordering::Relaxed);
        let turns = self.turns.load(Ordering::Relaxed);
        let up = u8::from(direction == Direction::Up);
        if turns & 1 != up && turns < MOST_TURNS << 1 {
            self.turns.store((((turns >> 1) + 1) << 1) | up, Ordering::Relaxed);
        }
    }

    /// Changes of direction so far, 64 at most.
    pub fn turns(&self) -> u8 {
        self.turns.load(Ordering::Relaxed) >> 1
    }

    /// Where bytes went last; up before the first.
    pub fn last(&self) -> Direction {
        let turns = self.turns.load(Ordering::Relaxed);
        if turns & 1 == 1 || turns == 0 { Direction::Up } else { Direction::Down }
    }

    /// Bytes written so far, up and down.
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }

    /// Adds what was moved since the last call to the counters of frontend and backend.
    pub fn fold(&self) {
        let (up, down) = self.bytes();
        let up = up.saturating_sub(self.folded_up.swap(up, Ordering::Relaxed));
        let down = down.saturating_sub(self.folded_down.swap(down, Ordering::Relaxed));
        if up == 0 && down == 0 {
            return;
        }
        let cell = &self.frontend.cell;
        cell.bytes_up.fetch_add(up, Ordering::Relaxed);
        cell.bytes_down.fetch_add(down, Ordering::Relaxed);
        if let Some(Routed { entry, position, .. }) = &*self.route() {
            let backend = &entry.pool.backends[*position as usize].cell;
            backend.bytes_up.fetch_add(up, Ordering::Relaxed);
            backend.bytes_down.fetch_add(down, Ordering::Relaxed);
        }
    }

    /// Waits until the sweep or a drain orders the connection to end.
    pub async fn ordered(&self) -> End {
        std::future::poll_fn(|cx| {
            self.waker.register(cx.waker());
            match self.order.load(Ordering::Acquire) {
                IDLE => Poll::Ready(End::IdleTimeout),
                FORCE => Poll::Ready(End::DrainDeadline),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Whether it has lasted for a second or two, and its task knows.
    pub fn lasts(&self) -> bool {
        self.order.load(Ordering::Relaxed) > AGED
    }

    /// Tells its task, which is woken for that, once that it has lasted for a second or two.
    pub fn begins_to_last(&self) -> bool {
        self.order.load(Ordering::Relaxed) == AGED && self.pass(AGED, LASTS)
    }

    fn age(&self, now: Moment) {
        let young = self.order.load(Ordering::Relaxed) == YOUNG;
        if young && now.since(self.started) >= LASTING && self.pass(YOUNG, AGED) {
            self.waker.wake();
        }
    }

    fn pass(&self, from: u8, to: u8) -> bool {
        self.order.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn order(&self, order: u8) {
        self.order.store(order, Ordering::Release);
        self.waker.wake();
    }

    /// Time since the last byte, in whole seconds.
    pub fn silent(&self, now: Moment) -> Duration {
        Duration::from_secs(seconds(now).saturating_sub(self.active.load(Ordering::Relaxed)).into())
    }

    fn idle(&self, now: Moment) -> bool {
        self.silent(now).as_secs() > self.frontend.frontend.idle_timeout.as_secs().max(1)
    }
}

fn seconds(moment: Moment) -> u32 {
    u32::try_from(moment.0 / 1_000_000).unwrap_or(u32::MAX)
}

/// The connections of one worker.
#[derive(Debug)]
pub struct Flows {
    pub(super) recent: Recent,
    slab: Mutex<Slab<Arc<Flow>>>,
    joined: AtomicU64,
    live: AtomicUsize,
}

/// Connections that [`Flows::list`] looks at before it lets the worker go on.
const GLANCE: usize = 256;

/// Places for each connection from which on those that are empty are given back.
const ROOMY: usize = 4;

impl Flows {
    /// None yet; keeps this worker's share of the ended ones that `workers` keep together.
    pub fn share_of(workers: usize) -> Self {
        Self {
            recent: Recent::share_of(workers),
            slab: Mutex::default(),
            joined: AtomicU64::new(0),
            live: AtomicUsize::new(0),
        }
    }

    /// All of them; the worker waits for a glance at a few at most, so those that come and go meanwhile may be missing.
    pub fn list(&self) -> Vec<Arc<Flow>> {
        let mut listed = Vec::with_capacity(self.len());
        let mut next = 0;
        loop {
            let slab = self.lock();
            let end = (next + GLANCE).min(slab.capacity());
            listed.extend((next..end).filter_map(|key| slab.get(key)).map(Arc::clone));
            if end == slab.capacity() {
                return listed;
            }
            next = end;
        }
    }

    /// Adds a connection; the key removes it.
    pub fn insert(&self, flow: Arc<Flow>) -> usize {
        self.joined.fetch_add(1, Ordering::Relaxed);
        self.live.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(flow)
    }

    /// Removes a connection that ended.
    pub fn remove(&self, key: usize) {
        self.lock().remove(key);
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections that ever joined.
    pub fn joined(&self) -> u64 {
        self.joined.load(Ordering::Relaxed)
    }

    /// Number of connections.
    pub fn len(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Folds the counters of every connection, tells those that last, and ends those idle for too long.
    pub fn sweep(&self, now: Moment) {
        let mut flows = self.lock();
        for (_, flow) in flows.iter() {
            flow.fold();
            flow.age(now);
            if flow.idle(now) {
                flow.order(IDLE);
            }
        }
        if flows.capacity() > ROOMY * flows.len().max(GLANCE) {
            flows.shrink_to_fit();
        }
    }

    /// Orders the connections that `covered` names to end with RST; tells how many.
    pub fn force(&self, covered: impl Fn(&Flow) -> bool) -> u64 {
        let flows = self.lock();
        let covered = flows.iter().filter(|(_, flow)| covered(flow));
        covered.map(|(_, flow)| flow.order(FORCE)).count() as u64
    }

    /// Number of connections that `covered` names.
    pub fn count(&self, covered: impl Fn(&Flow) -> bool) -> u64 {
        self.lock().iter().filter(|(_, flow)| covered(flow)).count() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Arc<Flow>>> {
        // Nothing inside panics half-way, so a poisoned lock still holds a whole slab.
        self.slab.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::control::table::DispatchTable;
    use crate::health::port::HealthView;

    #[test]
    fn places_of_connections_that_ended_are_given_back_and_the_rest_keep_theirs() {
        let flows = Flows::share_of(1);
        let address = "192.0.2.1:1".parse().unwrap();
        let entry = entry();
        let flow = |id| Arc::new(Flow::new(id, address, address, Arc::clone(&entry), Moment(0)));
        let keys: Vec<usize> = (0..5_000).map(|id| flows.insert(flow(id))).collect();
        let room = || flows.lock().capacity();
        flows.sweep(Moment(1));
        assert!(room() >= 5_000);
        keys.iter().filter(|key| **key != 7).for_each(|key| flows.remove(*key));
        flows.sweep(Moment(2));
        assert!(room() < 100, "{}", room());
        assert_eq!(flows.list().iter().map(|flow| flow.id).collect::<Vec<_>>(), [7]);
        let again = flows.insert(flow(9_000));
        flows.remove(7);
        flows.remove(again);
        assert!(flows.is_empty() && flows.list().is_empty());
    }

    /// A frontend of one backend.
    pub(in crate::proxy) fn entry() -> Arc<FrontendEntry> {
        let config = config([pool("p", [backend("b", 1)])], [frontend("f", 80, "p")]);
        let table = next(&config, &HealthView::default(), &DispatchTable::default());
        Arc::clone(table.frontends.first_key_value().unwrap().1)
    }
}
