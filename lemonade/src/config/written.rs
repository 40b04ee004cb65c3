//! A configuration in force, told as the file would say it with every key written out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::model::Config;
use crate::model::config::{
    AccessLog, Admin, Backend, Frontend, Health, HealthKind, Log, LogFormat, Pool, Protocol, Runtime,
    Telemetry,
};
use crate::model::forward::{Fallback, Forwarding, Fragments};

use super::raw::{
    RawAdmin, RawBackend, RawForward, RawFrontend, RawHealth, RawLog, RawPool, RawRuntime, RawTelemetry,
};
use super::validate::{KEYS_OF_CONNECTS, KEYS_OF_PICKS, KEYS_OF_PROXY, KEYS_OF_TCP};
use super::value::{Codes, Period, Size};

/// What stands in place of a secret.
const LEFT_OUT: &str = "(left out)";

/// Writes `config` in the shape of the file, defaults filled in; of the hash seed and of headers only that they are there.
pub fn written(config: &Config) -> Value {
    let mut value = json!({
        "runtime": runtime(&config.runtime),
        "admin": admin(&config.admin),
        "log": log(&config.log),
        "telemetry": telemetry(&config.telemetry),
        "frontend": named(&config.frontends, frontend),
        "pool": named(&config.pools, pool),
    });
    without_null(&mut value);
    without_needless(config, &mut value);
    value
}

/// Leaves out what a frontend of datagrams or of packets, or a pool that only those use, would be refused for.
fn without_needless(config: &Config, value: &mut Value) {
    let mut leave_out = |section: &str, name: &str, keys: &mut dyn Iterator<Item = &'static str>| {
        if let Some(Value::Object(part)) = value.get_mut(section).and_then(|parts| parts.get_mut(name)) {
            keys.for_each(|key| drop(part.remove(key)));
        }
    };
    for frontend in
        config.frontends.values().filter(|one| one.protocol == Protocol::Udp && one.forward.is_none())
    {
        leave_out("frontend", frontend.name.as_str(), &mut KEYS_OF_TCP.iter().map(|(key, _)| *key));
    }
    for frontend in config.frontends.values().filter(|one| one.forward.is_some()) {
        leave_out("frontend", frontend.name.as_str(), &mut KEYS_OF_PROXY.iter().map(|(key, _)| *key));
    }
    for name in config.pools.keys().filter(|name| config.is_of_datagrams(name)) {
        leave_out("pool", name.as_str(), &mut KEYS_OF_CONNECTS.into_iter());
    }
    for name in config.pools.keys().filter(|name| config.is_forwarded(name)) {
        leave_out("pool", name.as_str(), &mut KEYS_OF_PICKS.iter().map(|(key, _)| *key));
    }
}

fn named<K: ToString, T>(parts: &BTreeMap<K, Arc<T>>, write: fn(&T) -> Value) -> Map<String, Value> {
    parts.iter().map(|(name, part)| (name.to_string(), write(part))).collect()
}

/// What is said, over the defaults.
fn over(defaults: impl Serialize, said: Value) -> Value {
    let mut whole = serde_json::to_value(defaults).expect("a section is plain JSON");
    if let (Value::Object(whole), Value::Object(said)) = (&mut whole, said) {
        whole.extend(said);
    }
    whole
}

fn runtime(own: &Runtime) -> Value {
    let said = json!({
        "workers": or("auto", own.workers),
        "drain_timeout": Period(own.drain_timeout),
        "lame_duck": Period(own.lame_duck),
        "max_connections": or("auto", own.max_connections),
        "state_dir": or("auto", own.state_dir.as_ref()),
        "hash_seed": or("auto", own.hash_seed.as_ref().map(|_| LEFT_OUT)),
        "relay_buffer": Size(own.relay_buffer as u64),
        "probes_per_second": own.probes_per_second,
    });
    over(RawRuntime::default(), said)
}

fn admin(own: &Admin) -> Value {
    let said = json!({
        "socket": or("auto", own.socket.as_ref()),
        "listen": or("off", own.listen),
        // Such an address is refused otherwise.
        "allow_public": own.listen.is_some_and(|address| !address.ip().to_canonical().is_loopback()),
    });
    over(RawAdmin::default(), said)
}

fn log(own: &Log) -> Value {
    let access = match &own.access {
        AccessLog::On => json!("on"),
        AccessLog::Off => json!("off"),
        AccessLog::File(path) => json!(path),
    };
    let format = match own.format {
        LogFormat::Auto => "auto",
        LogFormat::Pretty => "pretty",
        LogFormat::Json => "json",
    };
    over(RawLog::default(), json!({ "level": own.level, "format": format, "access": access }))
}

