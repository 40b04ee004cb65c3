//! One connection from accept to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lemonade_common::{FrontendIx, Reason};
use tokio::net::TcpStream;

use super::admit::Place;
use super::establish::{Established, Tried, establish};
use super::flow::{Direction, Flow, Flows};
use super::relay::{self, State, copy};
use super::shared::Shared;
use super::socket::{reset_on_close, unacknowledged};
use crate::control::table::{DispatchTable, FrontendEntry};
use crate::health::port::SignalKind;
use crate::metrics::port::{AccessRecord, End, Route};
use crate::model::time::micros;
use crate::model::{BackendCell, Moment};

/// Time that bytes already sent get to be acknowledged before a reset discards them.
const FLUSH_BEFORE_RESET: Duration = Duration::from_millis(100);

/// What a connection needs besides its socket.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    pub(super) flows: Arc<Flows>,
}

/// Serves one accepted connection.
pub(super) async fn serve(
    context: Context,
    table: Arc<DispatchTable>,
    entry: Arc<FrontendEntry>,
    client: TcpStream,
    addresses: (std::net::SocketAddr, std::net::SocketAddr),
) {
    let Context { shared, flows } = context;
    let (peer, local) = addresses;
    let now = shared.clock.now();
    let limit = shared.total_limit.load(Ordering::Relaxed);
    let (place, refused) = Place::take(&shared.process, limit, &entry.cell, entry.frontend.max_connections);
    let version = table.version;
    drop(table);
    let flow = Arc::new(Flow::new(shared.connection_id(), peer, local, entry, now));
    let (end, route) = match refused {
        Some(reason) => {
            reset_on_close(&client);
            (End::Refused(reason), None)
        }
        None => {
            let key = flows.insert(Arc::clone(&flow));
            let outcome = run(&shared, version, &client, &flow).await;
            flows.remove(key);
            outcome
        }
    };
    // The sockets close before the connection stops counting: a limit is never passed, not even for a moment.
    drop(client);
    finish(&shared, &flow, end, route);
    drop(place);
}

/// Connects, relays and closes; tells how it ended and where it went.
async fn run(shared: &Shared, version: u64, client: &TcpStream, flow: &Flow) -> (End, Option<Box<Route>>) {
    let mut held = Held::default();
    let ordered = tokio::select! {
        biased;
        end = flow.ordered() => Some(end),
        end = attempt(shared, version, client, flow, &mut held) => {
            held.end = Some(end);
            None
        }
    };
    let end = ordered.or(held.end).unwrap_or(End::Closed);
    if relay::is_abort(end) {
        let survivor = match end {
            End::ClientReset | End::ClientTimeout => held.established.as_ref().map(|held| &held.stream),
            End::BackendReset | End::BackendTimeout => Some(client),
            End::Closed | End::IdleTimeout | End::DrainDeadline | End::Refused(_) => None,
        };
        if let Some(survivor) = survivor {
            flush(survivor).await;
        }
        reset_on_close(client);
        if let Some(held) = &held.established {
            reset_on_close(&held.stream);
        }
    }
    (end, held.established.map(|held| held.route))
}

/// What a connection holds while it runs; outlives the future that fills it, so that an order can end it properly.
#[derive(Default)]
struct Held {
    established: Option<Box<Backend>>,
    end: Option<End>,
}

/// A connected backend, with its route boxed: it is read once, at the end.
struct Backend {
    stream: TcpStream,
    route: Box<Route>,
    _slot: super::admit::Slot,
}

