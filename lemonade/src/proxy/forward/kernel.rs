//! What the forward plane has in the kernel, kept as the image says, and its connection table swept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lemonade_common::flow::UDP;
use lemonade_common::forward::{DOWN, Flow, Forgotten, ended};
use lemonade_common::notice::Notice;
use lemonade_common::{BackendIx, FlowKey, FrontendIx};

use super::answers::Answers;
use super::expiry::{Full, patience};
use super::ground::{Site, Sites, look};
use super::keeping::Keeping;
use super::parting::{Parted, Parting};
use super::tally::{Lane, Tally};
use super::telling::Telling;
use super::trial::{self, Proven};
use crate::control::image::{Image, Op, steps};
use crate::control::lower::{Ground, Lowered, lower};
use crate::control::table::DispatchTable;
use crate::model::Moment;
use crate::model::forward::{ForwardCell, Point};
use crate::proxy::adapters::bpf::{Forward, Unavailable};
use crate::proxy::clock::kernel_nanos;

/// Rings at least, 512 KiB each: so many pools may come by reloads, while each change of one takes another for a moment.
const RINGS: u32 = 16;

/// Rings of a pool: one for each IP version, the one before it, and another while it changes.
const RINGS_OF_POOL: u32 = 6;

/// Rings at most.
const MOST_RINGS: u32 = 1_024;

/// Services that the kernel has room for.
const SERVICES: usize = 1 << 14;

/// Targets, and lanes, that the kernel has room for.
const TARGETS: usize = 1 << 16;

/// Calls for entries of the connection table in one look, about a thousand entries each.
const CALLS: usize = 16;

/// Packets that are told of in one look at most; a reader takes 10,000 a second.
const NOTICES: usize = 1_024;

/// Share of the table above which flows that have ended are forgotten sooner.
const SCARCE: f64 = 0.75;

/// Time from one reading of how fast backends answer to the next.
const LEARN: Duration = Duration::from_secs(1);

/// Time without a packet after which a flow of no frontend is forgotten.
const ORPHANED: Duration = Duration::from_secs(60);

/// The forward plane's part in the kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    forward: Forward,
    /// Why it ends with the process if that is killed; empty: it does not.
    ends: String,
    proven: Proven,
    image: Image,
    /// Where programs are to be for the image, and what were prepared for the next.
    sites: Sites,
    wanted: Sites,
    /// How the self-test of programs for sockets went, once somebody has asked for them.
    sockets: Option<Result<(), String>>,
    tally: Tally,
    /// What backends have answered, and when that was read.
    answers: (Answers, Moment),
    telling: Telling,
    /// Entries that the table has room for.
    room: u32,
    scarce: bool,
    full: Full,
    /// Whether single packets are told of.
    heard: bool,
    /// Packets that there was no room to tell of, at the last look.
    untold: u64,
    /// Flows that have ended since somebody listens.
    parting: Parting,
    /// Whether a round over the table is under way.
    begun: bool,
    /// Whole rounds over the table since what is served has changed.
    rounds: u32,
}

