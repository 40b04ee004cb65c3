//! The file as it is written: every key with its default. The JSON schema is made from these types, descriptions included.

mod forward;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model;

use super::value::{Auto, Codes, Off, Or, Period, Size, Texts};
pub(super) use forward::{DataPlane, Fallback, RawForward};

const fn millis(millis: u64) -> Period {
    Period(Duration::from_millis(millis))
}

/// Configuration of Lemonade, a load balancer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Lemonade")]
pub(super) struct RawConfig {
    /// What belongs to the process.
    pub(super) runtime: RawRuntime,
    /// Where the operator looks and acts. Changes need a restart.
    pub(super) admin: RawAdmin,
    /// Logs and access records.
    pub(super) log: RawLog,
    /// What is sent to a receiver of OpenTelemetry.
    pub(super) telemetry: RawTelemetry,
    /// Addresses that clients use, by name; at least one.
    #[schemars(extend("minProperties" = 1, "propertyNames" = {"pattern": "^[a-z0-9_-]{1,64}$"}))]
    pub(super) frontend: BTreeMap<String, RawFrontend>,
    /// Backends with their strategy and health policy, by name.
    #[schemars(extend("propertyNames" = {"pattern": "^[a-z0-9_-]{1,64}$"}))]
    pub(super) pool: BTreeMap<String, RawPool>,
}

/// What belongs to the process.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Runtime")]
pub(super) struct RawRuntime {
    /// Worker threads, from 1 to 1024; "auto" is one per core. A change needs a restart.
    pub(super) workers: Or<Auto, u16>,
    /// Time that live connections get after a stop or a removal before they are reset.
    pub(super) drain_timeout: Period,
    /// Time between "not ready" and "not accepting" when the process stops.
    pub(super) lame_duck: Period,
    /// Connections in total; "auto" follows the descriptor limit.
    pub(super) max_connections: Or<Auto, u32>,
    /// Folder of journal, hash seed and instance lock; "auto" is /var/lib/lemonade as root, $XDG_STATE_HOME/lemonade else. A change needs a restart.
    pub(super) state_dir: Or<Auto, PathBuf>,
    /// Text the flow hash is seeded with; "auto" is made once and kept in state_dir. Write the same text on every node of a fleet.
    pub(super) hash_seed: Or<Auto, String>,
    /// Bytes of a relay buffer, from 4KiB to 4MiB, borrowed only while bytes move; a slow reader may keep one. A change
    /// needs a restart.
    pub(super) relay_buffer: Size,
    /// Health probes started per second over all pools, so that many backends never burst.
    pub(super) probes_per_second: u32,
}

impl Default for RawRuntime {
    fn default() -> Self {
        Self {
            workers: Or::WORD,
            drain_timeout: millis(30_000),
            lame_duck: millis(2_000),
            max_connections: Or::WORD,
            state_dir: Or::WORD,
            hash_seed: Or::WORD,
            relay_buffer: Size(256 * 1024),
            probes_per_second: 500,
        }
    }
}

/// Where the operator looks and acts. Changes need a restart.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Admin")]
pub(super) struct RawAdmin {
    /// Unix socket for reads and changes; "auto" is /run/lemonade/admin.sock as root, $XDG_RUNTIME_DIR/lemonade/admin.sock else.
    pub(super) socket: Or<Auto, PathBuf>,
    /// HTTP address for reads only; "off" closes it.
    pub(super) listen: Or<Off, String>,
    /// Allows a `listen` address that is not loopback. There is no password.
    pub(super) allow_public: bool,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { socket: Or::WORD, listen: Or::value("127.0.0.1:9900".to_owned()), allow_public: false }
    }
}

/// Logs and access records.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Log")]
pub(super) struct RawLog {
    /// off, error, warn, info, debug or trace; or by part: "info,lemonade::health=debug".
    pub(super) level: String,
    /// Shape of a line; "auto" is pretty on a terminal and json otherwise. A change needs a restart.
    pub(super) format: LogFormat,
    /// One record per connection: "on" in the log, "off", or the path of a file.
    pub(super) access: String,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto, access: "on".to_owned() }
    }
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// What is sent to a receiver of OpenTelemetry: metrics, the log, traces of the control plane and of a share of connections.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Telemetry")]
pub(super) struct RawTelemetry {
    /// URL of the receiver, such as "http://127.0.0.1:4318", spoken to by OTLP over HTTP with protobuf; "off" sends nothing.
    pub(super) endpoint: Or<Off, String>,
    /// Time between two reports of the metrics, from 1s to 1h.
    pub(super) interval: Period,
    /// Share of connections that get a span, from 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(super) sample: f64,
    /// Name of this service at the receiver.
    pub(super) service_name: String,
    /// Headers of each request, such as { authorization = "Bearer .." }.
    pub(super) headers: BTreeMap<String, String>,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        let model::config::Telemetry { interval, sample, service_name, headers, .. } =
            model::config::Telemetry::default();
        Self { endpoint: Or::WORD, interval: Period(interval), sample, service_name, headers }
    }
}