async fn attempt(shared: &Shared, mut version: u64, client: &TcpStream, flow: &Flow, held: &mut Held) -> End {
    let mut entry = Arc::clone(&flow.frontend);
    let mut state = State::default();
    // Boxed, since it is large and gone once the backend is connected: the relay is what most connections wait in.
    let mut tried = Box::new(Tried::default());
    loop {
        let connected = Box::pin(establish(shared, &entry, version, client, flow, &mut tried)).await;
        let Established { stream, slot, ix, route } = match connected {
            Ok(established) => established,
            Err(reason) => match newer(shared, entry.ix, version) {
                // The table changed under way: what it lists now may serve where nothing did.
                Some((table, fresh)) if reason_may_pass(reason) => {
                    (version, entry) = (table, fresh);
                    *tried = Tried::default();
                    continue;
                }
                Some(_) | None => return End::Refused(reason),
            },
        };
        let cell = Arc::clone(slot.cell());
        flow.routed(Arc::clone(&cell));
        let backend =
            held.established.insert(Box::new(Backend { stream, route: Box::new(route), _slot: slot }));
        let meter = FirstByte::new(shared, flow, &cell);
        let end = copy::copy(client, &backend.stream, &mut state, shared.buffer, &|direction, bytes| {
            meter.moved(direction, bytes);
        })
        .await;
        if end != End::BackendReset {
            return end;
        }
        let now = shared.clock.now();
        cell.resets.fetch_add(1, Ordering::Relaxed);
        // A reset that answers the client's own bytes says nothing of the backend: any client could provoke it.
        if !state.untouched() {
            return end;
        }
        cell.failed(now);
        shared.signal(ix, SignalKind::Reset);
        if !tried.may_retry(&entry.pool, now) {
            return end;
        }
        state.restart();
        held.established = None;
    }
}

/// The newest table's version and entry, if it is newer than `version` and still has the frontend.
fn newer(shared: &Shared, ix: FrontendIx, version: u64) -> Option<(u64, Arc<FrontendEntry>)> {
    let table = shared.table();
    let entry = (table.version > version).then(|| table.frontends.get(&ix)).flatten()?;
    Some((table.version, Arc::clone(entry)))
}

/// Whether a newer table may have a better answer than this refusal.
const fn reason_may_pass(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoBackendUp | Reason::BackendsFull | Reason::ConnectFailed | Reason::ConnectTimeout
    )
}

/// Counts bytes, and times the first answer for strategies that go by response time.
struct FirstByte<'a> {
    shared: &'a Shared,
    flow: &'a Flow,
    cell: &'a BackendCell,
    /// Moment of the first byte sent; 0 before, `u64::MAX` once answered.
    sent: AtomicU64,
}

impl<'a> FirstByte<'a> {
    fn new(shared: &'a Shared, flow: &'a Flow, cell: &'a BackendCell) -> Self {
        Self { shared, flow, cell, sent: AtomicU64::new(0) }
    }

    fn moved(&self, direction: Direction, bytes: u64) {
        let now = self.shared.clock.now();
        self.flow.moved(direction, bytes, now);
        match (direction, self.sent.load(Ordering::Relaxed)) {
            (Direction::Up, 0) => self.sent.store(now.0, Ordering::Relaxed),
            (Direction::Down, sent) if sent != u64::MAX => {
                if sent != 0 {
                    self.cell.first_byte.observe(now.since(Moment(sent)), now);
                }
                self.sent.store(u64::MAX, Ordering::Relaxed);
            }
            (Direction::Up | Direction::Down, _) => {}
        }
    }
}

/// Gives bytes on their way a moment to arrive: RST discards what is not acknowledged, which a direct connection would
/// have delivered before it.
async fn flush(survivor: &TcpStream) {
    let mut waited = Duration::ZERO;
    let mut step = Duration::from_millis(1);
    while waited < FLUSH_BEFORE_RESET && unacknowledged(survivor) > 0 {
        tokio::time::sleep(step).await;
        waited += step;
        step *= 2;
    }
}

fn finish(shared: &Shared, flow: &Flow, end: End, route: Option<Box<Route>>) {
    flow.fold();
    let duration = shared.clock.now().since(flow.started);
    let cell = &flow.frontend.cell;
    if let End::Refused(reason) = end {
        cell.refused[reason.index()].fetch_add(1, Ordering::Relaxed);
    }
    cell.session_seconds.observe(micros(duration));
    if !shared.recorder.enabled() {
        return;
    }
    let (bytes_up, bytes_down) = flow.bytes();
    shared.recorder.record(AccessRecord {
        id: flow.id,
        started: shared.clock.wall(flow.started),
        duration,
        frontend: flow.frontend.frontend.name.clone(),
        client: flow.client,
        local: flow.local,
        route: route.map(|route| *route),
        bytes_up,
        bytes_down,
        end,
    });
}
