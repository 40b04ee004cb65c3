//! A receiver that takes what comes.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;

use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::{Lemonade, run};
use lemonade_tests::load::{call, calls};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::{connect, refusing_address};
use lemonade_tests::wait;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::trace::v1::Span;

use crate::receiver::{Mood, Receiver, told};

fn started(receiver: &Receiver, further: &[&str]) -> (Vec<Backend>, Lemonade) {
    let backends = Backend::several(2);
    let addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    let setup = Setup::single(&addresses).telemetry(&[&receiver.endpoint()]).telemetry(further);
    (backends, Lemonade::start(&setup))
}

/// Every number of the text, by series; what changes by itself is left out.
fn scraped(text: &str) -> BTreeMap<String, f64> {
    let lines =
        text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("lemonade_telemetry_"));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            (series.replace('"', ""), value.parse().expect("a number"))
        })
        .collect()
}

/// The same of what was exported.
fn exported(metrics: &[Metric]) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for Metric { name, data, .. } in metrics.iter().filter(|one| !one.name.starts_with("lemonade_telemetry_"))
    {
        let (suffix, points) = match data.as_ref().expect("numbers") {
            Data::Sum(sum) => ("_total", &sum.data_points),
            Data::Gauge(gauge) if name == "lemonade_build" => ("_info", &gauge.data_points),
            Data::Gauge(gauge) => ("", &gauge.data_points),
            Data::Histogram(histogram) => {
                for point in &histogram.data_points {
                    let labels = labels(&point.attributes, None);
                    all.insert(format!("{name}_count{labels}"), point.count as f64);
                    all.insert(format!("{name}_sum{labels}"), point.sum.expect("a sum"));
                    let mut below = 0;
                    for (at, count) in point.bucket_counts.iter().enumerate() {
                        below += count;
                        let bound = point
                            .explicit_bounds
                            .get(at)
                            .map_or("+Inf".to_owned(), |bound| format!("{bound:?}"));
                        let labels = self::labels(&point.attributes, Some(&bound));
                        all.insert(format!("{name}_bucket{labels}"), below as f64);
                    }
                }
                continue;
            }
            other => panic!("{other:?}"),
        };
        for point in points {
            let value = match point.value.expect("a number") {
                Number::AsInt(number) => number as f64,
                Number::AsDouble(number) => number,
            };
            all.insert(format!("{name}{suffix}{}", labels(&point.attributes, None)), value);
        }
    }
    all
}

