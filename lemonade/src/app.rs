//! The composition root: everything is made here, bound before the first accept, and run until a signal.

mod follow;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminSockets, AdminWiring};
use crate::config::port::ConfigService;
use crate::control::controller::{Controller, Inbox, Outbox};
use crate::control::journal::Journal;
use crate::control::table::DispatchTable;
use crate::control::{ControlState, resolve, signals};
#[cfg(target_os = "linux")]
use crate::control::{relays, short_way};
use crate::health::adapters::backend::BackendHealth;
use crate::health::adapters::probe::TcpProber;
use crate::health::port::{HealthService, HealthWiring};
use crate::log::{LogHandle, Style};
use crate::metrics::adapters::access::AccessWriter;
use crate::metrics::adapters::aggregating::Aggregating;
use crate::metrics::adapters::otlp::{Exporter, Otlp, Sources};
use crate::metrics::port::MetricsService;
use crate::model::{Config, ProcessCell, Resolution};
use crate::proxy::adapters::bpf::Kernel;
use crate::proxy::adapters::tiered::Tiered;
use crate::proxy::adapters::tokio_proxy::{PlaneSettings, TokioProxy};
use crate::proxy::clock::Clock;
#[cfg(target_os = "linux")]
use crate::proxy::forward::{ForwardPlane, Keeping};
use crate::proxy::port::{DrainScope, ProxyService};
use crate::proxy::tap::{self, Tap};
use crate::shutdown::{Phase, Signals};
use crate::state_dir::StateDir;
use crate::{limits, systemd};
use follow::{Follow, Recorders};

/// Passive health signals that may wait; the data plane drops and counts what is above.
const SIGNALS: usize = 4096;

/// Health transitions that may wait to be written down.
const TRANSITIONS: usize = 1024;

/// Changes by the operator that may wait for the controller.
const ORDERS: usize = 64;

/// Time that host names get at start before serving begins without those that are late.
const FIRST_RESOLUTION: Duration = Duration::from_secs(2);

/// Time that tasks get to end once the data plane is gone.
const TASKS_END: Duration = Duration::from_secs(2);

/// What [`build`] is given.
pub struct Settings {
    /// Source of configurations.
    pub service: Arc<dyn ConfigService>,
    /// Its first configuration.
    pub config: Arc<Config>,
    /// File it comes from, shown to the operator.
    pub file: PathBuf,
    /// Environment variables that override its keys.
    pub environment: Vec<(String, String)>,
    /// Live state of the process.
    pub process: Arc<ProcessCell>,
    /// Where telemetry goes in, and what sends it.
    pub telemetry: (Otlp, Exporter),
    /// Filter of the log.
    pub log: LogHandle,
    /// Shape of access records in the log.
    pub style: Style,
    /// Where access records go that are to stand in the log.
    pub stream: Box<dyn Write + Send>,
}

/// Everything bound and committed; nothing of the control plane runs yet.
pub struct Bound {
    config: Arc<Config>,
    plane: Arc<TokioProxy>,
    tiers: Arc<Tiered>,
    #[cfg(target_os = "linux")]
    forward: Arc<ForwardPlane>,
    health: Arc<BackendHealth>,
    metrics: Arc<Aggregating>,
    service: Arc<dyn ConfigService>,
    controller: Controller,
    admin: (AdminSockets, AdminWiring),
    access: AccessWriter,
    exporter: (Exporter, Sources),
    channels: Channels,
    phase: watch::Sender<Phase>,
    #[cfg(target_os = "linux")]
    process: Arc<ProcessCell>,
    // Held to the end, since dropping it takes what is in the kernel away.
    kernel: Option<signals::Reader>,
    // Held to the end: it keeps a second instance out of the folder.
    _state_dir: StateDir,
}

/// The receiving ends, and those sending ends that tasks take over.
struct Channels {
    inbox: Inbox,
    health: HealthWiring,
    resolution: watch::Sender<Arc<Resolution>>,
    updates: mpsc::Sender<crate::config::port::ConfigUpdate>,
    reload_causes: mpsc::Receiver<String>,
    reloads: mpsc::Sender<String>,
    tables: watch::Receiver<Arc<DispatchTable>>,
}

