//! The file as it is meant: raw values to [`Config`], every rule checked.

mod forward;
mod listen;
mod pool;
mod process;
mod telemetry;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::config::Protocol;
use crate::model::{Config, Frontend, Name, Pool};

use super::raw::{self, DataPlane, RawConfig, RawFrontend, RawPool, Relay};
use super::report::{Report, Spot};
use super::value::Period;
use super::wording;
pub(super) use forward::{KEYS_OF_PICKS, KEYS_OF_PROXY};
use listen::Listeners;
pub(super) use pool::KEYS_OF_CONNECTS;

/// What an empty file could say.
const MINIMAL: &str = "the least is:\n  frontend.web = { listen = \"127.0.0.1:8080\", pool = \"web\" }\n  \
                       [[pool.web.backend]]\n  address = \"127.0.0.1:9001\"";

/// Checks everything; the result is only valid if nothing was reported.
pub(super) fn config(raw: RawConfig, report: &mut Report<'_>) -> Config {
    let runtime = process::runtime(raw.runtime, &mut report.at(&["runtime"]));
    let admin = process::admin(raw.admin, &mut report.at(&["admin"]));
    let log = process::log(raw.log, &mut report.at(&["log"]));
    let telemetry = telemetry::telemetry(raw.telemetry, &mut report.at(&["telemetry"]));

    if report
        .document()
        .root()
        .get("frontend")
        .is_none_or(|value| value.get_ref().as_table().is_some_and(|table| table.is_empty()))
    {
        let what =
            if report.document().root().is_empty() { "the file is empty" } else { "there is no frontend" };
        report.at(&[]).wrong_here(what, MINIMAL);
    }

    let mut listeners = Listeners::default();
    if let Some(address) = admin.listen {
        listeners.reserve(address, "admin");
    }
    // From the document: a pool with errors is there nevertheless.
    let listed = report.document().root().get("pool").and_then(|value| value.get_ref().as_table());
    let pool_names: Vec<&str> =
        listed.into_iter().flat_map(|table| table.keys()).map(|key| key.get_ref().as_ref()).collect();
    let uses = Uses {
        datagrams: used_by(&raw.frontend, |raw| matches!(raw.protocol, raw::Protocol::Udp)),
        forwarded: used_by(&raw.frontend, |raw| raw.data_plane == DataPlane::Forward),
    };
    let mut frontends = BTreeMap::new();
    for (name, raw) in raw.frontend {
        let mut spot = report.at(&["frontend", &name]);
        check_name(&name, &mut spot);
        let frontend = frontend(&name, raw, &pool_names, &mut listeners, &mut spot);
        frontends.insert(Name::new(name), Arc::new(frontend));
    }
    forward::agree(&frontends, report);
    let pools = pools(raw.pool, &uses, report);
    forward::keep_ports(&frontends, &pools, report);
    Config { runtime, admin, log, telemetry, frontends, pools }
}

/// Pools by what uses them.
#[derive(Default)]
pub(super) struct Uses {
    /// Those that frontends with protocol = "udp" use and no other.
    datagrams: BTreeSet<String>,
    /// Those that frontends with data_plane = "forward" use and no other.
    forwarded: BTreeSet<String>,
}

/// Pools that such frontends use and no other.
fn used_by(frontends: &BTreeMap<String, RawFrontend>, such: fn(&RawFrontend) -> bool) -> BTreeSet<String> {
    let used = |wanted: bool| {
        let with = frontends.values().filter(move |raw| such(raw) == wanted);
        with.filter_map(|raw| raw.pool.clone()).collect::<BTreeSet<_>>()
    };
    &used(true) - &used(false)
}

/// Checks pools, each of which stands for itself but for what uses it.
pub(super) fn pools(
    raw: BTreeMap<String, RawPool>,
    uses: &Uses,
    report: &mut Report<'_>,
) -> BTreeMap<Name, Arc<Pool>> {
    let mut pools = BTreeMap::new();
    for (name, raw) in raw {
        let mut spot = report.at(&["pool", &name]);
        check_name(&name, &mut spot);
        if uses.forwarded.contains(&name) {
            forward::refuse_in_pool(&mut spot);
        }
        let pool = pool::pool(&name, raw, uses.datagrams.contains(&name), &mut spot);
        pools.insert(Name::new(name), Arc::new(pool));
    }
    pools
}

