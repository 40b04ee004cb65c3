//! The backends that health watches: who they are, their state machines and when each is probed. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lemonade_common::BackendIx;

use crate::control::table::{BackendEntry, DispatchTable, PoolEntry};
use crate::model::config::Status;
use crate::model::{Moment, Name, Pool};

use super::fsm::{Change, Input, Machine, Policy};
use super::port::{ProbeError, Signal, Transition};
use super::schedule::{Next, Pace, Schedule, Stretch, Ticket};

#[cfg(test)]
mod tests;

/// Everything health knows.
#[derive(Debug)]
pub(super) struct Roster {
    watched: BTreeMap<BackendIx, Watched>,
    pools: BTreeMap<Name, Seen>,
    schedule: Schedule,
    /// Backends that come back by themselves, by when.
    returns: BTreeSet<(Moment, BackendIx)>,
}

/// A backend that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    name: String,
    address: String,
    pool: Arc<Pool>,
    target: Option<SocketAddr>,
    /// Its health.
    pub(super) machine: Machine,
}

impl Watched {
    fn policy(&self) -> Policy {
        policy(&self.pool, self.target)
    }
}

/// What was last seen of a pool.
#[derive(Debug)]
struct Seen {
    entry: Arc<PoolEntry>,
    client_port: Option<u16>,
}

/// Backends that came and went; neither is a change of status.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// With the status they start from.
    pub(super) joined: Vec<(BackendIx, Status)>,
    /// They are forgotten.
    pub(super) left: Vec<BackendIx>,
}

/// A probe to make.
#[derive(Debug)]
pub(super) struct Job {
    /// To hand back.
    pub(super) ticket: Ticket,
    /// Where.
    pub(super) target: SocketAddr,
    /// Whose settings apply.
    pub(super) pool: Arc<Pool>,
}

/// What to do now.
#[derive(Debug)]
pub(super) enum Step {
    /// Make this probe and ask again.
    Probe(Job),
    /// Nothing before this moment; `None`: until something changes.
    Wait(Option<Moment>),
}

/// A change of status.
#[derive(Debug)]
pub(super) struct Shift {
    /// Of which backend.
    pub(super) backend: BackendIx,
    /// For people.
    pub(super) transition: Transition,
}

impl Roster {
    /// Watches nobody yet.
    pub(super) fn new() -> Self {
        Self {
            watched: BTreeMap::new(),
            pools: BTreeMap::new(),
            schedule: Schedule::new(1),
            returns: BTreeSet::new(),
        }
    }

    /// Everybody who is watched.
    pub(super) fn watched(&self) -> impl Iterator<Item = (BackendIx, &Watched)> {
        self.watched.iter().map(|(&ix, watched)| (ix, watched))
    }

    /// Watches the enabled backends of `table`. Pools whose entry is the same as before are not looked at.
    pub(super) fn sync(
        &mut self,
        table: &DispatchTable,
        now: Moment,
        entropy: &mut impl FnMut() -> u64,
    ) -> Membership {
        if let Some(config) = &table.config {
            self.schedule.allow(config.runtime.probes_per_second);
        }
        let mut client_ports: BTreeMap<&Name, u16> = BTreeMap::new();
        for frontend in table.frontends.values() {
            let lowest = frontend.frontend.listen.iter().map(SocketAddr::port).min();
            let known = client_ports.get(&frontend.frontend.pool).copied();
            if let Some(port) = lowest.into_iter().chain(known).min() {
                client_ports.insert(&frontend.frontend.pool, port);
            }
        }

        let mut membership = Membership::default();
        let gone: Vec<_> =
            self.pools.keys().filter(|name| !table.pools.contains_key(*name)).cloned().collect();
        for name in gone {
            let seen = self.pools.remove(&name);
            let backends = seen.iter().flat_map(|seen| &seen.entry.backends);
            membership.left.extend(backends.map(|backend| backend.ix));
        }
        for (name, entry) in &table.pools {
            let client_port = client_ports.get(name).copied();
            let unchanged = |seen: &Seen| Arc::ptr_eq(&seen.entry, entry) && seen.client_port == client_port;
            if self.pools.get(name).is_some_and(unchanged) {
                continue;
            }
            let present: BTreeSet<_> = enabled(entry).map(|backend| backend.ix).collect();
            let before = self.pools.insert(name.clone(), Seen { entry: Arc::clone(entry), client_port });
            let before = before.iter().flat_map(|seen| &seen.entry.backends).map(|backend| backend.ix);
            membership.left.extend(before.filter(|ix| !present.contains(ix)));
            for backend in enabled(entry) {
                if let Some(status) = self.watch(backend, &entry.pool, client_port, now, entropy()) {
                    membership.joined.push((backend.ix, status));
                }
            }
        }
        membership.left.retain(|&ix| self.forget(ix));
        membership
    }

    /// The probe to make now, or when to ask again.
    pub(super) fn next(&mut self, now: Moment) -> Step {
        let returns = self.returns.first().map(|&(at, _)| at);
        loop {
            let at = match self.schedule.next(now) {
                Next::Start(ticket) => {
                    let watched = self.watched.get(&ticket.backend);
                    let Some((target, watched)) = watched.and_then(|w| Some((w.target?, w))) else {
                        continue;
                    };
                    return Step::Probe(Job { ticket, target, pool: Arc::clone(&watched.pool) });
                }
                Next::At(at) => Some(at),
                Next::Idle => None,
            };
            return Step::Wait(at.into_iter().chain(returns).min());
        }
    }

