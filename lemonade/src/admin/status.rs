//! The state of the process as one JSON document, read by `lemonade status` and by programs.
//!
//! Durations are numbers whose unit is the end of the field's name; times are RFC 3339 in UTC.

mod relay;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use lemonade_common::{BackendIx, Reason};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AdminWiring;
use super::forward::ForwardStatus;
use super::removed;
pub use super::removed::RemovedStatus;
use crate::control::ControlState;
use crate::control::table::FrontendEntry;
use crate::health::port::{History, Outcome};
use crate::metrics::port::{Sample, Series};
use crate::metrics::snapshot::{
    BackendCounters, DatagramCounters, FrontendCounters, MetricsSnapshot, PlaneChoice, PoolCounters,
    ProcessCounters, RelaySnapshot,
};
use crate::model::Name;
use crate::model::config::{HealthKind, Protocol, RelayChoice, Status as Up};
use crate::model::forward::Forwarding;
use crate::model::relay::{Kept, KernelRelay, RelayCounters};
use crate::model::tcp::TcpCounters;
use crate::shutdown::Phase;

/// Outcomes told of each backend; the dump has all.
const OUTCOMES: usize = 5;

/// The process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Phase.
    pub phase: Phase,
    /// Worker threads.
    pub workers: usize,
    /// Log filter in force.
    pub log_filter: String,
    /// What is in the kernel, or why nothing is, in words.
    pub kernel: String,
    /// The configuration in force and the newest one refused.
    pub config: ConfigStatus,
    /// Relays in the kernel with their self-tests.
    pub relays: Vec<RelaySnapshot>,
    /// The forward plane; `None` while no frontend has asked for it.
    pub forward: Option<ForwardStatus>,
    /// Counters of the process.
    pub process: ProcessCounters,
    /// Traffic of the last 10 seconds.
    pub last_10s: Rates,
    /// Traffic of the last 60 seconds.
    pub last_60s: Rates,
    /// Journal lines that could not be written.
    pub journal_dropped: u64,
    /// Frontends by index.
    pub frontends: Vec<FrontendStatus>,
    /// Pools by name.
    pub pools: Vec<PoolStatus>,
    /// What is no longer in the configuration while connections of it live.
    #[serde(default)]
    pub removed: Vec<RemovedStatus>,
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConfigStatus {
    /// File.
    pub file: String,
    /// Version in force.
    pub version: u64,
    /// Version of the table compiled from it; health changes move it too.
    pub table_version: u64,
    /// Since when it is in force.
    pub at: String,
    /// Who asked for it.
    pub cause: String,
    /// The newest configuration seen, if it was refused.
    pub refused: Option<RefusalStatus>,
    /// Changes that wait for the next start, in words.
    pub pending_restart: Vec<String>,
}

/// A configuration that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RefusalStatus {
    /// When.
    pub at: String,
    /// Who asked for it.
    pub cause: String,
    /// Its errors.
    pub errors: Vec<String>,
}