/// Binds, loads and applies: all that can fail does so here, before the first accept.
///
/// # Errors
/// What could not be bound, locked or opened, in words.
pub async fn build(settings: Settings) -> anyhow::Result<Bound> {
    let Settings { service, config, file, environment, process, telemetry, log, style, stream } = settings;
    let (telemetry, exporter) = telemetry;
    let clock = Clock::new();
    let state_dir = StateDir::open(config.runtime.state_dir.as_deref())?;
    let seed = state_dir.hash_seed(config.runtime.hash_seed.as_deref())?;
    let journal = Arc::new(Journal::open(state_dir.path()));
    #[cfg(target_os = "linux")]
    let keeping = Keeping::open(state_dir.path());
    #[cfg(target_os = "linux")]
    let mut none = keeping.indices().into_table();
    #[cfg(not(target_os = "linux"))]
    let mut none = DispatchTable::default();
    // A version that somebody noted before a restart is not that of another configuration after it.
    (none.config_version, _) = journal.former();
    let access = AccessWriter::start(&config.log.access, style, stream, Arc::clone(&process))
        .context("log.access: the file cannot be opened")?;
    let sockets = admin::bind(&config.admin)?;
    let kernel = follow::join_kernel();
    let kernel_words = kernel.as_ref().map_or_else(|why| format!("nothing: {why}"), Kernel::words);
    #[cfg(target_os = "linux")]
    if let Err(why) = &kernel {
        relays::impossible(&process, &why.to_string());
    }
    let kernel = kernel.ok();

    let (signal_sender, signals) = mpsc::channel(SIGNALS);
    let (transition_sender, transitions) = mpsc::channel(TRANSITIONS);
    let (updates, update_receiver) = mpsc::channel(1);
    let (reloads, reload_causes) = mpsc::channel(16);
    let (orders, order_receiver) = mpsc::channel(ORDERS);
    let (health_view, health_receiver) = watch::channel(Arc::default());
    let (phase, phase_receiver) = watch::channel(Phase::Starting);
    let none = Arc::new(none);
    let (tables, table_receiver) = watch::channel(Arc::clone(&none));
    let (state, state_receiver) = watch::channel(Arc::new(ControlState::at_start(SystemTime::now(), none)));
    let first = Arc::new(resolve::first(&config, FIRST_RESOLUTION).await);
    let (resolution, resolution_receiver) = watch::channel(Arc::clone(&first));

    telemetry.set(&config.telemetry);
    let tap = Tap::new(broadcast::channel(tap::BACKLOG).0);
    let workers = config.runtime.workers.unwrap_or_else(cores);
    let plane = TokioProxy::start(PlaneSettings {
        workers,
        relay_buffer: config.runtime.relay_buffer,
        default_limit: default_limit(&config, workers),
        seed,
        clock,
        process: Arc::clone(&process),
        recorder: Arc::new(Recorders { access: access.clone(), telemetry: telemetry.clone() }),
        signals: signal_sender.clone(),
        tap: tap.clone(),
        told: kernel.is_some(),
    })
    .context("cannot start the workers")?;
    let plane = Arc::new(plane);
    let effects = Follow {
        log: log.clone(),
        access: access.clone(),
        telemetry,
        level: None,
        target: config.log.access.clone(),
    };
    #[cfg(target_os = "linux")]
    let forward = Arc::new(ForwardPlane::new(Arc::clone(&process), clock, seed, tap.clone(), keeping));
    let tiers = Arc::new(Tiered::new(
        Arc::clone(&plane),
        #[cfg(target_os = "linux")]
        Arc::clone(&forward),
    ));
    #[cfg(target_os = "linux")]
    let mut splices = follow::splices(&plane, &process, state_dir.path(), kernel.is_some());
    let controller = Controller::start(
        Arc::clone(&config),
        first,
        Arc::clone(&tiers) as Arc<dyn ProxyService>,
        Box::new(effects),
        Arc::clone(&journal),
        Arc::clone(&process),
        Outbox { state, tables },
    )
    .map_err(|errors| anyhow!("{errors}"))?;
    #[cfg(target_os = "linux")]
    splices.resume();

    let health = Arc::new(BackendHealth::new(TcpProber, Arc::clone(&process)));
    let metrics = Arc::new(Aggregating::new(state_receiver.clone(), Arc::clone(&process)));
    let sources =
        Sources { metrics: Arc::clone(&metrics) as Arc<dyn MetricsService>, phase: phase_receiver.clone() };
    let wiring = AdminWiring {
        control: state_receiver,
        phase: phase_receiver,
        metrics: Arc::clone(&metrics) as Arc<dyn MetricsService>,
        health: Arc::clone(&health) as Arc<dyn HealthService>,
        plane: Arc::clone(&tiers) as Arc<dyn ProxyService>,
        journal,
        log,
        reloads: reloads.clone(),
        reloading: Arc::default(),
        readers: Arc::default(),
        feed: Arc::default(),
        orders,
        health_view: health_receiver.clone(),
        resolution: resolution_receiver.clone(),
        tap,
        clock,
        seed,
        environment,
        config_file: file,
        workers,
        kernel: kernel_words,
        started: SystemTime::now(),
    };
    let channels = Channels {
        inbox: Inbox {
            updates: update_receiver,
            health: health_receiver,
            resolution: resolution_receiver,
            transitions,
            orders: order_receiver,
        },
        health: HealthWiring {
            targets: table_receiver.clone(),
            signals,
            view: health_view,
            transitions: transition_sender,
        },
        resolution,
        updates,
        reload_causes,
        reloads,
        tables: table_receiver,
    };
    Ok(Bound {
        config,
        plane,
        tiers,
        #[cfg(target_os = "linux")]
        forward,
        health,
        metrics,
        service,
        controller,
        admin: (sockets, wiring),
        access,
        exporter: (exporter, sources),
        channels,
        phase,
        #[cfg(target_os = "linux")]
        process,
        kernel: kernel.map(|kernel| signals::Reader {
            kernel,
            health: signal_sender,
            clock,
            #[cfg(target_os = "linux")]
            splices,
        }),
        _state_dir: state_dir,
    })
}

