//! Changes by the operator: backends, reload, log filter. Through the unix socket only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::AdminWiring;
use super::routes::{Wiring, json};
use super::serve::Peer;
use super::status::rfc3339;
use crate::control::Reload;
use crate::control::controller::waits;
use crate::control::journal::{Entry, Kind};
use crate::control::order::{Done, Order, Refused, RefusedKind};
use crate::control::overrides::{Change, MAX_WEIGHT};

/// Time that a reload gets until its outcome is told.
pub const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A change of one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendChange {
    /// `pool/backend`, or a name that only one pool has.
    pub backend: String,
    /// `"drain"`, `"disable"`, `"enable"` or `{"weight": N}`.
    pub change: Change,
    /// Refuse unless the configuration has this version.
    #[serde(default)]
    pub if_version: Option<u64>,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Outcome {
    /// Configuration version in force.
    pub version: u64,
    /// What changed and what that means, a sentence each; the errors when it was refused.
    pub lines: Vec<String>,
}

/// Drains, disables, enables or weighs a backend.
#[utoipa::path(post, path = "/api/v1/backend", tag = "changes",
    request_body(content = BackendChange, content_type = "application/json"),
    responses(
        (status = 200, description = "What changed", body = Outcome),
        (status = 400, description = "The change cannot be read", body = Outcome),
        (status = 403, description = "Changes go through the unix socket only", body = String, content_type = "text/plain"),
        (status = 404, description = "No such backend", body = Outcome),
        (status = 412, description = "The configuration has another version", body = Outcome),
        (status = 413, description = "The body is larger than 64 KiB", body = String, content_type = "text/plain"),
        (status = 422, description = "It cannot be put in force", body = Outcome),
        (status = 503, description = "Other changes are waiting, or Lemonade is stopping", body = Outcome),
    ))]
pub(super) async fn backend(
    State(wiring): Wiring,
    Extension(peer): Extension<Peer>,
    body: axum::body::Bytes,
) -> Response {
    let asked: BackendChange = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => {
            let why = format!(
                "cannot read the change at line {}, column {}; write JSON such as \
                 {{\"backend\": \"web/a\", \"change\": \"drain\"}}; a change is \"drain\", \"disable\", \"enable\" or \
                 {{\"weight\": 3}} with a whole number from 0 to {MAX_WEIGHT}, and \"if_version\" is a number",
                error.line(),
                error.column()
            );
            return refused(StatusCode::BAD_REQUEST, &wiring, why);
        }
    };
    if let Change::Weight(weight) = asked.change
        && weight > MAX_WEIGHT
    {
        let why = format!("weight {weight} does not fit; write a whole number from 0 to {MAX_WEIGHT}");
        return refused(StatusCode::BAD_REQUEST, &wiring, why);
    }
    let (answer, answered) = oneshot::channel();
    let order = Order {
        target: asked.backend,
        change: asked.change,
        if_version: asked.if_version,
        uid: peer.uid,
        answer,
    };
    if wiring.orders.try_send(order).is_err() {
        let why = "other changes are waiting; try again".to_owned();
        return refused(StatusCode::SERVICE_UNAVAILABLE, &wiring, why);
    }
    match answered.await {
        Ok(Ok(Done { version, lines })) => json(StatusCode::OK, &Outcome { version, lines }),
        Ok(Err(Refused { kind, why })) => {
            let code = match kind {
                RefusedKind::Unknown => StatusCode::NOT_FOUND,
                RefusedKind::Stale => StatusCode::PRECONDITION_FAILED,
                RefusedKind::Failed => StatusCode::UNPROCESSABLE_ENTITY,
            };
            refused(code, &wiring, why)
        }
        Err(_) => {
            let why = "Lemonade is stopping; nothing was changed".to_owned();
            refused(StatusCode::SERVICE_UNAVAILABLE, &wiring, why)
        }
    }
}

