//! The text parses, and each number in it is the snapshot's.

use std::collections::BTreeSet;
use std::time::SystemTime;

use lemonade_common::{BackendIx, FrontendIx};
use proptest::prelude::*;

use super::*;
use crate::metrics::snapshot::{ForwardCounters, HistogramCounts, ProcessCounters};
use crate::model::Name;
use crate::model::config::StrategyKind;

type Key = (String, BTreeMap<String, String>);

/// Reads OpenMetrics text as strictly as the tests need: each sample belongs to the family declared last, and no series comes twice.
fn parse(text: &str) -> BTreeMap<Key, f64> {
    let mut samples = BTreeMap::new();
    let mut family = (String::new(), String::new());
    let mut seen = BTreeSet::new();
    let body = text.strip_suffix("# EOF\n").expect("the text ends with EOF");
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("help text");
            assert!(!help.is_empty() && seen.insert(name.to_owned()), "{name} is declared once, with help");
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            family = (name.to_owned(), kind.to_owned());
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = match series.split_once('{') {
            None => (series, BTreeMap::new()),
            Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').expect("closed labels"))),
        };
        let suffix = name.strip_prefix(family.0.as_str()).expect("a sample follows its family");
        let allowed: &[&str] = match family.1.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_count", "_sum"],
            other => panic!("type {other}"),
        };
        assert!(name.starts_with("lemonade_") && allowed.contains(&suffix), "{line}");
        let key = (name.to_owned(), labels);
        assert!(samples.insert(key, value.parse().expect("a number")).is_none(), "twice: {line}");
    }
    samples
}

fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("label=\"");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (_, '\\') => value.push(match chars.next().expect("an escaped character").1 {
                    'n' => '\n',
                    other => other,
                }),
                (at, '"') => break at,
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.trim_start_matches(',').to_owned(), value);
        rest = &after[end + 1..];
    }
    labels
}

fn value(samples: &BTreeMap<Key, f64>, name: &str, labels: &[(&str, &str)]) -> u64 {
    let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
    let key = (format!("lemonade_{name}"), labels);
    *samples.get(&key).unwrap_or_else(|| panic!("no {key:?}")) as u64
}

const MAX: u64 = 1 << 40;

prop_compose! {
    fn histogram()(counts in prop::array::uniform15(0..MAX), sum in 0.0..1e9) -> HistogramCounts {
        HistogramCounts { counts, sum }
    }
}

prop_compose! {
    fn relays()(n in prop::array::uniform7(0..MAX)) -> RelayCounters {
        let [live, promoted, kept, demoted, resumed, bytes, lulls] = n;
        RelayCounters { live, promoted, kept, demoted, resumed, bytes, lulls, ..RelayCounters::default() }
    }
}

prop_compose! {
    fn frontend(ix: u32)(
        n in prop::array::uniform5(0..MAX),
        refused in prop::array::uniform12(0..MAX),
        relays in relays(),
        connect_seconds in histogram(),
        session_seconds in histogram(),
        datagrams in prop::array::uniform4(0..MAX),
        (asked, forwarded) in any::<(bool, bool)>(),
    ) -> FrontendCounters {
        let [live, opened, closed, bytes_up, bytes_down] = n;
        let [up, down, lost_up, lost_down] = datagrams;
        let datagrams = Some(DatagramCounters { up, down, lost_up, lost_down });
        FrontendCounters {
            ix: FrontendIx(ix), name: Name::new(format!("f{ix}")), pool: Name::new("p0"),
            live, opened, closed, bytes_up, bytes_down, datagrams, refused, connect_seconds, session_seconds,
            relays: [relays; KernelRelay::COUNT], plane: PlaneChoice { asked, forwarded, why: String::new() },
        }
    }
}

prop_compose! {
    /// Names are of few letters, so that some are equal: the addresses of one host.
    fn backend()(name in "[ab\"\\\\\n:.\\[]{1,2}", up: bool, n in prop::array::uniform8(0..MAX)) -> BackendCounters {
        let [live, connecting, picks, opened, failures, resets, bytes_up, bytes_down] = n;
        BackendCounters {
            ix: BackendIx(0), name: Name::new(name), address: String::new(),
            status: if up { Status::Up } else { Status::Down }, enabled: true, weight: 1, max_connections: 0,
            live, connecting, picks, opened, failures, resets, bytes_up, bytes_down,
            connect_us: None, first_byte_us: None, tcp: None,
        }
    }
}

