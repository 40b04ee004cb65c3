//! The part of relay `splice` in the kernel that outlives a killed process, taken over by the next.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use aya::maps::{Array, Map, MapData};
use aya::programs::LinkOrder;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use lemonade_common::FlowKey;
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};
use lemonade_common::splice::{FORWARD, HALT, Leg};

use super::{Object, PROGRAMS, Splice};
use crate::proxy::adapters::bpf::held::{Failure, Held, index_of, left, of_interface, pinned};
use crate::proxy::adapters::bpf::loader::refused;
use crate::proxy::adapters::bpf::pins::{self, Hold, Pins};
use crate::proxy::adapters::bpf::{Unavailable, batch};

/// Maps that a process that takes over finds again; the others are of one packet.
pub(super) const KEPT: [&str; 4] = ["ABI", "LEGS", "SLOTS", "SPLICE_COUNTS"];

/// Legs by the flow's slot, client's and backend's.
pub type Legs = BTreeMap<u32, [Option<(FlowKey, Leg)>; 2]>;

impl Splice {
    /// As [`Self::load`], with maps and links that outlive the process if it is killed. What a killed process of `owner`
    /// has left is taken over, with the room that it had: flows that were handed over go on, and of flows that were only
    /// watched nothing is left. Sets of another version go on beside. Where nothing can outlive the process, that is logged, and nothing does.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_or_adopt(owner: u64, flows: u32) -> Result<Self, Unavailable> {
        for token in pins::tokens(owner) {
            let Ok(pins) = Pins::open(owner, token) else { continue };
            match room(&pins) {
                Some(flows) => {
                    let own = Self::load_in(Some(pins), flows)?;
                    own.forget_watched();
                    return Ok(own);
                }
                // Of another version: it goes on by itself until it is taken away.
                None => drop(pins),
            }
        }
        match Pins::open(owner, fastrand::u64(1..)) {
            Ok(pins) => Self::load_in(Some(pins), flows),
            Err(error) => {
                tracing::warn!("spliced flows end with the process: {error}");
                Self::load_in(None, flows)
            }
        }
    }

    /// Whether a killed process of `owner` has left flows that [`Self::load_or_adopt`] takes over, and how many sets of
    /// another version, which go on by themselves.
    pub fn left_by(owner: u64) -> (bool, usize) {
        let sets = pins::tokens(owner).into_iter().filter_map(|token| Pins::open(owner, token).ok());
        let (fit, others): (Vec<_>, Vec<_>) = sets.partition(|pins| room(pins).is_some());
        (!fit.is_empty(), others.len())
    }

    /// Takes away what other processes of the owner have left; their flows end. Says how many sets those were.
    pub fn remove_others(&self) -> usize {
        self.lock().pins.as_ref().map_or(0, Pins::remove_others)
    }

    /// Says that this process serves by it now: it goes when the process ends in order.
    pub fn own(&self) {
        self.lock().left = false;
    }

    /// Takes programs and maps away.
    pub fn close(&self) {
        let mut object = self.lock();
        // Detaches at once what has a name.
        if let Some(pins) = object.pins.take() {
            pins.remove();
        }
        object.retain(&BTreeSet::new());
    }

    /// Whether maps and links outlive the process if it is killed.
    pub fn outlives(&self) -> bool {
        self.lock().pins.is_some()
    }

    /// Every leg that there is.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn legs(&self) -> io::Result<Legs> {
        self.lock().legs()
    }

    /// Forgets what a killed process was about to make a flow, or to take apart.
    fn forget_watched(&self) {
        let Ok(legs) = self.legs().inspect_err(|error| {
            tracing::warn!("flows that a killed process has left cannot be listed: {error}");
        }) else {
            return;
        };
        let whole = |slot: u32, sides: &[Option<(FlowKey, Leg)>; 2]| {
            sides.iter().all(Option::is_some) && self.state(slot) & (FORWARD | HALT) == FORWARD
        };
        let watched = legs.iter().filter(|(slot, sides)| !whole(**slot, sides));
        let keys: Vec<FlowKey> =
            watched.flat_map(|(_, sides)| sides.iter().flatten().map(|(key, _)| *key)).collect();
        self.part(&keys);
    }
}

impl Object {
    /// Every leg that there is.
    pub(super) fn legs(&self) -> io::Result<Legs> {
        let mut legs = Legs::new();
        for (key, leg) in self.entries()? {
            let sides = legs.entry(leg.slot).or_default();
            sides[leg.side as usize & 1] = Some((key, leg));
        }
        Ok(legs)
    }

