//! One connection from accept to end.

#[cfg(target_os = "linux")]
mod handover;
#[cfg(target_os = "linux")]
pub(super) mod resume;

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lemonade_common::Reason;
use tokio::net::TcpStream;

use super::admit::{Member, enter, leave};
use super::establish::{Established, Spent, establish};
use super::flow::{Direction, Flow, Flows};
use super::relay::copy::Stop;
#[cfg(target_os = "linux")]
use super::relay::sk_msg::Ledger;
#[cfg(target_os = "linux")]
use super::relay::splice::{Candidate, Relay};
use super::relay::{self, State, copy};
use super::seat::{Seat, Workers};
use super::shared::Shared;
use super::socket::{Liveness, reset_on_close, set_liveness, unacknowledged};
use super::tap::EventKind;
use crate::control::table::FrontendEntry;
use crate::health::port::SignalKind;
use crate::metrics::port::{AccessRecord, Datagrams, End, Fault};
use crate::model::Moment;
#[cfg(target_os = "linux")]
use crate::model::relay::{Kept, KernelRelay};
use crate::model::time::micros;

/// Time that bytes already sent get to be acknowledged before a reset discards them.
const FLUSH_BEFORE_RESET: Duration = Duration::from_millis(100);

/// Changes of direction after which a relay in the kernel takes over: four questions with their answers.
const TURNS: u8 = 8;

/// Bytes after which it does.
const LASTING_BYTES: u64 = 64 * 1024;

/// Bytes after which relay `splice` takes over, whose start costs less.
#[cfg(target_os = "linux")]
const SPLICED_BYTES: u64 = 32 * 1024;

/// What the connections of one worker share.
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    pub(super) flows: Arc<Flows>,
    pub(super) workers: Arc<Workers>,
}

/// Takes in an accepted connection: refuses it at once, or serves it in a task of its own.
pub(super) fn accepted(
    context: &Arc<Context>,
    table_version: u64,
    entry: Arc<FrontendEntry>,
    client: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let shared = &context.shared;
    let limit = shared.total_limit.load(Ordering::Relaxed);
    let refused = enter(&shared.process, limit, &entry.cell, entry.frontend.max_connections);
    let flow = Arc::new(Flow::new(shared.connection_id(), peer, local, entry, shared.clock.now()));
    if let Some(reason) = refused {
        reset_on_close(&client);
        drop(client);
        finish(shared, &context.flows, &flow, End::Refused(reason));
        leave(&shared.process, &flow.frontend.cell);
        return;
    }
    let context = Arc::clone(context);
    let Some(Seat { flows, runtime }) = context.workers.lighter_than(&context.flows) else {
        let member = Member::join(Arc::clone(&context.flows), Arc::clone(&shared.process), flow);
        tokio::spawn(serve(context, table_version, client, member));
        return;
    };
    let member = Member::join(Arc::clone(flows), Arc::clone(&shared.process), flow);
    let runtime = runtime.clone();
    if let Ok(client) = client.into_std() {
        runtime.spawn(async move {
            if let Ok(client) = TcpStream::from_std(client) {
                tokio::spawn(serve(context, table_version, client, member));
            }
        });
    }
}

/// Serves a connection to its end.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps its arguments twice: 88 bytes a connection")]
fn serve(
    context: Arc<Context>,
    table_version: u64,
    client: TcpStream,
    member: Member,
) -> impl Future<Output = ()> + Send {
    async move {
        let shared = &*context.shared;
        let flow = member.flow();
        let mut held = None;
        let stop = tokio::select! {
            biased;
            end = flow.ordered() => Stop::End(end),
            stop = attempt(shared, table_version, &client, flow, &mut held) => stop,
        };
        let end = match stop {
            Stop::End(end) => end,
            Stop::HandOver => {
                #[cfg(target_os = "linux")]
                if let Some(held) = held.take() {
                    // A task of its own, so that this one and all the room that it has are given back.
                    tokio::spawn(handover::carry(Arc::clone(&context), client, held, member));
                }
                return;
            }
        };
        if relay::is_abort(end) {
            abort(end, &client, held.as_ref().map(|held: &Established| &held.stream)).await;
        }
        finish(shared, member.flows(), flow, end);
        // The sockets close before the connection stops counting: a limit is never passed, not even for a moment.
        drop(held);
        drop((client, member));
    }
}

