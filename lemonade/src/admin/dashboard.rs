//! The page for people: its files, which are embedded, what only it reads, and the headers that keep others out.
//!
//! The files are built by `cargo xtask dashboard` from the folder `dashboard` of this package.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use serde_json::json;

use super::AdminWiring;
use super::routes::{Wiring, json};
use super::status::Status;
use crate::doctor::host::Host;
use crate::doctor::report::Report;
use crate::model::relay::{Findings, KernelRelay};
use crate::proxy::adapters::bpf::Unavailable;
use crate::{config, doctor};

/// One embedded file.
struct Asset {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

const ASSETS: [Asset; 4] = [
    Asset {
        path: "/",
        kind: "text/html; charset=utf-8",
        bytes: include_bytes!("../../dashboard/dist/index.html"),
    },
    Asset {
        path: "/dashboard.js",
        kind: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../dashboard/dist/dashboard.js"),
    },
    Asset {
        path: "/dashboard.css",
        kind: "text/css; charset=utf-8",
        bytes: include_bytes!("../../dashboard/dist/dashboard.css"),
    },
    Asset {
        path: "/icon.svg",
        kind: "image/svg+xml",
        bytes: include_bytes!("../../dashboard/dist/icon.svg"),
    },
];

/// Nothing but the page's own files, and nobody may put it into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const GUARDS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Age of a status that is still shown to another viewer.
const FRESH: Duration = Duration::from_millis(500);

/// The page and what only it reads.
pub(super) fn routes() -> Router<Arc<AdminWiring>> {
    let pages = ASSETS.iter().fold(Router::new(), |router, asset| {
        let tag = asset.tag();
        router.route(asset.path, get(async move |headers: HeaderMap| asset.answer(&tag, &headers)))
    });
    pages
        .route("/api/v1/config", get(config_in_force))
        .route("/api/v1/schema", get(schema))
        .route("/api/v1/doctor", get(doctor_report))
}

/// Adds to any answer what keeps it from other pages and from caches; an answer's own `Cache-Control` stays.
pub(super) async fn guard(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in GUARDS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The status, read at most twice a second however many viewers ask.
pub(super) fn shared_status() -> MethodRouter<Arc<AdminWiring>> {
    let kept = Arc::new(Mutex::new(None::<(Instant, Bytes)>));
    get(async move |State(wiring): Wiring| {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = kept.as_ref().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, bytes)| bytes.clone());
        let bytes = match fresh {
            Some(bytes) => bytes,
            None => match serde_json::to_vec(&Status::read(&wiring, SystemTime::now())) {
                Ok(bytes) => kept.insert((Instant::now(), bytes.into())).1.clone(),
                Err(error) => {
                    let why = format!("cannot write the answer: {error}\n");
                    return (StatusCode::INTERNAL_SERVER_ERROR, why).into_response();
                }
            },
        };
        ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
    })
}

impl Asset {
    /// Differs between builds whose bytes do.
    fn tag(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.bytes.hash(&mut hasher);
        format!("\"{:016x}\"", hasher.finish())
    }

    fn answer(&self, tag: &str, headers: &HeaderMap) -> Response {
        let own =
            [(header::CONTENT_TYPE, self.kind), (header::CACHE_CONTROL, "no-cache"), (header::ETAG, tag)];
        if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
            return (StatusCode::NOT_MODIFIED, own).into_response();
        }
        (own, self.bytes).into_response()
    }
}

/// The JSON schema of the configuration.
#[utoipa::path(get, path = "/api/v1/schema", tag = "reads", responses((status = 200, description = "The schema", body = Object)))]
pub(super) async fn schema() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], config::schema()).into_response()
}

/// The configuration in force, every key with its value.
#[utoipa::path(get, path = "/api/v1/config", tag = "reads", responses(
    (status = 200, description = "File, version and configuration", body = Object),
    (status = 503, description = "No configuration applied yet", body = String, content_type = "text/plain"),
))]
pub(super) async fn config_in_force(State(wiring): Wiring) -> Response {
    let (table, version) = {
        let control = wiring.control.borrow();
        (Arc::clone(&control.table), control.accepted.version)
    };
    let Some(config) = &table.config else {
        return (StatusCode::SERVICE_UNAVAILABLE, "no configuration applied yet\n").into_response();
    };
    let file = wiring.config_file.display().to_string();
    json(StatusCode::OK, &json!({ "file": file, "version": version, "config": config::written(config) }))
}

/// The self-tests of relays that this process has run.
fn tried(wiring: &AdminWiring) -> doctor::AllTried {
    let relays = wiring.metrics.snapshot().relays;
    KernelRelay::ALL.map(|relay| {
        let findings = relays.iter().find(|own| own.relay == relay).map(|own| own.findings.clone());
        let Findings { why, tests } = findings.unwrap_or_default();
        if !tests.is_empty() {
            return Ok(tests);
        }
        let why = if why.is_empty() { "no frontend has asked for it yet".to_owned() } else { why };
        Err(Unavailable { why, cure: "`lemonade doctor` tries it, as root".to_owned() })
    })
}

/// What `lemonade doctor --config FILE --json` prints, of this process.
#[utoipa::path(get, path = "/api/v1/doctor", tag = "reads", responses((status = 200, description = "The report", body = Object)))]
pub(super) async fn doctor_report(State(wiring): Wiring) -> Response {
    /// Programs are loaded to see whether the kernel takes them: once, whoever asks.
    static HOST: OnceLock<Report> = OnceLock::new();
    let examined = tokio::task::spawn_blocking(move || {
        // What this process has tried itself; trying it once more would disturb what is in use.
        let tried = tried(&wiring);
        let relays = doctor::relay_sections(tried.clone());
        let mut report = HOST.get_or_init(|| doctor::examine(None, tried)).clone();
        report.sections.retain(|section| relays.iter().all(|own| own.name != section.name));
        let table = Arc::clone(&wiring.control.borrow().table);
        let config = table.config.as_ref();
        report.configuration =
            config.map(|config| doctor::configuration(&wiring.config_file, config, &Host::read(), &relays));
        report.sections.extend(relays);
        report
    });
    match examined.await {
        Ok(report) => json(StatusCode::OK, &report),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot look at this host: {error}\n"))
            .into_response(),
    }
}
