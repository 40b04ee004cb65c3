//! Reads the live cells through the committed table and keeps ten minutes of history.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lemonade_common::{BackendIx, FrontendIx};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::control::ControlState;
use crate::control::table::{BackendEntry, DispatchTable, FrontendEntry, PoolEntry};
use crate::metrics::port::{BackendSample, BackendSeries, MetricsService, Sample, Series};
use crate::metrics::snapshot::{
    BackendCounters, DatagramCounters, ForwardCounters, FrontendCounters, HistogramCounts, MetricsSnapshot,
    PlaneChoice, PoolCounters, ProcessCounters, RelaySnapshot,
};
use crate::model::cell::Histogram;
use crate::model::config::Protocol;
use crate::model::forward::ForwardCell;
use crate::model::relay::KernelRelay;
use crate::model::{Name, ProcessCell};

/// Samples kept of each series: ten minutes, a second apart.
pub const KEPT: usize = 600;

/// Most frontends that have a series of their own; above, only the process has one.
pub const MAX_FRONTEND_SERIES: usize = 200;

/// Most backend addresses that have a series of their own (12 KiB each); above, none has.
pub const MAX_BACKEND_SERIES: usize = 400;

/// The [`MetricsService`] of a running process.
#[derive(Debug)]
pub struct Aggregating {
    control: watch::Receiver<Arc<ControlState>>,
    process: Arc<ProcessCell>,
    past: Mutex<Past>,
}

#[derive(Debug, Default)]
struct Past {
    process: Track,
    opened: u64,
    frontends: BTreeMap<FrontendIx, Totals>,
    tracks: BTreeMap<FrontendIx, (Name, Track)>,
    backends: BTreeMap<BackendIx, (BackendTotals, Track<BackendSample>)>,
}

/// A ring of samples.
#[derive(Debug)]
struct Track<T = Sample>(VecDeque<T>);

impl<T> Default for Track<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

/// What a backend had counted at the last sample.
#[derive(Clone, Copy, Debug, Default)]
struct BackendTotals {
    picks: u64,
    failures: u64,
}

/// What a frontend had counted at the last sample.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    opened: u64,
    refused: u64,
    bytes_up: u64,
    bytes_down: u64,
}

impl Aggregating {
    /// Makes a reader of the tables that `control` tells and of the process's cell.
    pub fn new(control: watch::Receiver<Arc<ControlState>>, process: Arc<ProcessCell>) -> Self {
        Self { control, process, past: Mutex::default() }
    }

    /// Takes one sample; the series advance by one second.
    pub fn sample(&self) {
        let table = self.table();
        let mut past = self.past();
        let past = &mut *past;
        past.frontends.retain(|ix, _| table.frontends.contains_key(ix));
        let own_series = table.frontends.len() <= MAX_FRONTEND_SERIES;
        past.tracks.retain(|ix, _| own_series && table.frontends.contains_key(ix));

        past.sample_backends(&table);

        let mut sum = Sample::default();
        for (ix, entry) in &table.frontends {
            let now = Totals::read(entry);
            let sample =
                now.since(past.frontends.insert(*ix, now).unwrap_or_default(), load32(&entry.cell.live));
            sum.refused += sample.refused;
            sum.bytes_up += sample.bytes_up;
            sum.bytes_down += sample.bytes_down;
            if own_series {
                let track = past.tracks.entry(*ix);
                track.or_insert_with(|| (entry.frontend.name.clone(), Track::default())).1.push(sample);
            }
        }
        let process = process_counters(&self.process);
        let opened = process.opened;
        sum.live = process.live;
        sum.opened = opened.saturating_sub(past.opened);
        past.opened = opened;
        past.process.push(sum);
    }