impl Kernel {
    /// Makes room for what `table` asks and sends the program through the verifier and its self-test.
    ///
    /// # Errors
    /// Why that is not possible, and what would change it.
    pub(super) fn load(table: &DispatchTable, seed: u64, keeping: &mut Keeping) -> Result<Self, String> {
        let asking = table.frontends.values().filter_map(|entry| entry.frontend.forward.as_ref());
        let flows: u32 = asking.map(|own| own.connection_table).fold(0, u32::saturating_add);
        let room = flows.saturating_mul(2);
        let rings = (table.pools.len() as u32 * RINGS_OF_POOL).clamp(RINGS, MOST_RINGS);
        let words = |error: Unavailable| error.to_string();
        let proven = trial::run()?;
        for ((v6, mode), why) in proven.failed() {
            let version = if v6 { "IPv6" } else { "IPv4" };
            tracing::error!(
                "{version} packets cannot be forwarded by {} on this kernel: {why}",
                mode.as_str()
            );
        }
        if let Err(why) = proven.xdp() {
            tracing::warn!("no program of the forward plane can be at XDP on this kernel: {why}");
        }
        let (forward, taken_over, ends) = match keeping.pins(room, seed) {
            Ok((pins, there)) => {
                (Forward::load_pinned(pins, room, rings, seed).map_err(words)?, there, String::new())
            }
            Err(why) => (Forward::load(room, rings, seed).map_err(words)?, false, why),
        };
        let image =
            if taken_over { found(&forward, table)? } else { Image::with_room(forward.room_for_rings()) };
        Ok(Self {
            forward,
            ends,
            proven,
            image,
            sites: Sites::default(),
            wanted: Sites::default(),
            sockets: None,
            tally: if taken_over { Tally::of_another() } else { Tally::default() },
            answers: (Answers::default(), Moment(0)),
            telling: Telling::default(),
            room,
            scarce: false,
            full: Full::default(),
            heard: false,
            parting: Parting::default(),
            untold: 0,
            begun: false,
            rounds: 0,
        })
    }