fn telemetry(own: &Telemetry) -> Value {
    let said = json!({
        "endpoint": or("off", own.endpoint.as_ref()),
        "interval": Period(own.interval),
        "sample": own.sample,
        "service_name": own.service_name,
        "headers": own.headers.keys().map(|name| (name.clone(), json!(LEFT_OUT))).collect::<Map<_, _>>(),
    });
    over(RawTelemetry::default(), said)
}

fn frontend(own: &Frontend) -> Value {
    let said = json!({
        "listen": own.listen,
        "protocol": own.protocol,
        "pool": own.pool,
        "relay": own.relay,
        "accelerate_cgroup": own.accelerate_cgroup.clone().unwrap_or_default(),
        "max_connections": own.max_connections,
        "connect_timeout": Period(own.connect_timeout),
        "hedge_after": or("off", own.hedge_after.map(Period)),
        "idle_timeout": Period(own.idle_timeout),
        "keepalive": or("off", own.keepalive.map(Period)),
        "user_timeout": or("off", own.user_timeout.map(Period)),
        "data_plane": if own.forward.is_some() { "forward" } else { "proxy" },
        "fallback": own.forward.as_ref().map_or("proxy", |own| match own.fallback {
            Fallback::Proxy => "proxy",
            Fallback::Refuse => "refuse",
        }),
        "forward": own.forward.as_ref().map(forward),
    });
    over(RawFrontend::default(), said)
}

fn forward(own: &Forwarding) -> Value {
    let fragments = match own.fragments {
        Fragments::Drop => "drop",
        Fragments::Pass => "pass",
    };
    let ports = own.snat_ports.as_ref().map(|ports| format!("{}-{}", ports.start(), ports.end()));
    let said = json!({
        "hook": own.hook.as_str(),
        "mode": own.mode.as_str(),
        "interfaces": or("auto", own.interfaces.as_ref()),
        "snat_addresses": or("auto", own.snat_addresses.as_ref()),
        "snat_ports": or("auto", ports),
        "connection_table": own.connection_table,
        "fragments": fragments,
    });
    over(RawForward::default(), said)
}

fn pool(own: &Pool) -> Value {
    let said = json!({
        "strategy": own.strategy,
        "retries": own.retries,
        "retry_budget": own.retry_budget,
        "when_all_down": own.when_all_down,
        "queue": own.queue,
        "queue_timeout": Period(own.queue_timeout),
        "source": or("auto", own.source),
        "health": health(&own.health),
        "backend": own.backends.iter().map(backend).collect::<Vec<_>>(),
    });
    over(RawPool::default(), said)
}

fn health(own: &Health) -> Value {
    let said = json!({
        "interval": Period(own.interval),
        "fast_interval": Period(own.fast_interval),
        "timeout": Period(own.timeout),
        "rise": own.rise,
        "fall": own.fall,
        "initial": own.initial,
        "port": own.port.unwrap_or_default(),
    });
    let kind = match &own.kind {
        HealthKind::Off => json!({ "kind": "off" }),
        HealthKind::Tcp => json!({ "kind": "tcp" }),
        HealthKind::Http(check) => json!({
            "kind": "http",
            "method": check.method,
            "path": check.path,
            "host": check.host,
            "expect": check.expect.iter().cloned().map(Codes).collect::<Vec<_>>(),
            "body": check.body,
        }),
    };
    over(over(RawHealth::default(), said), kind)
}

fn backend(own: &Backend) -> Value {
    let address = own.target.to_string();
    let said = json!({
        // An address is the name that stands for none, and cannot be given.
        "name": (own.name.as_str() != address).then_some(&own.name),
        "address": address,
        "weight": own.weight,
        "max_connections": own.max_connections,
        "enabled": own.enabled,
    });
    over(RawBackend::default(), said)
}

/// A value, or the word that stands for none.
fn or(word: &str, value: Option<impl Serialize>) -> Value {
    value.map_or_else(|| json!(word), |value| json!(value))
}

/// TOML has no null: a key that is absent is left out.
fn without_null(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, inner| !inner.is_null());
            object.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse_text;

    /// No value in it is a default.
    const FULL: &str = r#"