    fn table(&self) -> Arc<DispatchTable> {
        Arc::clone(&self.control.borrow().table)
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MetricsService for Aggregating {
    fn run(self: Arc<Self>, stop: CancellationToken) -> BoxFuture<()> {
        Box::pin(async move {
            // Late ticks are made up for, so that samples stay a second apart on the clock.
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            tick.tick().await;
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                self.sample();
            }
        })
    }

    fn snapshot(&self) -> MetricsSnapshot {
        let table = self.table();
        MetricsSnapshot {
            at: SystemTime::now(),
            table_version: table.version,
            config_version: table.config_version,
            process: process_counters(&self.process),
            relays: KernelRelay::ALL.map(|relay| relay_snapshot(&self.process, relay)).into(),
            forward: forward_counters(&self.process.forward),
            frontends: table.frontends.values().map(|entry| frontend_counters(entry)).collect(),
            pools: table.pools.values().map(|entry| pool_counters(entry)).collect(),
        }
    }

    fn series(&self, frontend: Option<&Name>) -> Series {
        let past = self.past();
        let track = match frontend {
            None => Some(&past.process),
            Some(name) => past.tracks.values().find(|(own, _)| own == name).map(|(_, track)| track),
        };
        Series { samples: track.map(|track| track.0.iter().copied().collect()).unwrap_or_default() }
    }

    fn backend_series(&self) -> Vec<BackendSeries> {
        let table = self.table();
        let past = self.past();
        let backends = table.pools.values().flat_map(|pool| &pool.backends);
        let series = |entry: &BackendEntry| {
            let (_, track) = past.backends.get(&entry.ix)?;
            Some(BackendSeries {
                pool: entry.id.pool.to_string(),
                name: entry.id.name.to_string(),
                address: shown_address(entry),
                samples: track.0.iter().copied().collect(),
            })
        };
        backends.filter_map(series).collect()
    }
}

impl Past {
    fn sample_backends(&mut self, table: &DispatchTable) {
        let backends = || table.pools.values().flat_map(|pool| &pool.backends);
        if backends().count() > MAX_BACKEND_SERIES {
            self.backends.clear();
            return;
        }
        let known: std::collections::BTreeSet<BackendIx> = backends().map(|entry| entry.ix).collect();
        self.backends.retain(|ix, _| known.contains(ix));
        for entry in backends() {
            let cell = &entry.cell;
            let now = BackendTotals {
                picks: load(&cell.picks),
                failures: load(&cell.failures) + load(&cell.resets),
            };
            let micros = |average: Option<Duration>| average.map_or(0, |own| own.as_micros() as u32);
            let (before, track) = self.backends.entry(entry.ix).or_insert_with(|| (now, Track::default()));
            let counted = |now: u64, before: u64| now.saturating_sub(before) as u32;
            track.push(BackendSample {
                live: cell.live.load(Ordering::Acquire),
                picks: counted(now.picks, before.picks),
                failures: counted(now.failures, before.failures),
                first_byte_us: micros(cell.first_byte.read()),
                connect_us: micros(cell.connect.read()),
            });
            *before = now;
        }
    }
}

impl<T> Track<T> {
    fn push(&mut self, sample: T) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        } else if self.0.capacity() == 0 {
            self.0.reserve_exact(KEPT);
        }
        self.0.push_back(sample);
    }
}

impl Totals {
    fn read(entry: &FrontendEntry) -> Self {
        let cell = &entry.cell;
        Self {
            opened: load(&cell.opened),
            refused: cell.refused.iter().map(load).sum(),
            bytes_up: load(&cell.bytes_up),
            bytes_down: load(&cell.bytes_down),
        }
    }

    fn since(self, before: Self, live: u64) -> Sample {
        Sample {
            live,
            opened: self.opened.saturating_sub(before.opened),
            refused: self.refused.saturating_sub(before.refused),
            bytes_up: self.bytes_up.saturating_sub(before.bytes_up),
            bytes_down: self.bytes_down.saturating_sub(before.bytes_down),
        }
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Acquire)
}

fn load32(gauge: &AtomicU32) -> u64 {
    u64::from(gauge.load(Ordering::Acquire))
}

// Of a pair of counters the one that follows is read first, so that no reader ever sees more closed than opened.
fn process_counters(cell: &ProcessCell) -> ProcessCounters {
    let closed = load(&cell.closed) + load(&cell.forward.closed);
    ProcessCounters {
        live: load32(&cell.live) + load(&cell.forward.live),
        closed,
        opened: load(&cell.opened) + load(&cell.forward.opened),
        accept_pauses: load(&cell.accept_pauses),
        events_dropped: load(&cell.events_dropped),
        telemetry_dropped: load(&cell.telemetry_dropped),
        telemetry_failures: load(&cell.telemetry_failures),
        health_transitions: load(&cell.health_transitions),
        probes: load(&cell.probes),
        reloads_accepted: load(&cell.reloads_accepted),
        reloads_refused: load(&cell.reloads_refused),
        last_reload_failed: cell.last_reload_failed.load(Ordering::Acquire) != 0,
    }
}