/// An address that clients use.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Frontend", extend("required" = ["listen", "pool"]))]
pub(super) struct RawFrontend {
    /// One address or a list: "host:port" or "host:from-to", "[::1]:8080" for IPv6; a port of 0 is chosen by the kernel. Required.
    pub(super) listen: Option<Texts>,
    /// Protocol of the clients.
    pub(super) protocol: Protocol,
    /// Name of the pool that serves it. Required.
    pub(super) pool: Option<String>,
    /// What moves the bytes.
    pub(super) data_plane: DataPlane,
    /// What happens when `data_plane` is not possible on this host.
    pub(super) fallback: Fallback,
    /// Only with protocol = "tcp": how the proxy moves the bytes of a connection.
    pub(super) relay: Relay,
    /// Folder of the cgroup v2 of local clients and backends whose sockets `sk_msg` may touch; empty: none.
    pub(super) accelerate_cgroup: String,
    /// Connections, or sessions of datagrams, at most; 0 is only the total limit, of which sessions get half.
    pub(super) max_connections: u32,
    /// Only with protocol = "tcp": time one connect to a backend may take before another is tried.
    pub(super) connect_timeout: Period,
    /// Only with protocol = "tcp": starts a second connect, to another backend, when the first is this late; "off" never does.
    pub(super) hedge_after: Or<Off, Period>,
    /// Ends a connection, or a session of datagrams, that carried nothing in either direction for this long. Default: 10m, with protocol = "udp" 60s.
    pub(super) idle_timeout: Option<Period>,
    /// Only with protocol = "tcp": keepalive idle time, in whole seconds; "off" sends none.
    pub(super) keepalive: Or<Off, Period>,
    /// Only with protocol = "tcp": closes a connection whose sent bytes stay unacknowledged for this long (TCP_USER_TIMEOUT); "off" is the kernel's.
    pub(super) user_timeout: Or<Off, Period>,
    /// Only with data_plane = "forward": how packets pass through the kernel.
    pub(super) forward: Option<RawForward>,
}

impl Default for RawFrontend {
    fn default() -> Self {
        Self {
            listen: None,
            protocol: Protocol::Tcp,
            pool: None,
            data_plane: DataPlane::Proxy,
            fallback: Fallback::Proxy,
            relay: Relay::Auto,
            accelerate_cgroup: String::new(),
            max_connections: 0,
            connect_timeout: millis(1_000),
            hedge_after: Or::value(millis(200)),
            idle_timeout: None,
            keepalive: Or::value(millis(60_000)),
            user_timeout: Or::value(millis(120_000)),
            forward: None,
        }
    }
}

/// Protocol of the clients.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Protocol {
    /// TCP, and whatever runs over it.
    Tcp,
    /// Datagrams: those of one client address and port are a session and go to one backend.
    Udp,
}

/// How the proxy moves the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Relay {
    /// Splice where packets meet its programs, copy elsewhere.
    Auto,
    /// Copy in userspace.
    Copy,
    /// Copy at first; a program in the kernel (sk_skb) for connections that last.
    Sockmap,
    /// Copy, whose hops within this host skip TCP (sk_msg); needs `accelerate_cgroup`.
    SkMsg,
    /// Copy at first; programs at tc that pass packets between both connections for those that last.
    Splice,
}

/// Backends with their strategy and health policy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Pool", extend("required" = ["backend"]))]
pub(super) struct RawPool {
    /// How a backend is picked.
    pub(super) strategy: Strategy,
    /// Other backends tried while no byte of the client was sent on.
    pub(super) retries: u32,
    /// Share of connects that may be retries, from 0 to 1, over a floor of 10 per second; the first hedge is not charged.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(super) retry_budget: f64,
    /// What happens when no backend is up.
    pub(super) when_all_down: WhenAllDown,
    /// Connections that may wait when every backend is at its max_connections; 0 refuses at once.
    pub(super) queue: u32,
    /// Time a connection may wait in the queue.
    pub(super) queue_timeout: Period,
    /// Own address on the way to the backends; "auto" lets the kernel choose.
    pub(super) source: Or<Auto, String>,
    /// How backends are checked.
    pub(super) health: RawHealth,
    /// The backends; at least one.
    #[schemars(length(min = 1))]
    pub(super) backend: Vec<RawBackend>,
}

impl Default for RawPool {
    fn default() -> Self {
        Self {
            strategy: Strategy::RoundRobin,
            retries: 2,
            retry_budget: 0.2,
            when_all_down: WhenAllDown::Refuse,
            queue: 0,
            queue_timeout: millis(1_000),
            source: Or::WORD,
            health: RawHealth::default(),
            backend: Vec::new(),
        }
    }
}

