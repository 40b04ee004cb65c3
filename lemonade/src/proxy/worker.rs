//! A worker: one thread with a runtime of its own that accepts and carries connections.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lemonade_common::FrontendIx;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::conn::{Context, accepted};
use super::flow::Flows;
use super::seat::{Seat, Workers};
use super::shared::{Accepting, Shared};
use super::socket::{Liveness, accept_waiting, fault, refuse_new, reset_on_close, set_liveness};
use super::udp::{Datagrams, Group};
use crate::control::table::{DispatchTable, FrontendEntry};
use crate::metrics::port::Fault;

/// How often counters are folded and idle connections looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// How often a worker wakes while connections come in. A timer that is set for earlier than every other one costs tokio
/// an eventfd write and a wake-up; with this one running, the timer of a connect never is.
const BEAT: Duration = Duration::from_millis(50);

/// First and longest pause of accepting when descriptors or memory have run out.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Looks into the accept queue of a listener that closes, and the time before each.
const LAST_LOOKS: u32 = 2;
const LAST_LOOK: Duration = Duration::from_millis(5);

/// Number of a listener, the same in every worker.
pub(super) type ListenerId = u64;

/// What the plane tells a worker.
pub(super) enum Command {
    /// Accept on a bound socket.
    Open { id: ListenerId, socket: std::net::TcpListener, frontend: Arc<AtomicU32>, accepting: Accepting },
    /// Take datagrams on a bound socket, until its group closes.
    OpenDatagrams { socket: std::net::UdpSocket, group: Arc<Group>, accepting: Accepting },
    /// Give connections accepted from now on other socket options.
    Retune { id: ListenerId, liveness: Liveness },
    /// Serve what the queue holds, then close. `last` is the table that still knew the frontend.
    Close { id: ListenerId, last: Arc<DispatchTable> },
    /// Leave; connections that still exist are dropped.
    Exit,
}

/// A running worker.
pub(super) struct Worker {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) flows: Arc<Flows>,
    pub(super) seat: Seat,
    pub(super) thread: JoinHandle<()>,
}

impl Worker {
    /// Starts worker number `index`.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub(super) fn start(
        index: usize,
        shared: Arc<Shared>,
        flows: Flows,
        (commands, inbox): (mpsc::UnboundedSender<Command>, mpsc::UnboundedReceiver<Command>),
        workers: Arc<Workers>,
        ended: CancellationToken,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let flows = Arc::new(flows);
        let seat = Seat { flows: Arc::clone(&flows), runtime: runtime.handle().clone() };
        let context = Arc::new(Context { shared, flows: Arc::clone(&flows), workers });
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            // Cancelled on the way out, however that is: a worker that failed must not go unnoticed.
            let _ended = ended.drop_guard();
            runtime.block_on(run(context, inbox));
        })?;
        Ok(Self { commands, flows, seat, thread })
    }
}

/// A listener that this worker accepts on.
#[derive(Clone)]
struct Open {
    socket: Arc<TcpListener>,
    close: CancellationToken,
    last: Arc<std::sync::Mutex<Option<Arc<DispatchTable>>>>,
}

async fn run(context: Arc<Context>, mut inbox: mpsc::UnboundedReceiver<Command>) {
    let mut listeners: HashMap<ListenerId, Open> = HashMap::new();
    let mut datagrams = Datagrams::default();
    let mut sweep = tokio::time::interval(SWEEP);
    let beat = tokio::time::sleep(BEAT);
    tokio::pin!(beat);
    let mut opened = 0;
    let mut beating = false;
    loop {
        tokio::select! {
            command = inbox.recv() => match command {
                Some(Command::Open { id, socket, frontend, accepting }) => {
                    match TcpListener::from_std(socket) {
                        Ok(socket) => {
                            let open = Open {
                                socket: Arc::new(socket),
                                close: CancellationToken::new(),
                                last: Arc::default(),
                            };
                            let accepted = accept(Arc::clone(&context), open.clone(), frontend);
                            tokio::spawn(async move {
                                accepted.await;
                                drop(accepting);
                            });
                            listeners.insert(id, open);
                        }
                        Err(error) => tracing::error!(%error, "a listener could not be registered"),
                    }
                }
                Some(Command::OpenDatagrams { socket, group, accepting }) => {
                    datagrams.open(&context, socket, group, accepting);
                }
                Some(Command::Retune { id, liveness }) => {
                    if let Some(open) = listeners.get(&id)
                        && let Err(error) = set_liveness(&*open.socket, liveness)
                    {
                        tracing::warn!(%error, "keepalive and user timeout of a listener could not be changed");
                    }
                }
                Some(Command::Close { id, last }) => {
                    if let Some(open) = listeners.remove(&id) {
                        *open.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(last);
                        open.close.cancel();
                    }
                }
                Some(Command::Exit) | None => return,
            },
            _ = sweep.tick() => {
                let now = context.shared.clock.now();
                context.flows.sweep(now);
                datagrams.sweep(now);
                let seen = context.flows.joined();
                beating = seen != opened;
                opened = seen;
                if beating {
                    beat.as_mut().reset(tokio::time::Instant::now() + BEAT);
                }
            }
            () = &mut beat, if beating => beat.as_mut().reset(tokio::time::Instant::now() + BEAT),
        }
    }
}