fn forward_counters(cell: &ForwardCell) -> ForwardCounters {
    let closed = load(&cell.closed);
    ForwardCounters {
        live: load(&cell.live),
        closed,
        opened: load(&cell.opened),
        entries: load(&cell.entries),
        room: load(&cell.room),
        replaced: load(&cell.replaced),
        packets: std::array::from_fn(|reason| load(&cell.packets[reason])),
        words: cell.words(),
    }
}

fn relay_snapshot(cell: &ProcessCell, relay: KernelRelay) -> RelaySnapshot {
    let state = &cell.relays[relay.index()];
    let (usable, findings) = state.read();
    RelaySnapshot { relay, usable, failed: state.failed(), findings }
}

fn frontend_counters(entry: &FrontendEntry) -> FrontendCounters {
    let cell = &entry.cell;
    let closed = load(&cell.closed);
    let datagrams = (entry.frontend.protocol == Protocol::Udp).then(|| DatagramCounters {
        up: load(&cell.datagrams_up),
        down: load(&cell.datagrams_down),
        lost_up: load(&cell.datagrams_lost_up),
        lost_down: load(&cell.datagrams_lost_down),
    });
    FrontendCounters {
        ix: entry.ix,
        name: entry.frontend.name.clone(),
        pool: entry.pool.pool.name.clone(),
        live: load32(&cell.live),
        closed,
        opened: load(&cell.opened),
        bytes_up: load(&cell.bytes_up),
        bytes_down: load(&cell.bytes_down),
        datagrams,
        refused: std::array::from_fn(|reason| load(&cell.refused[reason])),
        plane: PlaneChoice {
            asked: entry.frontend.forward.is_some(),
            forwarded: cell.plane.forwarded(),
            why: cell.plane.why(),
        },
        relays: std::array::from_fn(|relay| cell.relays[relay].read()),
        connect_seconds: histogram(&cell.connect_seconds),
        session_seconds: histogram(&cell.session_seconds),
    }
}

fn histogram(cell: &Histogram) -> HistogramCounts {
    HistogramCounts {
        counts: std::array::from_fn(|bucket| load(&cell.counts[bucket])),
        sum: load(&cell.sum_micros) as f64 / 1e6,
    }
}

fn pool_counters(entry: &PoolEntry) -> PoolCounters {
    PoolCounters {
        name: entry.pool.name.clone(),
        strategy: entry.pool.strategy,
        queued: load32(&entry.cell.queued),
        retries: load(&entry.cell.retries),
        hedges: load(&entry.cell.hedges),
        budget_exhausted: load(&entry.cell.budget_exhausted),
        backends: entry.backends.iter().map(backend_counters).collect(),
    }
}

fn shown_address(entry: &BackendEntry) -> String {
    match entry.id.port {
        Some(_) => entry.id.address(0).to_string(),
        None => entry.id.ip.to_string(),
    }
}

fn backend_counters(entry: &BackendEntry) -> BackendCounters {
    let cell = &entry.cell;
    let micros = |duration: Duration| crate::model::time::micros(duration);
    let address = shown_address(entry);
    BackendCounters {
        ix: entry.ix,
        name: entry.backend.name.clone(),
        address,
        status: entry.status,
        enabled: entry.backend.enabled,
        weight: entry.backend.weight,
        max_connections: entry.backend.max_connections,
        live: load32(&cell.live),
        connecting: load32(&cell.connecting),
        opened: load(&cell.opened),
        picks: load(&cell.picks),
        failures: load(&cell.failures),
        resets: load(&cell.resets),
        bytes_up: load(&cell.bytes_up),
        bytes_down: load(&cell.bytes_down),
        connect_us: cell.connect.read().map(micros),
        first_byte_us: cell.first_byte.read().map(micros),
        tcp: cell.tcp.read(),
    }
}

#[cfg(test)]
mod tests;
