//! What the forward plane has in the kernel, kept as the image says, and its connection table swept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lemonade_common::flow::UDP;
use lemonade_common::forward::{DOWN, Flow, ended};
use lemonade_common::notice::Notice;
use lemonade_common::{BackendIx, FlowKey, FrontendIx};

use super::expiry::patience;
use super::ground::look;
use super::tally::{Lane, Tally};
use super::trial::{self, Proven};
use crate::control::image::{Image, Op, steps};
use crate::control::lower::{Ground, Lowered, lower};
use crate::control::table::DispatchTable;
use crate::model::Moment;
use crate::model::forward::ForwardCell;
use crate::proxy::adapters::bpf::{Forward, Unavailable};
use crate::proxy::clock::kernel_nanos;

/// Rings at least, 512 KiB each: so many pools may come by reloads, while each change of one takes another for a moment.
const RINGS: u32 = 16;

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

/// Time without a packet after which a flow of no frontend is forgotten.
const ORPHANED: Duration = Duration::from_secs(60);

/// The forward plane's part in the kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    forward: Forward,
    proven: Proven,
    image: Image,
    /// Interfaces of the image, and those that were prepared for the next.
    interfaces: BTreeSet<String>,
    wanted: BTreeSet<String>,
    tally: Tally,
    /// Entries that the table has room for.
    room: u32,
    scarce: bool,
    /// Whether single packets are told of.
    heard: bool,
    /// Packets that there was no room to tell of, at the last look.
    untold: u64,
    /// Whole rounds over the table since what is served has changed.
    rounds: u32,
}

impl Kernel {
    /// Makes room for what `table` asks and sends the program through the verifier and its self-test.
    ///
    /// # Errors
    /// Why that is not possible, and what would change it.
    pub(super) fn load(table: &DispatchTable, seed: u64) -> Result<Self, String> {
        let asking = table.frontends.values().filter_map(|entry| entry.frontend.forward.as_ref());
        let flows: u32 = asking.map(|own| own.connection_table).fold(0, u32::saturating_add);
        let room = flows.saturating_mul(2);
        let rings = (table.pools.len() as u32 * 4).clamp(RINGS, MOST_RINGS);
        let words = |error: Unavailable| error.to_string();
        let proven = trial::run()?;
        for (version, test) in [("IPv4", &proven.v4), ("IPv6", &proven.v6)] {
            if let Err(why) = test {
                tracing::error!("{version} packets cannot be forwarded on this kernel: {why}");
            }
        }
        let forward = Forward::load(room, rings, seed).map_err(words)?;
        Ok(Self {
            forward,
            proven,
            image: Image::with_room(rings),
            interfaces: BTreeSet::new(),
            wanted: BTreeSet::new(),
            tally: Tally::default(),
            room,
            scarce: false,
            heard: false,
            untold: 0,
            rounds: 0,
        })
    }

    /// Attaches to the interfaces that `table` needs, and says what is to be kept for it.
    pub(super) fn prepare(&mut self, table: &DispatchTable, now: Moment) -> Lowered {
        let forward = &mut self.forward;
        let mut attach = |name: &str| forward.attach(name).map_err(|error| error.to_string());
        let looked = look(table, &self.proven, now, &mut attach);
        let (ground, interfaces) = looked.unwrap_or_else(|error| {
            let why = format!("routes and interfaces cannot be read: {error}");
            let blocked = table.frontends.keys().map(|ix| (*ix, why.clone())).collect();
            (Ground { blocked, now, ..Ground::default() }, BTreeSet::new())
        });
        self.wanted = interfaces;
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
        self.wanted.clear();
        let mut image = Image { free: self.image.free.clone(), ..Image::default() };
        image.free.extend(self.image.rings.keys());
        image
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
        for (name, entry) in &table.pools {
            for v6 in [false, true] {
                let ring = self.image.ring_of(name, v6).map(|(_, ring)| Arc::clone(&ring.slots));
                entry.cell.rings.set(v6, ring);
            }
        }
        let interfaces = std::mem::take(&mut self.wanted);
        if interfaces != self.interfaces {
            (self.interfaces, self.rounds) = (interfaces, 0);
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
            for backend in &entry.pool.backends {
                self.forward.count_opened(ix.0, backend.ix.0)?;
                self.tally.follow((*ix, backend.ix));
            }
        }
        Ok(())
    }

