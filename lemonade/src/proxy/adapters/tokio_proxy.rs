//! The Tokio plane: accepts, picks, connects and relays in userspace, one single-threaded runtime per core.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lemonade_common::FrontendIx;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::control::table::DispatchTable;
use crate::health::port::Signal;
use crate::metrics::port::Recorder;
use crate::model::config::Protocol;
use crate::model::{Moment, Name, ProcessCell};
use crate::proxy::clock::Clock;
#[cfg(target_os = "linux")]
use crate::proxy::conn::resume::resume;
use crate::proxy::error::{ApplyError, ListenError};
use crate::proxy::flow::{Flow, Flows};
use crate::proxy::port::{Capabilities, Connection, DrainScope, PlaneCounters, ProxyService, Which};
#[cfg(target_os = "linux")]
use crate::proxy::relay::sk_msg::ShortWay;
#[cfg(target_os = "linux")]
use crate::proxy::relay::sockmap::Relay;
#[cfg(target_os = "linux")]
use crate::proxy::relay::splice;
use crate::proxy::sample::Sampler;
use crate::proxy::seat::Workers;
use crate::proxy::shared::{Accepting, Outlets, Shared};
use crate::proxy::socket::{Liveness, listen, probe_address};
use crate::proxy::tap::Tap;
use crate::proxy::udp::{self, Group};
use crate::proxy::worker::{Command, ListenerId, Worker};

/// How often a drain looks whether it is done.
const PULSE: Duration = Duration::from_millis(10);

/// Time within which the sockets of a closed listener are gone for sure.
const LINGERING: Duration = Duration::from_secs(1);

/// What the plane is made of; fixed for the life of the process.
pub struct PlaneSettings {
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Bytes of a relay buffer.
    pub relay_buffer: usize,
    /// Connections in total when the configuration says "auto".
    pub default_limit: u32,
    /// Seed of the flow hash.
    pub seed: u64,
    /// Clock.
    pub clock: Clock,
    /// Counters of the process.
    pub process: Arc<ProcessCell>,
    /// Takes access records.
    pub recorder: Arc<dyn Recorder>,
    /// Takes passive health signals.
    pub signals: mpsc::Sender<Signal>,
    /// Takes what happens to connections, while somebody reads it.
    pub tap: Tap,
    /// Whether a program in the kernel tells what TCP knows of backends, so that the plane need not ask.
    pub told: bool,
}

/// The Tokio plane.
pub struct TokioProxy {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    together: Arc<Workers>,
    listeners: Mutex<Listeners>,
    default_limit: u32,
    ended: CancellationToken,
}

#[derive(Default)]
struct Listeners {
    open: BTreeMap<Key, Listening>,
    next_id: ListenerId,
    /// The process is going away: no table opens a listener any more.
    draining: bool,
    /// Port and time of the listener closed last on it: its sockets live until their queues are empty.
    closed: BTreeMap<(Protocol, u16), Moment>,
    /// Addresses for datagrams that are closed to new sessions and serve those they have.
    leaving: Vec<(Key, Listening)>,
}

/// A configured address; port 0 means a port of its own for each frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    protocol: Protocol,
    address: SocketAddr,
    owner: Option<FrontendIx>,
}

impl Key {
    fn new(protocol: Protocol, address: SocketAddr, ix: FrontendIx) -> Self {
        Self { protocol, address, owner: (address.port() == 0).then_some(ix) }
    }
}

struct Listening {
    /// With the real port.
    address: SocketAddr,
    frontend: Arc<AtomicU32>,
    kind: Kind,
}

enum Kind {
    Stream { id: ListenerId, liveness: Liveness },
    Datagram(Arc<Group>),
}

/// Sockets that are bound but that no worker has yet.
struct Bound {
    key: Key,
    ix: FrontendIx,
    liveness: Liveness,
    address: SocketAddr,
    sockets: Sockets,
}

enum Sockets {
    Stream(Vec<std::net::TcpListener>),
    Datagram(Vec<std::net::UdpSocket>),
    /// The workers still have them.
    Kept(Listening),
}

impl Sockets {
    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Stream(sockets) => sockets[0].local_addr(),
            Self::Datagram(sockets) => sockets[0].local_addr(),
            Self::Kept(listening) => Ok(listening.address),
        }
    }
}

impl Kind {
    /// Whether its sockets are gone; those of streams go with their queues.
    fn is_gone(&self) -> bool {
        match self {
            Self::Stream { .. } => true,
            Self::Datagram(group) => group.is_closed(),
        }
    }
}