/// Traffic per second over a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rates {
    /// Connections accepted.
    pub opened_per_second: f64,
    /// Connections refused.
    pub refused_per_second: f64,
    /// Bytes from clients to backends.
    pub bytes_up_per_second: f64,
    /// Bytes from backends to clients.
    pub bytes_down_per_second: f64,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FrontendStatus {
    /// Name.
    pub name: String,
    /// Addresses in the configuration.
    #[schema(value_type = Vec<String>)]
    pub configured: Vec<SocketAddr>,
    /// Addresses it accepts on, with real ports.
    #[schema(value_type = Vec<String>)]
    pub listening: Vec<SocketAddr>,
    /// What clients speak.
    pub protocol: String,
    /// Data plane.
    pub plane: String,
    /// Why that one, in words; empty where nothing is to be said.
    pub plane_why: String,
    /// How bytes are moved.
    pub relay: String,
    /// Why in that way, in words.
    pub relay_why: String,
    /// What relays in the kernel carried, by relay; those that never did anything are left out.
    pub relays: BTreeMap<String, RelayCounters>,
    /// Connections that were due for relay `splice` and stayed with `copy`, by reason.
    #[serde(default)]
    pub kept: BTreeMap<String, u64>,
    /// Pool.
    pub pool: String,
    /// Connections accepted and not yet ended.
    pub live: u64,
    /// Connections accepted.
    pub opened: u64,
    /// Connections ended.
    pub closed: u64,
    /// Bytes from clients to backends.
    pub bytes_up: u64,
    /// Bytes from backends to clients.
    pub bytes_down: u64,
    /// Datagrams; `None` with protocol = "tcp".
    pub datagrams: Option<DatagramCounters>,
    /// Connections that got no backend, by reason; reasons that never occurred are left out.
    pub refused: BTreeMap<String, u64>,
    /// Traffic of the last 10 seconds; `None` without a series of its own.
    pub last_10s: Option<Rates>,
    /// Traffic of the last 60 seconds; `None` without a series of its own.
    pub last_60s: Option<Rates>,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Name.
    pub name: String,
    /// Strategy.
    pub strategy: String,
    /// Connections waiting for a free backend.
    pub queued: u64,
    /// Connects to another backend after a failure.
    pub retries: u64,
    /// Second connects raced against a late first.
    pub hedges: u64,
    /// Retries not made because the budget was spent.
    pub budget_exhausted: u64,
    /// Backends, one for each address.
    pub backends: Vec<BackendStatus>,
}

/// One address of one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    /// Name.
    pub name: String,
    /// Address.
    pub address: String,
    /// Whether it is up.
    #[schema(inline)]
    pub status: Up,
    /// Why, in words.
    pub why: String,
    /// Since when its status is so; `None` before the first probe.
    pub since: Option<String>,
    /// Share of connections.
    pub weight: u32,
    /// Whether it is enabled.
    pub enabled: bool,
    /// What was changed of it at run time, in words; `None` when it is as in the file.
    pub changed: Option<String>,
    /// Connections that exist or are being made.
    pub live: u64,
    /// Of `live`, those not yet connected.
    pub connecting: u64,
    /// Times it was picked.
    pub picks: u64,
    /// Connects that failed or timed out.
    pub failures: u64,
    /// Connections that it reset.
    pub resets: u64,
    /// Peak-EWMA of its connect time.
    pub connect_ms: Option<f64>,
    /// Peak-EWMA of the time to its first byte.
    pub first_byte_ms: Option<f64>,
    /// What the programs in the kernel counted; `None` without them or before the first connection.
    pub tcp: Option<TcpCounters>,
    /// Last outcomes, newest last.
    pub outcomes: Vec<OutcomeStatus>,
}

/// One outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutcomeStatus {
    /// When.
    pub at: String,
    /// Whether it counts as success.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// How long it took.
    pub took_ms: f64,
}