    /// Takes in how a probe ended.
    pub(super) fn probed(
        &mut self,
        ticket: Ticket,
        result: &Result<String, ProbeError>,
        took: Duration,
        now: Moment,
        entropy: u64,
    ) -> Option<Shift> {
        if !self.schedule.holds(ticket) {
            return None;
        }
        let seen = match result {
            Ok(seen) => Some(Ok(seen.as_str())),
            Err(ProbeError::Backend(why)) => Some(Err(why.as_str())),
            Err(ProbeError::Local(_)) => None,
        };
        let shift = seen.and_then(|seen| self.step(ticket.backend, Input::Probe(seen, took), now, entropy));
        self.schedule.finish(ticket, now, entropy);
        shift
    }

    /// Takes in what the data plane noticed.
    pub(super) fn signal(&mut self, signal: Signal, now: Moment, entropy: u64) -> Option<Shift> {
        self.step(signal.backend, Input::Passive(signal.kind), now, entropy)
    }

    /// Brings back those whose back-off is over.
    pub(super) fn returned(&mut self, now: Moment) -> Vec<Shift> {
        let mut shifts = Vec::new();
        while let Some(&(at, backend)) = self.returns.first().filter(|(at, _)| *at <= now) {
            self.returns.remove(&(at, backend));
            let Some(watched) = self.watched.get_mut(&backend) else { continue };
            let change = watched.machine.tick(now);
            shifts.extend(change.map(|change| shift(backend, watched, change)));
        }
        shifts
    }

    /// Tells when the probe budget begins or ceases to stretch intervals.
    pub(super) fn stretch_changed(&mut self) -> Option<Stretch> {
        self.schedule.stretch_changed()
    }

    fn step(&mut self, backend: BackendIx, input: Input<'_>, now: Moment, entropy: u64) -> Option<Shift> {
        let watched = self.watched.get_mut(&backend)?;
        let before = watched.machine.returns_at();
        let change = watched.machine.step(watched.policy(), now, input);
        let shift = change.map(|change| shift(backend, watched, change));
        let (unsure, after) = (watched.machine.unsure(), watched.machine.returns_at());
        self.schedule.mood(backend, unsure, now, entropy);
        self.reschedule_return(backend, before, after);
        shift
    }

    /// Watches a backend; its status if it was not watched before.
    fn watch(
        &mut self,
        backend: &BackendEntry,
        pool: &Arc<Pool>,
        client_port: Option<u16>,
        now: Moment,
        entropy: u64,
    ) -> Option<Status> {
        let port = pool.health.port.or(backend.id.port).or(client_port);
        let target = port.map(|port| SocketAddr::new(backend.id.ip, port));
        let known = self.watched.remove(&backend.ix);
        let joined = known.is_none();
        let address = backend.id.port.map_or_else(
            || backend.id.ip.to_string(),
            |port| SocketAddr::new(backend.id.ip, port).to_string(),
        );
        let policy = policy(pool, target);
        let (before, machine) = match known {
            Some(Watched { mut machine, .. }) => {
                let before = machine.returns_at();
                machine.adopt(policy, now);
                (before, machine)
            }
            None => (None, Machine::new(pool.health.initial, policy, now)),
        };
        if policy.probed {
            let pace = Pace { interval: pool.health.interval, fast: pool.health.fast_interval };
            self.schedule.insert(backend.ix, pace, now, entropy);
        } else {
            self.schedule.remove(backend.ix);
        }
        self.reschedule_return(backend.ix, before, machine.returns_at());
        let status = machine.status();
        let watched =
            Watched { name: backend.id.to_string(), address, pool: Arc::clone(pool), target, machine };
        self.watched.insert(backend.ix, watched);
        joined.then_some(status)
    }

    /// Forgets a backend; whether it was watched.
    fn forget(&mut self, backend: BackendIx) -> bool {
        self.schedule.remove(backend);
        let Some(watched) = self.watched.remove(&backend) else { return false };
        self.reschedule_return(backend, watched.machine.returns_at(), None);
        true
    }

    fn reschedule_return(&mut self, backend: BackendIx, before: Option<Moment>, after: Option<Moment>) {
        if before != after {
            before.map(|at| self.returns.remove(&(at, backend)));
            self.returns.extend(after.map(|at| (at, backend)));
        }
    }
}

/// Thresholds of `pool`; without a port to probe there are only passive signals.
fn policy(pool: &Pool, target: Option<SocketAddr>) -> Policy {
    let policy = Policy::of(&pool.health);
    Policy { probed: policy.probed && target.is_some(), ..policy }
}

fn enabled(entry: &PoolEntry) -> impl Iterator<Item = &BackendEntry> {
    entry.backends.iter().filter(|backend| backend.backend.enabled)
}

fn shift(backend: BackendIx, watched: &Watched, change: Change) -> Shift {
    let Change { status, cause } = change;
    let transition =
        Transition { backend: watched.name.clone(), address: watched.address.clone(), status, cause };
    Shift { backend, transition }
}
