//! The real health service: a task that makes probes when they are due and takes in what the data plane notices.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use lemonade_common::BackendIx;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::BoxFuture;
use crate::health::port::{
    HealthService, HealthView, HealthWiring, History, Outcome, ProbeError, Prober, Signal,
};
use crate::health::roster::{Job, Membership, Roster, Shift, Step};
use crate::health::schedule::{Stretch, Ticket};
use crate::model::config::Status;
use crate::model::{Moment, ProcessCell};

#[cfg(test)]
mod tests;

/// Probes under way at once, at most; more wait until one ends. Above what budget and timeout lead to, but for odd
/// settings, so that hanging probes hold up nobody.
const CONCURRENT: usize = 1024;

/// Signals taken in at once.
const BATCH: usize = 256;

/// Time that a prober gets beyond its timeout before it is given up.
const GRACE: Duration = Duration::from_millis(250);

/// Time between two warnings that probes cannot be made.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Health of the backends in the dispatch table.
pub struct BackendHealth {
    prober: Arc<dyn Prober>,
    process: Arc<ProcessCell>,
    started: Instant,
    started_at: SystemTime,
    roster: Mutex<Roster>,
}

impl std::fmt::Debug for BackendHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendHealth").finish_non_exhaustive()
    }
}

/// A probe that ended.
struct Landed {
    ticket: Ticket,
    result: Result<String, ProbeError>,
    took: Duration,
}

impl BackendHealth {
    /// Health by the probes of `prober`, counted in `process`.
    pub fn new(prober: impl Prober, process: Arc<ProcessCell>) -> Self {
        Self {
            prober: Arc::new(prober),
            process,
            started: Instant::now(),
            started_at: SystemTime::now(),
            roster: Mutex::new(Roster::new()),
        }
    }

