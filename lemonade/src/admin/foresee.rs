//! What would happen: the next pick of a client, and the effect of a configuration.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::AdminWiring;
use super::query;
use super::routes::{Wiring, json};
use super::status::{BackendStatus, Status};
use super::steer::Outcome;
use super::words;
use crate::config::{needs_restart, notes, parse_text};
use crate::control::compile::compile;
use crate::control::controller::diff;
use crate::control::explain::{self, Asked};
use crate::control::overrides::listed;
use crate::control::preview::preview;
use crate::control::table::FrontendEntry;
use crate::model::{Config, StrategyKind};
use crate::proxy::port::{Decision, Which};
use crate::strategy::port::Basis;

/// Most bytes of a configuration that is previewed.
pub const MAX_FILE: usize = 4 * 1024 * 1024;

/// Frontends explained when none is named.
const FRONTENDS: usize = 20;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExplainQuery {
    /// Address of the client, with or without a port.
    client: String,
    /// Frontend; all of them otherwise, the first 20.
    frontend: Option<String>,
}

/// The next pick of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Explained {
    /// Version of the table.
    pub table_version: u64,
    /// Version of the configuration in it.
    pub config_version: u64,
    /// For each frontend asked about.
    pub frontends: Vec<ExplainedFrontend>,
}

/// The next pick of a client of one frontend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedFrontend {
    /// Frontend.
    pub frontend: String,
    /// Pool.
    pub pool: String,
    /// Strategy.
    pub strategy: String,
    /// Backend that would be picked; `None`: the connection would wait or be refused.
    pub next: Option<String>,
    /// Why that one, or why none, in words.
    pub why: String,
    /// Whether it depends on the client's port, which was not given; then `next` is `None`.
    #[serde(default)]
    pub needs_port: bool,
    /// Every backend of the pool.
    pub backends: Vec<ExplainedBackend>,
}

/// How a backend stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedBackend {
    /// Backend.
    pub name: String,
    /// Address.
    pub address: String,
    /// Whether it may be picked now.
    pub eligible: bool,
    /// Why (not), in words.
    pub why: String,
    /// What is known of its health, in words.
    pub health: String,
    /// Share of connections by the configuration and what was changed at run time.
    pub weight: u32,
    /// Connections now.
    pub live: u64,
    /// What a connection to it costs by the strategy's formula, lower is better; `None` for turns.
    pub cost: Option<f64>,
    /// Share of the next picks, 0 to 1, if a thousand came now.
    pub share: f64,
}

/// The next pick of a client, without making it.
#[utoipa::path(get, path = "/api/v1/explain", tag = "reads", params(ExplainQuery), responses(
    (status = 200, description = "What would be picked, and why", body = Explained),
    (status = 400, description = "What is wrong with the query", body = String, content_type = "text/plain"),
))]
pub(super) async fn explain(
    State(wiring): Wiring,
    asked: Result<Query<ExplainQuery>, QueryRejection>,
) -> Response {
    let bad = |why: String| (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response();
    let Query(ExplainQuery { client, frontend }) = match asked {
        Ok(query) => query,
        Err(error) => return bad(query::words(&error)),
    };
    let client = match client.parse::<SocketAddr>() {
        Ok(client) => client,
        Err(_) => match client.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, 0),
            Err(_) => {
                let client = words::clean(&client);
                return bad(format!(
                    "`{client}` is no client; write an address such as 192.0.2.7 or 192.0.2.7:5000"
                ));
            }
        },
    };
    let table = Arc::clone(&wiring.control.borrow().table);
    let all = || table.frontends.values();
    let wanted: Vec<_> = match &frontend {
        None => all().take(FRONTENDS).collect(),
        Some(name) => all().filter(|entry| entry.frontend.name.as_str() == name).collect(),
    };
    if wanted.is_empty() {
        let names = listed(all().map(|entry| &entry.frontend.name));
        return bad(format!(
            "no frontend `{}`; there are: {names}",
            words::clean(&frontend.unwrap_or_default())
        ));
    }
    let status = Status::read(&wiring, SystemTime::now());
    let frontends = wanted.into_iter().map(|entry| explained(&wiring, &status, entry, client)).collect();
    let Status { config, .. } = &status;
    json(
        StatusCode::OK,
        &Explained { table_version: table.version, config_version: config.version, frontends },
    )
}