/// How a backend is picked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Strategy {
    /// In turn.
    RoundRobin,
    /// In turn, in proportion to weight, evenly spaced.
    WeightedRoundRobin,
    /// Fewest live connections per weight.
    LeastConnections,
    /// Lowest recent latency of two random candidates.
    FastestResponseTime,
    /// Lowest score of connections, latency and errors of two random candidates.
    Adaptive,
    /// By the client's address, in proportion to weight.
    SourceHash,
}

/// What happens when no backend is up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum WhenAllDown {
    /// Refuse at once.
    Refuse,
    /// Treat every enabled backend as up.
    TryAll,
}

/// How backends are checked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Health")]
pub(super) struct RawHealth {
    /// What a probe does. Default: "tcp"; "off" in a pool that only frontends with protocol = "udp" use.
    pub(super) kind: Option<Kind>,
    /// Time between probes of a backend whose state is sure. Probes of one backend never overlap.
    pub(super) interval: Period,
    /// Time between probes while the state is unsure; at most `interval`. Default: 500ms, or `interval` when that is shorter.
    pub(super) fast_interval: Option<Period>,
    /// Time a probe may take.
    pub(super) timeout: Period,
    /// Successes in a row that bring a backend up.
    #[schemars(range(min = 1))]
    pub(super) rise: u32,
    /// Failures in a row that take a backend down.
    #[schemars(range(min = 1))]
    pub(super) fall: u32,
    /// State before the first probe; "down" waits for the first success.
    pub(super) initial: Initial,
    /// Port to probe; 0 is the backend's.
    pub(super) port: u16,
    /// Only with kind = "http": request method. Default: "GET".
    pub(super) method: Option<String>,
    /// Only with kind = "http": request path. Default: "/".
    pub(super) path: Option<String>,
    /// Only with kind = "http": Host header. Default: "", the backend's address.
    pub(super) host: Option<String>,
    /// Only with kind = "http": accepted status codes. Default: ["200-399"].
    pub(super) expect: Option<Vec<Codes>>,
    /// Only with kind = "http": text that the body must contain. Default: "", anything.
    pub(super) body: Option<String>,
}

impl Default for RawHealth {
    fn default() -> Self {
        Self {
            kind: None,
            interval: millis(2_000),
            fast_interval: None,
            timeout: millis(1_000),
            rise: 2,
            fall: 3,
            initial: Initial::Up,
            port: 0,
            method: None,
            path: None,
            host: None,
            expect: None,
            body: None,
        }
    }
}

/// What a probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// Connects and closes.
    Tcp,
    /// Sends one HTTP request.
    Http,
    /// Nothing: a backend is up until connects to it fail.
    Off,
}

/// State before the first probe.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Initial {
    /// Up.
    Up,
    /// Down until the first success.
    Down,
}

/// One target of a pool.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Backend", extend("required" = ["address"]))]
pub(super) struct RawBackend {
    /// Name in status, logs and metrics, unique in the pool. Default: the address.
    pub(super) name: Option<String>,
    /// "address:port", or "name:port" which is resolved outside the accept path; without a port, the one the client used. Required.
    pub(super) address: Option<String>,
    /// Share of connections relative to the others; 0 gets no new ones.
    pub(super) weight: u16,
    /// Connections at most; 0 is no limit.
    pub(super) max_connections: u32,
    /// false gets no new connections and no probes.
    pub(super) enabled: bool,
}

impl Default for RawBackend {
    fn default() -> Self {
        Self { name: None, address: None, weight: 1, max_connections: 0, enabled: true }
    }
}

impl From<LogFormat> for model::config::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Auto => Self::Auto,
            LogFormat::Pretty => Self::Pretty,
            LogFormat::Json => Self::Json,
        }
    }
}

impl From<Protocol> for model::config::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl From<Relay> for model::config::RelayChoice {
    fn from(relay: Relay) -> Self {
        match relay {
            Relay::Auto => Self::Auto,
            Relay::Copy => Self::Copy,
            Relay::Sockmap => Self::Sockmap,
            Relay::SkMsg => Self::SkMsg,
            Relay::Splice => Self::Splice,
        }
    }
}

impl From<Strategy> for model::config::StrategyKind {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::RoundRobin => Self::RoundRobin,
            Strategy::WeightedRoundRobin => Self::WeightedRoundRobin,
            Strategy::LeastConnections => Self::LeastConnections,
            Strategy::FastestResponseTime => Self::FastestResponseTime,
            Strategy::Adaptive => Self::Adaptive,
            Strategy::SourceHash => Self::SourceHash,
        }
    }
}

impl From<WhenAllDown> for model::config::WhenAllDown {
    fn from(choice: WhenAllDown) -> Self {
        match choice {
            WhenAllDown::Refuse => Self::Refuse,
            WhenAllDown::TryAll => Self::TryAll,
        }
    }
}

impl From<Initial> for model::config::Status {
    fn from(initial: Initial) -> Self {
        match initial {
            Initial::Up => Self::Up,
            Initial::Down => Self::Down,
        }
    }
}