fn frontend(
    name: &str,
    raw: RawFrontend,
    pools: &[&str],
    listeners: &mut Listeners,
    spot: &mut Spot<'_, '_>,
) -> Frontend {
    let accelerate_cgroup = relay(&raw, spot);
    let protocol = raw.protocol.into();
    let listen = listen::expand(name, raw.listen, protocol, listeners, spot);
    let pool = match raw.pool {
        None => {
            spot.wrong("pool", "pool is missing", wording::choices("", pools));
            String::new()
        }
        Some(pool) => {
            if !pools.contains(&pool.as_str()) {
                spot.wrong("pool", format!("there is no pool {pool:?}"), wording::choices(&pool, pools));
            }
            pool
        }
    };
    let keepalive = raw.keepalive.0.map(|Period(period)| {
        if !(Duration::from_secs(1)..=Duration::from_secs(32_767)).contains(&period) {
            spot.wrong("keepalive", "is not from 1 to 32767 seconds", "write such as \"60s\", or \"off\"");
        }
        period
    });
    let forwarded = raw.data_plane == DataPlane::Forward;
    let forwarding =
        forward::forwarding(raw.forward.unwrap_or_default(), raw.fallback, &mut spot.under("forward"));
    if forwarded {
        forward::refuse(&listen, &forwarding, accelerate_cgroup.is_some(), spot);
    } else if protocol == Protocol::Udp {
        refuse_keys_of_tcp(spot);
    }
    let tcp = protocol == Protocol::Tcp;
    let idle_timeout = raw.idle_timeout.unwrap_or(Period(if tcp { IDLE_TCP } else { IDLE_UDP }));
    Frontend {
        name: Name::new(name),
        listen,
        protocol,
        pool: Name::new(pool),
        forward: forwarded.then_some(forwarding),
        relay: raw.relay.into(),
        accelerate_cgroup,
        max_connections: raw.max_connections,
        connect_timeout: positive("connect_timeout", raw.connect_timeout, "\"1s\"", spot),
        hedge_after: raw
            .hedge_after
            .0
            .filter(|_| tcp)
            .map(|period| positive("hedge_after", period, "\"200ms\", or \"off\"", spot)),
        idle_timeout: positive("idle_timeout", idle_timeout, "\"10m\"", spot),
        keepalive: keepalive.filter(|_| tcp),
        user_timeout: raw
            .user_timeout
            .0
            .filter(|_| tcp)
            .map(|period| positive("user_timeout", period, "\"2m\", or \"off\"", spot)),
    }
}

/// `idle_timeout` where it is not written.
const IDLE_TCP: Duration = Duration::from_mins(10);
const IDLE_UDP: Duration = Duration::from_secs(60);

/// Keys of a frontend that say nothing of datagrams, each with the reason.
pub(super) const KEYS_OF_TCP: [(&str, &str); 6] = [
    ("relay", "datagrams are always copied"),
    ("accelerate_cgroup", "datagrams are always copied"),
    ("connect_timeout", "datagrams need no connect"),
    ("hedge_after", "datagrams need no connect that could be late"),
    ("keepalive", "there is no connection to keep alive; idle_timeout ends a silent session"),
    ("user_timeout", "datagrams are not acknowledged; idle_timeout ends a silent session"),
];

fn refuse_keys_of_tcp(spot: &mut Spot<'_, '_>) {
    for (key, why) in KEYS_OF_TCP {
        if spot.says(key) {
            let message = format!("{key} means nothing with protocol = \"udp\": {why}");
            spot.wrong(key, message, "remove it, or write protocol = \"tcp\"");
        }
    }
}

/// Checks what a relay in the kernel needs; tells the cgroup that it may touch.
fn relay(raw: &RawFrontend, spot: &mut Spot<'_, '_>) -> Option<PathBuf> {
    let named = (!raw.accelerate_cgroup.is_empty()).then(|| PathBuf::from(&raw.accelerate_cgroup));
    let own = match raw.relay {
        Relay::Auto | Relay::Copy => None,
        Relay::Sockmap => Some("sockmap"),
        Relay::SkMsg => Some("sk_msg"),
        Relay::Splice => Some("splice"),
    };
    // Which programs a build has does not depend on the host; what the host allows is found out when it runs.
    if let Some(own) = own
        && !cfg!(all(feature = "ebpf", target_os = "linux"))
    {
        spot.wrong(
            "relay",
            format!("{own:?} needs kernel programs, which this build does not have"),
            "write \"auto\" or \"copy\", or build with `cargo xtask run` on Linux",
        );
    }
    let forwarded = raw.data_plane == DataPlane::Forward;
    match (&named, raw.relay) {
        (None, Relay::SkMsg) => spot.wrong(
            "relay",
            "\"sk_msg\" reaches the sockets of local clients and backends only in a cgroup that you name",
            "write accelerate_cgroup = \"/sys/fs/cgroup/...\", the folder of their cgroup; docs/guide/kernel.md says what that means for them",
        ),
        (Some(_), Relay::Auto | Relay::Copy | Relay::Sockmap | Relay::Splice) if !forwarded => spot.wrong(
            "accelerate_cgroup",
            "is used by relay = \"sk_msg\" and data_plane = \"forward\" only",
            "write relay = \"sk_msg\", or remove it",
        ),
        (Some(path), _) if !path.is_absolute() => spot.wrong(
            "accelerate_cgroup",
            "is no absolute path",
            "write the folder of a cgroup v2, such as \"/sys/fs/cgroup/web.slice\"",
        ),
        _ => {}
    }
    named
}

/// A duration of at least a millisecond.
fn positive(key: &str, Period(period): Period, example: &str, spot: &mut Spot<'_, '_>) -> Duration {
    if period < Duration::from_millis(1) {
        spot.wrong(key, "is shorter than a millisecond", format!("write such as {example}"));
    }
    period
}

fn check_name(name: &str, spot: &mut Spot<'_, '_>) {
    if !is_name(name) {
        spot.wrong_name(format!("{name:?} is no valid name"), NAME_RULE);
    }
}

const NAME_RULE: &str = "write 1 to 64 of a-z, 0-9, _ and -";

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}
