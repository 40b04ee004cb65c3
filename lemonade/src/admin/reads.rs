//! Reads with a query: connections, why, journal, series, events.

use std::time::SystemTime;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::connections::{self, Named, Row};
use super::events::{self, Wanted};
use super::query;
use super::routes::{Wiring, json};
use super::serve::Streaming;
use super::words;
use crate::control::journal::{Entry, Kind};
use crate::metrics::port::{BackendSeries, Sample};
use crate::model::Name;
use crate::proxy::port::Which;

type Asked<T> = Result<Query<T>, QueryRejection>;

/// Journal lines of an answer at most, and when nothing is said.
const LINES: (usize, usize) = (1_000, 50);

/// Samples of an answer over all series, so that its size is bounded.
const SAMPLES: usize = 60_000;

fn bad(why: impl std::fmt::Display) -> Response {
    (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response()
}

/// Connections that exist, or the ended ones that are remembered.
#[utoipa::path(get, path = "/api/v1/connections", tag = "reads", params(connections::Query), responses(
    (status = 200, description = "A page of them", body = connections::Page),
    (status = 400, description = "What is wrong with the query", body = String, content_type = "text/plain"),
))]
pub(super) async fn connections(State(wiring): Wiring, asked: Asked<connections::Query>) -> Response {
    let Query(query) = match asked {
        Ok(query) => query,
        Err(error) => return bad(query::words(&error)),
    };
    let which = if query.ended { Which::Ended } else { Which::Live };
    let listed = wiring.plane.connections(which, &|_| true);
    match connections::page(listed, &query, wiring.clock.now(), &wiring.clock) {
        Ok(page) => json(StatusCode::OK, &page),
        Err(why) => bad(why),
    }
}

/// A connection that is asked about.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WhyQuery {
    /// Its number, `CLIENT:PORT`, `CLIENT:PORT->ADDRESS:PORT`, or a client for its newest.
    connection: String,
}

/// The newest connection that is meant, whether it lives, ended or was refused, with the decision about it.
#[utoipa::path(get, path = "/api/v1/why", tag = "reads", params(WhyQuery), responses(
    (status = 200, description = "The connection", body = Row),
    (status = 400, description = "What is wrong with the query", body = String, content_type = "text/plain"),
    (status = 404, description = "There is none", body = String, content_type = "text/plain"),
))]
pub(super) async fn why(State(wiring): Wiring, asked: Asked<WhyQuery>) -> Response {
    let Query(WhyQuery { connection }) = match asked {
        Ok(query) => query,
        Err(error) => return bad(query::words(&error)),
    };
    let named = match Named::parse(&connection) {
        Ok(named) => named,
        Err(why) => return bad(why),
    };
    let newest = |which| {
        let meant = wiring.plane.connections(which, &|own| named.means(own));
        meant.into_iter().max_by_key(|own| (own.started, own.id))
    };
    // A flow of packets in the kernel has no number; it is as new as it is young.
    let found = [Which::Live, Which::Ended].into_iter().filter_map(newest);
    match found.max_by_key(|own| (own.started, own.id)) {
        Some(found) => json(StatusCode::OK, &Row::of(&found, wiring.clock.now(), &wiring.clock)),
        None => {
            let why = format!(
                "no connection `{}`: it never was, or ended too long ago; `lemonade connections --ended` lists those that are remembered, the access log has all\n",
                words::clean(&connection)
            );
            (StatusCode::NOT_FOUND, why).into_response()
        }
    }
}

/// Which lines of the journal.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JournalQuery {
    /// Lines, 1,000 at most.
    limit: Option<usize>,
    /// RFC 3339; lines from then on.
    since: Option<String>,
    /// RFC 3339; lines until then.
    until: Option<String>,
    /// What the lines are about.
    #[param(inline)]
    what: Option<Kind>,
    /// Text that a sentence of the line contains.
    filter: Option<String>,
}

/// Lines of the journal, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Lines {
    /// Lines.
    pub entries: Vec<Entry>,
}