/// Connects and relays, on another backend if the first resets before a byte went on.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps its arguments twice: 40 bytes a connection")]
fn attempt<'a>(
    shared: &'a Shared,
    mut version: u64,
    client: &'a TcpStream,
    flow: &'a Flow,
    held: &'a mut Option<Established>,
) -> impl Future<Output = Stop> + Send + use<'a> {
    async move {
        let mut entry = Arc::clone(&flow.frontend);
        let mut state = State::default();
        let mut spent = Spent::default();
        loop {
            // Boxed, since it is large and gone once the backend is connected: most connections wait in the relay.
            match Box::pin(establish(shared, &entry, version, client, flow, &mut spent)).await {
                Ok((established, routed)) => {
                    flow.routed(routed);
                    *held = Some(established);
                }
                Err(reason) => {
                    // The pool changed under way: what it lists now may serve where nothing did.
                    if may_pass(reason)
                        && let Some((table, fresh)) = newer(shared, &entry)
                        && (!spent.tried() || spent.may_retry(&fresh.pool, shared.clock.now()))
                    {
                        (version, entry) = (table, fresh);
                        continue;
                    }
                    let end = if held.is_some() { End::BackendReset } else { End::Refused(reason) };
                    return Stop::End(end);
                }
            }
            let Some(now_held) = &*held else { return Stop::End(End::Closed) };
            let Established { stream, slot, .. } = now_held;
            let backend = slot.backend();
            shared.tap.tell(EventKind::Decision, || flow.view(shared.clock.now()));
            #[cfg_attr(not(target_os = "linux"), expect(unused_mut, reason = "only Linux has a ledger"))]
            let mut meter = Watch::new(shared, flow, client, now_held);
            #[cfg(target_os = "linux")]
            if let Some(short_way) = shared.sk_msg.get() {
                let asked = shared.short_way(&flow.frontend).is_some();
                meter.ledger = Ledger::open(short_way, asked, &flow.frontend, client, stream).map(Box::new);
                let carries = meter.ledger.as_ref().is_some_and(|ledger| ledger.live());
                flow.relayed_by(carries.then_some(KernelRelay::SkMsg));
            }
            let stop = copy::copy(client, stream, &mut state, shared.buffer, &meter).await;
            #[cfg(target_os = "linux")]
            if let Some(spliced) = meter.candidate.take().flatten().and_then(|candidate| candidate.take()) {
                drop(meter);
                if let Some(held) = held {
                    held.spliced = Some(Box::new(spliced));
                }
                return stop;
            }
            #[cfg(target_os = "linux")]
            if let Some(ledger) = &meter.ledger {
                ledger.close(stop == Stop::End(End::Closed), client, stream);
            }
            if stop != Stop::End(End::BackendReset) {
                return stop;
            }
            backend.cell.resets.fetch_add(1, Ordering::Relaxed);
            // A reset that answers the client's own bytes says nothing of the backend: any client could provoke it.
            if !state.untouched() {
                return stop;
            }
            let now = shared.clock.now();
            flow.failed(&backend.id.name, Fault::Reset);
            backend.cell.early_resets.fetch_add(1, Ordering::Relaxed);
            backend.cell.failed(now);
            shared.signal(backend.ix, SignalKind::Reset);
            if !spent.may_retry_without(&slot.entry().pool, backend.ix, now) {
                return stop;
            }
            #[cfg(target_os = "linux")]
            if let Some(ledger) = &meter.ledger {
                // The client goes on, perhaps without the relay.
                ledger.close(true, client, stream);
            }
            state.restart();
        }
    }
}

/// The newest table's version and entry, if the frontend is still in it with another pool than before.
fn newer(shared: &Shared, entry: &FrontendEntry) -> Option<(u64, Arc<FrontendEntry>)> {
    let table = shared.table();
    let fresh = table.frontends.get(&entry.ix).filter(|fresh| !Arc::ptr_eq(&fresh.pool, &entry.pool))?;
    Some((table.version, Arc::clone(fresh)))
}

/// Whether a newer table may have a better answer than this refusal.
const fn may_pass(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoBackendUp | Reason::BackendsFull | Reason::ConnectFailed | Reason::ConnectTimeout
    )
}

