//! What the host lets be forwarded: ways to backends, own addresses and ports, interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use lemonade_common::BackendIx;

use super::device::device;
use super::hook::{Device, Refusal, automatic, hindrances, of_kind};
use super::host::{Host, Link, Next, ephemeral_ports};
use super::trial::Proven;
use crate::control::lower::{Ground, NoWay, Route, Way, unsuited};
use crate::control::table::{BackendEntry, DispatchTable, FrontendEntry};
use crate::model::Moment;
use crate::model::forward::{Forwarding, Hook, Mode, Point};

/// Lowest port that is taken for flows when the range is not written.
const LOWEST: u16 = 1_024;

/// The host as it is now.
struct Look {
    host: Host,
    links: Vec<Link>,
    addresses: Vec<(IpAddr, u32)>,
    ephemeral: RangeInclusive<u16>,
}

/// Where programs are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sites {
    /// Interfaces by name.
    pub(super) interfaces: BTreeMap<String, Point>,
    /// Cgroups whose sockets are seen.
    pub(super) cgroups: BTreeSet<PathBuf>,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Site<'a> {
    Interface(&'a str, Point),
    Cgroup(&'a Path),
}

/// What an interface is wanted for.
struct Want {
    point: Point,
    /// Whether a frontend names this hook, so that no other will do.
    named: bool,
}

/// Looks at the host for the frontends of `table` that ask for the forward plane; `attach` is called for each interface
/// that they need, and says why not. A driver that refuses a hook that nobody has named is asked for tc.
///
/// # Errors
/// The kernel does not answer.
pub(super) fn look(
    table: &DispatchTable,
    proven: &Proven,
    now: Moment,
    attach: &mut dyn FnMut(Site<'_>) -> Result<(), String>,
) -> std::io::Result<(Ground, Sites)> {
    let mut host = Host::open()?;
    let (links, addresses) = (host.links()?, host.addresses()?);
    let mut look = Look { host, links, addresses, ephemeral: ephemeral_ports() };
    let mut ground = Ground { now, ..Ground::default() };
    let mut wants: BTreeMap<String, Want> = BTreeMap::new();
    let (mut needs, mut cgroups) = (Vec::new(), BTreeSet::new());
    for entry in table.frontends.values() {
        let Some(asked) = &entry.frontend.forward else { continue };
        if unsuited(entry).is_some() {
            continue;
        }
        let local =
            entry.frontend.accelerate_cgroup.as_deref().map(|path| (path, attach(Site::Cgroup(path))));
        if let Some((path, Ok(()))) = local {
            ground.local.insert(entry.ix);
            cgroups.insert(path.to_owned());
        }
        let local = local.and_then(|(path, state)| Some((path, state.err()?)));
        if asked.hook == Hook::Connect {
            match local {
                Some((_, why)) => drop(ground.blocked.insert(entry.ix, format!("hook connect: {why}"))),
                None => drop(ground.notes.insert(entry.ix, "hook connect: as the file says".to_owned())),
            }
            continue;
        }
        let found = look.frontend(entry, asked, proven, &mut ground.ways).and_then(|interfaces| {
            let (point, note) = look.point(entry, asked.hook, proven, &interfaces)?;
            Ok((interfaces, point, note))
        });
        match found {
            Ok((interfaces, point, note)) => {
                for name in &interfaces {
                    let want = wants.entry(name.clone()).or_insert(Want { point, named: false });
                    want.point = want.point.max(point);
                    want.named |= asked.hook != Hook::Auto;
                }
                needs.push((entry.ix, interfaces));
                let local = local.map(|(_, why)| format!("the proxy serves clients on this host: {why}"));
                let note = [note, local].into_iter().flatten().collect::<Vec<_>>().join("; ");
                ground.notes.extend((!note.is_empty()).then_some((entry.ix, note)));
            }
            Err(why) => drop(ground.blocked.insert(entry.ix, why)),
        }
    }
    let mut attached = BTreeMap::new();
    for (name, want) in wants {
        let mut at = |point| attach(Site::Interface(&name, point)).map(|()| point);
        let state = match at(want.point) {
            Err(_) if !want.named && want.point != Point::Tc => at(Point::Tc),
            other => other,
        };
        attached.insert(name, state);
    }
    for (ix, interfaces) in needs {
        let failed = interfaces.iter().find_map(|name| attached.get(name)?.as_ref().err());
        if let Some(why) = failed {
            ground.blocked.insert(ix, why.clone());
        }
    }
    let interfaces = attached.into_iter().filter_map(|(name, state)| Some((name, state.ok()?))).collect();
    Ok((ground, Sites { interfaces, cgroups }))
}

impl Look {
    /// Interfaces that a frontend needs.
    fn frontend(
        &mut self,
        entry: &FrontendEntry,
        asked: &Forwarding,
        proven: &Proven,
        ways: &mut BTreeMap<BackendIx, Route>,
    ) -> Result<Vec<String>, String> {
        for address in &entry.frontend.listen {
            let test = proven.of(address.ip().to_canonical().is_ipv6(), asked.mode);
            test.map_err(|why| format!("its self-test failed on this kernel: {why}"))?;
        }
        // Elsewhere no port is taken.
        let ports = if asked.mode == Mode::Nat { self.ports(asked)? } else { 0..=0 };
        let mut interfaces = BTreeSet::new();
        for backend in &entry.pool.backends {
            let way = match ways.get(&backend.ix) {
                Some(way) => way.clone(),
                None => {
                    let way = self.way(entry, backend, asked, &ports)?;
                    ways.insert(backend.ix, way.clone());
                    way
                }
            };
            if let Ok(way) = way {
                interfaces.insert(way.interface);
            }
        }
        if let Some(names) = &asked.interfaces {
            return names.iter().map(|name| self.named(name)).collect();
        }
        for address in &entry.frontend.listen {
            interfaces.extend(self.clients_side(address.ip().to_canonical())?);
        }
        interfaces.into_iter().map(|index| self.indexed(index)).collect()
    }

    /// Where the program is to be for a frontend that needs these interfaces, and what is to be said of that.
    fn point(
        &mut self,
        entry: &FrontendEntry,
        hook: Hook,
        proven: &Proven,
        interfaces: &[String],
    ) -> Result<(Point, Option<String>), String> {
        let point = match hook {
            Hook::Tc | Hook::Connect => return Ok((Point::Tc, None)),
            // What is seen without a look at drivers is enough.
            Hook::Auto => match self.plainly_tc(interfaces) {
                Some(why) => return Ok((Point::Tc, Some(format!("hook tc: {why}")))),
                None => Point::Native,
            },
            Hook::Xdp => Point::Native,
            Hook::XdpGeneric => Point::Generic,
        };
        let tested = proven.xdp().map_err(|why| format!("its self-test at XDP failed on this kernel: {why}"));
        let devices = tested.and_then(|()| self.devices(entry, interfaces));
        if hook == Hook::Auto {
            let (point, why) = match &devices {
                Ok(devices) => automatic(devices),
                Err(why) => (Point::Tc, why.clone()),
            };
            return Ok((point, Some(format!("hook {}: {why}", point.as_str()))));
        }
        let native = point == Point::Native;
        let found: Vec<_> = devices?.iter().flat_map(|device| hindrances(device, native)).collect();
        if !found.is_empty() {
            return Err(format!("hook {}: {}", point.as_str(), Refusal(&found)));
        }
        Ok((point, Some(format!("hook {}: as the file says", point.as_str()))))
    }

    /// Why some interface is for tc, as far as its kind tells.
    fn plainly_tc(&self, interfaces: &[String]) -> Option<String> {
        let own = |name: &String| self.links.iter().find(|link| link.name == *name);
        interfaces.iter().filter_map(own).find_map(of_kind)
    }

    /// What decides on the hook of each interface.
    fn devices(&mut self, entry: &FrontendEntry, interfaces: &[String]) -> Result<Vec<Device>, String> {
        let used = |v6| entry.frontend.listen.iter().any(|own| own.ip().to_canonical().is_ipv6() == v6);
        let versions = [used(false), used(true)];
        let mut devices = Vec::new();
        for name in interfaces {
            let Some(link) = self.links.iter().find(|link| link.name == *name) else { continue };
            let device = device(&mut self.host, link, versions);
            devices.push(device.map_err(|error| format!("{name} cannot be looked at: {error}"))?);
        }
        if let [only] = &mut devices[..] {
            only.alone = true;
        }
        Ok(devices)
    }

    fn way(
        &mut self,
        entry: &FrontendEntry,
        backend: &BackendEntry,
        asked: &Forwarding,
        ports: &RangeInclusive<u16>,
    ) -> Result<Route, String> {
        let ip = backend.id.ip.to_canonical();
        let next = self.host.next(ip).map_err(|error| format!("the routes cannot be read: {error}"))?;
        let (interface, source) = match next {
            Some(Next::Local) => return Ok(Err(NoWay::Local)),
            Some(Next::Out { router: Some(router), .. }) if asked.mode == Mode::DsrL2 => {
                let why = format!("{ip} is behind the router {router}, and dsr-l2 needs it on the same link");
                return Ok(Err(NoWay::Unreachable(why)));
            }
            Some(Next::Out { interface, source, .. }) => (interface, source),
            None => return Ok(Err(NoWay::Unreachable(format!("no route leads to {ip}")))),
        };
        let snat = match &asked.snat_addresses {
            Some(listed) => self.dealt(listed, backend)?,
            None => entry.pool.pool.source.filter(|own| own.is_ipv4() == ip.is_ipv4()).unwrap_or(source),
        };
        let count = u32::from(*ports.end()) - u32::from(*ports.start()) + 1;
        Ok(Ok(Way { interface, snat, first_port: *ports.start(), ports: count }))
    }

    /// The listed address that a backend has; they are dealt in turn.
    fn dealt(&self, listed: &[IpAddr], backend: &BackendEntry) -> Result<IpAddr, String> {
        let ip = backend.id.ip.to_canonical();
        let fit: Vec<IpAddr> = listed.iter().copied().filter(|own| own.is_ipv4() == ip.is_ipv4()).collect();
        let Some(own) = fit.get(backend.ix.0 as usize % fit.len().max(1)) else {
            return Err(format!("snat_addresses has none of the IP version of backend {}", backend.id));
        };
        if !self.addresses.iter().any(|(address, _)| address == own) {
            return Err(format!("no interface of this host has the address {own} of snat_addresses"));
        }
        Ok(*own)
    }

    /// Ports towards backends: those that are written, or the largest range outside the host's own.
    fn ports(&self, asked: &Forwarding) -> Result<RangeInclusive<u16>, String> {
        let own = &self.ephemeral;
        let Some(written) = &asked.snat_ports else { return outside(own) };
        if written.start() <= own.end() && own.start() <= written.end() {
            return Err(format!(
                "snat_ports {}-{} overlap the ports {}-{} that this host gives to its own sockets; write others, or change net.ipv4.ip_local_port_range",
                written.start(),
                written.end(),
                own.start(),
                own.end()
            ));
        }
        Ok(written.clone())
    }

    /// Interfaces by which clients of an address come.
    fn clients_side(&self, ip: IpAddr) -> Result<Vec<u32>, String> {
        let owner = self.addresses.iter().find(|(address, _)| *address == ip).map(|(_, index)| *index);
        let Some(owner) = owner else {
            return Err(format!("no interface of this host has the address {ip}; name them in interfaces"));
        };
        let link = self.links.iter().find(|link| link.index == owner);
        if link.is_some_and(|link| link.carries) {
            return Ok(vec![owner]);
        }
        // Such an address is reached by whatever interface the router chooses.
        Ok(self.links.iter().filter(|link| link.carries && link.up).map(|link| link.index).collect())
    }

    fn named(&self, name: &str) -> Result<String, String> {
        let link = self.links.iter().find(|link| link.name == name);
        let link = link.ok_or_else(|| format!("there is no interface {name}"))?;
        self.indexed(link.index)
    }

    fn indexed(&self, index: u32) -> Result<String, String> {
        let link = self.links.iter().find(|link| link.index == index);
        let link = link.ok_or_else(|| format!("the interface of index {index} is gone"))?;
        if !link.ethernet {
            return Err(format!("packets of interface {} have no Ethernet header", link.name));
        }
        Ok(link.name.clone())
    }
}

/// The larger of the two ranges beside the host's own.
fn outside(own: &RangeInclusive<u16>) -> Result<RangeInclusive<u16>, String> {
    let below = (LOWEST < *own.start()).then(|| LOWEST..=own.start() - 1);
    let above = own.end().checked_add(1).map(|first| first..=u16::MAX);
    let widest = below.into_iter().chain(above).max_by_key(ExactSizeIterator::len);
    widest.ok_or_else(|| "net.ipv4.ip_local_port_range leaves no port for forwarded flows".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_where_the_host_takes_none() {
        assert_eq!(outside(&(32_768..=60_999)), Ok(1_024..=32_767));
        assert_eq!(outside(&(2_000..=20_000)), Ok(20_001..=65_535));
        assert_eq!(outside(&(10_000..=65_535)), Ok(1_024..=9_999));
        assert!(outside(&(1_024..=65_535)).is_err());
    }
}
