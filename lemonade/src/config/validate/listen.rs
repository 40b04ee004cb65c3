//! Listen addresses: ranges expanded, no two that take each other's connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use crate::config::report::Spot;
use crate::config::value::Texts;
use crate::model::config::Protocol;

/// Listeners of one frontend at most.
const PER_FRONTEND: usize = 1_024;
/// Listeners of all frontends at most.
const IN_TOTAL: usize = 16_384;

/// Which connections an address takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Reach {
    /// Those to one address.
    One(IpAddr),
    /// Some of the IPv4 ones, on whatever address.
    SomeV4,
    /// Some of the IPv6 ones, on whatever address.
    SomeV6,
}

const ANY_V4: Reach = Reach::One(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
const ANY_V6: Reach = Reach::One(IpAddr::V6(Ipv6Addr::UNSPECIFIED));

/// Every address taken so far.
#[derive(Default)]
pub(super) struct Listeners {
    taken: HashMap<(Protocol, u16, Reach), (SocketAddr, String)>,
    count: usize,
}

impl Listeners {
    /// Takes a TCP address for an owner that is no frontend.
    pub(super) fn reserve(&mut self, address: SocketAddr, owner: &str) {
        let _first = self.take(Protocol::Tcp, address, owner);
    }

    /// Takes an address; or says which one already has its connections, and whose it is. TCP and UDP ports are two things.
    fn take(
        &mut self,
        protocol: Protocol,
        address: SocketAddr,
        owner: &str,
    ) -> Result<(), (SocketAddr, String)> {
        let port = address.port();
        if port == 0 {
            return Ok(());
        }
        let ip = address.ip().to_canonical();
        // [::] also takes IPv4 clients.
        let rivals: &[Reach] = match ip {
            _ if ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => &[Reach::SomeV4, Reach::SomeV6],
            _ if ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) => &[Reach::SomeV4, ANY_V6],
            IpAddr::V4(_) => &[Reach::One(ip), ANY_V4, ANY_V6],
            IpAddr::V6(_) => &[Reach::One(ip), ANY_V6],
        };
        for rival in rivals {
            if let Some(found) = self.taken.get(&(protocol, port, *rival)) {
                return Err(found.clone());
            }
        }
        let class = if ip.is_ipv4() { Reach::SomeV4 } else { Reach::SomeV6 };
        for reach in [Reach::One(ip), class] {
            self.taken.entry((protocol, port, reach)).or_insert_with(|| (address, owner.to_owned()));
        }
        Ok(())
    }
}

/// The addresses of one frontend.
pub(super) fn expand(
    name: &str,
    listen: Option<Texts>,
    protocol: Protocol,
    listeners: &mut Listeners,
    spot: &mut Spot<'_, '_>,
) -> Vec<SocketAddr> {
    let Some(Texts(texts)) = listen.filter(|texts| !texts.0.is_empty()) else {
        spot.wrong("listen", "listen is missing", "write such as listen = \"127.0.0.1:8080\"");
        return Vec::new();
    };
    let owner = format!("frontend {name:?}");
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let (host, ports) = match parse(text) {
            Ok(parsed) => parsed,
            Err((message, hint)) => {
                spot.wrong_item("listen", index, message, hint);
                continue;
            }
        };
        if addresses.len() + ports.len() > PER_FRONTEND {
            let message = format!("makes more than {PER_FRONTEND} listeners in this frontend");
            spot.wrong_item("listen", index, message, "write a smaller range");
            break;
        }
        listeners.count += ports.len();
        if listeners.count > IN_TOTAL {
            let message = format!("makes more than {IN_TOTAL} listeners in all frontends");
            spot.wrong_item("listen", index, message, "write smaller ranges");
            break;
        }
        for port in ports {
            let mut address = host;
            address.set_port(port);
            if port == 0 && addresses.contains(&address) {
                spot.wrong_item("listen", index, format!("{address} is listed twice"), "remove one of them");
            }
            if let Err((rival, whose)) = listeners.take(protocol, address, &owner) {
                let whose = if whose == owner { "this frontend".to_owned() } else { whose };
                let (message, hint) = if rival == address {
                    (format!("{address} is already taken by {whose}"), "choose another port or address")
                } else {
                    (
                        format!("{address} takes the same connections as {rival} of {whose}"),
                        "keep one of them; 0.0.0.0 takes every IPv4 address, [::] every address",
                    )
                };
                spot.wrong_item("listen", index, message, hint);
                break;
            }
            addresses.push(address);
        }
    }
    addresses
}

/// An address with port 0, and its ports.
fn parse(text: &str) -> Result<(SocketAddr, RangeInclusive<u16>), (String, String)> {
    const EXAMPLE: &str = "write such as \"127.0.0.1:8080\", \"[::1]:8080\" or \"0.0.0.0:8000-8009\"";
    let Some((host, ports)) = text.rsplit_once(':') else {
        return Err((format!("{text:?} has no port"), EXAMPLE.to_owned()));
    };
    let address: SocketAddr = format!("{host}:0").parse().map_err(|_not_an_address| {
        let hint = match host {
            "" | "*" => format!(
                "write \"0.0.0.0:{ports}\" for every IPv4 address, \"[::]:{ports}\" for every address"
            ),
            "localhost" => format!("write \"127.0.0.1:{ports}\""),
            _ if host.parse::<Ipv6Addr>().is_ok() => format!("write \"[{host}]:{ports}\""),
            _ => EXAMPLE.to_owned(),
        };
        (format!("{host:?} is not an IP address"), hint)
    })?;
    let port = |text: &str| text.parse::<u16>().ok();
    let range = match ports.split_once('-') {
        None => port(ports).map(|port| port..=port),
        Some((from, to)) => port(from).zip(port(to)).map(|(from, to)| from..=to),
    };
    let Some(range) = range else {
        return Err((format!("{ports:?} is no port or range of ports from 0 to 65535"), EXAMPLE.to_owned()));
    };
    if range.is_empty() {
        return Err((
            format!("the range {ports} runs backwards"),
            format!("write {}-{}", range.end(), range.start()),
        ));
    }
    if *range.start() == 0 && *range.end() != 0 {
        return Err((
            "a range cannot begin at port 0".to_owned(),
            "write a port from 1, or 0 alone for one that the kernel chooses".to_owned(),
        ));
    }
    Ok((address, range))
}
