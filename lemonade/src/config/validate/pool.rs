//! Pools, their backends and their health policy.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::raw::{Kind, RawBackend, RawHealth, RawPool};
use crate::config::report::Spot;
use crate::config::value::Period;
use crate::model::config::{HealthKind, HttpCheck};
use crate::model::{Backend, Health, Name, Pool, Target};

use super::{NAME_RULE, is_name, positive};

/// `fast_interval` where neither it nor a shorter `interval` is written.
const FAST_INTERVAL: Duration = Duration::from_millis(500);

/// Keys of a pool that say nothing of datagrams.
pub(in crate::config) const KEYS_OF_CONNECTS: [&str; 4] =
    ["retries", "retry_budget", "queue", "queue_timeout"];

/// Checks a pool; `datagrams`: only frontends with protocol = "udp" use it.
pub(super) fn pool(name: &str, raw: RawPool, datagrams: bool, spot: &mut Spot<'_, '_>) -> Pool {
    if datagrams {
        for key in KEYS_OF_CONNECTS {
            if spot.says(key) {
                let message = format!(
                    "{key} is about connects, and only frontends with protocol = \"udp\" use this pool"
                );
                let hint =
                    "remove it: a session whose backend fails goes to another one with its next datagram";
                spot.wrong(key, message, hint);
            }
        }
    }
    if !(0.0..=1.0).contains(&raw.retry_budget) {
        spot.wrong("retry_budget", format!("{} is not from 0 to 1", raw.retry_budget), "write such as 0.2");
    }
    let source = raw.source.0.and_then(|text| source(&text, spot));
    let health = health(raw.health, datagrams, &mut spot.under("health"));
    let backends = backends(raw.backend, &health, source, spot);
    Pool {
        name: Name::new(name),
        strategy: raw.strategy.into(),
        retries: raw.retries,
        retry_budget: raw.retry_budget,
        when_all_down: raw.when_all_down.into(),
        queue: raw.queue,
        queue_timeout: positive("queue_timeout", raw.queue_timeout, "\"1s\"", spot),
        source,
        health,
        backends,
    }
}

fn source(text: &str, spot: &mut Spot<'_, '_>) -> Option<IpAddr> {
    let address = text.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast());
    if address.is_none() {
        let message = format!("{text:?} is no address of this host");
        spot.wrong("source", message, "write an IP address without a port, or \"auto\"");
    }
    address
}

fn backends(
    raw: Vec<RawBackend>,
    health: &Health,
    source: Option<IpAddr>,
    spot: &mut Spot<'_, '_>,
) -> Vec<Backend> {
    if raw.is_empty() {
        spot.wrong(
            "backend",
            "the pool has no backend",
            "write [[pool.NAME.backend]] with address = \"host:port\"",
        );
    } else if raw.iter().all(|backend| backend.weight == 0) {
        spot.wrong("backend", "every backend has weight 0", "write weight = 1 or more in one of them");
    }
    let mut backends: Vec<Backend> = Vec::with_capacity(raw.len());
    let mut names: HashMap<Name, usize> = HashMap::with_capacity(raw.len());
    let mut targets: HashMap<Target, usize> = HashMap::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let mut spot = spot.item("backend", index);
        let Some(address) = raw.address else {
            spot.wrong("address", "address is missing", "write such as address = \"127.0.0.1:9001\"");
            continue;
        };
        let target = match target(&address) {
            Ok(target) => target,
            Err((message, hint)) => {
                spot.wrong("address", message, hint);
                continue;
            }
        };
        if target.port().is_none() && health.port.is_none() && health.kind != HealthKind::Off {
            let hint = "write host:port; or set health.port, or health.kind = \"off\"";
            spot.wrong("address", format!("{address:?} has no port that a health probe could use"), hint);
        }
        if let (Some(source), Target::Address(ip, _)) = (source, &target)
            && source.is_ipv4() != ip.is_ipv4()
        {
            let message = format!("{address:?} cannot be reached from source {source}");
            spot.wrong("address", message, "use one IP version for both");
        }
        if let Some(first) = targets.insert(target.clone(), index) {
            let message = format!("{target} is also backend[{first}] of this pool");
            spot.wrong("address", message, "remove one of them; for a larger share write weight");
        }
        if let Some(name) = raw.name.as_deref().filter(|name| !is_name(name)) {
            spot.wrong("name", format!("{name:?} is no valid name"), NAME_RULE);
        }
        let given = raw.name.is_some();
        let name = Name::new(raw.name.unwrap_or_else(|| target.to_string()));
        if let Some(first) = names.insert(name.clone(), index)
            && given
        {
            let message = format!("the name {name} is taken by backend[{first}] of this pool");
            spot.wrong("name", message, "choose another name");
        }
        backends.push(Backend {
            name,
            target,
            weight: raw.weight.into(),
            max_connections: raw.max_connections,
            enabled: raw.enabled,
        });
    }
    backends
}

