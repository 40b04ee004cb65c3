//! The controller task: the only writer of the dispatch table.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::trace_span;

use super::compile::{commit_cells, compile, open_cells};
use super::journal::{Entry, Journal, Kind};
use super::order::{Done, Order, Refused, effect};
use super::overrides::{self, Change, Overrides};
use super::plan::{plan, process_changes};
use super::table::DispatchTable;
use super::{ControlState, Leaving, Left, Refusal, Reload};
use crate::config::needs_restart;
use crate::config::port::ConfigUpdate;
use crate::health::port::{HealthView, Transition};
use crate::model::{Config, ProcessCell, Resolution};
use crate::proxy::error::ApplyError;
use crate::proxy::port::{DrainScope, ProxyService};

/// Target of the spans that telemetry exports; the log shows them at level `trace` only.
const TRACED: &str = "lemonade::control";

/// Changes kept of one journal line; a diff of thousands of backends is told by its beginning and its length.
const DIFF_LINES: usize = 100;

/// What the controller listens to.
#[derive(Debug)]
pub struct Inbox {
    /// Configurations seen, good or bad.
    pub updates: mpsc::Receiver<ConfigUpdate>,
    /// Health as it is now.
    pub health: watch::Receiver<Arc<HealthView>>,
    /// Addresses of host names as they are now.
    pub resolution: watch::Receiver<Arc<Resolution>>,
    /// Health transitions, for the journal.
    pub transitions: mpsc::Receiver<Transition>,
    /// Changes that the operator asks for.
    pub orders: mpsc::Receiver<Order>,
}

/// What follows the configuration outside the planes: log level, access log, the service supervisor.
pub trait Effects: Send {
    /// A configuration is about to be taken in.
    fn begin(&mut self);

    /// The configuration of this version serves.
    fn settled(&mut self, version: u64);

    /// Makes `config` effective.
    ///
    /// # Errors
    /// What cannot be made effective, in words; then nothing has changed.
    fn adopt(&mut self, config: &Config) -> Result<(), String>;
}

/// Compiles, plans, applies and commits.
pub struct Controller {
    plane: Arc<dyn ProxyService>,
    effects: Box<dyn Effects>,
    journal: Arc<Journal>,
    process: Arc<ProcessCell>,
    state: watch::Sender<Arc<ControlState>>,
    tables: watch::Sender<Arc<DispatchTable>>,
    at_start: Arc<Config>,
    health: Arc<HealthView>,
    resolution: Arc<Resolution>,
    file: Arc<Config>,
    overrides: Arc<Overrides>,
    /// What a former process had changed at run time; told with the first configuration.
    ended_before: Vec<String>,
}

/// Where the controller publishes.
pub struct Outbox {
    /// What was committed and refused last.
    pub state: watch::Sender<Arc<ControlState>>,
    /// The committed table.
    pub tables: watch::Sender<Arc<DispatchTable>>,
}

impl Controller {
    /// Commits the first configuration.
    ///
    /// # Errors
    /// What the plane or the effects cannot take, in words.
    pub fn start(
        config: Arc<Config>,
        resolution: Arc<Resolution>,
        plane: Arc<dyn ProxyService>,
        effects: Box<dyn Effects>,
        journal: Arc<Journal>,
        process: Arc<ProcessCell>,
        outbox: Outbox,
    ) -> Result<Self, String> {
        let (_, ended_before) = journal.former();
        let mut controller = Self {
            ended_before,
            plane,
            effects,
            journal,
            process,
            state: outbox.state,
            tables: outbox.tables,
            at_start: Arc::clone(&config),
            health: Arc::default(),
            resolution,
            file: Arc::clone(&config),
            overrides: Arc::default(),
        };
        let version = controller.tables.borrow().config_version + 1;
        trace_span!(target: TRACED, "configure", cause = "start", version)
            .in_scope(|| controller.accept(&config, "start"))?;
        Ok(controller)
    }

