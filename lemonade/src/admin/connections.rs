//! Connections as JSON rows: filtered, sorted and cut to a page.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::status::rfc3339;
use super::words;
use crate::metrics::port::Failed;
use crate::model::Moment;
use crate::proxy::clock::Clock;
use crate::proxy::port::Connection;

/// Most rows of a page.
pub const MAX_PAGE: usize = 1_000;

/// Rows of a page when nothing is said.
const PAGE: usize = 100;

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Row {
    /// Number, unique in the process; 0 for a flow of packets in the kernel, which has none.
    pub id: u64,
    /// `connecting`, `established` or `ended`.
    pub state: String,
    /// Frontend it came to.
    pub frontend: String,
    /// Pool of that frontend.
    pub pool: String,
    /// Client.
    #[schema(value_type = String)]
    pub client: SocketAddr,
    /// Address that the client used.
    #[schema(value_type = String)]
    pub local: SocketAddr,
    /// Data plane.
    pub plane: String,
    /// How its bytes are moved.
    pub relay: String,
    /// When it was accepted.
    pub started: String,
    /// When it ended; `None` while it lives.
    pub ended: Option<String>,
    /// Seconds since it was accepted, or from then to its end.
    pub age_seconds: f64,
    /// Whole seconds without a byte.
    pub idle_seconds: u32,
    /// Bytes from client to backend.
    pub bytes_up: u64,
    /// Bytes from backend to client.
    pub bytes_down: u64,
    /// Where it went and why; `None` as long as no backend is connected.
    pub route: Option<RouteRow>,
    /// Backends that were tried in vain, in order.
    #[serde(default)]
    pub failed: Vec<FailedRow>,
    /// How it ended, by name; `None` while it lives.
    pub end: Option<String>,
    /// How it ended, in words.
    pub end_why: Option<String>,
}

/// A backend that was tried in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FailedRow {
    /// Backend.
    pub backend: String,
    /// What went wrong, by name.
    pub fault: String,
    /// What went wrong, in words.
    pub why: String,
}

/// Where a connection went and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RouteRow {
    /// Backend.
    pub backend: String,
    /// Address connected to.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// Strategy that picked it.
    pub strategy: String,
    /// Why this backend, in words.
    pub why: String,
    /// Backends it was picked from.
    pub candidates: u32,
    /// Connects made, the successful one included.
    pub attempts: u32,
    /// Whether it won a race against a late first connect.
    pub hedged: bool,
    /// Version of the table that was consulted; 0 where the kernel picked and does not know.
    pub table_version: u64,
    /// Milliseconds its connect took.
    pub connect_ms: f64,
}

/// A page of connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page {
    /// Connections that exist, or the ended ones that are remembered.
    pub total: usize,
    /// Of them, those that the filter lets through.
    pub matching: usize,
    /// The rows asked for.
    pub connections: Vec<Row>,
}

/// What to list.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Query {
    /// Rows, 1,000 at most.
    pub limit: Option<usize>,
    /// Matching rows to pass over first.
    pub offset: Option<usize>,
    /// Column to sort by: `id`, `age`, `bytes`, `idle`, `connect`; with `-` before it, the largest first.
    pub sort: Option<String>,
    /// Text that frontend, pool, backend, client or address contains.
    pub filter: Option<String>,
    /// Exact name.
    pub frontend: Option<String>,
    /// Exact name, or `pool/name`.
    pub backend: Option<String>,
    /// Whether to list those that ended instead.
    #[serde(default)]
    #[param(required = false)]
    pub ended: bool,
}

impl Row {
    /// Shows `connection` at `now`.
    pub fn of(connection: &Connection, now: Moment, clock: &Clock) -> Self {
        let until = connection.end.map_or(now, |(_, at)| at);
        let state = match (connection.end, &connection.route) {
            (Some(_), _) => "ended",
            (None, Some(_)) => "established",
            (None, None) => "connecting",
        };
        let route = connection.route.as_ref().map(|route| RouteRow {
            backend: route.backend.to_string(),
            address: route.address,
            strategy: route.strategy.as_str().to_owned(),
            why: connection.decision.as_ref().map(ToString::to_string).unwrap_or_default(),
            candidates: route.candidates,
            attempts: route.attempts,
            hedged: route.hedged,
            table_version: route.table_version,
            connect_ms: route.connect.as_micros() as f64 / 1e3,
        });
        Self {
            id: connection.id,
            state: state.to_owned(),
            frontend: connection.frontend.to_string(),
            pool: connection.pool.to_string(),
            client: connection.client,
            local: connection.local,
            plane: connection.plane.to_owned(),
            relay: connection.relay.to_owned(),
            started: rfc3339(clock.wall(connection.started)),
            ended: connection.end.map(|(_, at)| rfc3339(clock.wall(at))),
            age_seconds: age(connection, until).as_micros() as f64 / 1e6,
            idle_seconds: connection.idle_seconds,
            bytes_up: connection.bytes_up,
            bytes_down: connection.bytes_down,
            route,
            failed: connection.failed.iter().map(FailedRow::of).collect(),
            end: connection.end.map(|(end, _)| end.as_str().to_owned()),
            end_why: connection.end.map(|(end, _)| words::end(end).to_owned()),
        }
    }
}

