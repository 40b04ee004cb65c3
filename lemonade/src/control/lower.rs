//! From the dispatch table to what the forward plane keeps in the kernel. Pure.
//!
//! What the kernel cannot do as the table means it stays with the proxy, and the reason is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lemonade_common::flow::mapped;
use lemonade_common::forward::{BY_SOURCE, PASS_FRAGMENTS, Service, ServiceKey, Target};
use lemonade_common::{BackendIx, FrontendIx};

use super::image::{Image, Ring};
use super::table::{DispatchTable, FrontendEntry, PoolEntry};
use crate::model::Moment;
use crate::model::config::Protocol;
use crate::model::forward::Fragments;
use crate::strategy::maglev::{Share, ring};
use crate::strategy::port::{Lowering, PoolView};

/// How a backend is reached from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Index of the interface towards it.
    pub interface: u32,
    /// Own address on the way.
    pub snat: IpAddr,
    /// First port for that address.
    pub first_port: u16,
    /// How many there are from there on.
    pub ports: u32,
}

/// What the host says of the way to a backend.
pub type Route = Result<Way, NoWay>;

/// Why packets cannot be forwarded to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// It is on this host, so its answers pass no interface.
    Local,
    /// No route leads there, or the host did not tell; the words say which.
    Unreachable(String),
}

/// The host as the lowering sees it.
#[derive(Clone, Debug, Default)]
pub struct Ground {
    /// Ways to backends.
    pub ways: BTreeMap<BackendIx, Route>,
    /// Frontends that the host does not let be forwarded, with the reason.
    pub blocked: BTreeMap<FrontendIx, String>,
    /// Now, for strategies that go by averages.
    pub now: Moment,
}

/// What the kernel is to keep, and who serves each frontend that asks for it.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    /// What the kernel is to keep.
    pub image: Image,
    /// Frontends whose packets pass through the kernel, with what is to be said of it; empty for nothing.
    pub carried: BTreeMap<FrontendIx, String>,
    /// Frontends that asked for it and stay with the proxy, with the reason.
    pub kept: BTreeMap<FrontendIx, String>,
}

/// Lowers `table`; what of `previous` is the same keeps its ring.
pub fn lower(table: &DispatchTable, ground: &Ground, previous: &Image) -> Lowered {
    let mut lowering = Run {
        ground,
        previous,
        out: Lowered {
            image: Image { free: previous.free.clone(), ..Image::default() },
            ..Lowered::default()
        },
    };
    for entry in table.frontends.values().filter(|entry| entry.frontend.forward.is_some()) {
        match lowering.frontend(entry) {
            Ok(note) => lowering.out.carried.insert(entry.ix, note),
            Err(why) => lowering.out.kept.insert(entry.ix, why),
        };
    }
    let Lowered { mut image, carried, kept } = lowering.out;
    // Packets on their way may still look into a ring that was named a moment ago, so it waits behind the others.
    let left = previous.rings.keys().filter(|number| !image.rings.contains_key(number));
    image.free.extend(left);
    Lowered { image, carried, kept }
}

/// Why a frontend cannot be forwarded whatever the host says; `None`: nothing is in the way.
///
/// Limits on connections are counted in userspace, where each connection begins; packets begin in the kernel.
pub fn unsuited(entry: &FrontendEntry) -> Option<String> {
    let pool = &entry.pool;
    if entry.frontend.max_connections > 0 {
        return Some("max_connections of the frontend is counted by the proxy only".to_owned());
    }
    let limited = pool.backends.iter().find(|backend| backend.backend.max_connections > 0);
    if let Some(backend) = limited {
        return Some(format!("max_connections of backend {} is counted by the proxy only", backend.id));
    }
    match lowering(pool, Moment(0)) {
        Lowering::Ring { .. } => None,
        Lowering::NotOffloadable(why) => Some(why.to_owned()),
    }
}

/// How the kernel would pick among the backends of `pool`, by what is known at `now`.
pub(super) fn lowering(pool: &PoolEntry, now: Moment) -> Lowering {
    let view = PoolView {
        candidates: &pool.candidates,
        cursor: &pool.cell.cursor,
        now,
        entropy: 0,
        seed: 0,
        excluded: &[],
        desperate: false,
    };
    pool.strategy.lower(&view)
}

struct Run<'a> {
    ground: &'a Ground,
    previous: &'a Image,
    out: Lowered,
}