    /// Follows configuration, health and host names until `stop`.
    pub async fn run(mut self, mut inbox: Inbox, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(update) = inbox.updates.recv() => self.configure(update),
                Ok(()) = inbox.health.changed() => {
                    self.health = inbox.health.borrow_and_update().clone();
                    self.refresh();
                }
                Ok(()) = inbox.resolution.changed() => {
                    self.resolution = inbox.resolution.borrow_and_update().clone();
                    self.refresh();
                }
                Some(transition) = inbox.transitions.recv() => self.note(&transition),
                Some(order) = inbox.orders.recv() => self.obey(order),
                else => return,
            }
        }
    }

    fn configure(&mut self, update: ConfigUpdate) {
        let seen = update.seen;
        let span =
            trace_span!(target: TRACED, "configure", cause = update.cause, version = Empty, error = Empty);
        let _in = span.enter();
        self.effects.begin();
        let errors = match update.result {
            Ok(config) => match self.accept(&config, &update.cause) {
                Ok(()) => {
                    let version = self.state.borrow().accepted.version;
                    span.record("version", version);
                    self.effects.settled(version);
                    let took = seen.elapsed().as_micros() as u64;
                    tracing::info!(version, cause = %update.cause, took_us = took, "configuration accepted");
                    return;
                }
                Err(errors) => errors,
            },
            Err(error) => error.to_string(),
        };
        span.record("error", errors.as_str());
        self.refuse(&update.cause, errors);
        self.effects.settled(self.state.borrow().accepted.version);
    }

    fn accept(&mut self, file: &Arc<Config>, cause: &str) -> Result<(), String> {
        // A text that says the same is put in force again, which may succeed where it fell short before, but it is no news.
        let started = self.tables.borrow().config.is_some();
        let same = started && **file == *self.file && self.state.borrow().refused.is_none();
        let (overrides, ended) = self.overrides.follow(&self.file, file);
        let version = self.tables.borrow().config_version + u64::from(!same);
        let (previous, next) = self.commit(file, &overrides, version)?;
        self.drain_removed(&previous, &next, file.runtime.drain_timeout);
        let pending_restart = needs_restart(&self.at_start, file);
        for key in &pending_restart {
            tracing::warn!("{key}: changed in the file, takes effect at the next start");
        }
        self.process.reloads_accepted.fetch_add(1, Ordering::Relaxed);
        self.process.last_reload_failed.store(0, Ordering::Relaxed);
        let mut entry = Entry::new(SystemTime::now(), next.config_version, cause, Kind::Config);
        let ended_before = std::mem::take(&mut self.ended_before);
        let gone = |own| format!("{own} at run time: ended with the process before this one");
        entry.diff = ended_before.into_iter().map(gone).collect();
        entry.diff.extend(diff(&previous, &next));
        entry.diff.extend(ended);
        let news = needs_restart(&self.file, file);
        entry.diff.extend(news.into_iter().map(|key| match pending_restart.contains(&key) {
            true => waits(&key),
            false => format!("{key}: as at the start again"),
        }));
        entry.changed = Some(overrides.list());
        self.file = Arc::clone(file);
        self.overrides = Arc::new(overrides);
        let leaving = left(&previous, &next, Some(SystemTime::now() + file.runtime.drain_timeout));
        self.publish(next, cause, |state| {
            keep_leaving(state, leaving);
            state.refused = None;
            state.pending_restart = pending_restart;
            state.decided = (state.decided.0 + 1, cause.to_owned());
        });
        if !same {
            self.journal.append(&entry);
        }
        Ok(())
    }

    /// Changes one backend at run time.
    fn obey(&mut self, order: Order) {
        let cause = format!("backend {}: {}", order.target, order.change);
        let span = trace_span!(target: TRACED, "order", cause, version = Empty, error = Empty);
        let _in = span.enter();
        let answer = self.try_obey(&order);
        if let Ok(Done { version, .. }) = &answer {
            span.record("version", version);
        }
        if let Err(Refused { why, .. }) = &answer {
            span.record("error", why.as_str());
            let version = self.state.borrow().accepted.version;
            let mut entry = Entry::new(SystemTime::now(), version, "admin", Kind::Admin);
            entry.uid = order.uid;
            entry.diff = vec![format!("backend {}: {}", order.target, order.change)];
            entry.result = format!("refused: {why}");
            self.journal.append(&entry);
        }
        // Whoever asked may have gone.
        let _ = order.answer.send(answer);
    }

    fn try_obey(&mut self, order: &Order) -> Result<Done, Refused> {
        let current = self.state.borrow().accepted.version;
        if let Some(expected) = order.if_version.filter(|expected| *expected != current) {
            return Err(Refused::stale(expected, current));
        }
        let key = overrides::find(&self.file, &order.target).map_err(Refused::unknown)?;
        let next = self.overrides.with(&self.file, &key, order.change);
        let words = next.words(key.0.as_str(), key.1.as_str());
        if next == *self.overrides {
            // Nothing that anybody's `--if-version` would have to know of.
            let mut lines = vec![format!("backend {}/{}: {}: as it was", key.0, key.1, order.change)];
            lines.extend(effect(&self.tables.borrow(), &key, order.change, words));
            return Ok(Done { version: current, lines });
        }
        let file = Arc::clone(&self.file);
        let version = self.tables.borrow().config_version + 1;
        let (before, table) = self.commit(&file, &next, version).map_err(Refused::failed)?;
        let mut lines = diff(&before, &table);
        if !matches!(order.change, Change::Weight(_)) {
            // Otherwise a drain would look like a weight of 0.
            let own = format!("backend {}/{}: ", key.0, key.1);
            for line in &mut lines {
                if let Some(effect) = line.strip_prefix(&own) {
                    *line = format!("{own}{} ({effect})", order.change);
                }
            }
        }
        if lines.is_empty() {
            let waits = "kept for when it gets new connections again";
            lines.push(format!("backend {}/{}: {}: {waits}", key.0, key.1, order.change));
        }
        lines.extend(effect(&table, &key, order.change, words));
        let version = table.config_version;
        let mut entry = Entry::new(SystemTime::now(), version, "admin", Kind::Admin);
        (entry.uid, entry.diff) = (order.uid, lines.clone());
        entry.changed = Some(next.list());
        self.overrides = Arc::new(next);
        self.publish(table, "admin", |_| {});
        self.journal.append(&entry);
        tracing::info!(version, uid = order.uid, "changed through the admin socket: {}", lines.join("; "));
        Ok(Done { version, lines })
    }

    /// Compiles `file` with `overrides` as `version` and gives the table to the plane; tells the table before it and the new one.
    fn commit(
        &mut self,
        file: &Arc<Config>,
        overrides: &Overrides,
        version: u64,
    ) -> Result<(Arc<DispatchTable>, Arc<DispatchTable>), String> {
        let config = &overrides.lay_over(file);
        let previous = self.tables.borrow().clone();
        let compiled = trace_span!(target: TRACED, "compile")
            .in_scope(|| compile(config, version, &self.health, &self.resolution, &previous));
        let next = Arc::new(compiled);
        self.effects.adopt(config)?;
        open_cells(&previous, &next);
        if let Err(error) = self.apply(&next) {
            if let Some(old) = &previous.config {
                // What was effective a moment ago can be so again.
                let _ = self.effects.adopt(old);
            }
            return Err(error.to_string());
        }
        commit_cells(&previous, &next);
        Ok((previous, next))
    }

    fn apply(&self, table: &Arc<DispatchTable>) -> Result<(), ApplyError> {
        let span = trace_span!(target: TRACED, "apply", version = table.version, error = Empty);
        let _in = span.enter();
        self.plane.apply(Arc::clone(table)).inspect_err(|error| {
            span.record("error", error.to_string());
        })
    }

    /// Publishes a table that the plane has taken.
    fn publish(&self, table: Arc<DispatchTable>, cause: &str, change: impl FnOnce(&mut ControlState)) {
        self.tables.send_replace(Arc::clone(&table));
        let mut state = ControlState::clone(&self.state.borrow());
        let version = table.config_version;
        if state.accepted.version != version {
            state.accepted = Reload { version, at: SystemTime::now(), cause: cause.to_owned() };
        }
        (state.file, state.overrides) = (Some(Arc::clone(&self.file)), Arc::clone(&self.overrides));
        state.table = table;
        change(&mut state);
        self.state.send_replace(Arc::new(state));
    }

    /// Gives the connections of what left the table until the drain deadline.
    fn drain_removed(&self, previous: &DispatchTable, next: &DispatchTable, deadline: Duration) {
        let (mut frontends, mut backends) = (BTreeSet::new(), BTreeSet::new());
        for own in left(previous, next, None) {
            match own.what {
                Left::Frontend(entry) => frontends.insert(entry.frontend.name.clone()),
                Left::Backend(entry) => backends.insert(entry.id),
            };
        }
        if frontends.is_empty() && backends.is_empty() {
            return;
        }
        let drained = self.plane.drain(DrainScope::Removed { frontends, backends }, deadline);
        tokio::spawn(async move {
            let reset = drained.await;
            if reset > 0 {
                tracing::warn!(
                    reset,
                    "connections of removed frontends or backends were reset at the drain deadline"
                );
            }
        });
    }

    fn refuse(&self, cause: &str, errors: String) {
        self.process.reloads_refused.fetch_add(1, Ordering::Relaxed);
        self.process.last_reload_failed.store(1, Ordering::Relaxed);
        let at = SystemTime::now();
        let current = self.state.borrow().clone();
        tracing::error!(
            version = current.accepted.version,
            cause,
            "configuration refused, the last good one goes on:\n{errors}"
        );
        let mut entry = Entry::new(at, current.accepted.version, cause, Kind::Config);
        entry.result = format!("refused: {errors}");
        self.journal.append(&entry);
        let refused = Some(Refusal { at, cause: cause.to_owned(), errors });
        let decided = (current.decided.0 + 1, cause.to_owned());
        self.state.send_replace(Arc::new(ControlState { refused, decided, ..(*current).clone() }));
    }

    /// Compiles again with health and host names as they are now.
    fn refresh(&self) {
        let previous = self.tables.borrow().clone();
        let Some(config) = &previous.config else { return };
        let next = compile(config, previous.config_version, &self.health, &self.resolution, &previous);
        if plan(&previous, &next).is_empty() {
            return;
        }
        let span = trace_span!(target: TRACED, "refresh", cause = "health or host names");
        let _in = span.enter();
        let next = Arc::new(next);
        open_cells(&previous, &next);
        // Listeners are those of the previous table, so there is nothing that could fail to bind.
        if let Err(error) = self.apply(&next) {
            tracing::error!(%error, "a health change could not be applied");
            return;
        }
        commit_cells(&previous, &next);
        self.tables.send_replace(Arc::clone(&next));
        let mut state = ControlState::clone(&self.state.borrow());
        keep_leaving(&mut state, left(&previous, &next, None));
        state.table = next;
        self.state.send_replace(Arc::new(state));
    }

    fn note(&self, transition: &Transition) {
        let version = self.state.borrow().accepted.version;
        let mut entry = Entry::new(SystemTime::now(), version, "health", Kind::Health);
        entry.diff = vec![format!(
            "backend {} ({}) is {}: {}",
            transition.backend,
            transition.address,
            transition.status.as_str(),
            transition.cause
        )];
        self.journal.append(&entry);
    }
}