/// Reads the file again and waits for what comes of it. One at a time, so that each outcome is that of its own asking.
#[utoipa::path(post, path = "/api/v1/reload", tag = "changes", responses(
    (status = 200, description = "What changed", body = Outcome),
    (status = 403, description = "Changes go through the unix socket only", body = String, content_type = "text/plain"),
    (status = 422, description = "The file is wrong; the last good one stays in force", body = Outcome),
    (status = 503, description = "Other reloads are waiting, or Lemonade is stopping", body = Outcome),
    (status = 504, description = "No outcome within 30 s", body = Outcome),
))]
pub(super) async fn reload(State(wiring): Wiring, Extension(peer): Extension<Peer>) -> Response {
    let done = tokio::time::timeout(RELOAD_TIMEOUT, reloaded(&wiring, peer)).await;
    done.unwrap_or_else(|_| {
        let why = "no outcome within 30 s; `lemonade status` tells it later".to_owned();
        refused(StatusCode::GATEWAY_TIMEOUT, &wiring, why)
    })
}

async fn reloaded(wiring: &Arc<AdminWiring>, peer: Peer) -> Response {
    let _turn = wiring.reloading.lock().await;
    let mut control = wiring.control.clone();
    let (before, old, since) = {
        let state = control.borrow_and_update();
        let Reload { version, at, cause } = &state.accepted;
        (
            state.decided.0,
            *version,
            format!("nothing changed: in force since {} as version {version} ({cause})", rfc3339(*at)),
        )
    };
    let cause = peer.uid.map_or_else(|| "admin".to_owned(), |uid| format!("admin (uid {uid})"));
    if wiring.reloads.try_send(cause.clone()).is_err() {
        let why = "other reloads are waiting; try again".to_owned();
        return refused(StatusCode::SERVICE_UNAVAILABLE, wiring, why);
    }
    let decided = control.wait_for(|state| state.decided.0 > before && state.decided.1 == cause).await;
    let Ok(state) = decided.map(|state| Arc::clone(&state)) else {
        let why = "Lemonade is stopping; nothing was changed".to_owned();
        return refused(StatusCode::SERVICE_UNAVAILABLE, wiring, why);
    };
    let version = state.accepted.version;
    match &state.refused {
        None => {
            let mut tail = wiring.journal.tail(8).into_iter().rev();
            let last = tail.find(|line| line.version == version).filter(|_| version != old);
            let mut lines = last.map(|line| line.diff).unwrap_or_default();
            if lines.is_empty() {
                lines.push(since);
            }
            let told = lines.clone();
            let waiting = state.pending_restart.iter().map(|key| waits(key));
            lines.extend(waiting.filter(|line| !told.contains(line)));
            json(StatusCode::OK, &Outcome { version, lines })
        }
        Some(refusal) => {
            let lines = refusal.errors.lines().map(str::to_owned).collect();
            json(StatusCode::UNPROCESSABLE_ENTITY, &Outcome { version, lines })
        }
    }
}

fn refused(code: StatusCode, wiring: &AdminWiring, why: String) -> Response {
    json(code, &Outcome { version: wiring.control.borrow().accepted.version, lines: vec![why] })
}

/// Changes the filter of the log until the next change, or until `[log] level` changes in the file.
#[utoipa::path(put, path = "/api/v1/log-filter", tag = "changes",
    request_body(content = String, content_type = "text/plain", description = "A filter such as `info,lemonade::health=debug`"),
    responses(
        (status = 200, description = "The filter in force", body = String, content_type = "text/plain"),
        (status = 400, description = "What is wrong with it", body = String, content_type = "text/plain"),
        (status = 403, description = "Changes go through the unix socket only", body = String, content_type = "text/plain"),
        (status = 413, description = "The body is larger than 64 KiB", body = String, content_type = "text/plain"),
    ))]
pub(super) async fn log_filter(
    State(wiring): Wiring,
    Extension(peer): Extension<Peer>,
    filter: String,
) -> Response {
    let before = wiring.log.current();
    let result = wiring.log.set(&filter);
    let mut entry =
        Entry::new(SystemTime::now(), wiring.control.borrow().accepted.version, "admin", Kind::Admin);
    entry.uid = peer.uid;
    entry.diff.push(format!("log filter: {before} -> {}", filter.trim()));
    if let Err(why) = &result {
        entry.result.clone_from(why);
    }
    wiring.journal.append(&entry);
    match result {
        Ok(()) => {
            let now = wiring.log.current();
            tracing::info!(filter = %now, "log filter changed through the admin socket");
            format!(
                "log filter is now {now}, until the next start or until `[log] level` changes in the file\n"
            )
            .into_response()
        }
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}
