//! The two shapes of an access record.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use lemonade_common::Reason;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;

use crate::metrics::port::{AccessRecord, Datagrams, Decision, End, Fault, Route};
use crate::model::config::StrategyKind;

/// Access record of Lemonade: one JSON object a line for each connection, written when it ends.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AccessRecord", deny_unknown_fields)]
struct Line<'a> {
    /// Always `access`, to tell it from a log line.
    #[schemars(schema_with = "kind")]
    kind: &'static str,
    /// When the connection was accepted, RFC 3339, UTC.
    #[schemars(extend("format" = "date-time"))]
    time: String,
    /// Number of the connection, unique in the process.
    id: u64,
    /// Frontend it came to.
    frontend: &'a str,
    /// Address and port of the client.
    client: SocketAddr,
    /// Address and port that the client used.
    local: SocketAddr,
    #[serde(flatten)]
    route: Option<RouteFields<'a>>,
    /// Backends that were tried in vain, in order; absent when there was none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    failed: Vec<FailedFields<'a>>,
    /// Bytes from client to backend.
    bytes_up: u64,
    /// Bytes from backend to client.
    bytes_down: u64,
    #[serde(flatten)]
    datagrams: Option<DatagramFields>,
    /// Milliseconds from accept to end.
    #[schemars(range(min = 0.0))]
    duration_ms: f64,
    /// How it ended: a word for an end, or the reason of a refusal.
    #[schemars(schema_with = "ends")]
    end: &'static str,
}

/// A backend that was tried in vain.
#[derive(Serialize, JsonSchema)]
struct FailedFields<'a> {
    /// Name of the backend.
    backend: &'a str,
    /// What went wrong.
    #[schemars(schema_with = "faults")]
    fault: &'static str,
}

/// Absent, together, unless it was a session of datagrams.
#[derive(Serialize, JsonSchema)]
struct DatagramFields {
    /// Datagrams from client to backend.
    datagrams_up: u64,
    /// Datagrams from backend to client.
    datagrams_down: u64,
}

/// Absent, all together, when the connection got no backend.
#[derive(Serialize, JsonSchema)]
struct RouteFields<'a> {
    /// Pool.
    pool: &'a str,
    /// Name of the backend.
    backend: &'a str,
    /// Address and port connected to.
    address: SocketAddr,
    /// Strategy that picked it.
    #[schemars(schema_with = "strategies")]
    strategy: &'static str,
    /// Why this backend, in words.
    why: String,
    /// Backends it was picked from.
    candidates: u32,
    /// Connects made, the successful one included.
    attempts: u32,
    /// Whether it won a race against a late first connect.
    hedged: bool,
    /// Version of the table that was consulted.
    table_version: u64,
    /// Milliseconds its connect took.
    #[schemars(range(min = 0.0))]
    connect_ms: f64,
}

/// The JSON schema of a record, pretty-printed, with a newline at the end.
pub fn schema() -> String {
    let schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<Line<'_>>();
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is plain JSON");
    text.push('\n');
    text
}

fn kind(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"const": "access"})
}

fn ends(_: &mut SchemaGenerator) -> Schema {
    let reasons = Reason::ALL.into_iter().map(End::Refused);
    json_schema!({"type": "string", "enum": End::SERVED.into_iter().chain(reasons).map(End::as_str).collect::<Vec<_>>()})
}

fn faults(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": Fault::ALL.map(Fault::as_str)})
}

fn strategies(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": StrategyKind::ALL.map(StrategyKind::as_str)})
}

impl<'a> RouteFields<'a> {
    fn of(route: &'a Route, decision: Option<&Decision>) -> Self {
        Self {
            why: decision.map(ToString::to_string).unwrap_or_default(),
            pool: route.pool.as_str(),
            backend: route.backend.as_str(),
            address: route.address,
            strategy: route.strategy.as_str(),
            candidates: route.candidates,
            attempts: route.attempts,
            hedged: route.hedged,
            table_version: route.table_version,
            connect_ms: millis(route.connect),
        }
    }
}