[runtime]
workers = 3
drain_timeout = "31s"
lame_duck = "0s"
max_connections = 77
state_dir = "/tmp/state"
hash_seed = "a secret"
relay_buffer = "32KiB"
probes_per_second = 7
[admin]
socket = "/tmp/admin.sock"
listen = "192.0.2.1:9900"
allow_public = true
[log]
level = "debug"
format = "json"
access = "/tmp/access"
[telemetry]
endpoint = "http://collector:4318/otlp"
interval = "30s"
sample = 0.5
service_name = "edge"
headers = { authorization = "Bearer a secret" }
[frontend.web]
listen = ["127.0.0.1:8080", "[::1]:8080-8082"]
pool = "web"
relay = "copy"
max_connections = 5
connect_timeout = "2s"
hedge_after = "off"
idle_timeout = "1h 1m"
keepalive = "7s"
user_timeout = "off"
[frontend.packets]
listen = "192.0.2.1:53"
protocol = "udp"
pool = "packets"
data_plane = "forward"
fallback = "refuse"
[frontend.packets.forward]
hook = "tc"
interfaces = ["eth0", "eth1"]
snat_addresses = ["192.0.2.2", "2001:db8::2"]
snat_ports = "20000-29999"
connection_table = 1024
fragments = "pass"
[pool.packets]
strategy = "source_hash"
[[pool.packets.backend]]
address = "192.0.2.3:53"
[pool.web]
strategy = "adaptive"
retries = 1
retry_budget = 0.5
when_all_down = "try_all"
queue = 9
queue_timeout = "1500ms"
source = "127.0.0.2"
[pool.web.health]
kind = "http"
interval = "3s"
fast_interval = "1s"
timeout = "700ms"
rise = 4
fall = 5
initial = "down"
port = 81
method = "OPTIONS"
path = "/up"
host = "example"
expect = [200, "204-299"]
body = "ok"
[[pool.web.backend]]
name = "a"
address = "backend.example:80"
weight = 3
max_connections = 4
enabled = false
"#;

    fn parse(text: &str) -> Config {
        parse_text(Path::new("a.toml"), text, &[]).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn read_back(config: &Config) -> Config {
        let mut back = parse(&toml::to_string(&written(config)).unwrap());
        assert_eq!(back.runtime.hash_seed.is_some(), config.runtime.hash_seed.is_some());
        back.runtime.hash_seed.clone_from(&config.runtime.hash_seed);
        assert!(back.telemetry.headers.keys().eq(config.telemetry.headers.keys()));
        back.telemetry.headers.clone_from(&config.telemetry.headers);
        back
    }

    #[test]
    fn what_is_written_reads_as_the_same_configuration() {
        let full = parse(FULL);
        assert_eq!(read_back(&full), full);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
        let examples = std::fs::read_dir(folder.join("examples")).unwrap();
        let examples = examples.map(|entry| entry.unwrap().path()).chain([folder.join("lemonade.toml")]);
        for path in examples {
            let text = std::fs::read_to_string(&path).unwrap();
            // Such a relay is refused by a build without kernel programs.
            if text.contains("relay = \"sk_msg\"") && !cfg!(all(feature = "ebpf", target_os = "linux")) {
                continue;
            }
            let config = parse(&text);
            assert_eq!(read_back(&config), config, "{}", path.display());
        }
    }

    #[test]
    fn secrets_are_left_out() {
        let config = parse(FULL);
        let text = written(&config).to_string();
        assert!(text.matches(LEFT_OUT).count() == 2 && !text.contains("a secret"), "{text}");
        let shown = format!("{:?}", config.telemetry);
        assert!(shown.contains("authorization") && !shown.contains("a secret"), "{shown}");
    }

    #[test]
    fn every_key_of_the_schema_is_told() {
        let schema: Value = serde_json::from_str(&crate::config::schema()).unwrap();
        let told = written(&parse(FULL));
        // Each of the two tells what means nothing for the other.
        let mut whole = told["frontend"]["web"].clone();
        whole["forward"] = told["frontend"]["packets"]["forward"].clone();
        let parts = [
            ("Runtime", &told["runtime"]),
            ("Admin", &told["admin"]),
            ("Log", &told["log"]),
            ("Telemetry", &told["telemetry"]),
            ("Frontend", &whole),
            ("Forward", &told["frontend"]["packets"]["forward"]),
            ("Pool", &told["pool"]["web"]),
            ("Health", &told["pool"]["web"]["health"]),
            ("Backend", &told["pool"]["web"]["backend"][0]),
        ];
        for (part, told) in parts {
            let keys = schema["definitions"][part]["properties"].as_object().unwrap();
            for key in keys.keys() {
                assert!(told.get(key).is_some(), "{part}.{key} is not told");
            }
        }
    }
}
