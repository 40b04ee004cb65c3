//! Prometheus' own checker on the metrics, the alerts and the queries of the dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;
use lemonade_tests::tools::{feed, program, root, said};
use serde_json::Value;

/// What `/metrics` says after some traffic, in the text format that the checker reads.
fn metrics() -> String {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let lemonade = Lemonade::start(&Setup::single(&addresses));
    calls(lemonade.address("web"), 6);
    http::get(lemonade.admin_address(), "/metrics").expect("it answers").body
}

/// Queries of the dashboard, with what Grafana would fill in.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/lemonade.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let fill = |query: &str| {
        let query = query.replace("$__rate_interval", "1m");
        ["$instance", "$frontend", "$pool"].iter().fold(query, |query, name| query.replace(name, ".*"))
    };
    targets.map(|target| fill(target["expr"].as_str().expect("a query"))).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Names that begin with `lemonade_` in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("lemonade_")).map(str::to_owned).collect()
}

/// Names of the samples that the text declares, with or without a sample at this moment.
fn declared(text: &str) -> BTreeSet<String> {
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let samples = |(name, kind): (&str, &str)| match kind {
        "histogram" => ["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")).to_vec(),
        _ => vec![name.to_owned()],
    };
    families.flat_map(samples).collect()
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let Some(promtool) = program("promtool_finds_nothing_to_say_about_the_metrics", "promtool") else {
        return;
    };
    let text = metrics();
    let output = feed(Command::new(&promtool).args(["check", "metrics"]), &text);
    assert!(
        output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
        "{}",
        said(&output)
    );

    let bad = text.replace("lemonade_phase", "lemonade_phaseMillis_total");
    assert!(!feed(Command::new(&promtool).args(["check", "metrics"]), &bad).status.success());
}

#[test]
fn promtool_accepts_the_alerts_and_they_fire_when_they_should() {
    let test = "promtool_accepts_the_alerts_and_they_fire_when_they_should";
    let Some(promtool) = program(test, "promtool") else { return };
    let folder = root().join("deploy/prometheus");
    for args in [
        &["check", "rules", "alerts.yml"][..],
        &["test", "rules", "alerts.test.yml"],
        &["check", "config", "--syntax-only", "scrape.yml"],
    ] {
        let output = Command::new(&promtool).args(args).current_dir(&folder).output().expect("promtool");
        assert!(output.status.success(), "{args:?}: {}", said(&output));
    }
}

#[test]
fn promtool_accepts_the_queries_of_the_dashboard() {
    let Some(promtool) = program("promtool_accepts_the_queries_of_the_dashboard", "promtool") else { return };
    let queries = queries();
    assert!(queries.len() >= 20, "{} queries", queries.len());
    let rules = queries.iter().zip(0..).map(|(query, n)| {
        let query = serde_json::to_string(query).expect("text");
        format!("  - record: dashboard:query:n{n}\n    expr: {query}\n")
    });
    let text = format!("groups:\n- name: dashboard\n  rules:\n{}", rules.collect::<String>());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("queries.yml");
    fs::write(&file, text).expect("a writable folder");
    let output = Command::new(&promtool).args(["check", "rules"]).arg(&file).output().expect("promtool");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn each_metric_that_alerts_and_dashboard_name_exists() {
    let declared = declared(&metrics());
    let folder = root().join("deploy");
    for file in ["prometheus/alerts.yml", "prometheus/alerts.test.yml", "grafana/lemonade.json"] {
        let text = fs::read_to_string(folder.join(file)).expect("a file of deploy");
        let named = names(&text);
        assert!(named.len() > 5, "{file} names {named:?}");
        let unknown: Vec<_> = named.difference(&declared).collect();
        assert!(unknown.is_empty(), "{file} names what /metrics does not have: {unknown:?}");
    }
}

#[test]
fn panels_of_the_dashboard_have_their_own_numbers_and_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/lemonade.json")).expect("JSON");
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64()), "{} has the number of another", panel["title"]);
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && cells.insert((x, y)), "{} lies over another", panel["title"]);
            }
        }
        assert!(panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| !text.is_empty()));
    }
}
