//! Metric families as OTLP metrics: the numbers of `/metrics`, under the same names.
//!
//! The suffixes `_total` and `_info` are left to whoever turns them into Prometheus text again, by the conventions of
//! OpenTelemetry.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
};

use super::text;
use crate::metrics::adapters::families::{Family, Kind, Labels, Value};
use crate::metrics::snapshot::HistogramCounts;
use crate::model::cell::BUCKETS;

/// From when to when the numbers count, nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) now: u64,
}

/// Each family that has series.
pub(super) fn metrics(families: &[Family<'_>], span: Span) -> Vec<Metric> {
    families.iter().filter(|family| !family.series.is_empty()).map(|family| metric(family, span)).collect()
}

fn metric(family: &Family<'_>, span: Span) -> Metric {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let data = match family.kind {
        Kind::Counter => {
            Data::Sum(Sum { data_points: numbers(family, span), aggregation_temporality, is_monotonic: true })
        }
        Kind::Gauge | Kind::Fact => Data::Gauge(Gauge { data_points: numbers(family, span) }),
        Kind::Histogram => {
            Data::Histogram(Histogram { data_points: distributions(family, span), aggregation_temporality })
        }
    };
    Metric {
        name: format!("lemonade_{}", family.name),
        description: family.help.to_owned(),
        unit: unit(family.name).to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn unit(name: &str) -> &'static str {
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "",
    }
}

fn numbers(family: &Family<'_>, span: Span) -> Vec<NumberDataPoint> {
    let point = |(labels, value): &(Labels<'_>, Value)| {
        let value = match value {
            Value::Whole(number) => Number::AsInt(i64::try_from(*number).unwrap_or(i64::MAX)),
            Value::Real(number) => Number::AsDouble(*number),
            Value::Distribution(_) => return None,
        };
        Some(NumberDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: span.start,
            time_unix_nano: span.now,
            value: Some(value),
            ..NumberDataPoint::default()
        })
    };
    family.series.iter().filter_map(point).collect()
}

fn distributions(family: &Family<'_>, span: Span) -> Vec<HistogramDataPoint> {
    let point = |(labels, value): &(Labels<'_>, Value)| {
        let Value::Distribution(histogram) = value else { return None };
        let HistogramCounts { counts, sum } = &**histogram;
        Some(HistogramDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: span.start,
            time_unix_nano: span.now,
            count: counts.iter().sum(),
            sum: Some(*sum),
            bucket_counts: counts.to_vec(),
            explicit_bounds: BUCKETS.to_vec(),
            ..HistogramDataPoint::default()
        })
    };
    family.series.iter().filter_map(point).collect()
}

fn attributes(labels: &Labels<'_>) -> Vec<KeyValue> {
    labels.pairs().iter().map(|(label, value)| text(*label, *value)).collect()
}