/// What was changed, when, by whom and with what result.
#[utoipa::path(get, path = "/api/v1/journal", tag = "reads", params(JournalQuery), responses(
    (status = 200, description = "The lines", body = Lines),
    (status = 400, description = "What is wrong with the query", body = String, content_type = "text/plain"),
))]
pub(super) async fn journal(State(wiring): Wiring, asked: Asked<JournalQuery>) -> Response {
    let Query(query) = match asked {
        Ok(query) => query,
        Err(error) => return bad(query::words(&error)),
    };
    let mut bounds = [None, None];
    for (bound, (key, text)) in bounds.iter_mut().zip([("since", &query.since), ("until", &query.until)]) {
        let Some(text) = text else { continue };
        match humantime::parse_rfc3339(text) {
            Ok(time) => *bound = Some(humantime::format_rfc3339_millis(time).to_string()),
            Err(_) => return bad(format!("{key}: write a time such as 2026-11-25T14:02:00Z")),
        }
    }
    let [since, until] = bounds;
    let limit = query.limit.unwrap_or(LINES.1).min(LINES.0);
    let mut entries = wiring.journal.tail(LINES.0 * 10);
    // Times in one format and one zone sort as text.
    entries.retain(|entry| {
        since.as_ref().is_none_or(|since| entry.time >= *since)
            && until.as_ref().is_none_or(|until| entry.time <= *until)
            && query.what.is_none_or(|what| entry.what == what)
            && query.filter.as_ref().is_none_or(|text| entry.diff.iter().any(|line| line.contains(text)))
    });
    entries.drain(..entries.len().saturating_sub(limit));
    json(StatusCode::OK, &Lines { entries })
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SeriesQuery {
    /// Seconds.
    last: Option<usize>,
    /// Only this one, exactly.
    frontend: Option<String>,
}

/// The time series, a sample a second, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AllSeries {
    /// When it was read.
    pub at: String,
    /// Of the process.
    pub process: Vec<Sample>,
    /// Of each frontend that has one.
    pub frontends: Vec<FrontendSeries>,
    /// Of each backend that has one.
    pub backends: Vec<BackendSeries>,
}

/// Samples of one frontend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FrontendSeries {
    /// Frontend.
    pub name: String,
    /// Samples, oldest first.
    pub samples: Vec<Sample>,
}

/// The time series of the process, its frontends and its backends.
#[utoipa::path(get, path = "/api/v1/series", tag = "reads", params(SeriesQuery), responses(
    (status = 200, description = "The samples", body = AllSeries),
    (status = 400, description = "What is wrong with the query", body = String, content_type = "text/plain"),
))]
pub(super) async fn series(State(wiring): Wiring, asked: Asked<SeriesQuery>) -> Response {
    let Query(query) = match asked {
        Ok(query) => query,
        Err(error) => return bad(query::words(&error)),
    };
    let table = std::sync::Arc::clone(&wiring.control.borrow().table);
    let wanted = |name: &Name| query.frontend.as_deref().is_none_or(|own| own == name.as_str());
    let names: Vec<Name> =
        table.frontends.values().map(|entry| entry.frontend.name.clone()).filter(wanted).collect();
    let mut backends = wiring.metrics.backend_series();
    let last = query.last.unwrap_or(60).clamp(1, SAMPLES / (1 + names.len() + backends.len()).min(SAMPLES));
    for own in &mut backends {
        cut(&mut own.samples, last);
    }
    let samples = |name: Option<&Name>| {
        let mut samples = wiring.metrics.series(name).samples;
        cut(&mut samples, last);
        samples
    };
    let frontend = |name: &Name| FrontendSeries { name: name.to_string(), samples: samples(Some(name)) };
    let frontends = names.iter().map(frontend).filter(|own| !own.samples.is_empty()).collect();
    let at = super::status::rfc3339(SystemTime::now());
    json(StatusCode::OK, &AllSeries { at, process: samples(None), frontends, backends })
}

fn cut<T>(samples: &mut Vec<T>, last: usize) {
    samples.drain(..samples.len().saturating_sub(last));
}

/// What happens to connections, as server-sent events until the reader goes.
#[utoipa::path(get, path = "/api/v1/events", tag = "reads", params(Wanted), responses(
    (status = 200, description = "The stream", body = String, content_type = "text/event-stream"),
    (status = 400, description = "What is wrong with the query", body = String, content_type = "text/plain"),
    (status = 503, description = "Too many readers", body = String, content_type = "text/plain"),
))]
pub(super) async fn events(
    State(wiring): Wiring,
    Extension(streaming): Extension<Streaming>,
    asked: Asked<Wanted>,
) -> Response {
    let Query(wanted) = match asked {
        Ok(query) => query,
        Err(error) => return bad(query::words(&error)),
    };
    if let Err(why) = wanted.check().and_then(|()| wanted.names(&wiring)) {
        return bad(why);
    }
    let Some(body) = events::stream(&wiring, wanted) else {
        let why = format!("{} readers are listening already; try again later\n", events::MAX_READERS);
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    streaming.begin();
    let head = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (head, body).into_response()
}