    async fn watch(self: Arc<Self>, mut wiring: HealthWiring, stop: CancellationToken) {
        let mut flights = JoinSet::new();
        let mut signals = Vec::with_capacity(BATCH);
        let mut warn_at = Instant::now();
        let (mut tables, mut passive) = (true, true);
        wiring.targets.mark_changed();
        loop {
            let now = self.now();
            let returned = self.roster().returned(now);
            self.tell(&wiring, returned);
            let wake = self.launch(&mut flights);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = wiring.targets.changed(), if tables => {
                    tables = changed.is_ok();
                    let table = Arc::clone(&wiring.targets.borrow_and_update());
                    let now = self.now();
                    let membership = self.roster().sync(&table, now, &mut || fastrand::u64(..));
                    admit(&wiring, &membership);
                }
                Some(Ok(first)) = flights.join_next(), if !flights.is_empty() => {
                    // What else has landed is told together, so that a mass failure is few publications.
                    let more = std::iter::from_fn(|| flights.try_join_next()).flatten();
                    let landed: Vec<_> = std::iter::once(first).chain(more).collect();
                    self.warn_of_local_trouble(&landed, &mut warn_at);
                    let shifts = self.land(landed);
                    self.tell(&wiring, shifts);
                }
                count = wiring.signals.recv_many(&mut signals, BATCH), if passive => {
                    passive = count > 0;
                    let shifts = self.take_in(signals.drain(..));
                    self.tell(&wiring, shifts);
                }
                () = sleep_until(wake) => {}
            }
            self.tell_stretch();
        }
    }

    /// Starts what is due; when to look again.
    fn launch(&self, flights: &mut JoinSet<Landed>) -> Option<Instant> {
        while flights.len() < CONCURRENT {
            let now = self.now();
            let job = match self.roster().next(now) {
                Step::Probe(job) => job,
                Step::Wait(at) => return at.map(|at| self.started + Duration::from_micros(at.0)),
            };
            self.process.probes.fetch_add(1, Ordering::Relaxed);
            flights.spawn(self.fly(job));
        }
        // One that ends makes room.
        None
    }

    fn fly(&self, job: Job) -> impl Future<Output = Landed> + Send + use<> {
        let Job { ticket, target, pool } = job;
        let prober = Arc::clone(&self.prober);
        async move {
            let began = Instant::now();
            let health = &pool.health;
            let probe = async { prober.probe(target, pool.source, &health.kind, health.timeout).await };
            let bounded = tokio::time::timeout(health.timeout + GRACE, probe);
            // A panic must not lose the ticket: its backend would never be probed again.
            let result = match AssertUnwindSafe(bounded).catch_unwind().await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(ProbeError::Backend("no answer in time".to_owned())),
                Err(_) => Err(ProbeError::Local("the prober panicked".to_owned())),
            };
            Landed { ticket, result, took: began.elapsed() }
        }
    }

    fn land(&self, landed: Vec<Landed>) -> Vec<Shift> {
        let now = self.now();
        let mut roster = self.roster();
        let shifts = landed.into_iter().filter_map(|Landed { ticket, result, took }| {
            roster.probed(ticket, &result, took, now, fastrand::u64(..))
        });
        shifts.collect()
    }

    fn take_in(&self, signals: impl Iterator<Item = Signal>) -> Vec<Shift> {
        let now = self.now();
        let mut roster = self.roster();
        signals.filter_map(|signal| roster.signal(signal, now, fastrand::u64(..))).collect()
    }

    /// Publishes, logs and counts changes of status. Nobody has to listen.
    fn tell(&self, wiring: &HealthWiring, shifts: Vec<Shift>) {
        if shifts.is_empty() {
            return;
        }
        wiring.view.send_modify(|view| {
            let changes = shifts.iter().map(|shift| (shift.backend, shift.transition.status));
            Arc::make_mut(view).statuses.extend(changes);
        });
        for Shift { transition, .. } in shifts {
            let (backend, address, cause) = (&transition.backend, &transition.address, &transition.cause);
            match transition.status {
                Status::Up => info!(%backend, %address, %cause, "backend is up"),
                Status::Down => warn!(%backend, %address, %cause, "backend is down"),
            }
            self.process.health_transitions.fetch_add(1, Ordering::Relaxed);
            if let Err(TrySendError::Full(_)) = wiring.transitions.try_send(transition) {
                self.process.events_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn warn_of_local_trouble(&self, landed: &[Landed], warn_at: &mut Instant) {
        let trouble = landed.iter().find_map(|landed| match &landed.result {
            Err(ProbeError::Local(why)) => Some(why),
            Ok(_) | Err(ProbeError::Backend(_)) => None,
        });
        if let Some(why) = trouble
            && Instant::now() >= *warn_at
        {
            warn!(%why, "probes cannot be made; backends keep their status");
            *warn_at = Instant::now() + WARN_AGAIN;
        }
    }

    fn tell_stretch(&self) {
        match self.roster().stretch_changed() {
            Some(Stretch::Begins(times)) => warn!(
                times = format_args!("{times:.1}"),
                "probe intervals stretch, as runtime.probes_per_second is too small for them",
            ),
            Some(Stretch::Ends) => info!("probe intervals are as configured again"),
            None => {}
        }
    }

    fn now(&self) -> Moment {
        Moment(0).plus(self.started.elapsed())
    }

    fn at(&self, moment: Moment) -> SystemTime {
        self.started_at + Duration::from_micros(moment.0)
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HealthService for BackendHealth {
    fn run(self: Arc<Self>, wiring: HealthWiring, stop: CancellationToken) -> BoxFuture<()> {
        Box::pin(self.watch(wiring, stop))
    }

    fn histories(&self) -> BTreeMap<BackendIx, History> {
        let roster = self.roster();
        let histories = roster.watched().map(|(ix, watched)| {
            let machine = &watched.machine;
            let outcomes = machine.outcomes().map(|seen| Outcome {
                at: self.at(seen.at),
                ok: seen.ok,
                detail: seen.detail.as_ref().to_owned(),
                took: seen.took,
            });
            let history = History {
                status: machine.status(),
                since: self.at(machine.since()),
                streak: machine.streak(),
                outcomes: outcomes.collect(),
            };
            (ix, history)
        });
        histories.collect()
    }
}

/// Notes who came and went without waking readers: who comes has the status that readers assume.
fn admit(wiring: &HealthWiring, membership: &Membership) {
    if membership.joined.is_empty() && membership.left.is_empty() {
        return;
    }
    wiring.view.send_if_modified(|view: &mut Arc<HealthView>| {
        let statuses = &mut Arc::make_mut(view).statuses;
        for backend in &membership.left {
            statuses.remove(backend);
        }
        statuses.extend(membership.joined.iter().copied());
        false
    });
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