/// Counts bytes, times the first answer for strategies that go by response time, and notices that a connection lasts.
struct Watch<'a> {
    shared: &'a Shared,
    flow: &'a Flow,
    #[cfg(target_os = "linux")]
    client: &'a TcpStream,
    held: &'a Established,
    /// Moment of the first byte sent; 0 before, `u64::MAX` once answered.
    sent: AtomicU64,
    /// Kept for a connection that takes the short way between sockets of this host.
    #[cfg(target_os = "linux")]
    ledger: Option<Box<Ledger>>,
    /// Kept for a connection that may become a flow of packets, from when it is worth that; none if it cannot be told apart.
    #[cfg(target_os = "linux")]
    candidate: OnceLock<Option<Box<Candidate<'a, TcpStream>>>>,
}

impl<'a> Watch<'a> {
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "only Linux has relay splice"))]
    fn new(shared: &'a Shared, flow: &'a Flow, client: &'a TcpStream, held: &'a Established) -> Self {
        let watch = Self {
            shared,
            flow,
            #[cfg(target_os = "linux")]
            client,
            held,
            sent: AtomicU64::new(0),
            #[cfg(target_os = "linux")]
            ledger: None,
            #[cfg(target_os = "linux")]
            candidate: OnceLock::new(),
        };
        // The first backend had been kept alive already.
        if flow.lasts() {
            watch.keep_alive();
        }
        watch
    }

    /// Whether it has carried enough to make up for what a relay in the kernel costs at the start.
    fn worth_it(&self, bytes: u64) -> bool {
        let (up, down) = self.flow.bytes();
        self.flow.turns() >= TURNS || up + down >= bytes
    }

    /// The connection as relay `splice` sees it, if that is asked for, may be used and is worth it. Found out only then: most
    /// connections never come so far, and the relay may be on only since a moment ago.
    #[cfg(target_os = "linux")]
    fn candidate(&self) -> Option<&Candidate<'a, TcpStream>> {
        if self.candidate.get().is_none() {
            if !self.worth_it(SPLICED_BYTES) {
                return None;
            }
            let relay = self.shared.splices(&self.flow.frontend)?;
            let _ = self.candidate.set(self.new_candidate(relay).map(Box::new));
        }
        self.candidate.get()?.as_deref()
    }

    #[cfg(target_os = "linux")]
    fn new_candidate(&self, relay: &'a Arc<Relay>) -> Option<Candidate<'a, TcpStream>> {
        let Established { stream, slot, .. } = self.held;
        let ends = [self.flow.client.ip(), slot.backend().id.ip];
        if ends.iter().any(|ip| ip.to_canonical().is_loopback()) {
            // What there is to know without a system call.
            self.flow.frontend.cell.relays[KernelRelay::Splice.index()].keep(Kept::Path);
            return None;
        }
        let (peer, own) = (stream.peer_addr().ok()?, stream.local_addr().ok()?);
        let ends = [[self.flow.client, self.flow.local], [peer, own]];
        Some(Candidate::new(relay, self.client, stream, ends, self.flow))
    }

    /// Only a connection that lasts is worth four system calls; the client's socket has the options from its listener.
    fn keep_alive(&self) {
        if let Err(error) = set_liveness(&self.held.stream, Liveness::from(&*self.flow.frontend.frontend)) {
            tracing::debug!(%error, "keepalive and user timeout towards a backend");
        }
    }
}

impl copy::Meter for Watch<'_> {
    fn polled(&self) {
        if self.flow.begins_to_last() {
            self.keep_alive();
        }
    }

    fn hands_over(&self) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(candidate) = self.candidate() {
            return candidate.advance();
        }
        self.shared.takes_over(self.flow) && self.worth_it(LASTING_BYTES)
    }

    #[cfg(target_os = "linux")]
    fn room(&self, direction: Direction) -> usize {
        self.ledger.as_ref().map_or(usize::MAX, |ledger| ledger.room(direction))
    }

    #[cfg(target_os = "linux")]
    fn waits(&self, unwritten: [u64; 2]) -> bool {
        self.candidate().is_some_and(|candidate| candidate.press(self.shared.clock.now(), unwritten))
    }

    #[cfg(target_os = "linux")]
    fn settled(&self, direction: Direction) -> bool {
        if let Some(Some(candidate)) = self.candidate.get() {
            candidate.end_lull(self.shared.clock.now());
        }
        self.ledger.as_ref().is_none_or(|ledger| ledger.settled(direction))
    }

    #[cfg(target_os = "linux")]
    fn cut_short(&self, direction: Direction) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.cut_short(direction))
    }

    #[cfg(target_os = "linux")]
    fn more(&self, direction: Direction) -> bool {
        self.ledger.as_ref().is_none_or(|ledger| ledger.more(direction))
    }

    fn moved(&self, direction: Direction, bytes: u64) {
        let now = self.shared.clock.now();
        self.flow.moved(direction, bytes, now);
        if direction == Direction::Down {
            let Established { stream, slot, .. } = self.held;
            self.shared.sampler.sample(&slot.backend().cell, stream, &self.flow.resent, now);
        }
        #[cfg(target_os = "linux")]
        if let Some(ledger) = &self.ledger {
            ledger.sent(direction, bytes);
        }
        match (direction, self.sent.load(Ordering::Relaxed)) {
            (Direction::Up, 0) => self.sent.store(now.0, Ordering::Relaxed),
            (Direction::Down, sent) if sent != u64::MAX => {
                if sent != 0 {
                    self.held.slot.backend().cell.first_byte.observe(now.since(Moment(sent)), now);
                }
                self.sent.store(u64::MAX, Ordering::Relaxed);
            }
            (Direction::Up | Direction::Down, _) => {}
        }
    }
}