fn explained(
    wiring: &AdminWiring,
    status: &Status,
    entry: &FrontendEntry,
    client: SocketAddr,
) -> ExplainedFrontend {
    let pool = &entry.pool;
    let real = status.frontends.iter().find(|own| own.name == entry.frontend.name.as_str());
    let local = real.and_then(|own| own.listening.first()).or_else(|| entry.frontend.listen.first());
    let local = local.copied().unwrap_or(client);
    let asked = Asked { client, local, seed: wiring.seed, now: wiring.clock.now() };
    let forwarded = entry.cell.plane.forwarded().then(|| explain::explain_forwarded(entry, asked)).flatten();
    let in_kernel = forwarded.is_some();
    let found = forwarded.unwrap_or_else(|| explain::explain(pool, asked));
    let needs_port = in_kernel && found.next.is_none() && client.port() == 0 && !pool.candidates.is_empty();
    let full = entry.frontend.max_connections;
    let over = full > 0 && entry.cell.live.load(Ordering::Relaxed) >= full;
    let (next, why) = match found.next {
        _ if over => (None, format!("it would be refused: the frontend is at its max_connections ({full})")),
        Some((position, basis)) => {
            let backend = &pool.backends[position];
            let rival = match basis {
                Basis::Cheaper { rival, .. } => pool.backends.get(rival as usize),
                Basis::Former
                | Basis::Only
                | Basis::Turn(_)
                | Basis::Passed(_)
                | Basis::Slot(_)
                | Basis::Lowest { .. }
                | Basis::Counted => None,
            };
            let rival = rival.map(|rival| rival.id.name.clone());
            let mut why = Decision { basis, rival }.to_string();
            if in_kernel {
                why.push_str(lowered(pool.pool.strategy));
            }
            if client.port() == 0 && matches!(basis, Basis::Cheaper { .. }) {
                why.push_str("; which two are drawn depends on the client's port");
            }
            (Some(backend.id.name.to_string()), why)
        }
        None if needs_port => {
            let ip = client.ip();
            let example = SocketAddr::new(ip, 5000);
            (None, format!("the kernel picks by the client's port too; give CLIENT:PORT, such as {example}"))
        }
        None => (None, without_backend(entry)),
    };
    let shown = status.pools.iter().find(|own| own.name == pool.pool.name.as_str());
    let shown: &[BackendStatus] = shown.map_or(&[], |own| &own.backends);
    // Both are in the order of the table.
    let rows = pool.backends.iter().zip(found.backends).enumerate().map(|(at, (backend, standing))| {
        let status = shown.get(at).filter(|own| own.name == backend.id.name.as_str());
        let (eligible, why) = match standing.verdict {
            Ok(why) => (true, why),
            Err(why) => (false, why),
        };
        ExplainedBackend {
            name: backend.id.name.to_string(),
            address: backend.id.address(local.port()).to_string(),
            eligible,
            why,
            health: status.map(|own| own.why.clone()).unwrap_or_default(),
            weight: backend.backend.weight,
            live: u64::from(backend.cell.live.load(Ordering::Relaxed)),
            cost: standing.cost,
            share: standing.share,
        }
    });
    ExplainedFrontend {
        frontend: entry.frontend.name.to_string(),
        pool: pool.pool.name.to_string(),
        strategy: pool.pool.strategy.as_str().to_owned(),
        next,
        why,
        needs_port: needs_port && !over,
        backends: rows.collect(),
    }
}

/// How the kernel does what a strategy does.
const fn lowered(strategy: StrategyKind) -> &'static str {
    match strategy {
        StrategyKind::SourceHash => "",
        StrategyKind::RoundRobin => {
            "; in the kernel round_robin is a ring with equal shares, by the hash of addresses and ports, without turns"
        }
        StrategyKind::WeightedRoundRobin => {
            "; in the kernel weighted_round_robin is a ring with shares by weight, by the hash of addresses and ports"
        }
        StrategyKind::LeastConnections => {
            "; the kernel compares its own counts when the flow comes, and of more than 16 backends those of two"
        }
        StrategyKind::FastestResponseTime | StrategyKind::Adaptive => {
            "; in the kernel the strategy is a ring with shares by what it knew when the ring was made"
        }
    }
}

/// What happens to a connection that no backend can be picked for.
fn without_backend(entry: &FrontendEntry) -> String {
    use lemonade_common::Reason;
    let pool = &entry.pool;
    if pool.candidates.is_empty() {
        return format!("it would be refused: {}", words::refusal(Reason::NoBackendUp));
    }
    match pool.pool.queue {
        0 => format!("it would be refused: {}", words::refusal(Reason::BackendsFull)),
        queue => {
            let waiting = pool.cell.queued.load(Ordering::Relaxed);
            format!(
                "it would wait: every backend is full, {waiting} of {queue} places in the queue are taken"
            )
        }
    }
}

