//! A client's address has one backend.

use lemonade_common::decide::source_hash;
use lemonade_common::{FlowKey, maglev};

use crate::model::StrategyKind;
use crate::strategy::maglev::{Share, ring};
use crate::strategy::port::{Basis, By, Candidate, Lowering, Pick, PoolView, StrategyService};

/// Gives all connections of a client's address to one backend, shares in proportion to weight.
///
/// The ring is that of the forward plane and the hash is seeded alike, so a client has the same backend on either
/// plane. A backend that goes leaves its clients to the others and takes none of theirs along; one that may not be
/// picked for a moment is passed over, slot by slot.
#[derive(Clone, Debug)]
pub struct SourceHash {
    /// Positions.
    ring: Box<[u32]>,
}

impl SourceHash {
    /// Fills the ring of `candidates`.
    pub fn new(candidates: &[Candidate]) -> Self {
        let share = |(position, candidate): (u32, &Candidate)| Share {
            value: position,
            identity: candidate.identity.to_string(),
            weight: candidate.weight,
        };
        let shares: Vec<Share> = (0_u32..).zip(candidates).map(share).collect();
        Self { ring: if shares.is_empty() { Box::default() } else { ring(&shares).into() } }
    }
}

impl StrategyService for SourceHash {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::SourceHash
    }

    fn pick<'a>(&self, view: &PoolView<'a>, flow: &FlowKey) -> Option<Pick<'a>> {
        if !view.candidates.iter().any(|candidate| view.eligible(candidate)) {
            return None;
        }
        let slot = maglev::slot(source_hash(flow, view.seed));
        let (before, from) = self.ring.split_at_checked(slot as usize)?;
        let candidate = from.iter().chain(before).find_map(|position| {
            view.candidates.get(*position as usize).filter(|candidate| view.eligible(candidate))
        });
        candidate.map(|candidate| Pick { candidate, basis: Basis::Slot(slot) })
    }

    fn lower(&self, view: &PoolView<'_>) -> Lowering {
        let weights = view.candidates.iter().map(|candidate| candidate.weight).collect();
        Lowering::Ring { weights, by: By::Source, measured: false }
    }
}