    /// Attaches to the interfaces that `table` needs, and says what is to be kept for it.
    pub(super) fn prepare(&mut self, table: &DispatchTable, now: Moment) -> Lowered {
        let forward = &mut self.forward;
        let sockets = &mut self.sockets;
        let mut attach = |site: Site<'_>| {
            let attached = match site {
                Site::Interface(name, Point::Tc) => forward.attach(name),
                Site::Interface(name, point) => forward.attach_xdp(name, point == Point::Native),
                Site::Cgroup(path) => {
                    let tested = sockets.get_or_insert_with(trial::connect).clone();
                    tested.map_err(|why| format!("its self-test failed on this kernel: {why}"))?;
                    forward.attach_cgroup(path)
                }
            };
            attached.map_err(|error| error.to_string())
        };
        let looked = look(table, &self.proven, now, &mut attach);
        let (ground, sites) = looked.unwrap_or_else(|error| {
            let why = format!("routes and interfaces cannot be read: {error}");
            let blocked = table.frontends.keys().map(|ix| (*ix, why.clone())).collect();
            (Ground { blocked, now, ..Ground::default() }, Sites::default())
        });
        self.wanted = sites;
        let lowered = lower(table, &ground, &self.image);
        if lowered.image.services.len() <= SERVICES && lowered.image.targets.len() <= TARGETS {
            return lowered;
        }
        let why = format!("the kernel has room for {SERVICES} addresses and {TARGETS} backends");
        let kept = lowered.carried.into_keys().map(|ix| (ix, why.clone())).chain(lowered.kept).collect();
        Lowered { image: self.emptied(), carried: BTreeMap::new(), kept }
    }

    /// The image without anything that is served, for which no interface is needed.
    pub(super) fn emptied(&mut self) -> Image {
        self.wanted = Sites::default();
        self.image.emptied()
    }

    /// Brings the kernel from the image that it has to `next`.
    ///
    /// # Errors
    /// What the kernel refuses; then it serves nothing.
    pub(super) fn commit(
        &mut self,
        next: Image,
        carried: &BTreeMap<FrontendIx, String>,
        table: &DispatchTable,
    ) -> Result<(), String> {
        let done = self.counters(carried, table).and_then(|()| {
            let steps = steps(&self.image, &next);
            steps.into_iter().try_for_each(|op| self.step(op))
        });
        if let Err(why) = done {
            // Some of the services of either image may be there.
            for key in self.image.services.keys().chain(next.services.keys()) {
                self.forward.remove_service(*key);
            }
            self.image.services.clear();
            return Err(why.to_string());
        }
        self.image = next;
        self.telling.forget();
        let others = self.forward.own();
        if others > 0 {
            tracing::info!(others, "took away what processes before this one left of the forward plane");
        }
        for (name, entry) in &table.pools {
            for v6 in [false, true] {
                let ring = self.image.ring_of(name, v6).map(|(_, ring)| Arc::clone(&ring.slots));
                entry.cell.rings.set(v6, ring);
            }
        }
        let sites = std::mem::take(&mut self.wanted);
        if sites != self.sites {
            (self.sites, self.rounds) = (sites, 0);
            // At once, since their flows go on at tc.
            for (name, _) in self.sites.interfaces.iter().filter(|(_, point)| **point == Point::Tc) {
                self.forward.detach_xdp(name);
            }
        }
        Ok(())
    }

    fn counters(
        &mut self,
        carried: &BTreeMap<FrontendIx, String>,
        table: &DispatchTable,
    ) -> Result<(), Unavailable> {
        for ix in carried.keys() {
            let Some(entry) = table.frontends.get(ix) else { continue };
            self.forward.count_frontend(ix.0)?;
            for backend in &entry.pool.backends {
                self.forward.count_opened(ix.0, backend.ix.0)?;
                self.forward.count_gone(ix.0, backend.ix.0)?;
                self.forward.count_live(backend.ix.0)?;
                self.tally.follow((*ix, backend.ix));
            }
        }
        Ok(())
    }

    fn step(&mut self, op: Op) -> Result<(), Unavailable> {
        match op {
            Op::PutTarget(ix, target) => self.forward.put_target(ix, target),
            Op::FillRing(number, slots, choices) => {
                self.forward.fill_ring(number, &slots);
                self.forward.put_choices(number, &choices)
            }
            Op::PutService(key, service) => self.forward.put_service(key, service),
            Op::RemoveService(key) => {
                self.forward.remove_service(key);
                Ok(())
            }
            Op::RemoveTarget(ix) => {
                self.forward.remove_target(ix);
                Ok(())
            }
        }
    }

    /// Detaches from interfaces that nothing needs any more: no service, and no flow that came by them before.
    fn release(&mut self, entries: u64) {
        // The first round may have begun before the change.
        self.rounds = self.rounds.saturating_add(1);
        if entries == 0 && self.rounds > 1 {
            let kept: Vec<String> = self.sites.interfaces.keys().cloned().collect();
            self.forward.detach_others(&kept);
            self.forward.leave_cgroups(&self.sites.cgroups);
        }
    }

    /// Where the program is attached, for people.
    pub(super) fn words(&self) -> String {
        let (interfaces, cgroups) = (self.forward.interfaces(), self.forward.cgroups());
        if interfaces.is_empty() && cgroups.is_empty() {
            return "loaded, attached nowhere".to_owned();
        }
        let at = |native: Option<bool>| match native {
            None => Point::Tc,
            Some(false) => Point::Generic,
            Some(true) => Point::Native,
        };
        let groups = Point::ALL.into_iter().filter_map(|point| {
            let own = interfaces.iter().filter(|(_, native)| at(*native) == point);
            let names: Vec<&str> = own.map(|(name, _)| name.as_str()).collect();
            (!names.is_empty()).then(|| format!("{} on {}", point.as_str(), names.join(", ")))
        });
        let local = (!cgroups.is_empty()).then(|| format!("connect on {}", cgroups.join(", ")));
        let interfaces = groups.chain(local).collect::<Vec<_>>().join(", ");
        if self.ends.is_empty() {
            format!("{interfaces}; goes on if the process is killed")
        } else {
            format!("{interfaces}; ends if the process is killed: {}", self.ends)
        }
    }

    /// Writes down what the next process needs of a table to take over.
    pub(super) fn keep(&mut self, keeping: &mut Keeping, table: &DispatchTable) {
        if !self.forward.outlives() {
            return;
        }
        if let Err(error) = keeping.write(table) {
            self.ends = format!("the state folder cannot be written: {error}");
            tracing::warn!("the forward plane {}", self.words());
            // Whoever took it over would take indices for others.
            self.forward.forsake();
        }
    }

    /// What has become of single packets since the last call, while somebody hears it, and how many were left out.
    pub(super) fn notices(&mut self, heard: bool) -> (Vec<Notice>, u64) {
        if self.heard != heard {
            // What nobody has heard is of the past.
            while !self.forward.notices(NOTICES).is_empty() {}
            self.untold = self.forward.untold();
            match self.forward.listen(heard) {
                Ok(()) => (self.heard, self.parting) = (heard, Parting::default()),
                Err(error) => tracing::warn!("packets cannot be told of: {error}"),
            }
        }
        if !heard {
            return (Vec::new(), 0);
        }
        let untold = self.forward.untold();
        let before = std::mem::replace(&mut self.untold, untold);
        (self.forward.notices(NOTICES), untold.saturating_sub(before))
    }

    /// Flows that were forgotten since the last call, while somebody hears it.
    pub(super) fn parted(&mut self) -> Vec<Parted> {
        self.parting.take()
    }

    /// Notes how fast backends have answered, once in [`LEARN`].
    pub(super) fn learn(&mut self, table: &DispatchTable, now: Moment) {
        let (answers, read) = &mut self.answers;
        if now.since(*read) >= LEARN {
            *read = now;
            answers.note(table, |ix| self.forward.load_of(ix.0), now);
        }
    }

    /// Tells the kernel what the proxy has where connections are compared or limited.
    pub(super) fn compare(&mut self, table: &DispatchTable) {
        let told = self.telling.tell(&mut self.forward, &self.image, table, &self.tally);
        if let Err(error) = told {
            tracing::warn!("connections of the proxy do not count in the kernel: {error}");
        }
    }

    /// Flows of such lanes that have not ended.
    pub(super) fn live(&self, such: impl Fn(Lane) -> bool) -> u64 {
        self.tally.live(such)
    }

    /// Looks at a part of the connection table: forgets what nothing will come of any more, counts the rest. Says whether
    /// that ended a round over the whole table.
    pub(super) fn sweep(&mut self, table: &DispatchTable, cell: &ForwardCell) -> bool {
        let now = kernel_nanos();
        let down = down(table);
        if !std::mem::replace(&mut self.begun, true) {
            let forward = &self.forward;
            self.tally.begin(|(frontend, backend)| forward.opened(frontend.0, backend.0));
        }
        for _ in 0..CALLS {
            let (flows, last) = match self.forward.sweep() {
                Ok(read) => read,
                Err(error) => {
                    tracing::error!(%error, "the connection table cannot be read");
                    self.begun = false;
                    return true;
                }
            };
            let over = |(key, flow): &(FlowKey, Flow)| self.is_over(key, flow, table, &down, now);
            let (over, stay): (Vec<_>, Vec<_>) = flows.into_iter().partition(over);
            // A packet may come meanwhile: of a new flow with the same ports, say.
            let asked: Vec<Forgotten> =
                over.iter().map(|(key, flow)| Forgotten { key: *key, seen: flow.seen.get() }).collect();
            let gone = self.forward.forget_unless_seen(&asked);
            let (gone, late): (Vec<_>, Vec<_>) = over.into_iter().zip(gone).partition(|(_, gone)| *gone);
            let late = late.into_iter().map(|(own, _)| own);
            late.chain(stay).for_each(|(_, flow)| self.tally.see(&flow));
            if self.heard {
                let gone = gone.into_iter().map(|(own, _)| own).collect();
                self.parting.note(gone, |key| self.forward.flow(key));
            }
            if last {
                self.begun = false;
                self.parting.turn();
                self.settle(table, cell);
                return true;
            }
        }
        false
    }

    /// Whether nothing will come of a flow any more, by one of its directions.
    fn is_over(
        &self,
        key: &FlowKey,
        flow: &Flow,
        table: &DispatchTable,
        down: &BTreeSet<BackendIx>,
        now: u64,
    ) -> bool {
        // Datagrams would go to a dead backend for ever; a connection to one ends by its own timeouts.
        if flow.protocol == UDP && down.contains(&BackendIx(flow.backend)) {
            return true;
        }
        let entry = table.frontends.get(&FrontendIx(flow.frontend));
        let idle = entry.map_or(ORPHANED, |entry| entry.frontend.idle_timeout);
        let patience = patience(flow, idle, self.scarce || self.full.has(flow));
        let silent = |flow: &Flow| Duration::from_nanos(now.saturating_sub(flow.seen.get())) >= patience;
        if !silent(flow) {
            return false;
        }
        // The direction that has heard something last speaks for both.
        ended(flow.state())
            || self
                .forward
                .flow(&flow.leaves().reversed())
                .is_none_or(|other| silent(&other) || other.leaves().reversed() != *key)
    }

    fn settle(&mut self, table: &DispatchTable, cell: &ForwardCell) {
        let forward = &self.forward;
        let opened = |(frontend, backend): Lane| forward.opened(frontend.0, backend.0);
        let gone = |(frontend, backend): Lane| forward.gone(frontend.0, backend.0);
        let (total, left) = self.tally.settle(table, opened, gone);
        for (frontend, backend) in left {
            self.forward.forget_opened(frontend.0, backend.0);
            self.forward.forget_gone(frontend.0, backend.0);
            if !self.tally.has(backend) {
                self.forward.forget_live(backend.0);
            }
            if !self.tally.begins(frontend) {
                self.forward.forget_frontend(frontend.0);
            }
        }
        self.full = Full::by(&self.tally, table);
        self.scarce = total.entries as f64 > f64::from(self.room) * SCARCE;
        cell.opened.fetch_add(total.opened, Ordering::AcqRel);
        cell.closed.fetch_add(total.closed, Ordering::AcqRel);
        cell.live.store(total.live, Ordering::Release);
        cell.entries.store(total.entries, Ordering::Relaxed);
        cell.room.store(self.room.into(), Ordering::Relaxed);
        cell.replaced.store(self.forward.replaced(), Ordering::Relaxed);
        for (packets, counted) in cell.packets.iter().zip(self.forward.reasons()) {
            packets.store(counted, Ordering::Relaxed);
        }
        self.release(total.entries);
    }

    /// Shows `see` one after the other the flows from client to backend, each with its other direction if that is there and
    /// `see` asks for it.
    pub(super) fn each(&self, mut see: impl FnMut(&FlowKey, &Flow, &dyn Fn() -> Option<Flow>)) {
        let read = self.forward.each_flow(|key, flow| {
            if flow.state.get() as u32 & DOWN == 0 {
                see(&key, &flow, &|| self.forward.flow(&flow.leaves().reversed()));
            }
        });
        if let Err(error) = read {
            tracing::error!(%error, "the connection table cannot be read");
        }
    }

    /// Forgets every flow of such lanes; says how many had not ended.
    pub(super) fn forget(&mut self, such: impl Fn(Lane) -> bool) -> u64 {
        let flows = self.forward.flows().unwrap_or_else(|error| {
            tracing::error!(%error, "the connection table cannot be read");
            Vec::new()
        });
        let covered = |flow: &Flow| such((FrontendIx(flow.frontend), BackendIx(flow.backend)));
        let gone: Vec<_> = flows.iter().filter(|(_, flow)| covered(flow)).collect();
        let live = gone.iter().filter(|(_, flow)| flow.state() & DOWN == 0 && !ended(flow.state())).count();
        self.forward.forget(&gone.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        live as u64
    }
}

/// What another process has left in the maps.
fn found(forward: &Forward, table: &DispatchTable) -> Result<Image, String> {
    let found = forward.found().map_err(|error| format!("what was left cannot be read: {error}"))?;
    tracing::info!(
        services = found.services.len(),
        "takes over what a killed process left of the forward plane"
    );
    let pool = |ix| table.frontends.get(&FrontendIx(ix)).map(|entry| entry.pool.pool.name.clone());
    let slots = |ring| forward.ring(ring);
    Ok(Image::found(found.services, found.targets, forward.room_for_rings(), slots, pool))
}

/// Backends that are down and not to be tried either.
fn down(table: &DispatchTable) -> BTreeSet<BackendIx> {
    let backends = table.pools.values().flat_map(|pool| &pool.backends);
    backends.filter(|own| own.cell.down.load(Ordering::Relaxed)).map(|own| own.ix).collect()
}