/// Appends `record` as one JSON object and a line feed.
pub fn json_line(record: &AccessRecord, out: &mut Vec<u8>) {
    let line = Line {
        kind: "access",
        time: humantime::format_rfc3339_millis(record.started).to_string(),
        id: record.id,
        frontend: record.frontend.as_str(),
        client: record.client,
        local: record.local,
        route: record.route.as_ref().map(|route| RouteFields::of(route, record.decision.as_ref())),
        failed: record
            .failed
            .iter()
            .map(|own| FailedFields { backend: own.backend.as_str(), fault: own.fault.as_str() })
            .collect(),
        bytes_up: record.bytes_up,
        bytes_down: record.bytes_down,
        datagrams: record
            .datagrams
            .map(|Datagrams { up, down }| DatagramFields { datagrams_up: up, datagrams_down: down }),
        duration_ms: millis(record.duration),
        end: record.end.as_str(),
    };
    serde_json::to_writer(&mut *out, &line).expect("plain fields serialize into memory");
    out.push(b'\n');
}

/// Appends `record` as one line for people.
pub fn pretty_line(record: &AccessRecord, out: &mut Vec<u8>) {
    let time = humantime::format_rfc3339_millis(record.started);
    let AccessRecord { frontend, client, end, .. } = record;
    let duration = millis(record.duration);
    let tried: Vec<String> =
        record.failed.iter().map(|own| format!("{} ({})", own.backend, own.fault.as_str())).collect();
    let failed = if tried.is_empty() { String::new() } else { format!(", in vain: {}", tried.join(", ")) };
    let result = match &record.route {
        None => {
            writeln!(
                out,
                "{time} ACCESS {frontend} {client} refused: {}{failed}, {duration} ms",
                end.as_str()
            )
        }
        Some(route) => {
            let Route { pool, backend, address, candidates, .. } = route;
            let strategy = route.strategy.as_str();
            let attempts =
                if route.attempts > 1 { format!(", attempt {}", route.attempts) } else { String::new() };
            let hedged = if route.hedged { ", hedged" } else { "" };
            let (up, down) = (ByteSize(record.bytes_up), ByteSize(record.bytes_down));
            let datagrams = record.datagrams.map_or_else(String::new, |Datagrams { up, down }| {
                format!(", {up} datagrams up, {down} down")
            });
            writeln!(
                out,
                "{time} ACCESS {frontend} {client} -> {pool}/{backend} {address} ({strategy} of {candidates}{attempts}\
                 {hedged}{failed}), {up} up, {down} down{datagrams}, {duration} ms, {}",
                end.as_str()
            )
        }
    };
    result.expect("writing into memory does not fail");
}

fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::metrics::fixture::{name, record};

    #[test]
    fn a_record_is_one_json_line_with_what_the_guide_names() {
        let mut out = Vec::new();
        json_line(&record(41), &mut out);
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["kind"], "access");
        assert_eq!((&line["id"], &line["backend"]), (&41.into(), &"a".into()));
        assert_eq!((&line["connect_ms"], &line["duration_ms"]), (&0.25.into(), &1500.0.into()));
        assert_eq!(line["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(line["why"], "its turn (number 5)");
        assert_eq!(line["failed"], serde_json::json!([{ "backend": "b", "fault": "refused" }]));
        assert_eq!(line.as_object().unwrap().len(), 21);
        let guide = include_str!("../../../../docs/guide/metrics.md");
        let mut session = record(42);
        session.datagrams = Some(Datagrams { up: 3, down: 4 });
        out.clear();
        json_line(&session, &mut out);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&line["datagrams_up"], &line["datagrams_down"]), (&3.into(), &4.into()));
        for field in line.as_object().unwrap().keys() {
            assert!(guide.contains(&format!("| `{field}` |")), "the guide does not name {field}");
        }
    }

    #[test]
    fn a_line_for_people_says_who_where_why_and_how_it_ended() {
        let mut out = Vec::new();
        pretty_line(&record(1), &mut out);
        let mut refused = record(2);
        refused.route = None;
        refused.end = End::Refused(Reason::NoBackendUp);
        refused.started = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        refused.frontend = name("db");
        pretty_line(&refused, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "1970-01-01T00:00:00.000Z ACCESS web 192.0.2.9:5000 -> web/a 192.0.2.1:80 (round_robin of 3, attempt 2, in vain: b (refused)), \
             10 B up, 2.0 KiB down, 1500 ms, closed\n\
             1970-01-01T00:00:01.000Z ACCESS db 192.0.2.9:5000 refused: no_backend_up, in vain: b (refused), 1500 ms\n"
        );
    }
}