impl Status {
    /// Reads everything at `now`.
    pub fn read(wiring: &AdminWiring, now: SystemTime) -> Self {
        let control = wiring.control.borrow().clone();
        let snapshot = wiring.metrics.snapshot();
        let observed = wiring.plane.observe();
        let mut listeners: HashMap<Name, Vec<SocketAddr>> = HashMap::new();
        for (frontend, address) in observed.listeners {
            listeners.entry(frontend).or_default().push(address);
        }
        let series = |name: Option<&Name>| wiring.metrics.series(name);
        let own = series(None);
        let refused = control.refused.as_ref().map(|refusal| RefusalStatus {
            at: rfc3339(refusal.at),
            cause: refusal.cause.clone(),
            errors: refusal.errors.lines().map(str::to_owned).collect(),
        });
        let frontend = |counters: &FrontendCounters| {
            let entry = control.table.frontends.get(&counters.ix).map(AsRef::as_ref);
            let listening = listeners.remove(&counters.name).unwrap_or_default();
            FrontendStatus::of(counters, entry, listening, &snapshot.relays, &series(Some(&counters.name)))
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: now.duration_since(wiring.started).unwrap_or_default().as_secs(),
            phase: *wiring.phase.borrow(),
            workers: wiring.workers,
            log_filter: wiring.log.current(),
            kernel: wiring.kernel.clone(),
            config: ConfigStatus {
                file: wiring.config_file.display().to_string(),
                version: control.accepted.version,
                table_version: control.table.version,
                at: rfc3339(control.accepted.at),
                cause: control.accepted.cause.clone(),
                refused,
                pending_restart: control.pending_restart.clone(),
            },
            relays: snapshot.relays.clone(),
            forward: ForwardStatus::of(&snapshot.forward),
            process: snapshot.process.clone(),
            last_10s: Rates::over(&own, 10),
            last_60s: Rates::over(&own, 60),
            journal_dropped: wiring.journal.dropped(),
            frontends: snapshot.frontends.iter().map(frontend).collect(),
            pools: pools(&snapshot, &control, &wiring.health.histories()),
            removed: removed::read(&control),
        }
    }
}

impl Rates {
    fn over(series: &Series, seconds: usize) -> Self {
        let samples = &series.samples[series.samples.len().saturating_sub(seconds)..];
        let rate = |field: fn(&Sample) -> u64| match samples.len() {
            0 => 0.0,
            length => samples.iter().map(field).sum::<u64>() as f64 / length as f64,
        };
        Self {
            opened_per_second: rate(|sample| sample.opened),
            refused_per_second: rate(|sample| sample.refused),
            bytes_up_per_second: rate(|sample| sample.bytes_up),
            bytes_down_per_second: rate(|sample| sample.bytes_down),
        }
    }
}

impl FrontendStatus {
    fn of(
        counters: &FrontendCounters,
        entry: Option<&FrontendEntry>,
        listening: Vec<SocketAddr>,
        relays: &[RelaySnapshot],
        series: &Series,
    ) -> Self {
        let refused = |reason: Reason| {
            let count = counters.refused[reason.index()];
            (count > 0).then(|| (reason.as_str().to_owned(), count))
        };
        let asked = entry.map_or(RelayChoice::Auto, |entry| entry.frontend.relay);
        let protocol = entry.map_or(Protocol::Tcp, |entry| entry.frontend.protocol);
        let (word, words) =
            entry.and_then(|entry| entry.frontend.forward.as_ref()).map_or(("-", ""), Forwarding::carrier);
        let PlaneChoice { asked: _, forwarded, why: plane_why } = counters.plane.clone();
        let (relay, relay_why) = match protocol {
            _ if forwarded => (word, words.to_owned()),
            Protocol::Udp => ("copy", "datagrams are always copied".to_owned()),
            Protocol::Tcp => relay::relay_of(asked, entry.is_some_and(FrontendEntry::splices), relays),
        };
        let carried = |relay: KernelRelay| {
            let own = counters.relays[relay.index()];
            (own != RelayCounters::default()).then(|| (relay.as_str().to_owned(), own))
        };
        let kept = |why: Kept| {
            let count = counters.relays[KernelRelay::Splice.index()].reasons[why.index()];
            (count > 0).then(|| (why.as_str().to_owned(), count))
        };
        let rates = |seconds| (!series.samples.is_empty()).then(|| Rates::over(series, seconds));
        Self {
            name: counters.name.to_string(),
            configured: entry.map(|entry| entry.frontend.listen.clone()).unwrap_or_default(),
            listening,
            protocol: protocol.as_str().to_owned(),
            plane: if forwarded { "forward" } else { "proxy" }.to_owned(),
            plane_why,
            relay: relay.to_owned(),
            relay_why,
            relays: KernelRelay::ALL.into_iter().filter_map(carried).collect(),
            kept: Kept::ALL.into_iter().filter_map(kept).collect(),
            pool: counters.pool.to_string(),
            live: counters.live,
            opened: counters.opened,
            closed: counters.closed,
            bytes_up: counters.bytes_up,
            bytes_down: counters.bytes_down,
            datagrams: counters.datagrams,
            refused: Reason::ALL.into_iter().filter_map(refused).collect(),
            last_10s: rates(10),
            last_60s: rates(60),
        }
    }
}

