//! The configuration after validation: what every other part of Lemonade may rely on.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::forward::Forwarding;
use super::relay::KernelRelay;

/// Name of a frontend, pool or backend, cheap to clone.
///
/// Frontends and pools match `[a-z0-9_-]{1,64}`; a backend's default name is its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(Arc<str>);

impl Name {
    /// Wraps a text that the caller has validated.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A whole validated configuration; frontends refer only to pools that exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[admin]`
    pub admin: Admin,
    /// `[log]`
    pub log: Log,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[frontend.NAME]`, at least one.
    pub frontends: BTreeMap<Name, Arc<Frontend>>,
    /// `[pool.NAME]`
    pub pools: BTreeMap<Name, Arc<Pool>>,
}

impl Config {
    /// Whether frontends with protocol = "udp" use the pool and no other do.
    pub fn is_of_datagrams(&self, pool: &Name) -> bool {
        let mut users = self.frontends.values().filter(|frontend| frontend.pool == *pool).peekable();
        users.peek().is_some() && users.all(|frontend| frontend.protocol == Protocol::Udp)
    }

    /// Whether frontends with data_plane = "forward" use the pool and no other do.
    pub fn is_forwarded(&self, pool: &Name) -> bool {
        let mut users = self.frontends.values().filter(|frontend| frontend.pool == *pool).peekable();
        users.peek().is_some() && users.all(|frontend| frontend.forward.is_some())
    }
}

/// `[runtime]`: what belongs to the process.
#[derive(Clone, Debug, PartialEq)]
pub struct Runtime {
    /// Worker threads; `None` is one per core. Not reloadable.
    pub workers: Option<usize>,
    /// Time that draining connections get before they are reset.
    pub drain_timeout: Duration,
    /// Time between "not ready" and "not accepting".
    pub lame_duck: Duration,
    /// Connections in total; `None` follows the descriptor limit.
    pub max_connections: Option<u32>,
    /// Folder of journal, hash seed and instance lock; `None` is the platform's. Not reloadable.
    pub state_dir: Option<PathBuf>,
    /// Text the flow hash is seeded with; `None` is made once and kept in the state folder.
    pub hash_seed: Option<String>,
    /// Bytes of a relay buffer, borrowed for the time of one copy. Not reloadable.
    pub relay_buffer: usize,
    /// Health probes started per second over all pools.
    pub probes_per_second: u32,
}

/// `[admin]`: where the operator looks and acts. Not reloadable.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Unix socket for reads and changes; `None` is the platform's place.
    pub socket: Option<PathBuf>,
    /// HTTP address for reads; `None` is off.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub level: String,
    /// Shape of a line. Not reloadable.
    pub format: LogFormat,
    /// Where access records go.
    pub access: AccessLog,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// Where access records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// To the log.
    On,
    /// Nowhere.
    Off,
    /// To a file, one JSON object a line.
    File(PathBuf),
}

/// `[telemetry]`: what is sent by OTLP.
#[derive(Clone, PartialEq)]
pub struct Telemetry {
    /// URL of the receiver, `http`, without a slash at its end; `None` is off.
    pub endpoint: Option<String>,
    /// Time between two reports of the metrics.
    pub interval: Duration,
    /// Share of connections that get a span, from 0 to 1.
    pub sample: f64,
    /// Name of this service at the receiver.
    pub service_name: String,
    /// Headers of each request.
    pub headers: BTreeMap<String, String>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            endpoint: None,
            interval: Duration::from_secs(10),
            sample: 0.01,
            service_name: "lemonade".to_owned(),
            headers: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for Telemetry {
    /// Leaves the values of headers out: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, interval, sample, service_name, headers } = self;
        f.debug_struct("Telemetry")
            .field("endpoint", endpoint)
            .field("interval", interval)
            .field("sample", sample)
            .field("service_name", service_name)
            .field("headers", &headers.keys())
            .finish()
    }
}

/// `[frontend.NAME]`
#[derive(Clone, Debug, PartialEq)]
pub struct Frontend {
    /// Its name.
    pub name: Name,
    /// Addresses that clients use, ranges expanded, no duplicates.
    pub listen: Vec<SocketAddr>,
    /// What clients speak on them.
    pub protocol: Protocol,
    /// Pool that serves it; exists in the same configuration.
    pub pool: Name,
    /// What it asks of the forward plane; `None` is the proxy.
    pub forward: Option<Forwarding>,
    /// Relay that the user asks for.
    pub relay: RelayChoice,
    /// Folder of the cgroup whose sockets relay `sk_msg` may touch besides Lemonade's own.
    pub accelerate_cgroup: Option<PathBuf>,
    /// Connections at most; 0 is no limit of its own.
    pub max_connections: u32,
    /// Time one connect to a backend may take.
    pub connect_timeout: Duration,
    /// Start a second connect when the first is this late; `None` is off.
    pub hedge_after: Option<Duration>,
    /// Close a connection or session without a byte in either direction for this long.
    pub idle_timeout: Duration,
    /// TCP keepalive idle time and interval; `None` is off.
    pub keepalive: Option<Duration>,
    /// TCP_USER_TIMEOUT (RFC 5482); `None` is the kernel's.
    pub user_timeout: Option<Duration>,
}

/// `protocol` of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams, those of one client and one of its ports together a session.
    Udp,
}

impl Protocol {
    /// Name in configuration, status and the journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Frontend {
    /// Whether it listens on loopback only, where packets meet no program.
    pub fn on_loopback(&self) -> bool {
        self.listen.iter().all(|address| address.ip().to_canonical().is_loopback())
    }
}

/// `relay` of a frontend, as far as this build carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelayChoice {
    /// `Splice` where packets meet its programs, `Copy` elsewhere.
    Auto,
    /// Userspace copy.
    Copy,
    /// `sk_skb` in the kernel for connections that last, `copy` for the rest.
    Sockmap,
    /// `copy`, whose hops within this host skip TCP by `sk_msg`.
    SkMsg,
    /// Packets pass between the two connections, for connections that last; `copy` for the rest.
    Splice,
}

impl RelayChoice {
    /// Name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Copy => "copy",
            Self::Sockmap => "sockmap",
            Self::SkMsg => "sk_msg",
            Self::Splice => "splice",
        }
    }

    /// Whether connections may pass to `relay`: it is asked for, or `auto` takes it where that is possible.
    pub const fn takes(self, relay: KernelRelay) -> bool {
        match self {
            Self::Auto => matches!(relay, KernelRelay::Splice),
            Self::Copy => false,
            Self::Sockmap => matches!(relay, KernelRelay::Sockmap),
            Self::SkMsg => matches!(relay, KernelRelay::SkMsg),
            Self::Splice => matches!(relay, KernelRelay::Splice),
        }
    }

    /// The relay in the kernel that is asked for by name.
    pub const fn kernel(self) -> Option<KernelRelay> {
        match self {
            Self::Auto | Self::Copy => None,
            Self::Sockmap => Some(KernelRelay::Sockmap),
            Self::SkMsg => Some(KernelRelay::SkMsg),
            Self::Splice => Some(KernelRelay::Splice),
        }
    }
}

/// `[pool.NAME]`
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: Name,
    /// How a backend is picked.
    pub strategy: StrategyKind,
    /// Other backends tried after the first.
    pub retries: u32,
    /// Share of connects that may be retries, over a floor of 10 per second.
    pub retry_budget: f64,
    /// What happens when no backend is up.
    pub when_all_down: WhenAllDown,
    /// Connections that may wait when every backend is full; 0 refuses.
    pub queue: u32,
    /// Time a connection may wait.
    pub queue_timeout: Duration,
    /// Own address on the way to the backends; `None` lets the kernel choose.
    pub source: Option<IpAddr>,
    /// Health policy.
    pub health: Health,
    /// At least one; names and targets are unique.
    pub backends: Vec<Backend>,
}

/// The strategies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyKind {
    /// In turn.
    RoundRobin,
    /// In turn, in proportion to weight, evenly spaced.
    WeightedRoundRobin,
    /// Fewest live connections per weight.
    LeastConnections,
    /// Lowest peak-EWMA latency of two random candidates.
    FastestResponseTime,
    /// Lowest score of connections, latency and errors of two random candidates.
    Adaptive,
    /// By the client's address, in proportion to weight.
    SourceHash,
}

impl StrategyKind {
    /// Each of them.
    pub const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnections,
        Self::FastestResponseTime,
        Self::Adaptive,
        Self::SourceHash,
    ];

    /// Name in configuration, status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::LeastConnections => "least_connections",
            Self::FastestResponseTime => "fastest_response_time",
            Self::Adaptive => "adaptive",
            Self::SourceHash => "source_hash",
        }
    }
}

/// `when_all_down` of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenAllDown {
    /// Refuse at once.
    Refuse,
    /// Treat every enabled backend as up (fail open).
    TryAll,
}

/// `[[pool.NAME.backend]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its name, unique in the pool.
    pub name: Name,
    /// Where it is.
    pub target: Target,
    /// Share of connections relative to the others; 0 gets no new ones.
    pub weight: u32,
    /// Connections at most; 0 is no limit.
    pub max_connections: u32,
    /// `false` gets no new connections and no probes.
    pub enabled: bool,
}

/// Where a backend is. A port of `None` takes the port that the client used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A literal address.
    Address(IpAddr, Option<u16>),
    /// A host name, resolved outside the accept path.
    Host(Arc<str>, Option<u16>),
}

