//! A change of one backend that the operator asks for, and its answer.

use std::fmt::{self, Display, Formatter};
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::overrides::Change;
use super::table::DispatchTable;
use crate::config::{unheeded, unheeded_words};
use crate::model::Name;

/// Asks the controller for a change.
#[derive(Debug)]
pub struct Order {
    /// The backend: `pool/backend`, or a name that only one pool has.
    pub target: String,
    /// What to do with it.
    pub change: Change,
    /// Refuse unless the configuration has this version.
    pub if_version: Option<u64>,
    /// User who asks.
    pub uid: Option<u32>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Done, Refused>>,
}

/// A change that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Configuration version since then.
    pub version: u64,
    /// What changed and what that means, a sentence each.
    pub lines: Vec<String>,
}

/// A change that was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Kind of trouble.
    pub kind: RefusedKind,
    /// Why, and what to do.
    pub why: String,
}

/// Kind of trouble with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// There is no such backend.
    Unknown,
    /// The configuration is of another version by now.
    Stale,
    /// The plane could not take it.
    Failed,
}

impl Refused {
    pub(super) fn unknown(why: String) -> Self {
        Self { kind: RefusedKind::Unknown, why }
    }

    pub(super) fn failed(why: String) -> Self {
        Self { kind: RefusedKind::Failed, why }
    }

    pub(super) fn stale(expected: u64, current: u64) -> Self {
        let why = format!(
            "the configuration is at version {current}, not {expected}: nothing was changed; see what happened with `lemonade history`"
        );
        Self { kind: RefusedKind::Stale, why }
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => f.write_str("drain"),
            Self::Disable => f.write_str("disable"),
            Self::Enable => f.write_str("enable"),
            Self::Weight(weight) => write!(f, "weight {weight}"),
        }
    }
}

/// What a change of the backend `key` means, in sentences.
pub(super) fn effect(
    table: &DispatchTable,
    (pool, name): &(Name, Name),
    change: Change,
    changed: Option<String>,
) -> Vec<String> {
    let Some(entry) = table.pools.get(pool) else { return Vec::new() };
    let own = || entry.backends.iter().filter(|backend| backend.id.name == *name);
    let live: u64 = own().map(|backend| u64::from(backend.cell.live.load(Ordering::Relaxed))).sum();
    let picked = own().any(|own| entry.candidates.iter().any(|candidate| candidate.ix == own.ix));
    let fate = match (picked, live) {
        (true, _) => format!("backend {pool}/{name} gets new connections; {live} live"),
        (false, 0) => format!("backend {pool}/{name} gets no new connections and has none"),
        (false, _) => format!("backend {pool}/{name} gets no new connections; {live} live ones go on"),
    };
    let left =
        format!("pool {pool}: {} of {} backends may be picked", entry.candidates.len(), entry.backends.len());
    let unheeded = (matches!(change, Change::Weight(1..)) && unheeded(&entry.pool))
        .then(|| format!("no effect on shares: {}", unheeded_words(pool)));
    let lasts = match changed {
        Some(_) => "not in the file: lasts until the next start, or until the file says something new of it",
        None => "as in the file again",
    };
    [fate].into_iter().chain(unheeded).chain([left, lasts.to_owned()]).collect()
}