impl Bound {
    /// Frontends with the addresses that they really listen on.
    pub fn listeners(&self) -> Vec<(crate::model::Name, std::net::SocketAddr)> {
        self.plane.observe().listeners
    }

    /// Admin socket.
    pub fn admin_socket(&self) -> &Path {
        self.admin.0.socket()
    }

    /// Admin address, if it listens on one.
    pub fn admin_address(&self) -> Option<std::net::SocketAddr> {
        self.admin.0.address()
    }

    /// Serves until a signal, then drains.
    ///
    /// # Errors
    /// When a part of the process ended by itself; the connections were drained first.
    pub async fn run(self, mut stops: Signals) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let Self {
            config,
            plane,
            tiers,
            #[cfg(target_os = "linux")]
            forward,
            health,
            metrics,
            service,
            controller,
            admin,
            access,
            exporter,
            channels,
            phase,
            #[cfg(target_os = "linux")]
            process,
            kernel,
            _state_dir,
        } = self;
        let Channels { inbox, health: wiring, resolution, updates, reload_causes, reloads, tables } =
            channels;
        let current = tables.clone();
        let journal = Arc::clone(&admin.1.journal);
        let mut tasks = JoinSet::new();
        spawn(&mut tasks, "config", service.run(updates, reload_causes, stop.clone()));
        spawn(&mut tasks, "controller", controller.run(inbox, stop.clone()));
        spawn(&mut tasks, "health", health.run(wiring, stop.clone()));
        spawn(&mut tasks, "resolver", resolve::run(tables, resolution, stop.clone()));
        spawn(&mut tasks, "metrics", metrics.run(stop.clone()));
        spawn(&mut tasks, "watchdog", watchdog(stop.clone()));
        #[cfg(target_os = "linux")]
        spawn(&mut tasks, "forward", Arc::clone(&forward).run(stop.clone()));
        if let Some(kernel) = kernel {
            #[cfg(target_os = "linux")]
            let relays = {
                let (own, listening) = (Arc::clone(&plane), Arc::clone(&plane));
                let offer = Box::new(move |relay| own.take_short_way(relay));
                let listeners = Box::new(move || listening.observe().listeners);
                let short_ways = short_way::ShortWays::new(Arc::clone(&process), listeners, offer);
                let plane = Arc::clone(&plane);
                let offer = Box::new(move |relay| plane.take_relay(relay));
                let relays = relays::Relays::new(process, offer, config.runtime.relay_buffer);
                (relays, short_ways)
            };
            let signals = signals::run(
                kernel,
                #[cfg(target_os = "linux")]
                relays,
                current.clone(),
                stop.clone(),
            );
            spawn(&mut tasks, "kernel", signals);
        }
        let admin_stop = CancellationToken::new();
        let (admin_ended, admin_gone) = tokio::sync::oneshot::channel();
        let admin_thread = start_admin(admin, admin_stop.clone(), admin_ended)?;
        let exporter_thread = start_exporter(exporter, admin_stop.clone())?;