impl Target {
    /// The configured port.
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Address(_, port) | Self::Host(_, port) => *port,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip, Some(port)) => write!(f, "{}", SocketAddr::new(*ip, *port)),
            Self::Address(ip, None) => write!(f, "{ip}"),
            Self::Host(host, Some(port)) => write!(f, "{host}:{port}"),
            Self::Host(host, None) => write!(f, "{host}"),
        }
    }
}

/// `[pool.NAME.health]`
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// What a probe does.
    pub kind: HealthKind,
    /// Time between probes.
    pub interval: Duration,
    /// Time between probes while the state is unsure.
    pub fast_interval: Duration,
    /// Time a probe may take.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that take a backend down.
    pub fall: u32,
    /// State before the first probe.
    pub initial: Status,
    /// Port to probe; `None` is the backend's.
    pub port: Option<u16>,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq)]
pub enum HealthKind {
    /// Nothing: a backend is up until connects to it fail.
    Off,
    /// Connect and close.
    Tcp,
    /// One HTTP/1.1 request.
    Http(HttpCheck),
}

/// One HTTP probe and what counts as success.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    /// Request method.
    pub method: String,
    /// Request target, begins with `/`.
    pub path: String,
    /// `Host` header; empty is the backend's address.
    pub host: String,
    /// Accepted status codes.
    pub expect: Vec<RangeInclusive<u16>>,
    /// Text that the body must contain; empty is anything.
    pub body: String,
}

/// Whether a backend may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It may.
    Up,
    /// It may not.
    Down,
}

impl Status {
    /// Name in status, logs and the journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}
