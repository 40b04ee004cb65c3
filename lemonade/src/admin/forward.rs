//! What is told of the forward plane.

use std::collections::BTreeMap;

use lemonade_common::PacketReason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::metrics::snapshot::ForwardCounters;

/// The forward plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForwardStatus {
    /// Where the program is attached, or why nowhere, in words.
    pub words: String,
    /// Flows that have not ended.
    pub live: u64,
    /// Flows opened.
    pub opened: u64,
    /// Flows ended.
    pub closed: u64,
    /// Directions of flows in the connection table, ended ones that are not forgotten yet among them.
    pub entries: u64,
    /// Directions that the table has room for.
    pub room: u64,
    /// Packets by what they came to; what never occurred is left out.
    pub packets: BTreeMap<String, u64>,
    /// Of these, packets that went nowhere.
    pub dropped: BTreeMap<String, u64>,
}

impl ForwardStatus {
    /// What `own` says; nothing while no frontend has asked for the plane.
    pub(super) fn of(own: &ForwardCounters) -> Option<Self> {
        let counted = |such: fn(&PacketReason) -> bool| {
            let reasons = PacketReason::ALL.into_iter().filter(such);
            let counts = reasons.map(|why| (why.as_str().to_owned(), own.packets[why.index()]));
            counts.filter(|(_, count)| *count > 0).collect()
        };
        (!own.words.is_empty()).then(|| Self {
            words: own.words.clone(),
            live: own.live,
            opened: own.opened,
            closed: own.closed,
            entries: own.entries,
            room: own.room,
            packets: counted(|_| true),
            dropped: counted(|why| why.drops()),
        })
    }
}