fn pools(
    snapshot: &MetricsSnapshot,
    control: &ControlState,
    histories: &BTreeMap<BackendIx, History>,
) -> Vec<PoolStatus> {
    let pool = |pool: &PoolCounters| {
        let settings = control.table.pools.get(&pool.name);
        let probed = settings.is_some_and(|entry| entry.pool.health.kind != HealthKind::Off);
        let backend = |counters: &BackendCounters| {
            let mut own = BackendStatus::of(counters, histories.get(&counters.ix), probed);
            own.changed = control.overrides.words(pool.name.as_str(), counters.name.as_str());
            if let Some(changed) = &own.changed {
                own.why = format!("{changed}; {}", own.why);
            }
            own
        };
        PoolStatus {
            name: pool.name.to_string(),
            strategy: pool.strategy.as_str().to_owned(),
            queued: pool.queued,
            retries: pool.retries,
            hedges: pool.hedges,
            budget_exhausted: pool.budget_exhausted,
            backends: pool.backends.iter().map(backend).collect(),
        }
    };
    snapshot.pools.iter().map(pool).collect()
}

impl BackendStatus {
    /// Its state in one word, the same on every screen: up, DOWN, draining or disabled.
    pub const fn word(&self) -> &'static str {
        match (self.enabled, self.status, self.weight) {
            (false, _, _) => "disabled",
            (true, Up::Down, _) => "DOWN",
            (true, Up::Up, 0) => "draining",
            (true, Up::Up, _) => "up",
        }
    }

    fn of(counters: &BackendCounters, history: Option<&History>, probed: bool) -> Self {
        let outcomes = history.map(|history| history.outcomes.as_slice()).unwrap_or_default();
        let last = &outcomes[outcomes.len().saturating_sub(OUTCOMES)..];
        let millis = |micros: u64| micros as f64 / 1e3;
        Self {
            name: counters.name.to_string(),
            address: counters.address.clone(),
            status: counters.status,
            why: why(counters, history, probed),
            since: history
                .filter(|history| !history.outcomes.is_empty())
                .map(|history| rfc3339(history.since)),
            weight: counters.weight,
            enabled: counters.enabled,
            changed: None,
            live: counters.live,
            connecting: counters.connecting,
            picks: counters.picks,
            failures: counters.failures,
            resets: counters.resets,
            connect_ms: counters.connect_us.map(millis),
            first_byte_ms: counters.first_byte_us.map(millis),
            tcp: counters.tcp,
            outcomes: last.iter().map(OutcomeStatus::of).collect(),
        }
    }
}

fn why(counters: &BackendCounters, history: Option<&History>, probed: bool) -> String {
    if !counters.enabled {
        return "disabled, no new connections, no probes".to_owned();
    }
    let health = match history.and_then(|history| history.outcomes.last().map(|last| (history.streak, last)))
    {
        None if probed => "not probed yet: its pool's initial state".to_owned(),
        None => "health checks are off".to_owned(),
        Some((streak, last)) => {
            let times = streak.unsigned_abs();
            let kind = if streak < 0 { "failed" } else { "good" };
            format!("{times} {kind} in a row: {}", last.detail)
        }
    };
    if counters.weight == 0 { format!("weight 0, no new connections; {health}") } else { health }
}

impl OutcomeStatus {
    fn of(outcome: &Outcome) -> Self {
        Self {
            at: rfc3339(outcome.at),
            ok: outcome.ok,
            detail: outcome.detail.clone(),
            took_ms: millis(outcome.took),
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// `at` as text.
pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