    fn step(&mut self, op: Op) -> Result<(), Unavailable> {
        match op {
            Op::PutTarget(ix, target) => self.forward.put_target(ix, target),
            Op::FillRing(number, slots) => {
                self.forward.fill_ring(number, &slots);
                Ok(())
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
            let kept: Vec<String> = self.interfaces.iter().cloned().collect();
            self.forward.detach_others(&kept);
        }
    }

    /// Where the program is attached, for people.
    pub(super) fn words(&self) -> String {
        let interfaces = self.forward.interfaces();
        if interfaces.is_empty() {
            return "loaded, attached nowhere".to_owned();
        }
        format!("tc on {}", interfaces.join(", "))
    }

    /// What has become of single packets since the last call, while somebody hears it, and how many were left out.
    pub(super) fn notices(&mut self, heard: bool) -> (Vec<Notice>, u64) {
        if self.heard != heard {
            // What nobody has heard is of the past.
            while !self.forward.notices(NOTICES).is_empty() {}
            self.untold = self.forward.untold();
            match self.forward.listen(heard) {
                Ok(()) => self.heard = heard,
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

    /// Flows of such lanes that have not ended.
    pub(super) fn live(&self, such: impl Fn(Lane) -> bool) -> u64 {
        self.tally.live(such)
    }

    /// Looks at a part of the connection table: forgets what nothing will come of any more, counts the rest. Says whether
    /// that ended a round over the whole table.
    pub(super) fn sweep(&mut self, table: &DispatchTable, cell: &ForwardCell) -> bool {
        let now = kernel_nanos();
        let down = down(table);
        for _ in 0..CALLS {
            let (flows, last) = match self.forward.sweep() {
                Ok(read) => read,
                Err(error) => {
                    tracing::error!(%error, "the connection table cannot be read");
                    return true;
                }
            };
            for (key, flow) in &flows {
                let over = self.is_over(key, flow, table, &down, now) && self.forget_one(key, flow);
                self.tally.see(flow, over);
            }
            if last {
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
        let patience = patience(flow, idle, self.scarce);
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

    /// Forgets a direction of a flow, unless a packet has come meanwhile: of a new flow with the same ports, say.
    fn forget_one(&mut self, key: &FlowKey, flow: &Flow) -> bool {
        let same = self.forward.flow(key).is_some_and(|now| now.seen.get() == flow.seen.get());
        if same {
            self.forward.forget(std::slice::from_ref(key));
        }
        same
    }

    fn settle(&mut self, table: &DispatchTable, cell: &ForwardCell) {
        let forward = &self.forward;
        let (total, left) =
            self.tally.settle(table, |(frontend, backend)| forward.opened(frontend.0, backend.0));
        for (frontend, backend) in left {
            self.forward.forget_opened(frontend.0, backend.0);
        }
        self.scarce = total.entries as f64 > f64::from(self.room) * SCARCE;
        cell.opened.fetch_add(total.opened, Ordering::AcqRel);
        cell.closed.fetch_add(total.closed, Ordering::AcqRel);
        cell.live.store(total.live, Ordering::Release);
        cell.entries.store(total.entries, Ordering::Relaxed);
        cell.room.store(self.room.into(), Ordering::Relaxed);
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

/// Backends that are down and not to be tried either.
fn down(table: &DispatchTable) -> BTreeSet<BackendIx> {
    let backends = table.pools.values().flat_map(|pool| &pool.backends);
    backends.filter(|own| own.cell.down.load(Ordering::Relaxed)).map(|own| own.ix).collect()
}