    /// Lets packets of every leg that there is through the sieve.
    pub(super) fn sift(&mut self) -> io::Result<()> {
        for (key, _) in self.entries()? {
            self.sieve.add(&key);
        }
        Ok(())
    }

    fn entries(&self) -> io::Result<Vec<(FlowKey, Leg)>> {
        let Some(Map::HashMap(map)) = self.ebpf.map("LEGS") else {
            return Err(io::Error::other("no map LEGS"));
        };
        let whole = |(key, leg): (_, _)| (FlowKey::from_bytes(&key), Leg::from_bytes(&leg));
        Ok(batch::entries(map)?.into_iter().map(whole).collect())
    }

    /// Puts the programs into the links that are there, each in one step; takes those away whose interface is gone.
    pub(super) fn take_over(&mut self) {
        let links = self.pins.as_ref().map(Pins::links).unwrap_or_default();
        self.left = !links.is_empty();
        for (hold, interface, index, path) in links {
            if let Err(error) = self.taken(hold, &interface, index, &path) {
                tracing::info!(%interface, "a link that was left is taken away: {error}");
                let _ = std::fs::remove_file(&path);
            }
        }
    }

    fn taken(&mut self, hold: Hold, interface: &str, index: u32, path: &Path) -> Result<(), Failure> {
        let at =
            PROGRAMS.iter().position(|(_, _, own)| *own == hold).ok_or("this relay has no such program")?;
        let link = SchedClassifierLink::try_from(left(interface, index, path)?)?;
        let program = self.program(PROGRAMS[at].0)?;
        let id = program.attach_to_link(link)?;
        // The link stays, by its name.
        drop(program.take_link(id)?);
        let held = Held::Pinned(PinnedLink::from_pin(path)?);
        self.links.entry(interface.to_owned()).or_default()[at] = Some(held);
        Ok(())
    }

    /// Attaches what is not attached yet.
    pub(super) fn attach(&mut self, interface: &str) -> Result<(), Unavailable> {
        for (at, (name, direction, hold)) in PROGRAMS.into_iter().enumerate() {
            if self.links.get(interface).is_some_and(|links| links[at].is_some()) {
                continue;
            }
            let path =
                self.pins.as_ref().and_then(|pins| Some(pins.link(hold, interface, index_of(interface)?)));
            let program = self.program(name)?;
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let link = program.attach_with_options(interface, direction, options);
            let link = link.map_err(|error| of_interface(interface, refused(&error)))?;
            let held = match path {
                Some(path) => {
                    let link = program.take_link(link).map_err(|error| refused(&error))?;
                    let link = FdLink::try_from(link).map_err(|error| refused(&error))?;
                    Held::Pinned(pinned(link, interface, &path)?)
                }
                None => Held::Own(link),
            };
            self.links.entry(interface.to_owned()).or_default()[at] = Some(held);
        }
        Ok(())
    }

    /// Forgets links to interfaces that are not `there`.
    pub(super) fn retain(&mut self, there: &BTreeSet<String>) {
        let gone: Vec<String> = self.links.keys().filter(|name| !there.contains(*name)).cloned().collect();
        for name in gone {
            let links = self.links.remove(&name).into_iter().flatten();
            for ((program, ..), held) in PROGRAMS.into_iter().zip(links) {
                // An interface that is gone has taken its link with it.
                match held {
                    Some(Held::Own(link)) => drop(self.program(program).map(|program| program.detach(link))),
                    Some(Held::Pinned(link)) => drop(link.unpin()),
                    None => {}
                }
            }
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // A start that failed leaves what there was as it was.
        if let Some(pins) = self.pins.take().filter(|_| !self.left) {
            pins.remove();
        }
    }
}

/// Flows that a set has room for; `None`: it is not as this build would make it.
fn room(pins: &Pins) -> Option<u32> {
    let map = |name: &str| MapData::from_pin(pins.map(name)).ok();
    let abi = Array::<_, u32>::try_from(Map::Array(map("ABI")?)).ok()?.get(&ABI_VERSION_AT, 0).ok()?;
    let sizes = |name: &str| map(name)?.info().map(|info| (info.max_entries(), info.value_size())).ok();
    let ((flows, slot), (legs, leg)) = (sizes("SLOTS")?, sizes("LEGS")?);
    let fits = abi == ABI_VERSION
        && slot as usize == size_of::<lemonade_common::splice::Slot>()
        && leg as usize == size_of::<Leg>()
        && Some(legs) == flows.checked_mul(2);
    fits.then_some(flows)
}
