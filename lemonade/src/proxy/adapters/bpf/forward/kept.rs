//! The part of the forward plane's object that outlives a killed process, taken over by the next.

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use aya::programs::links::PinnedLink;
use aya::programs::tc::{SchedClassifierLink, SchedClassifierLinkId};
use aya::programs::xdp::{XdpLink, XdpLinkId};
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};
use lemonade_common::forward::{Service, ServiceKey, Target};

use super::Forward;
use crate::proxy::adapters::bpf::held::{Failure, Held, index_of, left};
use crate::proxy::adapters::bpf::pins::{Hold, Pins};
use crate::proxy::adapters::bpf::{Unavailable, batch};

/// Maps that a process that takes over finds again; the others are of one packet, or of one listener.
pub(super) const KEPT: [&str; 16] = [
    "ABI",
    "SEED",
    "CONNECTIONS",
    "HALF_OPEN",
    "SERVICES",
    "ANY_PORTS",
    "BACKEND_TARGETS",
    "RINGS",
    "CHOICES",
    "LOADS",
    "FRONTENDS",
    "REASONS",
    "OPENED",
    "GONE",
    "REPLACED",
    "LOCALS",
];

/// What services, targets and rings a set of maps has.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Services by address.
    pub services: Vec<(ServiceKey, Service)>,
    /// Backends by index.
    pub targets: Vec<(u32, Target)>,
}

