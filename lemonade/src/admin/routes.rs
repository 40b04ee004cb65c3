//! What is served, and through which door.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde::Serialize;

use super::dump::dump;
use super::status::Status;
use super::{AdminWiring, dashboard, foresee, reads, steer};
use crate::metrics::adapters::prometheus;
use crate::shutdown::Phase;

/// Most bytes of a request's body.
const MAX_BODY: usize = 64 * 1024;

/// Time for one request, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a look at the host, for which the kernel checks every program.
const DOCTOR_TIMEOUT: Duration = Duration::from_secs(30);

/// How a request came in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Door {
    /// The unix socket: reads and changes, for whoever may open its file.
    Unix,
    /// This TCP address: reads.
    Tcp(SocketAddr),
}

pub(super) type Wiring = State<Arc<AdminWiring>>;

/// Everything that `door` offers.
pub(super) fn router(wiring: Arc<AdminWiring>, door: Door) -> Router {
    let status = match door {
        Door::Unix => get(status),
        Door::Tcp(_) => dashboard::shared_status(),
    };
    let reads = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/openapi.json", get(openapi))
        .route("/api/v1/status", status)
        .route("/api/v1/dump", get(dump_all))
        .route("/api/v1/connections", get(reads::connections))
        .route("/api/v1/why", get(reads::why))
        .route("/api/v1/journal", get(reads::journal))
        .route("/api/v1/series", get(reads::series))
        .route("/api/v1/events", get(reads::events))
        .route("/api/v1/explain", get(foresee::explain))
        .merge(dashboard::routes());
    let routes = match door {
        Door::Unix => reads
            .route("/api/v1/log-filter", put(steer::log_filter))
            .route("/api/v1/reload", post(steer::reload))
            .route("/api/v1/backend", post(steer::backend))
            .route("/api/v1/plan", post(foresee::plan).layer(DefaultBodyLimit::max(foresee::MAX_FILE))),
        Door::Tcp(_) => reads
            .route("/api/v1/log-filter", put(elsewhere))
            .route("/api/v1/reload", post(elsewhere))
            .route("/api/v1/backend", post(elsewhere))
            .route("/api/v1/plan", post(elsewhere)),
    };
    routes
        .fallback(async || {
            (StatusCode::NOT_FOUND, "no such page; the guide lists them: docs/guide/admin.md\n")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(move |request, next| within_bounds(door, request, next)))
        .layer(middleware::map_response(dashboard::guard))
        .with_state(wiring)
}

async fn within_bounds(door: Door, request: Request, next: Next) -> Response {
    if let Door::Tcp(address) = door
        && !is_own_name(request.headers(), address)
    {
        let why = "the Host header is not an address of this interface: use its IP address or `localhost`\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let limit = time_for(request.uri().path());
    let answer = tokio::time::timeout(limit, next.run(request)).await;
    answer.unwrap_or_else(|_| {
        let why = format!("the request took longer than {} s\n", limit.as_secs());
        (StatusCode::REQUEST_TIMEOUT, why).into_response()
    })
}

fn time_for(path: &str) -> Duration {
    match path {
        "/api/v1/reload" => steer::RELOAD_TIMEOUT + REQUEST_TIMEOUT,
        "/api/v1/doctor" => DOCTOR_TIMEOUT,
        _ => REQUEST_TIMEOUT,
    }
}

/// Whether `Host` is an address, so that no page can read this interface by a name that it controls (DNS rebinding).
fn is_own_name(headers: &HeaderMap, address: SocketAddr) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().is_ok_and(|ip| {
        let public = !address.ip().to_canonical().is_loopback();
        public || ip.to_canonical().is_loopback() || ip == address.ip()
    })
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/healthz", tag = "reads", responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn healthz() -> &'static str {
    "alive\n"
}

/// The description of this interface.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "reads", responses((status = 200, description = "An OpenAPI document", body = Object)))]
async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi::document()).into_response()
}

/// Whether it is running with its first table applied.
#[utoipa::path(get, path = "/readyz", tag = "reads", responses(
    (status = 200, description = "Ready", body = String, content_type = "text/plain"),
    (status = 503, description = "Not ready, with the phase", body = String, content_type = "text/plain"),
))]
async fn readyz(State(wiring): Wiring) -> Response {
    let phase = *wiring.phase.borrow();
    let applied = wiring.control.borrow().table.config.is_some();
    match phase {
        Phase::Running if applied => "ready\n".into_response(),
        Phase::Running => {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: no table applied yet\n").into_response()
        }
        Phase::Starting | Phase::LameDuck | Phase::Draining | Phase::Forced | Phase::Stopped => {
            let why = format!("not ready: {}\n", phase_words(phase));
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

/// Words for a phase.
pub(super) const fn phase_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::LameDuck => "lame duck",
        Phase::Draining => "draining",
        Phase::Forced => "forced",
        Phase::Stopped => "stopped",
    }
}

/// Counters for Prometheus: OpenMetrics 1.0 to readers that ask for it, text 0.0.4 to others.
#[utoipa::path(get, path = "/metrics", tag = "reads", responses((status = 200, description = "The metrics", content(
    (String = "text/plain"),
    (String = "application/openmetrics-text"),
))))]
async fn metrics(State(wiring): Wiring, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let phase = *wiring.phase.borrow();
    let format = prometheus::Format::wanted(accept);
    let text = format.of(prometheus::encode(wiring.metrics.snapshot(), phase));
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}

/// The state of the process.
#[utoipa::path(get, path = "/api/v1/status", tag = "reads", responses((status = 200, description = "The status", body = Status)))]
async fn status(State(wiring): Wiring) -> Response {
    json(StatusCode::OK, &Status::read(&wiring, SystemTime::now()))
}

/// Everything at one moment, for a bug report; no secrets. Its shape changes between versions.
#[utoipa::path(get, path = "/api/v1/dump", tag = "reads", responses((status = 200, description = "The dump", body = Object)))]
async fn dump_all(State(wiring): Wiring) -> Response {
    json(StatusCode::OK, &dump(&wiring, SystemTime::now()))
}

async fn elsewhere() -> Response {
    let why = "changes go through the unix socket only, whatever token comes along: [admin] socket, or `curl --unix-socket`\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the answer: {error}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(host: &str, address: &str) -> bool {
        let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
        is_own_name(&headers, address.parse().unwrap())
    }

    #[test]
    fn a_page_cannot_read_the_interface_by_a_name_of_its_own() {
        let own = "127.0.0.1:9900";
        for host in
            ["127.0.0.1:9900", "127.0.0.1", "localhost:9900", "LocalHost", "[::1]:9900", "127.8.8.8:1"]
        {
            assert!(passes(host, own), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9900",
            "127.0.0.1.evil.example:9900",
            "192.0.2.1:9900",
            "",
            "::x:1",
        ] {
            assert!(!passes(host, own), "{host}");
            assert!(!is_own_name(&HeaderMap::new(), own.parse().unwrap()));
        }
        assert!(passes("192.0.2.1:9900", "0.0.0.0:9900"));
        assert!(passes("[2001:db8::1]:9900", "[::]:9900"));
        assert!(!passes("evil.example:9900", "0.0.0.0:9900"));
    }
}
