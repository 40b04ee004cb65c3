//! A configuration in force, told as the file would say it with every key written out.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::Config;
use crate::model::config::{
    AccessLog, Admin, Backend, Frontend, Health, HealthKind, Log, Pool, Protocol, Runtime,
};

use super::raw::{
    Initial, Kind, RawAdmin, RawBackend, RawConfig, RawFrontend, RawHealth, RawLog, RawPool, RawRuntime,
};
use super::validate::{KEYS_OF_CONNECTS, KEYS_OF_TCP};
use super::value::{Codes, Or, Period, Size, Texts};

/// What stands in place of a secret.
const LEFT_OUT: &str = "(left out)";

/// Writes `config` in the shape of the file, defaults filled in; of the hash seed only that there is one.
pub fn written(config: &Config) -> Value {
    let raw = RawConfig {
        runtime: runtime(&config.runtime),
        admin: admin(&config.admin),
        log: log(&config.log),
        frontend: named(&config.frontends, frontend),
        pool: named(&config.pools, pool),
    };
    let mut value = serde_json::to_value(raw).expect("a configuration is plain JSON");
    without_null(&mut value);
    without_tcp(config, &mut value);
    value
}

/// Leaves out what a frontend of datagrams, or a pool that only those use, would be refused for.
fn without_tcp(config: &Config, value: &mut Value) {
    let mut leave_out = |section: &str, name: &str, keys: &mut dyn Iterator<Item = &'static str>| {
        if let Some(Value::Object(part)) = value.get_mut(section).and_then(|parts| parts.get_mut(name)) {
            keys.for_each(|key| drop(part.remove(key)));
        }
    };
    for frontend in config.frontends.values().filter(|one| one.protocol == Protocol::Udp) {
        leave_out("frontend", frontend.name.as_str(), &mut KEYS_OF_TCP.iter().map(|(key, _)| *key));
    }
    for name in config.pools.keys().filter(|name| config.is_of_datagrams(name)) {
        leave_out("pool", name.as_str(), &mut KEYS_OF_CONNECTS.into_iter());
    }
}

fn named<K: ToString, T, R>(
    parts: &BTreeMap<K, std::sync::Arc<T>>,
    write: fn(&T) -> R,
) -> BTreeMap<String, R> {
    parts.iter().map(|(name, part)| (name.to_string(), write(part))).collect()
}

fn runtime(own: &Runtime) -> RawRuntime {
    RawRuntime {
        workers: or(own.workers.and_then(|workers| u16::try_from(workers).ok())),
        drain_timeout: Period(own.drain_timeout),
        lame_duck: Period(own.lame_duck),
        max_connections: or(own.max_connections),
        state_dir: or(own.state_dir.clone()),
        hash_seed: or(own.hash_seed.as_ref().map(|_| LEFT_OUT.to_owned())),
        relay_buffer: Size(own.relay_buffer as u64),
        probes_per_second: own.probes_per_second,
    }
}

fn admin(own: &Admin) -> RawAdmin {
    RawAdmin {
        socket: or(own.socket.clone()),
        listen: or(own.listen.map(|address| address.to_string())),
        // Such an address is refused otherwise.
        allow_public: own.listen.is_some_and(|address| !address.ip().to_canonical().is_loopback()),
    }
}

fn log(own: &Log) -> RawLog {
    let access = match &own.access {
        AccessLog::On => "on".to_owned(),
        AccessLog::Off => "off".to_owned(),
        AccessLog::File(path) => path.display().to_string(),
    };
    let format = match own.format {
        crate::model::config::LogFormat::Auto => super::raw::LogFormat::Auto,
        crate::model::config::LogFormat::Pretty => super::raw::LogFormat::Pretty,
        crate::model::config::LogFormat::Json => super::raw::LogFormat::Json,
    };
    RawLog { level: own.level.clone(), format, access }
}

fn frontend(own: &Frontend) -> RawFrontend {
    RawFrontend {
        listen: Some(Texts(own.listen.iter().map(ToString::to_string).collect())),
        protocol: same(own.protocol),
        pool: Some(own.pool.to_string()),
        relay: same(own.relay),
        max_connections: own.max_connections,
        connect_timeout: Period(own.connect_timeout),
        hedge_after: or(own.hedge_after.map(Period)),
        idle_timeout: Some(Period(own.idle_timeout)),
        keepalive: or(own.keepalive.map(Period)),
        user_timeout: or(own.user_timeout.map(Period)),
        ..RawFrontend::default()
    }
}

fn pool(own: &Pool) -> RawPool {
    RawPool {
        strategy: same(own.strategy),
        retries: own.retries,
        retry_budget: own.retry_budget,
        when_all_down: same(own.when_all_down),
        queue: own.queue,
        queue_timeout: Period(own.queue_timeout),
        source: or(own.source.map(|ip| ip.to_string())),
        health: health(&own.health),
        backend: own.backends.iter().map(backend).collect(),
    }
}

fn health(own: &Health) -> RawHealth {
    let common = RawHealth {
        interval: Period(own.interval),
        fast_interval: Some(Period(own.fast_interval)),
        timeout: Period(own.timeout),
        rise: own.rise,
        fall: own.fall,
        initial: same::<_, Initial>(own.initial),
        port: own.port.unwrap_or_default(),
        ..RawHealth::default()
    };
    match &own.kind {
        HealthKind::Off => RawHealth { kind: Some(Kind::Off), ..common },
        HealthKind::Tcp => RawHealth { kind: Some(Kind::Tcp), ..common },
        HealthKind::Http(check) => RawHealth {
            kind: Some(Kind::Http),
            method: Some(check.method.clone()),
            path: Some(check.path.clone()),
            host: Some(check.host.clone()),
            expect: Some(check.expect.iter().cloned().map(Codes).collect()),
            body: Some(check.body.clone()),
            ..common
        },
    }
}

fn backend(own: &Backend) -> RawBackend {
    RawBackend {
        name: Some(own.name.to_string()),
        address: Some(own.target.to_string()),
        weight: u16::try_from(own.weight).unwrap_or(u16::MAX),
        max_connections: own.max_connections,
        enabled: own.enabled,
    }
}

fn or<W, T>(value: Option<T>) -> Or<W, T> {
    value.map_or(Or::WORD, Or::value)
}

/// The same word in the type of the file.
fn same<A: Serialize, B: DeserializeOwned>(own: A) -> B {
    let word = serde_json::to_value(own).expect("a word is plain JSON");
    serde_json::from_value(word).expect("what was accepted was written with this word")
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
method = "HEAD"
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
            let config = parse(&std::fs::read_to_string(&path).unwrap());
            assert_eq!(read_back(&config), config, "{}", path.display());
        }
    }

    #[test]
    fn the_secret_is_left_out() {
        let text = written(&parse(FULL)).to_string();
        assert!(text.contains(LEFT_OUT) && !text.contains("a secret"), "{text}");
    }

    #[test]
    fn every_key_of_the_schema_is_told() {
        let schema: Value = serde_json::from_str(&crate::config::schema()).unwrap();
        let told = written(&parse(FULL));
        let parts = [
            ("Runtime", &told["runtime"]),
            ("Admin", &told["admin"]),
            ("Log", &told["log"]),
            ("Frontend", &told["frontend"]["web"]),
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