/// What a configuration would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Planned {
    /// Version of the configuration in force.
    pub version: u64,
    /// What would change, a sentence each; empty: nothing.
    pub changes: Vec<String>,
    /// What is right in the file and yet surely not meant.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What would take effect only at the next start.
    pub pending_restart: Vec<String>,
    /// Live connections that would get the drain timeout and then be reset, by what takes them along.
    pub drained: BTreeMap<String, usize>,
    /// Live connections of what has left before and is draining already, by what that is.
    #[serde(default)]
    pub draining: BTreeMap<String, usize>,
    /// The drain timeout in seconds.
    pub drain_timeout_seconds: f64,
    /// Live connections that nothing would happen to.
    pub untouched: usize,
    /// Shares of picks that would change.
    pub shares: Vec<PlannedShare>,
    /// Share of ring slots that would go to another backend, 0 to 1, by pool whose flows go by a ring.
    pub slots_moved: BTreeMap<String, f64>,
}

/// The share of picks of one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlannedShare {
    /// `pool/backend`.
    pub backend: String,
    /// Share now, 0 to 1; `None`: it is new.
    pub before: Option<f64>,
    /// Share then; `None`: it leaves.
    pub after: Option<f64>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PlanQuery {
    /// Name of the file in errors.
    file: Option<String>,
}

/// What a configuration would change, without changing it.
#[utoipa::path(post, path = "/api/v1/plan", tag = "changes", params(PlanQuery),
    request_body(content = String, content_type = "text/plain", description = "The configuration, TOML"),
    responses(
        (status = 200, description = "What it would change", body = Planned),
        (status = 400, description = "The query or the text cannot be read", body = String, content_type = "text/plain"),
        (status = 403, description = "Over TCP", body = String, content_type = "text/plain"),
        (status = 413, description = "The text is larger than 4 MiB", body = String, content_type = "text/plain"),
        (status = 422, description = "Every error of the configuration", body = Outcome),
    ))]
pub(super) async fn plan(
    State(wiring): Wiring,
    asked: Result<Query<PlanQuery>, QueryRejection>,
    text: String,
) -> Response {
    let Query(PlanQuery { file }) = match asked {
        Ok(query) => query,
        Err(error) => {
            return (StatusCode::BAD_REQUEST, format!("{}\n", query::words(&error))).into_response();
        }
    };
    let name = file.unwrap_or_else(|| "the configuration".to_owned());
    match parse_text(Path::new(&name), &text, &wiring.environment) {
        Ok(config) => json(StatusCode::OK, &planned(&wiring, &Arc::new(config))),
        Err(error) => {
            let version = wiring.control.borrow().accepted.version;
            let lines = error.to_string().lines().map(str::to_owned).collect();
            json(StatusCode::UNPROCESSABLE_ENTITY, &Outcome { version, lines })
        }
    }
}

fn planned(wiring: &AdminWiring, file: &Arc<Config>) -> Planned {
    let control = wiring.control.borrow().clone();
    let before = &control.table;
    let in_force = control.file.as_ref();
    let (overrides, ended) = match in_force {
        Some(old) => control.overrides.follow(old, file),
        None => Default::default(),
    };
    let config = overrides.lay_over(file);
    let health = wiring.health_view.borrow().clone();
    let resolution = wiring.resolution.borrow().clone();
    let after = compile(&config, before.config_version + 1, &health, &resolution, before);
    let found =
        preview(before, &after, &wiring.plane.connections(Which::Live, &|_| true), wiring.clock.now());
    let mut changes = diff(before, &after);
    changes.extend(ended);
    let shares = found.shares.into_iter().map(|own| PlannedShare {
        backend: format!("{}/{}", own.pool, own.backend),
        before: own.before,
        after: own.after,
    });
    Planned {
        version: control.accepted.version,
        changes,
        notes: notes(&config),
        pending_restart: in_force.map(|old| needs_restart(old, file)).unwrap_or_default(),
        drained: found.drained,
        draining: found.leaving,
        drain_timeout_seconds: file.runtime.drain_timeout.as_secs_f64(),
        untouched: found.untouched,
        shares: shares.collect(),
        slots_moved: found.slots.into_iter().map(|(pool, moved)| (pool.to_string(), moved)).collect(),
    }
}
