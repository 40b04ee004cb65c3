//! The forward plane: a program in the kernel sends packets of a frontend on, and the proxy stands behind it.
//!
//! The proxy listens on the addresses of every frontend. It has what the hook does not see (clients on this host) and
//! what the kernel hands over: flows that began on the proxy, and new ones while no backend is up. So a frontend changes
//! its plane by one entry of a map, and what cannot be forwarded is served all the same.

mod answers;
mod device;
mod expiry;
mod foresee;
mod ground;
mod hook;
pub mod host;
mod keeping;
mod kernel;
mod listing;
mod netlink;
mod overhear;
mod parting;
mod tally;
mod telling;
mod trial;

pub use foresee::foresee;
pub use keeping::Keeping;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lemonade_common::{BackendIx, FrontendIx};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::error::{ApplyError, ForwardError};
use super::port::{Connection, DrainScope, Which};
use super::tap::{EventKind, Tap};
use crate::control::image::Image;
use crate::control::lower::{Lowered, unsuited};
use crate::control::table::{BackendId, DispatchTable};
use crate::model::forward::{Fallback, PlaneCell};
use crate::model::{Moment, Name, ProcessCell};
use kernel::Kernel;

/// Time from one look at the connection table to the next.
const TICK: Duration = Duration::from_millis(250);

/// Time from one look at routes, interfaces and averages to the next.
const LOOK: Duration = Duration::from_secs(5);

/// How often a drain looks whether it is done, and how often it is looked what the kernel tells while somebody reads.
const PULSE: Duration = Duration::from_millis(50);

/// The forward plane.
#[derive(Debug)]
pub struct ForwardPlane {
    state: Mutex<State>,
    tap: Tap,
}

#[derive(Debug)]
struct State {
    process: Arc<ProcessCell>,
    clock: Clock,
    seed: u64,
    stage: Stage,
    keeping: Keeping,
    table: Arc<DispatchTable>,
    previous: Arc<DispatchTable>,
    looked: Moment,
    draining: bool,
}

/// Whether there is something in the kernel.
#[derive(Debug)]
enum Stage {
    /// Nobody has asked for it yet.
    Untried,
    /// There cannot be, for this reason.
    Impossible(String),
    /// There is.
    Loaded(Box<Kernel>),
}

impl ForwardPlane {
    /// A plane with nothing in the kernel, which tells readers of `tap` what the kernel does once there is something.
    pub fn new(process: Arc<ProcessCell>, clock: Clock, seed: u64, tap: Tap, keeping: Keeping) -> Self {
        let state = State {
            process,
            clock,
            seed,
            stage: Stage::Untried,
            keeping,
            table: Arc::default(),
            previous: Arc::default(),
            looked: Moment(0),
            draining: false,
        };
        Self { state: Mutex::new(state), tap }
    }

    /// Takes a table, if `bind`, the proxy behind, takes it too.
    ///
    /// # Errors
    /// What the proxy says, or every frontend that cannot be forwarded and must not fall back; then nothing has changed.
    pub fn apply(
        &self,
        table: &Arc<DispatchTable>,
        bind: impl FnOnce() -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let mut state = self.state();
        let lowered = state.prepare(table);
        let refused = lowered.kept.iter().filter_map(|(ix, why)| {
            let frontend = &table.frontends.get(ix)?.frontend;
            let refuses = frontend.forward.as_ref()?.fallback == Fallback::Refuse;
            refuses.then(|| ForwardError { frontend: frontend.name.clone(), why: why.clone() })
        });
        let refused: Vec<ForwardError> = refused.collect();
        let taken = if refused.is_empty() {
            bind()
        } else {
            Err(ApplyError { listeners: Vec::new(), forward: refused })
        };
        match taken {
            Ok(()) => {
                state.previous = std::mem::replace(&mut state.table, Arc::clone(table));
                state.commit(lowered);
                Ok(())
            }
            // What was attached for it goes with the next round over the table.
            Err(error) => Err(error),
        }
    }