        let worker_ended = plane.ended();
        phase.send_replace(Phase::Running);
        systemd::ready("serving");
        let failure = tokio::select! {
            () = stops.until_stop(&reloads) => None,
            Some(ended) = tasks.join_next() => Some(match ended {
                Ok(name) => format!("the {name} task ended unexpectedly"),
                Err(panic) => format!("a task of the control plane failed: {panic}"),
            }),
            () = worker_ended.cancelled() => Some("a worker ended unexpectedly".to_owned()),
            _ = admin_gone => Some("the admin interface ended unexpectedly".to_owned()),
        };
        if let Some(failure) = &failure {
            tracing::error!("{failure}; draining");
        }

        systemd::stopping();
        // As the configuration stands now, not as it stood at start.
        let config = current.borrow().config.clone().unwrap_or(config);
        let version = current.borrow().config_version;
        follow::note_stop(&journal, version, tiers.observe().live, failure.as_deref());
        let reset = drain(&phase, &*tiers, &config, &mut stops).await;
        follow::note_end(&journal, version, reset);
        stop.cancel();
        let _ = tokio::time::timeout(TASKS_END, async { while tasks.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
        phase.send_replace(Phase::Stopped);
        admin_stop.cancel();
        // A thread that failed has said so in its panic message.
        let _ = admin_thread.join();
        let _ = exporter_thread.join();
        drop(tiers);
        #[cfg(target_os = "linux")]
        forward.close();
        plane.stop();
        access.flush(TASKS_END);
        failure.map_or(Ok(()), |failure| Err(anyhow!(failure)))
    }
}

/// Lame duck, draining, forced: each phase ends early when a second signal comes. Tells how many were reset.
async fn drain(
    phase: &watch::Sender<Phase>,
    plane: &dyn ProxyService,
    config: &Config,
    signals: &mut Signals,
) -> u64 {
    let runtime = &config.runtime;
    phase.send_replace(Phase::LameDuck);
    tracing::info!(pause = ?runtime.lame_duck, "stopping: no longer ready, still accepting");
    let mut forced = tokio::select! {
        () = tokio::time::sleep(runtime.lame_duck) => false,
        () = signals.stop() => true,
    };
    let mut all_reset = 0;
    if !forced {
        phase.send_replace(Phase::Draining);
        let live = plane.observe().live;
        tracing::info!(live, deadline = ?runtime.drain_timeout, "draining: no longer accepting; a second signal forces");
        tokio::select! {
            reset = plane.drain(DrainScope::All, runtime.drain_timeout) => {
                if reset > 0 {
                    tracing::warn!(reset, "the drain deadline passed, connections were reset");
                }
                all_reset = reset;
            }
            () = signals.stop() => forced = true,
        }
    }
    if forced {
        phase.send_replace(Phase::Forced);
        let reset = plane.drain(DrainScope::All, Duration::ZERO).await;
        tracing::warn!(reset, "forced: connections were reset");
        all_reset = reset;
    }
    all_reset
}

fn spawn(
    tasks: &mut JoinSet<&'static str>,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

/// The admin interface has a thread and a runtime of its own, so that a scrape never costs data latency.
fn start_admin(
    (sockets, wiring): (AdminSockets, AdminWiring),
    stop: CancellationToken,
    ended: tokio::sync::oneshot::Sender<()>,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        // Dropped on the way out, however that is.
        let _ended = ended;
        runtime.block_on(admin::serve(sockets, wiring, stop));
    })?;
    Ok(thread)
}

/// Telemetry has a thread of its own too: what it makes of the counters costs nobody's time.
fn start_exporter(
    (exporter, sources): (Exporter, Sources),
    stop: CancellationToken,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || runtime.block_on(exporter.run(sources, stop));
    Ok(std::thread::Builder::new().name("telemetry".to_owned()).spawn(run)?)
}

async fn watchdog(stop: CancellationToken) {
    let Some(period) = systemd::watchdog() else { return stop.cancelled().await };
    let mut tick = tokio::time::interval(period);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => systemd::alive(),
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Connections in total when the configuration says "auto": what the descriptors carry.
fn default_limit(config: &Config, workers: usize) -> u32 {
    let addresses: usize = config.frontends.values().map(|frontend| frontend.listen.len()).sum();
    limits::connections(limits::raise_descriptors(), addresses * workers)
}