/// Accepts until told to close, then serves what the queue still holds.
async fn accept(
    context: Arc<Context>,
    Open { socket: listener, close, last }: Open,
    frontend: Arc<AtomicU32>,
) {
    let mut pause = PAUSE.0;
    let address = listener.local_addr().ok().filter(|address| !address.ip().is_unspecified());
    let closed = close.cancelled();
    tokio::pin!(closed);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closed => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, peer)) => {
                pause = PAUSE.0;
                let found = tokio::select! {
                    biased;
                    found = lookup(&context, &frontend) => Some(found),
                    () = &mut closed => None,
                };
                let addresses = (peer, address);
                let Some((version, entry)) = found else {
                    let ix = FrontendIx(frontend.load(Ordering::Relaxed));
                    admit_last(&context, &last, ix, client, addresses);
                    break;
                };
                admit(&context, version, entry, client, addresses);
            }
            Err(error) if fault(&error) == Fault::NoDescriptors => {
                context.shared.process.accept_pauses.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "accepting is paused: no descriptor or memory left; raise the descriptor limit or lower runtime.max_connections");
                tokio::select! {
                    () = &mut closed => break,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(PAUSE.1);
            }
            // A client that left while it was queued; the next accept is unharmed.
            Err(error) => tracing::debug!(%error, "accept"),
        }
    }
    // A handshake that is half done ends in the queue a moment after the last look; new ones are kept out meanwhile.
    refuse_new(&*listener);
    let ix = FrontendIx(frontend.load(Ordering::Relaxed));
    for _ in 0..LAST_LOOKS {
        tokio::time::sleep(LAST_LOOK).await;
        // Not through the runtime, which asks the kernel only when it was told of a new connection.
        while let Some((client, peer)) = accept_waiting(&listener) {
            admit_last(&context, &last, ix, client, (peer, address));
        }
    }
}

/// The listener's frontend in the table of now.
///
/// A table is committed a moment before its listeners follow, so the entry can be missing for that moment: either the
/// listener is handed to another frontend next, or it is closed.
async fn lookup(context: &Context, frontend: &AtomicU32) -> (u64, Arc<FrontendEntry>) {
    loop {
        let table = context.shared.table();
        let ix = FrontendIx(frontend.load(Ordering::Relaxed));
        if let Some(entry) = table.frontends.get(&ix) {
            return (table.version, Arc::clone(entry));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn admit_last(
    context: &Arc<Context>,
    last: &std::sync::Mutex<Option<Arc<DispatchTable>>>,
    ix: FrontendIx,
    client: TcpStream,
    addresses: (SocketAddr, Option<SocketAddr>),
) {
    let last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let entry = last.as_ref().and_then(|table| table.frontends.get(&ix)).map(Arc::clone);
    match (last, entry) {
        (Some(table), Some(entry)) => admit(context, table.version, entry, client, addresses),
        _ => reset_on_close(&client),
    }
}

fn admit(
    context: &Arc<Context>,
    table_version: u64,
    entry: Arc<FrontendEntry>,
    client: TcpStream,
    (peer, listening): (SocketAddr, Option<SocketAddr>),
) {
    // Inherited from the listener on Linux only.
    #[cfg(not(target_os = "linux"))]
    {
        let _ = super::socket::set_stream(&client);
        let _ = set_liveness(&client, Liveness::from(&*entry.frontend));
    }
    // A listener on one address knows it; asking fails only when the client has reset already.
    let Some(local) = listening.or_else(|| client.local_addr().ok()) else { return };
    accepted(context, table_version, entry, client, unmapped(peer), unmapped(local));
}

/// The IPv4 address that an IPv6 socket shows as `::ffff:a.b.c.d`.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // As it is: it may have a scope.
        IpAddr::V6(_) => address,
    }
}