impl Run<'_> {
    /// Puts a frontend into the image; on an error it has no service there.
    fn frontend(&mut self, entry: &FrontendEntry) -> Result<String, String> {
        if let Some(why) = self.ground.blocked.get(&entry.ix) {
            return Err(why.clone());
        }
        if let Some(why) = unsuited(entry) {
            return Err(why);
        }
        let Lowering::Ring { weights, by_source } = lowering(&entry.pool, self.ground.now) else {
            return Err("its strategy cannot be lowered".to_owned());
        };
        let fragments = entry.frontend.forward.as_ref().map(|own| own.fragments);
        let mut flags = if by_source { BY_SOURCE } else { 0 };
        if fragments == Some(Fragments::Pass) {
            flags |= PASS_FRAGMENTS;
        }
        let mut notes = BTreeSet::new();
        let versions: BTreeSet<bool> =
            entry.frontend.listen.iter().map(|address| address.ip().to_canonical().is_ipv6()).collect();
        let mut shares = Vec::new();
        for v6 in versions {
            shares.push((v6, self.shares(entry, &weights, v6, &mut notes)?));
        }
        let mut rings = BTreeMap::new();
        for (v6, shares) in shares {
            rings.insert(v6, self.ring(entry, v6, shares)?);
        }
        for address in &entry.frontend.listen {
            let ring = rings[&address.ip().to_canonical().is_ipv6()];
            let service = Service { frontend: entry.ix.0, ring, flags, ..Service::default() };
            self.out.image.services.insert(service_key(entry.frontend.protocol, *address), service);
        }
        self.targets(&entry.pool);
        Ok(notes.into_iter().collect::<Vec<_>>().join("; "))
    }

    /// Who shares the ring of the pool's backends of one IP version.
    fn shares(
        &self,
        entry: &FrontendEntry,
        weights: &[u32],
        v6: bool,
        notes: &mut BTreeSet<String>,
    ) -> Result<Vec<Share>, String> {
        let pool = &entry.pool;
        let version = if v6 { "IPv6" } else { "IPv4" };
        let own = || pool.backends.iter().filter(|backend| backend.id.ip.to_canonical().is_ipv6() == v6);
        if own().next().is_none() {
            let (pool, name) = (&pool.pool.name, &entry.frontend.name);
            return Err(format!(
                "pool {pool} has no {version} backend, and packets to an {version} address of {name} keep the version"
            ));
        }
        for backend in own() {
            match self.ground.ways.get(&backend.ix) {
                Some(Err(NoWay::Local)) => {
                    return Err(format!(
                        "backend {} ({}) is on this host, so its answers pass no interface",
                        backend.id, backend.id.ip
                    ));
                }
                Some(Err(NoWay::Unreachable(why))) => {
                    notes.insert(format!("backend {} gets nothing: {why}", backend.id));
                }
                Some(Ok(_)) => {}
                None => {
                    notes.insert(format!("backend {} gets nothing: its way is not known yet", backend.id));
                }
            }
        }
        let candidates = pool.candidates.iter().zip(weights).filter(|(candidate, _)| {
            let backend = &pool.backends[candidate.position];
            backend.id.ip.to_canonical().is_ipv6() == v6
                && matches!(self.ground.ways.get(&candidate.ix), Some(Ok(_)))
        });
        let shares = candidates.map(|(candidate, weight)| Share {
            value: candidate.ix.0,
            identity: candidate.identity.to_string(),
            weight: *weight,
        });
        Ok(shares.collect())
    }

    /// Number of a ring with these shares: the one that is there, or a free one.
    fn ring(&mut self, entry: &FrontendEntry, v6: bool, shares: Vec<Share>) -> Result<u32, String> {
        let of = (entry.pool.pool.name.clone(), v6);
        if let Some((number, _)) = self.out.image.ring_of(&of.0, v6) {
            return Ok(number);
        }
        if let Some((number, there)) = self.previous.ring_of(&of.0, v6)
            && there.shares == shares
        {
            self.out.image.rings.insert(number, there.clone());
            return Ok(number);
        }
        let Some(number) = self.out.image.free.pop_front() else {
            return Err("every ring in the kernel is taken; a restart makes room for more pools".to_owned());
        };
        let slots = ring(&shares).into();
        self.out.image.rings.insert(number, Ring { of, shares, slots });
        Ok(number)
    }

    fn targets(&mut self, pool: &PoolEntry) {
        for backend in &pool.backends {
            let Some(Ok(way)) = self.ground.ways.get(&backend.ix) else { continue };
            let target = Target {
                address: mapped(backend.id.ip),
                snat: mapped(way.snat),
                port: backend.id.port.unwrap_or(0).to_be_bytes(),
                first_port: way.first_port.to_be_bytes(),
                ports: way.ports,
                interface: way.interface,
            };
            self.out.image.targets.insert(backend.ix.0, target);
        }
    }
}

/// Key of what is served at an address.
pub fn service_key(protocol: Protocol, address: SocketAddr) -> ServiceKey {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    ServiceKey { address: mapped(address.ip()), port: address.port().to_be_bytes(), protocol: [0, number] }
}

#[cfg(test)]
mod tests;