impl Forward {
    /// As [`Self::load`], with maps and links that outlive the process if it is killed. What is there already is taken over
    /// by the program of this build; [`Self::fits`] says whether that may be.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_pinned(pins: Pins, flows: u32, rings: u32, seed: u64) -> Result<Self, Unavailable> {
        Self::load_in(Some(pins), flows, rings, seed)
    }

    /// Whether a set that a killed process has left is as this build would make it; `None`: there is none.
    pub fn fits(pins: &Pins, flows: u32, seed: u64) -> Option<bool> {
        let word = |name: &str| MapData::from_pin(pins.map(name)).ok().map(Map::Array);
        let connections = MapData::from_pin(pins.map("CONNECTIONS")).ok()?;
        let abi =
            Array::<_, u32>::try_from(word("ABI")?).ok().and_then(|map| map.get(&ABI_VERSION_AT, 0).ok());
        let seeds = Array::<_, u64>::try_from(word("SEED")?).ok().and_then(|map| map.get(&0, 0).ok());
        let room = connections.info().map(|info| info.max_entries()).ok();
        Some((abi, seeds, room) == (Some(ABI_VERSION), Some(seed), Some(flows)))
    }

    /// Puts the programs into the links that are there, each in one step; takes those away whose interface is gone.
    pub(super) fn take_over(&mut self) {
        let links = self.pins.as_ref().map(Pins::links).unwrap_or_default();
        self.former_cgroups();
        self.left = !links.is_empty() || !self.former.is_empty();
        for (hold, interface, index, path) in links {
            let taken = match hold {
                Hold::Tc => self.taken(&interface, index, &path).map(|link| {
                    self.links.insert(interface.clone(), Held::Pinned(link));
                }),
                Hold::Leaves => Err("this plane has no program for what leaves".into()),
                Hold::Native | Hold::Generic => {
                    self.taken_xdp(hold == Hold::Native, &interface, index, &path).map(|link| {
                        let held = (hold == Hold::Native, Held::Pinned(link));
                        self.xdp_links.insert(interface.clone(), held);
                    })
                }
            };
            if let Err(error) = taken {
                tracing::info!(%interface, "a link that was left is taken away: {error}");
                let _ = std::fs::remove_file(&path);
            }
        }
    }

    fn taken(&mut self, interface: &str, index: u32, path: &Path) -> Result<PinnedLink, Failure> {
        let link = SchedClassifierLink::try_from(left(interface, index, path)?)?;
        let program = self.program()?;
        let id = program.attach_to_link(link)?;
        // The link stays, by its name.
        drop(program.take_link(id)?);
        Ok(PinnedLink::from_pin(path)?)
    }

    fn taken_xdp(
        &mut self,
        native: bool,
        interface: &str,
        index: u32,
        path: &Path,
    ) -> Result<PinnedLink, Failure> {
        let link = XdpLink::try_from(left(interface, index, path)?)?;
        let program = self.xdp(native)?;
        let id = program.attach_to_link(link)?;
        // As above.
        drop(program.take_link(id)?);
        Ok(PinnedLink::from_pin(path)?)
    }

    /// Rings that there is room for.
    pub fn room_for_rings(&self) -> u32 {
        self.rings.count()
    }

    /// The slots of a ring.
    pub fn ring(&self, number: u32) -> Vec<u32> {
        self.rings.read(number)
    }

    /// What the maps have.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn found(&self) -> io::Result<Found> {
        let map = |name: &str| match self.ebpf.map(name) {
            Some(Map::HashMap(map)) => Ok(map),
            _ => Err(io::Error::other(format!("no map {name}"))),
        };
        let services = batch::entries(map("SERVICES")?)?;
        let targets = batch::entries(map("BACKEND_TARGETS")?)?;
        let target = |(ix, target): &([u8; 4], _)| (u32::from_ne_bytes(*ix), Target::from_bytes(target));
        Ok(Found {
            services: services
                .iter()
                .map(|(key, service)| (ServiceKey::from_bytes(key), Service::from_bytes(service)))
                .collect(),
            targets: targets.iter().map(target).collect(),
        })
    }

    /// Says that this process serves by it now: it goes when the process ends in order, and the owner's sets that it stands
    /// for go at once. Says how many those were.
    pub fn own(&mut self) -> usize {
        self.left = false;
        self.leave_former_cgroups();
        self.pins.as_ref().map_or(0, Pins::remove_others)
    }

    /// Whether maps and links outlive the process if it is killed.
    pub const fn outlives(&self) -> bool {
        self.pins.is_some()
    }

    /// Has nothing outlive the process from now on; what is attached stays so as long as it lives.
    pub fn forsake(&mut self) {
        for (interface, held) in std::mem::take(&mut self.links) {
            let held = match held {
                Held::Own(id) => Ok(Held::Own(id)),
                Held::Pinned(link) => self.unpinned(link).map(Held::Own),
            };
            match held {
                Ok(held) => drop(self.links.insert(interface, held)),
                Err(error) => tracing::warn!(%interface, "the program is detached: {error}"),
            }
        }
        for (interface, (native, held)) in std::mem::take(&mut self.xdp_links) {
            let held = match held {
                Held::Own(id) => Ok(Held::Own(id)),
                Held::Pinned(link) => self.unpinned_xdp(native, link).map(Held::Own),
            };
            match held {
                Ok(held) => drop(self.xdp_links.insert(interface, (native, held))),
                Err(error) => tracing::warn!(%interface, "the program at XDP is detached: {error}"),
            }
        }
        self.forsake_cgroups();
        if let Some(pins) = self.pins.take() {
            pins.remove();
        }
    }

    fn unpinned(&mut self, link: PinnedLink) -> Result<SchedClassifierLinkId, Failure> {
        let link = SchedClassifierLink::try_from(link.unpin()?)?;
        Ok(self.program()?.attach_to_link(link)?)
    }

    fn unpinned_xdp(&mut self, native: bool, link: PinnedLink) -> Result<XdpLinkId, Failure> {
        let link = XdpLink::try_from(link.unpin()?)?;
        Ok(self.xdp(native)?.attach_to_link(link)?)
    }

    /// Place of a link to an interface, where links have names.
    pub(super) fn named(&self, hold: Hold, interface: &str) -> Option<PathBuf> {
        Some(self.pins.as_ref()?.link(hold, interface, index_of(interface)?))
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // A start that failed leaves what there was as it was.
        if let Some(pins) = self.pins.take().filter(|_| !self.left) {
            pins.remove();
        }
    }
}