prop_compose! {
    fn pool(ix: usize)(n in prop::array::uniform4(0..MAX), backends in prop::collection::vec(backend(), 0..6)) -> PoolCounters {
        let [queued, retries, hedges, budget_exhausted] = n;
        PoolCounters {
            name: Name::new(format!("p{ix}")), strategy: StrategyKind::Adaptive,
            queued, retries, hedges, budget_exhausted, backends,
        }
    }
}

prop_compose! {
    fn snapshot()(
        n in prop::array::uniform11(0..MAX), last_reload_failed: bool, forward in forward(),
        frontends in (0_u32..4).prop_flat_map(|n| (0..n).map(frontend).collect::<Vec<_>>()),
        pools in (0_usize..3).prop_flat_map(|n| (0..n).map(pool).collect::<Vec<_>>()),
    ) -> MetricsSnapshot {
        let [live, opened, closed, accept_pauses, events_dropped, health_transitions, probes, accepted, refused, telemetry_dropped, telemetry_failures] = n;
        MetricsSnapshot {
            at: SystemTime::UNIX_EPOCH, table_version: live, config_version: opened,
            process: ProcessCounters {
                live, opened, closed, accept_pauses, events_dropped, health_transitions, probes,
                reloads_accepted: accepted, reloads_refused: refused, last_reload_failed,
                telemetry_dropped, telemetry_failures,
            },
            relays: Vec::new(), forward, frontends, pools,
        }
    }
}

prop_compose! {
    fn forward()(
        n in prop::array::uniform6(0..MAX), counts in prop::collection::vec(0..MAX, PacketReason::COUNT),
    ) -> ForwardCounters {
        let [live, opened, closed, entries, room, replaced] = n;
        let packets = std::array::from_fn(|at| counts[at]);
        ForwardCounters { live, opened, closed, entries, room, replaced, packets, words: String::new() }
    }
}

const FORWARD: [Read<ForwardCounters>; 6] = [
    ("forward_flows_live", |f| f.live),
    ("forward_flows_opened_total", |f| f.opened),
    ("forward_flows_closed_total", |f| f.closed),
    ("forward_table_entries", |f| f.entries),
    ("forward_table_room", |f| f.room),
    ("forward_half_open_replaced_total", |f| f.replaced),
];

