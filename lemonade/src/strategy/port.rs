//! The strategy port: a pure, allocation-free choice among candidates.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lemonade_common::{BackendIx, FlowKey};

use crate::model::{BackendCell, Moment, StrategyKind};

/// A backend that may be picked: enabled, of weight above 0, and up (or failing open).
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Identity.
    pub ix: BackendIx,
    /// What its places in rings are made from: the same on every node and after every restart.
    pub identity: Arc<str>,
    /// Index in the pool's `backends`.
    pub position: usize,
    /// Share relative to the others; at least 1.
    pub weight: u32,
    /// Connections at most; 0 is no limit.
    pub max_connections: u32,
    /// Live state.
    pub cell: Arc<BackendCell>,
}

/// What a strategy sees of its pool for one pick.
#[derive(Clone, Copy, Debug)]
pub struct PoolView<'a> {
    /// Ordered by identity; the same slice that the strategy was built for.
    pub candidates: &'a [Candidate],
    /// Position of the turn-taking strategies, shared by all workers and kept over reloads.
    pub cursor: &'a AtomicU64,
    /// Now.
    pub now: Moment,
    /// Random bits, fresh for each pick.
    pub entropy: u64,
    /// Seed of the flow hash.
    pub seed: u64,
    /// Backends already tried for this connection.
    pub excluded: &'a [BackendIx],
    /// Whether backends that have just failed are eligible too: the second try when nothing else is.
    pub desperate: bool,
}

impl PoolView<'_> {
    /// Whether `candidate` may be picked now.
    pub fn eligible(&self, candidate: &Candidate) -> bool {
        let cell = &candidate.cell;
        !cell.closed.load(Ordering::Relaxed)
            && (candidate.max_connections == 0
                || cell.live.load(Ordering::Relaxed) < candidate.max_connections)
            && (self.desperate || !cell.backing_off(self.now))
            && !self.excluded.contains(&candidate.ix)
    }
}

/// A candidate that was picked, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// The candidate.
    pub candidate: &'a Candidate,
    /// Why this one.
    pub basis: Basis,
}

/// What a pick went by, in numbers; kept with each connection, so it is small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Basis {
    /// A process before this one has picked it.
    Former,
    /// No other was eligible.
    Only,
    /// It was its turn, of this number.
    Turn(u64),
    /// The turn of this number fell to a backend that was not eligible.
    Passed(u64),
    /// It has the slot of this number in the ring, or the next one whose backend was eligible.
    Slot(u32),
    /// It had the lowest load, which so many shared.
    Lowest {
        /// Connections per weight, this one included; 0 without any.
        load: f32,
        /// Candidates with that load.
        equals: u32,
    },
    /// It had the fewest connections per weight when the kernel opened the flow, by counts that nobody wrote down.
    Counted,
    /// It was the cheaper of two that were drawn.
    Cheaper {
        /// What it costs by the formula of the strategy.
        cost: f32,
        /// The other, as position in the pool.
        rival: u32,
        /// What the other costs.
        rival_cost: f32,
    },
}

/// What decides on a new flow where the kernel picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The hash of its addresses and ports.
    Flow,
    /// That of the client's address alone.
    Source,
    /// The connections that each backend has per weight, as the kernel counts them; the ring has what is not written down.
    Connections,
}

/// What a strategy is where the kernel picks: new flows go by a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lowering {
    /// A ring with slots in proportion to weights.
    Ring {
        /// One for each candidate.
        weights: Vec<u32>,
        /// What decides on a new flow.
        by: By,
        /// Whether weights come of measurements, which never stand still.
        measured: bool,
    },
    /// It goes by what the kernel does not know; what that is, in words.
    NotOffloadable(&'static str),
}

/// A balancing strategy. It lives in its pool's table entry, so it swaps with it.
pub trait StrategyService: Debug + Send + Sync {
    /// Which of the strategies this is.
    fn strategy(&self) -> StrategyKind;

    /// Picks an eligible candidate, or `None` if there is none. Sync and allocation-free.
    fn pick<'a>(&self, view: &PoolView<'a>, flow: &FlowKey) -> Option<Pick<'a>>;

    /// What it is where the kernel picks.
    fn lower(&self, view: &PoolView<'_>) -> Lowering;

    /// What a connection to `candidate` costs now, lower is better; `None` for a strategy that goes by turns.
    fn cost(&self, _candidate: &Candidate, _now: Moment) -> Option<f64> {
        None
    }
}