impl Listeners {
    /// Closes an address for datagrams to new sessions.
    fn leave(&mut self, key: Key, listening: Listening) {
        if let Kind::Datagram(group) = &listening.kind {
            group.close();
            self.leaving.push((key, listening));
        }
    }

    /// The sockets of an address that was to go and is wanted again.
    fn take_back(&mut self, key: &Key) -> Option<Listening> {
        let place = self.leaving.iter().position(|(leaving, _)| leaving == key)?;
        let (_, listening) = self.leaving.swap_remove(place);
        let reopened = matches!(&listening.kind, Kind::Datagram(group) if group.reopen());
        reopened.then_some(listening)
    }
}

impl TokioProxy {
    /// Starts the workers.
    ///
    /// # Errors
    /// When a thread or a runtime cannot be made.
    pub fn start(settings: PlaneSettings) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(
            settings.process,
            Outlets { recorder: settings.recorder, signals: settings.signals, tap: settings.tap },
            settings.clock,
            settings.seed,
            Sampler::new(settings.told),
            settings.relay_buffer,
        ));
        let ended = CancellationToken::new();
        let together = Arc::new(Workers::default());
        let start = |index| {
            let channel = mpsc::unbounded_channel();
            let flows = Flows::share_of(settings.workers);
            Worker::start(index, Arc::clone(&shared), flows, channel, Arc::clone(&together), ended.clone())
        };
        let workers = (0..settings.workers).map(start).collect::<io::Result<Vec<_>>>()?;
        together.seat(workers.iter().map(|worker| worker.seat.clone()).collect());
        let default_limit = settings.default_limit;
        Ok(Self { shared, workers, together, listeners: Mutex::default(), default_limit, ended })
    }

    /// Cancelled when a worker has ended.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Takes a relay in the kernel; it is used while its state says so.
    #[cfg(target_os = "linux")]
    pub fn take_relay(&self, relay: Arc<Relay>) {
        // There is one for the life of the process.
        let _ = self.shared.sockmap.set(relay);
    }

    /// Takes the short way between sockets of this host; it is used while its state says so.
    #[cfg(target_os = "linux")]
    pub fn take_short_way(&self, relay: Arc<ShortWay>) {
        let _ = self.shared.sk_msg.set(relay);
    }

    /// Takes relay `splice`; it is used while its state says so.
    #[cfg(target_os = "linux")]
    pub fn take_splice(&self, relay: Arc<splice::Relay>) {
        let _ = self.shared.splice.set(relay);
    }

    /// Goes on with flows of relay `splice` that a killed process has left; tells how many.
    #[cfg(target_os = "linux")]
    pub fn resume(&self, left: Vec<splice::Left>) -> usize {
        let table = self.shared.table();
        let count = left.len();
        for own in left {
            resume(&self.shared, &self.together, &table, own);
        }
        count
    }

    /// Stops the workers and waits for their threads.
    pub fn stop(self: Arc<Self>) {
        for worker in &self.workers {
            let _ = worker.commands.send(Command::Exit);
        }
        #[cfg(target_os = "linux")]
        let splice = self.shared.splice.get().cloned();
        if let Ok(plane) = Arc::try_unwrap(self) {
            for worker in plane.workers {
                let _ = worker.thread.join();
            }
        }
        #[cfg(target_os = "linux")]
        if let Some(splice) = splice {
            splice.close();
        }
    }

    /// Binds the address of `key` once for each worker.
    fn bind(&self, key: &Key, liveness: Liveness, probe: bool) -> io::Result<Sockets> {
        let (address, more) = (key.address, 1..self.workers.len());
        match key.protocol {
            Protocol::Tcp => {
                if probe {
                    probe_address(address)?;
                }
                let first = listen(address, liveness)?;
                let real = first.local_addr()?;
                let others = more.map(|_| listen(real, liveness));
                Ok(Sockets::Stream(std::iter::once(Ok(first)).chain(others).collect::<io::Result<_>>()?))
            }
            Protocol::Udp => {
                if probe {
                    udp::probe_address(address)?;
                }
                let first = udp::open(address)?;
                let real = first.local_addr()?;
                let others = more.map(|_| udp::open(real));
                Ok(Sockets::Datagram(std::iter::once(Ok(first)).chain(others).collect::<io::Result<_>>()?))
            }
        }
    }

    fn bind_missing(
        &self,
        listeners: &mut Listeners,
        table: &DispatchTable,
    ) -> Result<Vec<Bound>, ApplyError> {
        let (mut bound, mut failed) = (Vec::new(), Vec::new());
        if listeners.draining {
            return Ok(bound);
        }
        let now = self.shared.clock.now();
        listeners.leaving.retain(|(_, listening)| !listening.kind.is_gone());
        let held = listeners.open.iter().chain(listeners.leaving.iter().map(|(key, held)| (key, held)));
        let mut own_ports: BTreeSet<(Protocol, u16)> =
            held.map(|(key, held)| (key.protocol, held.address.port())).collect();
        let recent = listeners.closed.iter().filter(|(_, closed)| now.since(**closed) < LINGERING);
        own_ports.extend(recent.map(|(port, _)| *port));
        for (&ix, entry) in &table.frontends {
            for &address in &entry.frontend.listen {
                let protocol = entry.frontend.protocol;
                let key = Key::new(protocol, address, ix);
                if listeners.open.contains_key(&key) {
                    continue;
                }
                let liveness = Liveness::from(&*entry.frontend);
                // Own sockets on the port, of `127.0.0.1` beside `0.0.0.0` say, would look like another process.
                let probe = address.port() != 0 && !own_ports.contains(&(protocol, address.port()));
                let kept = listeners.take_back(&key).map(|kept| Ok(Sockets::Kept(kept)));
                let sockets = kept.unwrap_or_else(|| self.bind(&key, liveness, probe));
                match sockets.and_then(|sockets| Ok((sockets.address()?, sockets))) {
                    Ok((address, sockets)) => bound.push(Bound { key, ix, liveness, address, sockets }),
                    Err(error) => failed.push(ListenError {
                        frontend: entry.frontend.name.clone(),
                        address,
                        cause: listen_cause(protocol, &error),
                    }),
                }
            }
        }
        if failed.is_empty() {
            return Ok(bound);
        }
        for one in bound {
            if let Sockets::Kept(listening) = one.sockets {
                listeners.leave(one.key, listening);
            }
        }
        Err(ApplyError { listeners: failed, forward: Vec::new() })
    }

    fn tell(&self, mut command: impl FnMut(usize) -> Command) {
        for (index, worker) in self.workers.iter().enumerate() {
            // A worker that is gone has ended the process already.
            let _ = worker.commands.send(command(index));
        }
    }

    fn close_where(&self, listeners: &mut Listeners, last: &Arc<DispatchTable>, gone: impl Fn(&Key) -> bool) {
        let now = self.shared.clock.now();
        let leaving: Vec<Key> = listeners.open.keys().filter(|key| gone(key)).copied().collect();
        for key in leaving {
            let Some(listening) = listeners.open.remove(&key) else { continue };
            listeners.closed.insert((key.protocol, listening.address.port()), now);
            match listening.kind {
                Kind::Stream { id, .. } => self.tell(|_| Command::Close { id, last: Arc::clone(last) }),
                Kind::Datagram(_) => listeners.leave(key, listening),
            }
        }
    }
}

