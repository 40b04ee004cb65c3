//! What the forward plane keeps in the kernel, as the control plane wants it, and the steps from one to the next. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv6Addr;
use std::sync::Arc;

use lemonade_common::forward::{LEAST_CONNECTIONS, Service, ServiceKey, Target};
use lemonade_common::least::{Choice, Choices};

use crate::model::Name;
use crate::strategy::maglev::Share;

/// Services, targets and rings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// What is served, by address; a service names its ring by number.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Where backends are, by index.
    pub targets: BTreeMap<u32, Target>,
    /// Rings by number.
    pub rings: BTreeMap<u32, Ring>,
    /// Numbers without a ring, the one that has been without for longest first.
    pub free: VecDeque<u32>,
}

/// A ring and what it was filled from.
#[derive(Clone, Debug, PartialEq)]
pub struct Ring {
    /// Pool, and whether the ring is of its IPv6 backends.
    pub of: (Name, bool),
    /// Shares, which say whether another one would be the same.
    pub shares: Vec<Share>,
    /// Index of the backend in each slot.
    pub slots: Arc<[u32]>,
    /// Number of the ring that was its pool's before, where packets from the middle of a flow ask it first; it is kept.
    pub before: Option<u32>,
}

/// One step from an image to the next.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A backend comes, or is elsewhere.
    PutTarget(u32, Target),
    /// A ring that no service names is filled, and it is said which backends it has.
    FillRing(u32, Arc<[u32]>, Box<Choices>),
    /// New flows to an address go by this from now on.
    PutService(ServiceKey, Service),
    /// Nothing is served at an address any more.
    RemoveService(ServiceKey),
    /// A backend leaves; live flows know their own way.
    RemoveTarget(u32),
}

impl Ring {
    /// Its backends with their weights and limits, if they are few.
    pub fn choices(&self, targets: &BTreeMap<u32, Target>) -> Choices {
        Choices::among(self.shares.iter().map(|share| Choice {
            backend: share.value,
            weight: share.weight,
            elsewhere: 0,
            most: targets.get(&share.value).map_or(0, |target| target.most),
        }))
    }
}

impl Image {
    /// An image with nothing in it and room for so many rings.
    pub fn with_room(rings: u32) -> Self {
        Self { free: (0..rings).collect(), ..Self::default() }
    }

    /// The image of maps that another process has filled: `slots` reads a ring, `pool` tells whose a frontend is.
    pub fn found(
        services: impl IntoIterator<Item = (ServiceKey, Service)>,
        targets: impl IntoIterator<Item = (u32, Target)>,
        rings: u32,
        slots: impl Fn(u32) -> Vec<u32>,
        pool: impl Fn(u32) -> Option<Name>,
    ) -> Self {
        let mut own = Self {
            services: services.into_iter().collect(),
            targets: targets.into_iter().collect(),
            ..Self::default()
        };
        for (key, service) in &own.services {
            let v6 = Ipv6Addr::from(key.address).to_canonical().is_ipv6();
            let of = (pool(service.frontend).unwrap_or_else(|| Name::new("-")), v6);
            // Without shares it is like no other, so that the pool gets a ring of its own making.
            own.rings.entry(service.ring).or_insert_with(|| Ring {
                of,
                shares: Vec::new(),
                slots: slots(service.ring).into(),
                before: service.previous.checked_sub(1),
            });
        }
        let held = own.held();
        own.free = (0..rings).filter(|number| !held.contains(number)).collect();
        own
    }

    /// Numbers of rings that packets may look into.
    pub fn held(&self) -> BTreeSet<u32> {
        self.rings.iter().flat_map(|(number, ring)| [*number].into_iter().chain(ring.before)).collect()
    }

    /// Rings whose backends are compared by their connections or have limits on them, by number, given those of each that the
    /// kernel does not count.
    pub fn counting(&self, elsewhere: impl Fn(u32) -> u32) -> BTreeMap<u32, Choices> {
        let limited = |ring: &Ring| {
            ring.shares
                .iter()
                .any(|share| self.targets.get(&share.value).is_some_and(|target| target.most > 0))
        };
        let compared = self.services.values().filter(|service| {
            service.flags & LEAST_CONNECTIONS != 0 || self.rings.get(&service.ring).is_some_and(limited)
        });
        let compared: BTreeSet<u32> = compared.map(|service| service.ring).collect();
        let rings = compared.into_iter().filter_map(|number| Some((number, self.rings.get(&number)?)));
        let counted = rings.map(|(number, ring)| {
            let mut choices = ring.choices(&self.targets);
            for own in choices.own.iter_mut().take(choices.count as usize) {
                own.elsewhere = elsewhere(own.backend);
            }
            (number, choices)
        });
        counted.collect()
    }

    /// An image without anything in it and the same room.
    pub fn emptied(&self) -> Self {
        let mut free = self.free.clone();
        free.extend(self.held());
        Self { free, ..Self::default() }
    }

    /// Ring of a pool's backends of one IP version.
    pub fn ring_of(&self, pool: &Name, v6: bool) -> Option<(u32, &Ring)> {
        let mut own = self.rings.iter().filter(|(_, ring)| ring.of.0 == *pool && ring.of.1 == v6);
        own.next().map(|(number, ring)| (*number, ring))
    }
}

/// Steps from `before` to `after`: targets and rings come first, then services flip, then what is left over goes.
///
/// After any number of them each new flow goes where `before` or `after` sends it: a ring that is filled is named by no
/// service of `before`, and a backend's index means the same backend in both.
pub fn steps(before: &Image, after: &Image) -> Vec<Op> {
    let mut ops = Vec::new();
    let changed = after.targets.iter().filter(|(ix, target)| before.targets.get(ix) != Some(target));
    ops.extend(changed.map(|(ix, target)| Op::PutTarget(*ix, *target)));
    let filled = after
        .rings
        .iter()
        .filter(|(number, ring)| before.rings.get(number).is_none_or(|there| there.slots != ring.slots));
    ops.extend(filled.map(|(number, ring)| {
        Op::FillRing(*number, Arc::clone(&ring.slots), Box::new(ring.choices(&after.targets)))
    }));
    let flipped = after.services.iter().filter(|(key, service)| before.services.get(key) != Some(service));
    ops.extend(flipped.map(|(key, service)| Op::PutService(*key, *service)));
    let gone = before.services.keys().filter(|key| !after.services.contains_key(key));
    ops.extend(gone.map(|key| Op::RemoveService(*key)));
    let gone = before.targets.keys().filter(|ix| !after.targets.contains_key(ix));
    ops.extend(gone.map(|ix| Op::RemoveTarget(*ix)));
    ops
}