fn labels(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue], bound: Option<&str>) -> String {
    let own = attributes.iter().map(|one| format!("{}={}", one.key, told(attributes, &one.key)));
    let bound = bound.map(|bound| format!("le={bound}"));
    let all: Vec<String> = bound.into_iter().chain(own).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

#[test]
fn the_metrics_that_arrive_are_those_of_a_scrape() {
    let receiver = Receiver::start(Mood::Takes);
    let (_backends, lemonade) = started(&receiver, &["interval = \"1s\"", "service_name = \"edge\""]);
    calls(lemonade.address("web"), 20);
    let mut last = (BTreeMap::new(), BTreeMap::new());
    wait::until("a report equals the scrape", wait::SOON, || {
        let text = http::get_unix(&lemonade.socket(), "/metrics").expect("it answers").body;
        last = (scraped(&text), exported(&receiver.received().metrics));
        let (scraped, exported) = &last;
        let differing: Vec<_> =
            scraped.iter().filter(|(key, value)| exported.get(*key) != Some(*value)).collect();
        if receiver.received().reports > 10 && !differing.is_empty() {
            panic!("scraped but not exported: {differing:?}");
        }
        scraped == exported
    });
    assert_eq!(last.1["lemonade_frontend_connections_opened_total{frontend=web}"], 20.0);
    assert_eq!(last.1["lemonade_frontend_session_seconds_count{frontend=web}"], 20.0);
    assert!(last.1.len() > 80, "{}", last.1.len());
    let resource = receiver.received().resource;
    assert_eq!(told(&resource, "service.name"), "edge");
    assert_eq!(told(&resource, "process.pid"), lemonade.pid().as_raw_nonzero().to_string());
}

#[test]
fn the_span_of_a_connection_tells_its_decision_and_its_end() {
    let receiver = Receiver::start(Mood::Takes);
    let backend = Backend::start("a");
    let setup = Setup::single(&[refusing_address(), backend.address])
        .telemetry(&[&receiver.endpoint(), "sample = 1.0"]);
    let lemonade = Lemonade::start(&setup);
    // The first turn is that of the backend that refuses.
    assert_eq!(call(lemonade.address("web")).expect("the other one answers"), "a");
    let span = wait::for_some("the span arrives", wait::SOON, || receiver.span("connection web", |_| true));
    for (key, value) in [
        ("lemonade.frontend", "web"),
        ("lemonade.pool", "web"),
        ("lemonade.backend", "b"),
        ("lemonade.backend.address", &backend.address.to_string()),
        ("lemonade.strategy", "round_robin"),
        ("lemonade.candidates", "2"),
        ("lemonade.attempts", "2"),
        ("lemonade.hedged", "false"),
        ("lemonade.end", "closed"),
        ("network.transport", "tcp"),
        ("client.address", "127.0.0.1"),
        ("server.port", &lemonade.address("web").port().to_string()),
    ] {
        assert_eq!(told(&span.attributes, key), value, "{key}");
    }
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    assert_eq!(span.status.as_ref().map_or(0, |status| status.code), 0);
    let id = told(&span.attributes, "lemonade.connection.id");
    let socket = lemonade.socket();
    let why = run(&["why", &id, "--admin", socket.to_str().expect("UTF-8")]);
    assert!(String::from_utf8_lossy(&why.stdout).contains("web/b"), "the same number as in `why`");
}

#[test]
fn the_span_of_a_refusal_is_an_error_with_its_reason() {
    let receiver = Receiver::start(Mood::Takes);
    let setup = Setup::single(&[refusing_address()])
        .pool(&["when_all_down = \"try_all\""])
        .telemetry(&[&receiver.endpoint(), "sample = 1.0"]);
    let lemonade = Lemonade::start(&setup);
    let mut stream = connect(lemonade.address("web")).expect("it accepts");
    // Ends when Lemonade gives up.
    let _ = stream.read(&mut [0]);
    let span = wait::for_some("the span arrives", wait::SOON, || receiver.span("connection web", |_| true));
    assert_eq!(told(&span.attributes, "lemonade.end"), "connect_failed");
    let status = span.status.expect("a status");
    assert_eq!((status.code, status.message.as_str()), (2, "connect_failed"));
}

#[test]
fn a_reload_has_a_trace_and_the_log_arrives_with_it() {
    let receiver = Receiver::start(Mood::Takes);
    let (_backends, lemonade) = started(&receiver, &[]);
    let text = std::fs::read_to_string(lemonade.config()).expect("the file");
    lemonade.write(&text.replace("name = \"b\"", "name = \"b\"\nweight = 4"));
    let configure = wait::for_some("the trace of the reload", wait::SOON, || {
        receiver.span("configure", |span| told(&span.attributes, "cause") != "start")
    });
    let version = lemonade.status().config_version();
    assert_eq!(told(&configure.attributes, "version"), version.to_string());
    let child = |name: &str| {
        let own =
            |span: &Span| span.parent_span_id == configure.span_id && span.trace_id == configure.trace_id;
        wait::for_some("its part", wait::SOON, || receiver.span(name, own))
    };
    let (compile, apply) = (child("compile"), child("apply"));
    assert!(compile.end_time_unix_nano <= apply.start_time_unix_nano);
    assert!(apply.end_time_unix_nano <= configure.end_time_unix_nano);
    let line = wait::for_some("the line of the log", wait::SOON, || {
        let lines = receiver.received().lines;
        lines.into_iter().find(|line| {
            let accepted = told(&[body(line)], "body") == "configuration accepted";
            accepted && told(&line.attributes, "version") == version.to_string()
        })
    });
    assert_eq!((&line.trace_id, &line.span_id), (&configure.trace_id, &configure.span_id));
    assert_eq!(line.severity_text, "INFO");

    lemonade.reload_bad(&text.replace("pool = \"web\"", "pool = \"wbe\""));
    let refused = wait::for_some("the trace of the refusal", wait::SOON, || {
        receiver.span("configure", |span| span.status.as_ref().is_some_and(|status| status.code == 2))
    });
    assert!(refused.status.expect("a status").message.contains("wbe"));
    let socket = lemonade.socket();
    run(&["backend", "drain", "a", "--admin", socket.to_str().expect("UTF-8")]);
    let order = wait::for_some("the trace of the order", wait::SOON, || receiver.span("order", |_| true));
    assert!(told(&order.attributes, "cause").starts_with("backend a: "));
}

fn body(
    line: &opentelemetry_proto::tonic::logs::v1::LogRecord,
) -> opentelemetry_proto::tonic::common::v1::KeyValue {
    opentelemetry_proto::tonic::common::v1::KeyValue {
        key: "body".to_owned(),
        value: line.body.clone(),
        ..Default::default()
    }
}

#[test]
fn telemetry_follows_a_reload_and_no_read_shows_a_secret() {
    let receiver = Receiver::start(Mood::Takes);
    let backend = Backend::start("a");
    let plain = Setup::single(&[backend.address]);
    let lemonade = Lemonade::start(&plain);
    calls(lemonade.address("web"), 5);
    wait::until("they have ended", wait::SOON, || lemonade.metrics().connections().1 == 5);
    let on = plain.clone().telemetry(&[
        &receiver.endpoint(),
        "interval = \"1s\"",
        "sample = 1.0",
        "headers = { authorization = \"Bearer hush\" }",
    ]);
    lemonade.reload(&on);
    wait::until("it reports", wait::SOON, || receiver.received().reports >= 2);
    assert_eq!(receiver.received().headers["authorization"], "Bearer hush");
    assert!(!receiver.received().spans.iter().any(|span| span.name == "connection web"), "of before");
    calls(lemonade.address("web"), 3);
    let spans = || receiver.received().spans.iter().filter(|span| span.name == "connection web").count();
    wait::until("the spans arrive", wait::SOON, || spans() == 3);
    for path in ["/api/v1/status", "/api/v1/dump", "/api/v1/config", "/api/v1/journal"] {
        let answer = http::get_unix(&lemonade.socket(), path).expect("it answers");
        assert!(answer.status == 200 && !answer.body.contains("hush"), "{path}: {}", answer.status);
    }
    assert!(!lemonade.output().contains("hush"));

    lemonade.reload(&plain);
    // What was on its way arrives first.
    let quiet = wait::for_some("it falls silent", wait::SOON, || {
        let before = receiver.received().requests;
        std::thread::sleep(std::time::Duration::from_secs(2));
        (receiver.received().requests == before).then_some(before)
    });
    assert!(quiet > 0);
}
