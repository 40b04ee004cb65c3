//! From the dispatch table to what the forward plane keeps in the kernel. Pure.
//!
//! What the kernel cannot do as the table means it stays with the proxy, and the reason is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lemonade_common::flow::mapped;
use lemonade_common::forward::{
    BY_SOURCE, LEAST_CONNECTIONS, PASS_FRAGMENTS, Service, ServiceKey, Target, answers_pass_by,
};
use lemonade_common::{BackendIx, FrontendIx};

use super::image::{Image, Ring};
use super::table::{BackendEntry, DispatchTable, FrontendEntry, PoolEntry};
use crate::model::Moment;
use crate::model::config::Protocol;
use crate::model::forward::{Fragments, Hook, Mode};
use crate::strategy::maglev::{Share, ring};
use crate::strategy::port::{By, Lowering, PoolView};

/// The step of measured weights, half an octave, with room for rounding.
const STEP: f64 = 1.5;

/// What is to be said where connections count and their answers are not seen.
const PASSED_BY: &str = "least_connections does not see backends' FIN in this mode: a connection counts until 10 s after its client's, its reset or idle_timeout";

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
    /// Frontends whose clients on this host get a backend when they connect.
    pub local: BTreeSet<FrontendIx>,
    /// What is to be said of frontends that are forwarded.
    pub notes: BTreeMap<FrontendIx, String>,
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
    let left = &previous.held() - &image.held();
    image.free.extend(left);
    Lowered { image, carried, kept }
}

/// Why a frontend cannot be forwarded whatever the host says; `None`: nothing is in the way.
///
/// Limits on connections ask for the ends of all of them, which not every way shows.
pub fn unsuited(entry: &FrontendEntry) -> Option<String> {
    let pool = &entry.pool;
    let sockets = entry.frontend.forward.as_ref().is_some_and(|asked| asked.hook == Hook::Connect);
    let unseen = entry.frontend.forward.as_ref().and_then(|asked| {
        let passing = answers_pass_by(asked.mode.number()).then(|| format!("mode {}", asked.mode.as_str()));
        if sockets { Some("hook connect".to_owned()) } else { passing }
    });
    if let (Some(whose), Some(way)) = (limited(entry), unseen) {
        return Some(format!(
            "max_connections of {whose} counts connections that live, and {way} does not see their ends"
        ));
    }
    match lowering(pool, Moment(0)) {
        Lowering::Ring { by: By::Connections, .. } if sockets => Some(
            "least_connections goes by connections that live, and of those that hook connect makes the end is not seen"
                .to_owned(),
        ),
        Lowering::Ring { .. } => None,
        Lowering::NotOffloadable(why) => Some(why.to_owned()),
    }
}