/// Makes both sockets close with RST, once the survivor has what was sent to it before.
/// Boxed: few connections end so, and each would have room for it.
fn abort<'a>(
    end: End,
    client: &'a (impl AsFd + Sync),
    backend: Option<&'a (impl AsFd + Sync)>,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(async move {
        let survivor = match end {
            End::ClientReset | End::ClientTimeout => backend.map(AsFd::as_fd),
            End::BackendReset | End::BackendTimeout => Some(client.as_fd()),
            End::Closed | End::IdleTimeout | End::DrainDeadline | End::Refused(_) | End::Dropped(_) => None,
        };
        if let Some(survivor) = survivor {
            flush(survivor).await;
        }
        reset_on_close(client);
        if let Some(backend) = backend {
            reset_on_close(backend);
        }
    })
}

/// Gives bytes on their way a moment to arrive: RST discards what is not acknowledged, which a direct connection would
/// have delivered before it.
async fn flush(survivor: BorrowedFd<'_>) {
    let mut waited = Duration::ZERO;
    let mut step = Duration::from_millis(1);
    while waited < FLUSH_BEFORE_RESET && unacknowledged(&survivor) > 0 {
        tokio::time::sleep(step).await;
        waited += step;
        step *= 2;
    }
}

fn finish(shared: &Shared, flows: &Flows, flow: &Flow, end: End) {
    conclude(shared, flows, flow, end, None);
}

/// Counts the end of a connection and tells it to everybody who asks, now or later; `datagrams` is for a session.
pub(super) fn conclude(shared: &Shared, flows: &Flows, flow: &Flow, end: End, datagrams: Option<Datagrams>) {
    let now = shared.clock.now();
    let kind = count(flow, end, now);
    let mut ended = flow.view(now);
    ended.end = Some((end, now));
    shared.tap.tell(kind, || ended.clone());
    if shared.recorder.wants(flow.id) {
        shared.recorder.record(AccessRecord {
            id: flow.id,
            started: shared.clock.wall(flow.started),
            duration: now.since(flow.started),
            frontend: ended.frontend.clone(),
            client: flow.client,
            local: flow.local,
            route: ended.route.clone(),
            decision: ended.decision.clone(),
            failed: ended.failed.clone(),
            bytes_up: ended.bytes_up,
            bytes_down: ended.bytes_down,
            datagrams,
            end,
        });
    }
    flows.recent.keep(ended);
}

/// Counts the end of a connection; tells what it is to those who watch.
pub(super) fn count(flow: &Flow, end: End, now: Moment) -> EventKind {
    flow.fold();
    let cell = &flow.frontend.cell;
    let kind = match end {
        End::Refused(reason) => {
            cell.refused[reason.index()].fetch_add(1, Ordering::Relaxed);
            EventKind::Refusal
        }
        End::Closed
        | End::ClientReset
        | End::BackendReset
        | End::ClientTimeout
        | End::BackendTimeout
        | End::IdleTimeout
        | End::DrainDeadline
        | End::Dropped(_) => EventKind::End,
    };
    cell.session_seconds.observe(micros(now.since(flow.started)));
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, D, F: Future>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// An idle connection costs its future, its task's header, two registrations with epoll and its [`Flow`].
    #[test]
    fn a_connection_stays_small() {
        let future = size_of_future(serve);
        assert!(future <= 592, "the future of a connection has {future} bytes");
        let flow = size_of::<Flow>();
        assert!(flow <= 256, "a flow has {flow} bytes");
    }
}
