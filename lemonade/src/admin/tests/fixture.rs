//! An admin interface over fixed services, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use lemonade_common::BackendIx;
use tempfile::TempDir;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::admin::{AdminSockets, AdminWiring, bind, serve};
use crate::control::ControlState;
use crate::control::journal::Journal;
use crate::control::order::Order;
use crate::control::table::DispatchTable;
use crate::health::port::{HealthService, HealthWiring, History, Outcome};
use crate::log::{LogHandle, Style};
use crate::metrics::adapters::aggregating::Aggregating;
use crate::metrics::fixture::{name, state};
use crate::model::ProcessCell;
use crate::model::config::{Admin, Status};
use crate::proxy::clock::Clock;
use crate::proxy::error::ApplyError;
use crate::proxy::port::{Capabilities, Connection, DrainScope, PlaneCounters, ProxyService, Which};
use crate::proxy::tap::Tap;
use crate::shutdown::Phase;

struct FixedHealth;

impl HealthService for FixedHealth {
    fn run(self: Arc<Self>, _wiring: HealthWiring, _stop: CancellationToken) -> BoxFuture<()> {
        Box::pin(std::future::ready(()))
    }

    /// Backend 1 has failed eight times, backend 0 was never probed.
    fn histories(&self) -> BTreeMap<BackendIx, History> {
        let outcome = |second| Outcome {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
            ok: false,
            detail: "probe: connection refused".to_owned(),
            took: Duration::from_micros(1_500),
        };
        let history = History {
            status: Status::Down,
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(3),
            streak: -8,
            outcomes: (1..=8).map(outcome).collect(),
        };
        BTreeMap::from([(BackendIx(1), history)])
    }
}

struct FixedPlane;

impl ProxyService for FixedPlane {
    fn offers(&self) -> Capabilities {
        Capabilities { relays: vec!["copy"] }
    }

    fn apply(&self, _table: Arc<DispatchTable>) -> Result<(), ApplyError> {
        Ok(())
    }

    fn drain(&self, _scope: DrainScope, _deadline: Duration) -> BoxFuture<u64> {
        Box::pin(std::future::ready(0))
    }

    fn observe(&self) -> PlaneCounters {
        let listeners = vec![(name("web"), "127.0.0.1:4711".parse().expect("a literal address"))];
        PlaneCounters { listeners, live: 5, table_version: 7 }
    }

    fn connections(&self, _which: Which, _such: &dyn Fn(&Connection) -> bool) -> Vec<Connection> {
        Vec::new()
    }
}

/// A served admin interface and all that it is wired to.
pub(super) struct Served {
    pub(super) sockets: Option<AdminSockets>,
    pub(super) wiring: AdminWiring,
    pub(super) control: watch::Sender<Arc<ControlState>>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) process: Arc<ProcessCell>,
    pub(super) reloads: mpsc::Receiver<String>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) stop: CancellationToken,
    _folder: TempDir,
    _log: Box<dyn tracing::Subscriber + Send + Sync>,
}

impl Served {
    /// Binds in a new folder and on a port of the kernel's choice; the frontend `web` has counted already.
    pub(super) fn bind() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("run")).expect("a folder for the socket");
        let admin = Admin {
            socket: Some(folder.path().join("run/admin.sock")),
            listen: Some("127.0.0.1:0".parse().expect("a literal address")),
        };
        let state = state(&["web"], &["a", "b"]);
        let cell = &state.table.frontends.values().next().expect("one frontend").cell;
        cell.opened.store(9, Ordering::Relaxed);
        cell.closed.store(4, Ordering::Relaxed);
        cell.live.store(5, Ordering::Relaxed);
        cell.refused[0].store(2, Ordering::Relaxed);
        let process = Arc::new(ProcessCell::default());
        process.opened.store(9, Ordering::Relaxed);
        let (control, states) = watch::channel(Arc::new(state));
        let (phase, phases) = watch::channel(Phase::Running);
        let metrics = Aggregating::new(states.clone(), Arc::clone(&process));
        metrics.sample();
        let (reloads, asked) = mpsc::channel(1);
        let (orders, ordered) = mpsc::channel(1);
        let tap = Tap::new(broadcast::channel(64).0);
        let (nowhere, _) = crate::metrics::adapters::otlp::channel(Arc::default());
        let (log, handle): (_, LogHandle) =
            crate::log::build("info", Style::Json, false, std::io::sink, &nowhere).expect("a valid filter");
        let wiring = AdminWiring {
            control: states,
            phase: phases,
            metrics: Arc::new(metrics),
            health: Arc::new(FixedHealth),
            plane: Arc::new(FixedPlane),
            journal: Arc::new(Journal::open(&folder.path().join("state"))),
            log: handle,
            reloads,
            reloading: Arc::default(),
            readers: Arc::default(),
            feed: Arc::default(),
            orders,
            health_view: watch::channel(Arc::default()).1,
            resolution: watch::channel(Arc::default()).1,
            tap: tap.clone(),
            clock: Clock::new(),
            seed: 0,
            environment: Vec::new(),
            started: SystemTime::UNIX_EPOCH,
            config_file: "lemonade.toml".into(),
            workers: 2,
            kernel: "nothing: not in a test".to_owned(),
        };
        Self {
            sockets: Some(bind(&admin).expect("both sockets can be bound")),
            _folder: folder,
            wiring,
            control,
            phase,
            process,
            reloads: asked,
            orders: ordered,
            stop: CancellationToken::new(),
            _log: Box::new(log),
        }
    }

    /// Starts to serve.
    pub(super) fn start(&mut self) -> JoinHandle<()> {
        let sockets = self.sockets.take().expect("served once");
        tokio::spawn(serve(sockets, self.wiring.clone(), self.stop.clone()))
    }
}