/// Whose `max_connections` hold for the connections of a frontend, in words; `None`: nobody's.
fn limited(entry: &FrontendEntry) -> Option<String> {
    if entry.frontend.max_connections > 0 {
        return Some("the frontend".to_owned());
    }
    let backend = entry.pool.backends.iter().find(|backend| backend.backend.max_connections > 0)?;
    Some(format!("backend {}", backend.id))
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

/// Who shares a ring.
struct Shares {
    own: Vec<Share>,
    /// Whether weights come of measurements.
    measured: bool,
}

impl Shares {
    /// Whether a ring that was made for others may stay. One whose weights were measured does until a backend's weight is
    /// more than a step away from what it was: each ring anew sends some packets elsewhere that nobody has written down.
    fn are(&self, there: &[Share]) -> bool {
        let near = |own: &Share, there: &Share| {
            let [less, more] = [own.weight.min(there.weight), own.weight.max(there.weight)].map(f64::from);
            own.weight == there.weight || self.measured && more <= less * STEP
        };
        self.own.len() == there.len()
            && self.own.iter().zip(there).all(|(own, there)| {
                (own.value, &own.identity) == (there.value, &there.identity) && near(own, there)
            })
    }
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
        let Lowering::Ring { weights, by, measured } = lowering(&entry.pool, self.ground.now) else {
            return Err("its strategy cannot be lowered".to_owned());
        };
        let Some(asked) = &entry.frontend.forward else { return Err("it does not ask for it".to_owned()) };
        let (mode, packets) = (asked.mode, asked.hook != Hook::Connect);
        let mut flags = match by {
            By::Flow => 0,
            By::Source => BY_SOURCE,
            By::Connections => LEAST_CONNECTIONS,
        };
        if asked.fragments == Fragments::Pass {
            flags |= PASS_FRAGMENTS;
        }
        let mut notes: BTreeSet<String> = self.ground.notes.get(&entry.ix).cloned().into_iter().collect();
        if by == By::Connections && answers_pass_by(mode.number()) {
            notes.insert(PASSED_BY.to_owned());
        }
        let versions: BTreeSet<bool> =
            entry.frontend.listen.iter().map(|address| address.ip().to_canonical().is_ipv6()).collect();
        let mut shares = Vec::new();
        for v6 in versions {
            shares.push((v6, self.shares(entry, &weights, v6, &mut notes)?));
        }
        let mut rings = BTreeMap::new();
        for (v6, shares) in shares {
            rings.insert(v6, self.ring(entry, mode, v6, Shares { own: shares, measured })?);
        }
        for address in &entry.frontend.listen {
            let (ring, before) = rings[&address.ip().to_canonical().is_ipv6()];
            let previous = before.map_or(0, |number| number + 1);
            let most = entry.frontend.max_connections;
            let service = Service { frontend: entry.ix.0, ring, flags, mode: mode.number(), previous, most };
            let key = service_key(entry.frontend.protocol, *address);
            // The end of what sockets connect is not seen, so the proxy has them where that counts.
            let counts = by == By::Connections || limited(entry).is_some();
            let local = self.ground.local.contains(&entry.ix) && !counts;
            let local = local.then(|| key.at_connect());
            let keys = packets.then_some(key).into_iter().chain(local);
            self.out.image.services.extend(keys.map(|key| (key, service)));
        }
        self.targets(&entry.pool, packets);
        Ok(notes.into_iter().collect::<Vec<_>>().join("; "))
    }

    /// Who shares the ring of the pool's backends that can have packets of one IP version.
    fn shares(
        &self,
        entry: &FrontendEntry,
        weights: &[u32],
        v6: bool,
        notes: &mut BTreeSet<String>,
    ) -> Result<Vec<Share>, String> {
        let pool = &entry.pool;
        let asked = entry.frontend.forward.as_ref();
        let mode = asked.map_or(Mode::Nat, |asked| asked.mode);
        // Sockets go by the host's routes, whatever those are.
        let packets = asked.is_some_and(|asked| asked.hook != Hook::Connect);
        let version = if v6 { "IPv6" } else { "IPv4" };
        let carries = |backend: &BackendEntry| mode.carries(v6, backend.id.ip.to_canonical().is_ipv6());
        let own = || pool.backends.iter().filter(|backend| carries(backend));
        if own().next().is_none() {
            let (pool, name) = (&pool.pool.name, &entry.frontend.name);
            return Err(format!(
                "pool {pool} has no {version} backend, and packets to an {version} address of {name} keep the version"
            ));
        }
        for backend in own().filter(|_| packets) {
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
            carries(&pool.backends[candidate.position])
                && (!packets || matches!(self.ground.ways.get(&candidate.ix), Some(Ok(_))))
        });
        let shares = candidates.map(|(candidate, weight)| Share {
            value: candidate.ix.0,
            identity: candidate.identity.to_string(),
            weight: *weight,
        });
        Ok(shares.collect())
    }

    /// Number of a ring with these shares, the one that is there or a free one, and of the ring before.
    fn ring(
        &mut self,
        entry: &FrontendEntry,
        mode: Mode,
        v6: bool,
        shares: Shares,
    ) -> Result<(u32, Option<u32>), String> {
        let of = (entry.pool.pool.name.clone(), v6);
        if let Some((number, there)) = self.out.image.ring_of(&of.0, v6) {
            return Ok((number, there.before));
        }
        let there = self.previous.ring_of(&of.0, v6);
        if let Some((number, there)) = there
            && shares.are(&there.shares)
        {
            self.out.image.rings.insert(number, there.clone());
            return Ok((number, there.before));
        }
        // In mode nat a ring says nothing of the port that a flow took, so nobody would ask the one before.
        let before = there.map(|(number, _)| number).filter(|_| mode != Mode::Nat);
        let Some(number) = self.out.image.free.pop_front() else {
            return Err("every ring in the kernel is taken; a restart makes room for more pools".to_owned());
        };
        let slots = ring(&shares.own).into();
        self.out.image.rings.insert(number, Ring { of, shares: shares.own, slots, before });
        Ok((number, before))
    }

    fn targets(&mut self, pool: &PoolEntry, packets: bool) {
        let none = Way { interface: 0, snat: IpAddr::V6(Ipv6Addr::UNSPECIFIED), first_port: 0, ports: 0 };
        for backend in &pool.backends {
            let way = match self.ground.ways.get(&backend.ix) {
                Some(Ok(way)) if packets => way,
                _ if packets => continue,
                _ => &none,
            };
            let target = Target {
                address: mapped(backend.id.ip),
                snat: mapped(way.snat),
                port: backend.id.port.unwrap_or(0).to_be_bytes(),
                first_port: way.first_port.to_be_bytes(),
                ports: way.ports,
                interface: way.interface,
                weight: backend.backend.weight,
                most: backend.backend.max_connections,
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