type Read<T> = (&'static str, fn(&T) -> u64);

const PROCESS: [Read<ProcessCounters>; 12] = [
    ("connections_opened_total", |p| p.opened),
    ("connections_closed_total", |p| p.closed),
    ("connections_live", |p| p.live),
    ("accept_pauses_total", |p| p.accept_pauses),
    ("events_dropped_total", |p| p.events_dropped),
    ("telemetry_dropped_total", |p| p.telemetry_dropped),
    ("telemetry_failures_total", |p| p.telemetry_failures),
    ("health_transitions_total", |p| p.health_transitions),
    ("probes_total", |p| p.probes),
    ("reloads_accepted_total", |p| p.reloads_accepted),
    ("reloads_refused_total", |p| p.reloads_refused),
    ("last_reload_failed", |p| u64::from(p.last_reload_failed)),
];

const FRONTEND: [Read<FrontendCounters>; 9] = [
    ("frontend_connections_opened_total", |f| f.opened),
    ("frontend_connections_closed_total", |f| f.closed),
    ("frontend_connections_live", |f| f.live),
    ("frontend_upstream_bytes_total", |f| f.bytes_up),
    ("frontend_downstream_bytes_total", |f| f.bytes_down),
    ("frontend_upstream_datagrams_total", |f| f.datagrams.map_or(0, |d| d.up)),
    ("frontend_downstream_datagrams_total", |f| f.datagrams.map_or(0, |d| d.down)),
    ("frontend_upstream_datagrams_lost_total", |f| f.datagrams.map_or(0, |d| d.lost_up)),
    ("frontend_downstream_datagrams_lost_total", |f| f.datagrams.map_or(0, |d| d.lost_down)),
];

const POOL: [Read<PoolCounters>; 5] = [
    ("pool_retries_total", |p| p.retries),
    ("pool_hedges_total", |p| p.hedges),
    ("pool_retry_budget_exhausted_total", |p| p.budget_exhausted),
    ("pool_queue_length", |p| p.queued),
    ("pool_backends", |p| p.backends.len() as u64),
];

const BACKEND: [Read<BackendCounters>; 8] = [
    ("backend_connections_live", |b| b.live),
    ("backend_connections_connecting", |b| b.connecting),
    ("backend_connections_opened_total", |b| b.opened),
    ("backend_picks_total", |b| b.picks),
    ("backend_connect_failures_total", |b| b.failures),
    ("backend_resets_total", |b| b.resets),
    ("backend_upstream_bytes_total", |b| b.bytes_up),
    ("backend_downstream_bytes_total", |b| b.bytes_down),
];

proptest! {
    #[test]
    fn the_text_parses_and_equals_the_snapshot(snapshot in snapshot()) {
        let text = encode(snapshot.clone(), Phase::LameDuck);
        let samples = parse(&text);
        prop_assert_eq!(value(&samples, "phase", &[]), 2);
        prop_assert_eq!(value(&samples, "config_version", &[]), snapshot.config_version);
        for (name, read) in PROCESS {
            prop_assert_eq!(value(&samples, name, &[]), read(&snapshot.process), "{}", name);
        }
        for (name, read) in FORWARD {
            prop_assert_eq!(value(&samples, name, &[]), read(&snapshot.forward), "{}", name);
        }
        for why in PacketReason::ALL {
            let told = value(&samples, "forward_packets_total", &[("reason", why.as_str())]);
            prop_assert_eq!(told, snapshot.forward.packets[why.index()]);
        }
        for own in &snapshot.frontends {
            let label = ("frontend", own.name.as_str());
            prop_assert_eq!(value(&samples, "frontend_forwarded", &[label]), u64::from(own.plane.forwarded));
            let kept = own.plane.asked && !own.plane.forwarded;
            prop_assert_eq!(value(&samples, "frontend_forward_kept", &[label]), u64::from(kept));
            for (name, read) in FRONTEND {
                prop_assert_eq!(value(&samples, name, &[label]), read(own), "{}", name);
            }
            for reason in Reason::ALL {
                let labels = [label, ("reason", reason.as_str())];
                prop_assert_eq!(value(&samples, "frontend_refused_total", &labels), own.refused[reason.index()]);
            }
            for (name, histogram) in [("connect", &own.connect_seconds), ("session", &own.session_seconds)] {
                let total: u64 = histogram.counts.iter().sum();
                prop_assert_eq!(value(&samples, &format!("frontend_{name}_seconds_count"), &[label]), total);
                let bucket = format!("frontend_{name}_seconds_bucket");
                prop_assert_eq!(value(&samples, &bucket, &[label, ("le", "+Inf")]), total);
                prop_assert_eq!(value(&samples, &bucket, &[label, ("le", "0.0001")]), histogram.counts[0]);
            }
        }
        let mut series = 0;
        for pool in &snapshot.pools {
            let label = ("pool", pool.name.as_str());
            for (name, read) in POOL {
                prop_assert_eq!(value(&samples, name, &[label]), read(pool), "{}", name);
            }
            let names: BTreeSet<&Name> = pool.backends.iter().map(|backend| &backend.name).collect();
            series += names.len();
            for own in names {
                let same = || pool.backends.iter().filter(|backend| backend.name == *own);
                let labels = [label, ("backend", own.as_str())];
                for (name, read) in BACKEND {
                    prop_assert_eq!(value(&samples, name, &labels), same().map(read).sum::<u64>(), "{}", name);
                }
                let up = same().any(|backend| backend.status == Status::Up);
                prop_assert_eq!(value(&samples, "backend_up", &labels), u64::from(up));
            }
        }
        let picks = samples.keys().filter(|(name, _)| name == "lemonade_backend_picks_total").count();
        prop_assert_eq!(picks, series);
    }
}

fn many(frontends: usize, backends: usize) -> MetricsSnapshot {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let one = frontend(0).new_tree(&mut runner).unwrap().current();
    let frontends = (0..u32::try_from(frontends).unwrap())
        .map(|ix| FrontendCounters {
            name: Name::new(format!("f{ix}")),
            bytes_down: ix.into(),
            ..one.clone()
        })
        .collect();
    let mut snapshot = snapshot().new_tree(&mut runner).unwrap().current();
    let mut template = backend().new_tree(&mut runner).unwrap().current();
    template.picks = 3;
    let backends = (0..backends)
        .map(|ix| BackendCounters { name: Name::new(format!("b{ix}")), ..template.clone() })
        .collect();
    let pool = pool(0).new_tree(&mut runner).unwrap().current();
    snapshot.frontends = frontends;
    snapshot.pools = vec![PoolCounters { backends, ..pool }];
    snapshot
}

#[test]
fn above_the_limits_series_are_added_up_and_a_metric_says_so() {
    let full = many(MAX_FRONTENDS, MAX_BACKENDS);
    let samples = parse(&encode(full, Phase::Running));
    assert_eq!(value(&samples, "backend_series_aggregated", &[]), 0);
    assert_eq!(value(&samples, "frontend_series_aggregated", &[]), 0);
    assert_eq!(value(&samples, "backend_picks_total", &[("pool", "p0"), ("backend", "b9999")]), 3);

    let over = many(MAX_FRONTENDS + 1, MAX_BACKENDS + 1);
    let samples = parse(&encode(over.clone(), Phase::Running));
    assert_eq!(value(&samples, "backend_series_aggregated", &[]), 1);
    assert_eq!(value(&samples, "frontend_series_aggregated", &[]), 1);
    assert_eq!(value(&samples, "backend_picks_total", &[("pool", "p0")]), 3 * (MAX_BACKENDS as u64 + 1));
    let bytes: u64 = over.frontends.iter().map(|own| own.bytes_down).sum();
    assert_eq!(value(&samples, "frontend_downstream_bytes_total", &[]), bytes);
    assert!(samples.len() < 150, "{} series", samples.len());
}

#[test]
fn prometheus_is_told_the_format_that_it_asks_for() {
    let prometheus =
        "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let wanted = Format::wanted(Some(prometheus));
    assert!(wanted.content_type().starts_with("application/openmetrics-text; version=1.0.0"));
    for other in [None, Some("text/html"), Some("*/*")] {
        assert!(Format::wanted(other).content_type().starts_with("text/plain; version=0.0.4"));
    }
}

/// Readers of the older format took `# TYPE .. info` for an error and counters for untyped.
#[test]
fn the_older_format_has_the_same_samples_and_declares_them_by_their_own_names() {
    let text = encode(many(2, 3), Phase::Running);
    let plain = Format::Plain.of(text.clone());
    let samples = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    assert_eq!(samples(&plain), samples(&text));
    let types = |text: &str| text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(types(&plain), types(&text));
    assert!(!plain.contains("# EOF") && !plain.contains(" info\n"), "{plain}");
    for line in [
        "# HELP lemonade_build_info What runs",
        "# TYPE lemonade_build_info gauge",
        "# TYPE lemonade_probes_total counter",
        "# TYPE lemonade_frontend_connect_seconds histogram",
    ] {
        assert!(plain.lines().any(|own| own == line), "{line} is missing");
    }
}

#[test]
fn the_guide_names_each_metric() {
    let guide = include_str!("../../../../../docs/guide/metrics.md");
    let text = encode(many(1, 1), Phase::Running);
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = family.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        assert!(guide.contains(&format!("| `{name}{suffix}` |")), "the guide does not name {name}{suffix}");
    }
}

#[test]
fn the_guide_names_each_reason_of_packets() {
    let guide = include_str!("../../../../../docs/guide/forward.md");
    for why in PacketReason::ALL {
        assert!(
            guide.contains(&format!("| `{}` |", why.as_str())),
            "the guide does not name {}",
            why.as_str()
        );
    }
}