impl ProxyService for TokioProxy {
    fn offers(&self) -> Capabilities {
        Capabilities { relays: vec!["copy"] }
    }

    fn apply(&self, table: Arc<DispatchTable>) -> Result<(), ApplyError> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.shared.table();
        let bound = self.bind_missing(&mut listeners, &table)?;
        let limit = table.config.as_ref().and_then(|config| config.runtime.max_connections);
        self.shared.total_limit.store(limit.unwrap_or(self.default_limit), Ordering::Relaxed);
        self.shared.commit(Arc::clone(&table));
        for Bound { key, ix, liveness, address, sockets } in bound {
            let frontend = Arc::new(AtomicU32::new(ix.0));
            let listening = match sockets {
                Sockets::Stream(sockets) => {
                    let id = listeners.next_id;
                    listeners.next_id += 1;
                    for (worker, socket) in self.workers.iter().zip(sockets) {
                        let accepting = Accepting::count(&self.shared);
                        let frontend = Arc::clone(&frontend);
                        let _ = worker.commands.send(Command::Open { id, socket, frontend, accepting });
                    }
                    Listening { address, frontend, kind: Kind::Stream { id, liveness } }
                }
                Sockets::Datagram(sockets) => {
                    let group = Arc::new(Group::new(Arc::clone(&frontend)));
                    for (worker, socket) in self.workers.iter().zip(sockets) {
                        let accepting = Accepting::count(&self.shared);
                        let group = Arc::clone(&group);
                        let _ = worker.commands.send(Command::OpenDatagrams { socket, group, accepting });
                    }
                    Listening { address, frontend, kind: Kind::Datagram(group) }
                }
                Sockets::Kept(listening) => listening,
            };
            listeners.open.insert(key, listening);
        }
        let mut wanted = BTreeMap::new();
        for (&ix, entry) in &table.frontends {
            let liveness = Liveness::from(&*entry.frontend);
            let key = |&address: &SocketAddr| Key::new(entry.frontend.protocol, address, ix);
            wanted.extend(entry.frontend.listen.iter().map(|address| (key(address), (ix, liveness))));
        }
        self.close_where(&mut listeners, &previous, |key| !wanted.contains_key(key));
        for (key, listening) in &mut listeners.open {
            let Some(&(ix, liveness)) = wanted.get(key) else { continue };
            listening.frontend.store(ix.0, Ordering::Relaxed);
            if let Kind::Stream { id, liveness: now } = &mut listening.kind
                && *now != liveness
            {
                *now = liveness;
                self.tell(|_| Command::Retune { id: *id, liveness });
            }
        }
        Ok(())
    }

    fn drain(&self, scope: DrainScope, deadline: Duration) -> BoxFuture<u64> {
        let flows: Vec<Arc<Flows>> = self.workers.iter().map(|worker| Arc::clone(&worker.flows)).collect();
        let shared = Arc::clone(&self.shared);
        let DrainScope::Removed { mut frontends, mut backends } = scope else {
            let table = self.shared.table();
            let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.draining = true;
            self.close_where(&mut listeners, &table, |_| true);
            return Box::pin(drain_all(flows, shared, deadline));
        };
        let began = self.shared.clock.now();
        Box::pin(async move {
            tokio::time::sleep(deadline).await;
            // What was taken out by mistake and put back is let go on.
            let table = shared.table();
            frontends.retain(|name| !table.frontends.values().any(|entry| entry.frontend.name == *name));
            backends.retain(|id| !table.has_backend(id));
            let removed = |flow: &Flow| {
                flow.started <= began
                    && (frontends.contains(&flow.frontend.frontend.name) || flow.carried_by(&backends))
            };
            flows.iter().map(|flows| flows.force(removed)).sum()
        })
    }

    fn observe(&self) -> PlaneCounters {
        let table = self.shared.table();
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |listening: &Listening| {
            let ix = FrontendIx(listening.frontend.load(Ordering::Relaxed));
            let entry = table.frontends.get(&ix)?;
            Some((entry.frontend.name.clone(), listening.address))
        };
        let listeners: Vec<(Name, SocketAddr)> = listeners.open.values().filter_map(named).collect();
        let live = self.workers.iter().map(|worker| worker.flows.len() as u64).sum();
        PlaneCounters { listeners, live, table_version: table.version }
    }

    fn connections(&self, which: Which, such: &dyn Fn(&Connection) -> bool) -> Vec<Connection> {
        let now = self.shared.clock.now();
        let flows = self.workers.iter().map(|worker| &worker.flows);
        match which {
            Which::Live => {
                flows.flat_map(|flows| flows.list()).map(|flow| flow.view(now)).filter(such).collect()
            }
            Which::Ended => flows.flat_map(|flows| flows.recent.all()).filter(such).collect(),
        }
    }
}

