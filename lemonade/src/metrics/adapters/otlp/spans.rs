//! An access record as a span.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use super::{attribute, identity, nanos, number, text};
use crate::metrics::port::{AccessRecord, End, Route};

/// The life of a connection: where it came from, where it went, why, and how it ended.
pub(super) fn span(record: &AccessRecord) -> Span {
    let transport = if record.datagrams.is_some() { "udp" } else { "tcp" };
    let mut attributes = vec![
        number("lemonade.connection.id", record.id),
        text("lemonade.frontend", record.frontend.as_str()),
        text("network.transport", transport),
        text("client.address", record.client.ip().to_string()),
        number("client.port", record.client.port().into()),
        text("server.address", record.local.ip().to_string()),
        number("server.port", record.local.port().into()),
        number("lemonade.bytes_up", record.bytes_up),
        number("lemonade.bytes_down", record.bytes_down),
        text("lemonade.end", record.end.as_str()),
    ];
    if let Some(datagrams) = record.datagrams {
        attributes.push(number("lemonade.datagrams_up", datagrams.up));
        attributes.push(number("lemonade.datagrams_down", datagrams.down));
    }
    if let Some(route) = &record.route {
        let Route { pool, backend, address, strategy, .. } = route;
        attributes.extend([
            text("lemonade.pool", pool.as_str()),
            text("lemonade.backend", backend.as_str()),
            text("lemonade.backend.address", address.to_string()),
            text("lemonade.strategy", strategy.as_str()),
            number("lemonade.candidates", route.candidates.into()),
            number("lemonade.attempts", route.attempts.into()),
            attribute("lemonade.hedged", Value::BoolValue(route.hedged)),
            number("lemonade.table_version", route.table_version),
            attribute("lemonade.connect_seconds", Value::DoubleValue(route.connect.as_secs_f64())),
        ]);
    }
    Span {
        trace_id: identity::<16>(),
        span_id: identity::<8>(),
        name: format!("connection {}", record.frontend),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: nanos(record.started),
        end_time_unix_nano: nanos(record.started + record.duration),
        attributes,
        status: Some(status(record.end)),
        ..Span::default()
    }
}

/// An end that somebody may want to look into is an error.
fn status(end: End) -> Status {
    let ordinary = match end {
        End::Closed | End::IdleTimeout => true,
        End::ClientReset
        | End::BackendReset
        | End::ClientTimeout
        | End::BackendTimeout
        | End::DrainDeadline
        | End::Refused(_)
        | End::Dropped(_) => false,
    };
    if ordinary {
        return Status::default();
    }
    Status { message: end.as_str().to_owned(), code: StatusCode::Error.into() }
}