    /// Stops opening flows in `scope` and waits for those that there are; forgets what is left after `deadline`, which the
    /// hosts' own stacks then reset. Returns how many flows that were.
    /// What has come back into the table by then is let go on.
    pub fn drain(
        self: &Arc<Self>,
        scope: DrainScope,
        deadline: Duration,
    ) -> impl Future<Output = u64> + Send + 'static {
        // At once: the next table may come before the future is polled.
        let mut covers = self.state().leave(scope);
        let own = Arc::clone(self);
        async move {
            let ended = async {
                while own.state().live(&covers) > 0 {
                    tokio::time::sleep(PULSE).await;
                }
            };
            if tokio::time::timeout(deadline, ended).await.is_ok() {
                return 0;
            }
            let mut state = own.state();
            covers.spare(&state.table);
            state.forget(&covers)
        }
    }

    /// Takes everything out of the kernel, which a killed process leaves to the next.
    pub fn close(&self) {
        self.state().stage = Stage::Impossible("the process has stopped".to_owned());
    }

    /// Flows that have not ended.
    pub fn live(&self) -> u64 {
        self.state().live(&Covers::All)
    }

    /// The flows that `such` lets through; the table forgets those that have ended within seconds.
    pub fn connections(&self, which: Which, such: &dyn Fn(&Connection) -> bool) -> Vec<Connection> {
        let state = self.state();
        let Stage::Loaded(kernel) = &state.stage else { return Vec::new() };
        let tables = [&*state.table, &*state.previous];
        let mut listing = listing::Listing::new(which, tables, state.seed, state.clock.now());
        kernel.each(|key, flow, other| listing.take(key, flow, other, such));
        listing.found
    }

    /// Looks after the connection table, and after the host, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let heard = self.state().overhear(&self.tap);
            tokio::select! {
                _ = tick.tick() => self.state().tick(),
                () = tokio::time::sleep(PULSE), if heard => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flows that a drain is about.
#[derive(Debug)]
enum Covers {
    All,
    /// Those of frontends and backends that left the table.
    Gone(BTreeMap<FrontendIx, Name>, BTreeMap<BackendIx, BackendId>),
}

impl Covers {
    fn has(&self, (frontend, backend): tally::Lane) -> bool {
        match self {
            Self::All => true,
            Self::Gone(frontends, backends) => {
                frontends.contains_key(&frontend) || backends.contains_key(&backend)
            }
        }
    }

    /// Leaves out what is in the table again, with another index.
    fn spare(&mut self, table: &DispatchTable) {
        let Self::Gone(frontends, backends) = self else { return };
        frontends.retain(|_, name| !table.frontends.values().any(|entry| entry.frontend.name == *name));
        backends.retain(|_, id| !table.has_backend(id));
    }
}

impl State {
    /// Puts what `table` needs into place, of which no flow takes notice yet, and says what the kernel is to keep.
    fn prepare(&mut self, table: &DispatchTable) -> Lowered {
        let asking = || table.frontends.values().filter(|entry| entry.frontend.forward.is_some());
        if self.draining || asking().all(|entry| unsuited(entry).is_some()) {
            return Lowered {
                kept: asking().filter_map(|entry| Some((entry.ix, unsuited(entry)?))).collect(),
                image: self.empty_image(),
                ..Lowered::default()
            };
        }
        self.looked = self.clock.now();
        if matches!(self.stage, Stage::Untried) {
            self.stage = match Kernel::load(table, self.seed, &mut self.keeping) {
                Ok(kernel) => Stage::Loaded(Box::new(kernel)),
                Err(why) => {
                    self.keeping.discard();
                    Stage::Impossible(why)
                }
            };
        }
        match &mut self.stage {
            Stage::Loaded(kernel) => kernel.prepare(table, self.looked),
            Stage::Impossible(why) => {
                let why = |entry: &_| unsuited(entry).unwrap_or_else(|| why.clone());
                Lowered { kept: asking().map(|entry| (entry.ix, why(entry))).collect(), ..Lowered::default() }
            }
            Stage::Untried => Lowered::default(),
        }
    }

    fn empty_image(&mut self) -> Image {
        match &mut self.stage {
            Stage::Loaded(kernel) => kernel.emptied(),
            Stage::Untried | Stage::Impossible(_) => Image::default(),
        }
    }

    /// Makes what was prepared effective for new flows.
    fn commit(&mut self, lowered: Lowered) {
        let Lowered { image, carried, mut kept } = lowered;
        let mut carried = carried;
        match &mut self.stage {
            Stage::Loaded(kernel) => kernel.keep(&mut self.keeping, &self.table),
            Stage::Untried | Stage::Impossible(_) => self.keeping.discard(),
        }
        if let Stage::Loaded(kernel) = &mut self.stage
            && let Err(why) = kernel.commit(image, &carried, &self.table)
        {
            tracing::error!("the forward plane cannot take the table, the proxy serves: {why}");
            kept.extend(std::mem::take(&mut carried).into_keys().map(|ix| (ix, why.clone())));
        }
        for (ix, entry) in &self.table.frontends {
            let name = &entry.frontend.name;
            let plane: &PlaneCell = &entry.cell.plane;
            if let Some(note) = carried.get(ix) {
                if plane.set(true, note) {
                    tracing::info!(frontend = %name, "packets are forwarded in the kernel{}", and(note));
                }
            } else if let Some(why) = kept.get(ix) {
                if plane.set(false, why) {
                    tracing::warn!(frontend = %name, "packets are not forwarded, the proxy serves: {why}");
                }
            } else {
                plane.set(false, "");
            }
        }
        self.process.forward.say(self.words());
    }

    fn words(&self) -> String {
        match &self.stage {
            Stage::Untried => String::new(),
            Stage::Impossible(why) => format!("not possible: {why}"),
            Stage::Loaded(kernel) => kernel.words(),
        }
    }

    /// Opens no new flows in `scope`.
    fn leave(&mut self, scope: DrainScope) -> Covers {
        let DrainScope::Removed { frontends, backends } = scope else {
            self.draining = true;
            let lowered = Lowered { image: self.empty_image(), ..Lowered::default() };
            self.commit(lowered);
            self.count();
            return Covers::All;
        };
        self.count();
        // The table in force has none of them any more.
        let gone = self.previous.frontends.values().filter(|entry| frontends.contains(&entry.frontend.name));
        let gone = gone.map(|entry| (entry.ix, entry.frontend.name.clone())).collect();
        let former = self.previous.pools.values().flat_map(|pool| &pool.backends);
        let former = former.filter(|own| backends.contains(&own.id));
        Covers::Gone(gone, former.map(|own| (own.ix, own.id.clone())).collect())
    }

    /// Counts every flow that there is.
    fn count(&mut self) {
        let Stage::Loaded(kernel) = &mut self.stage else { return };
        // The rest of a round that was begun, and a whole one.
        for _ in 0..2 {
            while !kernel.sweep(&self.table, &self.process.forward) {}
        }
    }

    fn live(&self, covers: &Covers) -> u64 {
        match &self.stage {
            Stage::Loaded(kernel) => kernel.live(|lane| covers.has(lane)),
            Stage::Untried | Stage::Impossible(_) => 0,
        }
    }

    fn forget(&mut self, covers: &Covers) -> u64 {
        match &mut self.stage {
            Stage::Loaded(kernel) => kernel.forget(|lane| covers.has(lane)),
            Stage::Untried | Stage::Impossible(_) => 0,
        }
    }

    /// Tells readers of `tap` what has become of single packets; says whether there are any.
    fn overhear(&mut self, tap: &Tap) -> bool {
        let Stage::Loaded(kernel) = &mut self.stage else { return false };
        let heard = tap.readers() > 0;
        let (notices, untold) = kernel.notices(heard);
        tap.lose(untold);
        for notice in notices {
            if let Some((kind, connection)) =
                overhear::event(&notice, &self.table, self.seed, self.clock.now())
            {
                tap.tell(kind, || connection);
            }
        }
        let parted = kernel.parted();
        if !parted.is_empty() {
            let tables = [&*self.table, &*self.previous];
            let listing = listing::Listing::new(Which::Ended, tables, self.seed, self.clock.now());
            parted.iter().for_each(|own| tap.tell(EventKind::End, || listing.parted(own)));
        }
        heard
    }

    fn tick(&mut self) {
        let Stage::Loaded(kernel) = &mut self.stage else { return };
        kernel.sweep(&self.table, &self.process.forward);
        kernel.compare(&self.table);
        kernel.learn(&self.table, self.clock.now());
        if self.draining || self.clock.now().since(self.looked) < LOOK {
            return;
        }
        let table = Arc::clone(&self.table);
        let lowered = self.prepare(&table);
        self.commit(lowered);
    }
}

fn and(note: &str) -> String {
    if note.is_empty() { String::new() } else { format!("; {note}") }
}
