//! What is taken in, what is lost, and that the numbers are those of the text.

use std::collections::BTreeMap;
use std::time::SystemTime;

use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt as _;

use super::points::{Span as Counted, metrics};
use super::*;
use crate::metrics::adapters::aggregating::Aggregating;
use crate::metrics::adapters::prometheus::{encode, families};
use crate::metrics::fixture::{record, state};
use crate::metrics::port::MetricsService as _;
use crate::shutdown::Phase;

fn sampling(sample: f64) -> (Otlp, Exporter, Arc<ProcessCell>) {
    let process = Arc::new(ProcessCell::default());
    let (otlp, exporter) = channel(Arc::clone(&process));
    let endpoint = Some("http://127.0.0.1:1".to_owned());
    otlp.set(&Telemetry { endpoint, sample, ..Telemetry::default() });
    (otlp, exporter, process)
}

#[test]
fn a_share_of_connections_is_that_share_of_any_stretch() {
    for (sample, least, most) in [(0.0, 0, 0), (0.01, 9, 11), (0.5, 499, 501), (1.0, 1_000, 1_000)] {
        let (otlp, _exporter, _) = sampling(sample);
        for start in [1_u64, 77_777, 1 << 40] {
            let taken = (start..start + 1_000).filter(|id| otlp.wants(*id)).count();
            assert!((least..=most).contains(&taken), "{taken} of 1000 at {sample} from {start}");
        }
    }
    let (otlp, _exporter, _) = sampling(1.0);
    otlp.set(&Telemetry::default());
    assert!(!otlp.wants(1) && !otlp.on(), "nothing without an endpoint");
}

#[test]
fn a_full_queue_loses_and_counts_and_holds_nobody_up() {
    let (otlp, _exporter, process) = sampling(1.0);
    for id in 0..CAPACITY as u64 + 100 {
        otlp.record(record(id));
    }
    assert_eq!(process.telemetry_dropped.load(Ordering::Relaxed), 100);
}

/// Series with their labels, as `name{label=value}`, counters and gauges only.
fn points(metrics: &[opentelemetry_proto::tonic::metrics::v1::Metric]) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    for metric in metrics {
        let (suffix, points) = match metric.data.as_ref().expect("numbers") {
            Data::Sum(sum) => ("_total", &sum.data_points),
            Data::Gauge(gauge) if metric.name == "lemonade_build" => ("_info", &gauge.data_points),
            Data::Gauge(gauge) => ("", &gauge.data_points),
            Data::Histogram(_) | Data::ExponentialHistogram(_) | Data::Summary(_) => continue,
        };
        for point in points {
            let label = |attribute: &KeyValue| match attribute.value.as_ref().map(|value| &value.value) {
                Some(Some(Value::StringValue(value))) => format!("{}={value:?}", attribute.key),
                other => panic!("{other:?}"),
            };
            let labels: Vec<_> = point.attributes.iter().map(label).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let value = match point.value.expect("a number") {
                Number::AsInt(number) => number.to_string(),
                Number::AsDouble(number) => format!("{number:?}"),
            };
            seen.insert(format!("{}{suffix}{labels}", metric.name), value);
        }
    }
    seen
}

#[test]
fn the_numbers_and_names_are_those_of_the_text() {
    let state = state(&["web", "api"], &["a", "b"]);
    let entry = state.table.frontends.values().next().expect("a frontend");
    entry.cell.opened.store(7, Ordering::Relaxed);
    entry.cell.connect_seconds.observe(1_500);
    entry.cell.connect_seconds.observe(3_000_000_000);
    let (_sender, receiver) = watch::channel(Arc::new(state));
    let process = Arc::new(ProcessCell::default());
    process.probes.store(9, Ordering::Relaxed);
    let snapshot = Aggregating::new(receiver, process).snapshot();
    let span = Counted { start: 1, now: nanos(SystemTime::now()) };
    let exported = metrics(&families(&snapshot, Phase::Running), span);
    let text = encode(snapshot, Phase::Running);
    let plain = text.lines().filter(|line| {
        let histogram = ["_seconds_bucket", "_seconds_sum", "_seconds_count"];
        !line.starts_with('#') && !histogram.iter().any(|part| line.contains(part))
    });
    let told: BTreeMap<String, String> = plain
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            (series.to_owned(), value.to_owned())
        })
        .collect();
    assert!(told.len() > 80, "{}", told.len());
    assert_eq!(points(&exported), told);

    let named = |name: &str| exported.iter().find(|metric| metric.name == name).expect("exported");
    let connect = named("lemonade_frontend_connect_seconds");
    let Some(Data::Histogram(histogram)) = &connect.data else { panic!("{connect:?}") };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.sum, connect.unit.as_str()), (2, Some(3000.0015), "s"));
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    assert_eq!((point.bucket_counts[4], point.bucket_counts[14]), (1, 1));
    assert_eq!(named("lemonade_frontend_upstream_bytes").unit, "By");
}

#[test]
fn spans_of_the_control_plane_pass_any_log_level_and_log_records_name_theirs() {
    let (otlp, mut exporter, _) = sampling(0.0);
    let (subscriber, _handle) =
        crate::log::build("warn", crate::log::Style::Json, false, std::io::sink, &otlp).unwrap();
    with_default(subscriber.with(tracing_subscriber::layer::Identity::new()), || {
        let outer = tracing::trace_span!(target: "lemonade::control", "configure", cause = "test", error = tracing::field::Empty);
        let _in = outer.enter();
        tracing::trace_span!(target: "lemonade::control", "apply", version = 3_u64).in_scope(|| {
            tracing::warn!(count = 4, "look");
            tracing::info!("below the level of the log");
        });
        outer.record("error", "no");
        tracing::trace_span!(target: "elsewhere", "other").in_scope(|| {});
    });
    let mut items = exporter.queued();
    assert_eq!(items.len(), 3, "{items:?}");
    let (Some(Item::Span(configure)), Some(Item::Span(apply)), Some(Item::Log(line))) =
        (items.pop(), items.pop(), items.pop())
    else {
        panic!("another order")
    };
    assert_eq!((configure.name.as_str(), apply.name.as_str()), ("configure", "apply"));
    assert_eq!((&apply.trace_id, &apply.parent_span_id), (&configure.trace_id, &configure.span_id));
    assert!(configure.parent_span_id.is_empty());
    assert_eq!(
        configure.status.as_ref().map(|status| (status.code, status.message.as_str())),
        Some((2, "no"))
    );
    assert_eq!((&line.trace_id, &line.span_id), (&apply.trace_id, &apply.span_id));
    assert_eq!(line.severity_text, "WARN");
    assert!(line.attributes.contains(&number("count", 4)), "{line:?}");
    assert_eq!(line.body, text("", "look").value);
}