/// Parses `ip`, `ip:port`, `host` or `host:port`.
fn target(text: &str) -> Result<Target, (String, String)> {
    const EXAMPLE: &str = "write such as \"10.0.0.7:80\", \"[fd00::7]:80\" or \"app.internal:80\"";
    let wrong = |message: String, hint: &str| Err((message, hint.to_owned()));
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let (ip, port) = match (bare.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
        (Ok(ip), _) => (Some(ip), None),
        (_, Ok(SocketAddr::V6(v6))) if v6.scope_id() != 0 => {
            return wrong(
                format!("{text:?} has a scope"),
                "write an address that is valid on the whole network",
            );
        }
        (_, Ok(address)) => (Some(address.ip()), Some(address.port())),
        _ => (None, None),
    };
    if let Some(ip) = ip {
        if ip.is_unspecified() || ip.is_multicast() {
            return wrong(format!("{ip} is no address of a backend"), EXAMPLE);
        }
        if port == Some(0) {
            return wrong("a backend cannot have port 0".to_owned(), EXAMPLE);
        }
        return Ok(Target::Address(ip, port));
    }
    if text.contains("://") || text.contains('/') {
        return wrong(format!("{text:?} is a URL"), "write host:port only");
    }
    let (host, port) = match text.rsplit_once(':') {
        None => (text, None),
        Some((host, port)) => match port.parse::<u16>() {
            Ok(port) if port > 0 => (host, Some(port)),
            _ => return wrong(format!("{port:?} is no port from 1 to 65535"), EXAMPLE),
        },
    };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if name.len() > 253 || !name.split('.').all(label) || numeric {
        return wrong(format!("{host:?} is neither an IP address nor a host name"), EXAMPLE);
    }
    Ok(Target::Host(host.to_ascii_lowercase().into(), port))
}

fn health(raw: RawHealth, datagrams: bool, spot: &mut Spot<'_, '_>) -> Health {
    let interval = positive("interval", raw.interval, "\"2s\"", spot);
    let fast_interval = match raw.fast_interval {
        None => FAST_INTERVAL.min(interval),
        Some(period) => {
            if period > raw.interval {
                spot.wrong("fast_interval", "is longer than interval", "write at most the interval");
            }
            positive("fast_interval", period, "\"500ms\"", spot)
        }
    };
    for (key, count) in [("rise", raw.rise), ("fall", raw.fall)] {
        if count == 0 {
            spot.wrong(key, "0 would change the state without a probe", "write 1 or more");
        }
    }
    Health {
        interval,
        fast_interval,
        timeout: positive("timeout", Period(raw.timeout.0), "\"1s\"", spot),
        rise: raw.rise,
        fall: raw.fall,
        initial: raw.initial.into(),
        port: (raw.port != 0).then_some(raw.port),
        kind: kind(raw, datagrams, spot),
    }
}

fn kind(raw: RawHealth, datagrams: bool, spot: &mut Spot<'_, '_>) -> HealthKind {
    // A server of datagrams rarely listens for connections too.
    let asked = raw.kind.unwrap_or(if datagrams { Kind::Off } else { Kind::Tcp });
    if asked != Kind::Http {
        let given = [
            ("method", raw.method.is_some()),
            ("path", raw.path.is_some()),
            ("host", raw.host.is_some()),
            ("expect", raw.expect.is_some()),
            ("body", raw.body.is_some()),
        ];
        for (key, _) in given.into_iter().filter(|(_, given)| *given) {
            spot.wrong(key, format!("{key} needs an HTTP probe"), "write kind = \"http\", or remove it");
        }
    }
    match asked {
        Kind::Off => HealthKind::Off,
        Kind::Tcp => HealthKind::Tcp,
        Kind::Http => HealthKind::Http(http(raw, spot)),
    }
}

fn http(raw: RawHealth, spot: &mut Spot<'_, '_>) -> HttpCheck {
    let method = raw.method.unwrap_or_else(|| "GET".to_owned());
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
        spot.wrong("method", format!("{method:?} is no HTTP method"), "write such as \"GET\" or \"HEAD\"");
    }
    let path = raw.path.unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        spot.wrong("path", format!("{path:?} is no path"), "begin it with / and write it without spaces");
    }
    let host = raw.host.unwrap_or_default();
    if !host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
        spot.wrong("host", format!("{host:?} is no host name"), "write a name, with :port where needed");
    }
    let expect = match raw.expect {
        None => vec![200..=399],
        Some(codes) => {
            if codes.is_empty() {
                spot.wrong("expect", "no status code would be a success", "write such as [\"200-399\"]");
            }
            codes.into_iter().map(|codes| codes.0).collect()
        }
    };
    let body = raw.body.unwrap_or_default();
    if method == "HEAD" && !body.is_empty() {
        spot.wrong("body", "the answer to HEAD has no body", "write method = \"GET\", or remove it");
    }
    HttpCheck { method, path, host, expect, body }
}
