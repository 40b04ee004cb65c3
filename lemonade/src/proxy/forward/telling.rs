//! What the proxy has of connections that the kernel counts too, told to the kernel.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use lemonade_common::least::Choices;
use lemonade_common::place::{of_backend, of_frontend};

use super::tally::{Lane, Tally};
use crate::control::image::Image;
use crate::control::table::DispatchTable;
use crate::proxy::adapters::bpf::{Forward, Unavailable};

/// What the kernel was told last.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Backends of rings that are compared or limited.
    choices: BTreeMap<u32, Choices>,
    /// Connections of backends and frontends with limits.
    elsewhere: BTreeMap<u64, u32>,
}

impl Telling {
    /// Tells everything anew at the next call, since the image has changed.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Tells what has changed since the last call.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub(super) fn tell(
        &mut self,
        forward: &mut Forward,
        image: &Image,
        table: &DispatchTable,
        tally: &Tally,
    ) -> Result<(), Unavailable> {
        let cells: BTreeMap<u32, &AtomicU32> = table
            .pools
            .values()
            .flat_map(|pool| &pool.backends)
            .map(|own| (own.ix.0, &own.cell.live))
            .collect();
        let beside = |cell: &AtomicU32, such: &dyn Fn(Lane) -> bool| {
            let own = u32::try_from(tally.live(such)).unwrap_or(u32::MAX);
            cell.load(Ordering::Relaxed).saturating_sub(own)
        };
        let of_backends =
            |ix: u32| cells.get(&ix).map_or(0, |cell| beside(cell, &|lane: Lane| lane.1.0 == ix));
        let choices = image.counting(of_backends);
        for (ring, own) in &choices {
            if self.choices.get(ring) != Some(own) {
                forward.put_choices(*ring, own)?;
            }
        }
        self.choices = choices;
        let limited = image.targets.iter().filter(|(_, target)| target.most > 0);
        let mut elsewhere: BTreeMap<u64, u32> =
            limited.map(|(ix, _)| (of_backend(*ix), of_backends(*ix))).collect();
        let limited = image.services.values().filter(|service| service.most > 0);
        elsewhere.extend(limited.filter_map(|service| {
            let ix = service.frontend;
            let (_, entry) = table.frontends.iter().find(|(own, _)| own.0 == ix)?;
            Some((of_frontend(ix), beside(&entry.cell.live, &|lane: Lane| lane.0.0 == ix)))
        }));
        for (whose, count) in &elsewhere {
            if self.elsewhere.get(whose) != Some(count) {
                forward.put_elsewhere(*whose, *count)?;
            }
        }
        for whose in self.elsewhere.keys().filter(|whose| !elsewhere.contains_key(whose)) {
            forward.forget_elsewhere(*whose);
        }
        self.elsewhere = elsewhere;
        Ok(())
    }
}