/// Waits until every connection has ended and every accept queue is empty; resets what is left after `deadline`.
async fn drain_all(flows: Vec<Arc<Flows>>, shared: Arc<Shared>, deadline: Duration) -> u64 {
    let busy = || shared.process.live.load(Ordering::Acquire) > 0 || shared.accepting() > 0;
    let ended = async {
        while busy() {
            tokio::time::sleep(PULSE).await;
        }
    };
    if tokio::time::timeout(deadline, ended).await.is_ok() {
        return 0;
    }
    let reset = flows.iter().map(|flows| flows.force(|_| true)).sum();
    let gone = async {
        while flows.iter().any(|flows| !flows.is_empty()) {
            tokio::time::sleep(PULSE).await;
        }
    };
    // An ordered connection ends at its next poll; a second is for a machine that is very busy.
    let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
    reset
}

/// What went wrong with a listener and what to do about it.
fn listen_cause(protocol: Protocol, error: &io::Error) -> String {
    let advice = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => match protocol {
            Protocol::Tcp => {
                "address in use by another process; stop that one (`ss -ltnp` shows it) or choose another port"
            }
            Protocol::Udp => {
                "address in use by another process; stop that one (`ss -lunp` shows it) or choose another port"
            }
        },
        Some(libc::EACCES) => "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        Some(libc::EADDRNOTAVAIL) => {
            "no interface of this host has that address; choose one from `ip address`, or 0.0.0.0"
        }
        Some(_) | None => return error.to_string(),
    };
    advice.to_owned()
}