/// What is said of a key that the running process does not follow.
pub fn waits(key: &str) -> String {
    format!("waits for the next start: {key}")
}

/// Frontends and backends that are in `previous` and no longer in `next`; their connections have until `until`.
fn left(previous: &DispatchTable, next: &DispatchTable, until: Option<SystemTime>) -> Vec<Leaving> {
    let frontends = previous.frontends.iter().filter(|(ix, _)| !next.frontends.contains_key(ix));
    let frontends = frontends.map(|(_, entry)| Left::Frontend(Arc::clone(entry)));
    let changed = previous
        .pools
        .iter()
        .filter(|(name, before)| !next.pools.get(*name).is_some_and(|after| Arc::ptr_eq(before, after)));
    let backends = changed.flat_map(|(_, before)| &before.backends);
    let backends = backends.filter(|own| !next.has_backend(&own.id)).cloned().map(Left::Backend);
    frontends.chain(backends).map(|what| Leaving { what, until }).collect()
}

/// Adds to what leaves, and forgets what has no connection left.
fn keep_leaving(state: &mut ControlState, more: Vec<Leaving>) {
    state.leaving.extend(more);
    state.leaving.retain(|own| own.what.live() > 0);
}

/// What changes from `previous` to `next`, a sentence each; a long list is told by its beginning and its length.
pub fn diff(previous: &DispatchTable, next: &DispatchTable) -> Vec<String> {
    let changes = plan(previous, next);
    let mut news = changes.iter().filter(|change| change.is_news());
    let mut lines: Vec<String> = news.by_ref().take(DIFF_LINES).map(ToString::to_string).collect();
    match news.count() {
        0 => {}
        more => lines.push(format!("and {more} more")),
    }
    if let (Some(before), Some(after)) = (&previous.config, &next.config) {
        lines.extend(process_changes(before, after));
    }
    lines
}