impl FailedRow {
    fn of(own: &Failed) -> Self {
        Self {
            backend: own.backend.to_string(),
            fault: own.fault.as_str().to_owned(),
            why: words::fault(own.fault).to_owned(),
        }
    }
}

fn age(connection: &Connection, until: Moment) -> Duration {
    until.since(connection.started)
}

/// The page of `connections` that `query` asks for.
///
/// # Errors
/// What is wrong with the query and what to write instead.
pub fn page(
    mut connections: Vec<Connection>,
    query: &Query,
    now: Moment,
    clock: &Clock,
) -> Result<Page, String> {
    let total = connections.len();
    connections.retain(|connection| query.lets_through(connection));
    sort(&mut connections, query.sort.as_deref().unwrap_or("age"))?;
    let limit = query.limit.unwrap_or(PAGE).min(MAX_PAGE);
    let rows = connections.iter().skip(query.offset.unwrap_or(0)).take(limit);
    Ok(Page {
        total,
        matching: connections.len(),
        connections: rows.map(|connection| Row::of(connection, now, clock)).collect(),
    })
}

fn sort(connections: &mut [Connection], by: &str) -> Result<(), String> {
    let (column, largest_first) = by.strip_prefix('-').map_or((by, false), |column| (column, true));
    let key: fn(&Connection) -> u64 = match column {
        "id" => |own| own.id,
        "age" => |own| u64::MAX - own.started.0,
        "bytes" => |own| own.bytes_up.saturating_add(own.bytes_down),
        "idle" => |own| u64::from(own.idle_seconds),
        "connect" => |own| own.route.as_ref().map_or(0, |route| route.connect.as_micros() as u64),
        _ => return Err(format!("cannot sort by `{column}`; write id, age, bytes, idle or connect")),
    };
    if largest_first {
        connections.sort_unstable_by_key(|own| (Reverse(key(own)), own.id));
    } else {
        connections.sort_unstable_by_key(|own| (key(own), Reverse(own.id)));
    }
    Ok(())
}

impl Query {
    fn lets_through(&self, own: &Connection) -> bool {
        self.frontend.as_deref().is_none_or(|name| own.frontend.as_str() == name)
            && self.backend.as_deref().is_none_or(|name| carried_by(own, name))
            && self.filter.as_deref().is_none_or(|text| contains(own, text))
    }
}

/// Whether the backend `name`, or `pool/name`, carries it.
pub(super) fn carried_by(own: &Connection, name: &str) -> bool {
    own.route.as_ref().is_some_and(|route| {
        let backend = route.backend.as_str();
        let whole = || name.strip_prefix(route.pool.as_str()).and_then(|rest| rest.strip_prefix('/'));
        backend == name || whole() == Some(backend)
    })
}

fn contains(own: &Connection, text: &str) -> bool {
    let route = own.route.as_ref();
    own.frontend.as_str().contains(text)
        || own.pool.as_str().contains(text)
        || route.is_some_and(|route| {
            route.backend.as_str().contains(text) || route.address.to_string().contains(text)
        })
        || own.client.to_string().contains(text)
}

/// Which connection somebody asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// By its number.
    Id(u64),
    /// By client and port, and perhaps the address that it used.
    Tuple(SocketAddr, Option<SocketAddr>),
    /// The newest of a client.
    Client(IpAddr),
}

impl Named {
    /// Reads `17`, `192.0.2.7:5000`, `192.0.2.7:5000->198.51.100.1:80` or `192.0.2.7`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || {
            format!(
                "`{text}` names no connection; write its number, CLIENT:PORT, CLIENT:PORT->ADDRESS:PORT, or CLIENT for its newest"
            )
        };
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if let Ok(client) = text.parse() {
            return Ok(Self::Client(client));
        }
        let (client, local) = text.split_once("->").map_or((text, None), |(own, other)| (own, Some(other)));
        let client = client.trim().parse().map_err(|_| wrong())?;
        let local = local.map(|local| local.trim().parse().map_err(|_| wrong())).transpose()?;
        Ok(Self::Tuple(client, local))
    }

    /// Whether `own` may be meant.
    pub fn means(self, own: &Connection) -> bool {
        match self {
            Self::Id(id) => own.id == id && id != 0,
            Self::Tuple(client, local) => {
                own.client == client && local.is_none_or(|local| own.local == local)
            }
            Self::Client(ip) => own.client.ip() == ip,
        }
    }
}

#[cfg(test)]
mod tests;
