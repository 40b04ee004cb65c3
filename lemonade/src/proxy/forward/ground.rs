//! What the host lets be forwarded: ways to backends, own addresses and ports, interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use lemonade_common::BackendIx;

use super::host::{Host, Link, Next, ephemeral_ports};
use super::trial::Proven;
use crate::control::lower::{Ground, NoWay, Route, Way, unsuited};
use crate::control::table::{BackendEntry, DispatchTable, FrontendEntry};
use crate::model::Moment;
use crate::model::forward::Forwarding;

/// Lowest port that is taken for flows when the range is not written.
const LOWEST: u16 = 1_024;

/// The host as it is now.
struct Look {
    host: Host,
    links: Vec<Link>,
    addresses: Vec<(IpAddr, u32)>,
    ephemeral: RangeInclusive<u16>,
}

/// Looks at the host for the frontends of `table` that ask for the forward plane; `attach` is called once for each
/// interface that they need, and says why not.
///
/// # Errors
/// The kernel does not answer.
pub(super) fn look(
    table: &DispatchTable,
    proven: &Proven,
    now: Moment,
    attach: &mut dyn FnMut(&str) -> Result<(), String>,
) -> std::io::Result<(Ground, BTreeSet<String>)> {
    let mut host = Host::open()?;
    let (links, addresses) = (host.links()?, host.addresses()?);
    let mut look = Look { host, links, addresses, ephemeral: ephemeral_ports() };
    let mut ground = Ground { now, ..Ground::default() };
    let mut attached: BTreeMap<String, Result<(), String>> = BTreeMap::new();
    for entry in table.frontends.values() {
        let Some(asked) = &entry.frontend.forward else { continue };
        if unsuited(entry).is_some() {
            continue;
        }
        let found = look.frontend(entry, asked, proven, &mut ground.ways).and_then(|interfaces| {
            for interface in interfaces {
                let state = attached.entry(interface).or_insert_with_key(|name| attach(name));
                state.clone()?;
            }
            Ok(())
        });
        if let Err(why) = found {
            ground.blocked.insert(entry.ix, why);
        }
    }
    let interfaces = attached.into_iter().filter(|(_, state)| state.is_ok()).map(|(name, _)| name);
    Ok((ground, interfaces.collect()))
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
            let test = if address.ip().to_canonical().is_ipv6() { &proven.v6 } else { &proven.v4 };
            test.clone().map_err(|why| format!("its self-test failed on this kernel: {why}"))?;
        }
        let ports = self.ports(asked)?;
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
            Some(Next::Out { interface, source }) => (interface, source),
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
