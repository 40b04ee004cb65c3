//! A snapshot as metric families, and as the text that Prometheus reads.
//!
//! Label values come from names in the table only, so the configuration bounds the number of series. Above
//! [`MAX_BACKENDS`] or [`MAX_FRONTENDS`] they are added up, per pool or altogether, and a metric says so.

use std::collections::BTreeMap;
use std::fmt;

use lemonade_common::{PacketReason, Reason};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::families::{Families, Family, Kind, Labels, Value};
use crate::metrics::snapshot::{
    BackendCounters, DatagramCounters, FrontendCounters, MetricsSnapshot, PlaneChoice, PoolCounters,
};
use crate::model::cell::BUCKETS;
use crate::model::config::Status;
use crate::model::relay::{KernelRelay, RelayCounters};
use crate::model::tcp::{TcpCounters, TcpCounts, TcpSource};
use crate::shutdown::Phase;

pub use format::Format;

/// Most backends with series of their own.
pub const MAX_BACKENDS: usize = 10_000;

/// Most frontends with series of their own; each has about fifty, because of its histograms.
pub const MAX_FRONTENDS: usize = 1_000;

/// Writes `snapshot` as OpenMetrics text.
pub fn encode(snapshot: MetricsSnapshot, phase: Phase) -> String {
    let mut registry = Registry::with_prefix("lemonade");
    registry.register_collector(Box::new(Snapshot { snapshot, phase }));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("writing to a string does not fail");
    out
}

#[derive(Debug)]
struct Snapshot {
    snapshot: MetricsSnapshot,
    phase: Phase,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        families(&self.snapshot, self.phase).iter().try_for_each(|family| write(family, &mut encoder))
    }
}

fn write(family: &Family<'_>, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let kind = match family.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Fact => MetricType::Info,
    };
    let mut encoder = encoder.encode_descriptor(family.name, family.help, None, kind)?;
    for (labels, value) in &family.series {
        let labels = labels.pairs();
        match (family.kind, labels) {
            (Kind::Fact, _) => encoder.encode_info(&labels)?,
            (Kind::Counter | Kind::Gauge | Kind::Histogram, []) => write_value(family, value, &mut encoder)?,
            (Kind::Counter | Kind::Gauge | Kind::Histogram, _) => {
                write_value(family, value, &mut encoder.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

fn write_value(family: &Family<'_>, value: &Value, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
    match value {
        Value::Whole(count) if family.kind == Kind::Counter => {
            encoder.encode_counter::<NoLabelSet, _, u64>(count, None)
        }
        Value::Whole(level) => encoder.encode_gauge(level),
        Value::Real(level) => encoder.encode_gauge(level),
        Value::Distribution(histogram) => {
            let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(histogram.counts).collect();
            let total = histogram.counts.iter().sum();
            encoder.encode_histogram::<NoLabelSet>(histogram.sum, total, &buckets, None)
        }
    }
}

/// Everything that `snapshot` counts, in the order in which it is written.
pub fn families(snapshot: &MetricsSnapshot, phase: Phase) -> Vec<Family<'_>> {
    let mut out = Families::default();
    let reader = Reader { snapshot, phase };
    reader.process(&mut out);
    reader.relays(&mut out);
    reader.forward(&mut out);
    reader.frontends(&mut out);
    reader.pools(&mut out);
    reader.backends(&mut out);
    out.0
}

struct Reader<'a> {
    snapshot: &'a MetricsSnapshot,
    phase: Phase,
}

impl<'a> Reader<'a> {
    fn process(&self, out: &mut Families<'a>) {
        let process = &self.snapshot.process;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        out.fact("build", "What runs", version);
        let phase = "Phase: 0 starting, 1 running, 2 lame duck, 3 draining, 4 forced, 5 stopped";
        out.gauge("phase", phase, self.phase as u64);
        let told = |source| {
            let mut backends = self.snapshot.pools.iter().flat_map(|pool| &pool.backends);
            let tells = backends.any(|backend| backend.tcp.is_some_and(|tcp| tcp.source == source));
            ([("source", source.as_str())], u64::from(tells))
        };
        let sources = [TcpSource::Kernel, TcpSource::TcpInfo].into_iter().map(told);
        out.gauges("tcp_source", "1 for who tells what TCP knows of backends", sources);
        out.counter("connections_opened", "Connections accepted since the start", process.opened);
        out.counter("connections_closed", "Connections ended since the start", process.closed);
        out.gauge("connections_live", "Connections accepted and not yet ended", process.live);
        out.counter(
            "accept_pauses",
            "Pauses of accepting for want of descriptors or memory",
            process.accept_pauses,
        );
        out.counter("events_dropped", "Internal events and access records lost", process.events_dropped);
        let lost = "Spans and log records that did not reach the receiver of telemetry";
        out.counter("telemetry_dropped", lost, process.telemetry_dropped);
        let failed = "Requests that the receiver of telemetry did not take";
        out.counter("telemetry_failures", failed, process.telemetry_failures);
        out.counter("health_transitions", "Backends that came up or went down", process.health_transitions);
        out.counter("probes", "Health probes made", process.probes);
        out.counter("reloads_accepted", "Configurations accepted", process.reloads_accepted);
        out.counter("reloads_refused", "Configurations refused", process.reloads_refused);
        let failed = u64::from(process.last_reload_failed);
        out.gauge("last_reload_failed", "1 while the newest configuration seen is a refused one", failed);
        out.gauge("config_version", "Version of the configuration in force", self.snapshot.config_version);
        out.gauge("table_version", "Version of the dispatch table in force", self.snapshot.table_version);
    }

    fn relays(&self, out: &mut Families<'a>) {
        let relays = || self.snapshot.relays.iter().map(|own| ([("relay", own.relay.as_str())], own));
        let usable = "1 while new connections may use the relay";
        out.gauges("relay_usable", usable, relays().map(|(labels, own)| (labels, own.usable)));
        let failed = "Self-tests and canaries of the relay that failed";
        out.counters("relay_self_tests_failed", failed, relays().map(|(labels, own)| (labels, own.failed)));
    }

    fn forward(&self, out: &mut Families<'a>) {
        let own = &self.snapshot.forward;
        out.counter("forward_flows_opened", "Flows opened in the kernel since the start", own.opened);
        out.counter("forward_flows_closed", "Flows ended in the kernel since the start", own.closed);
        out.gauge("forward_flows_live", "Flows in the kernel that have not ended", own.live);
        let entries = "Directions of flows in the connection table, ended ones not yet forgotten among them";
        out.gauge("forward_table_entries", entries, own.entries);
        let room = "Directions of flows that the connection table has room for";
        out.gauge("forward_table_room", room, own.room);
        let replaced = "Handshakes that were not complete and had to make room for others since the start";
        out.counter("forward_half_open_replaced", replaced, own.replaced);
        let packets = PacketReason::ALL.map(|why| ([("reason", why.as_str())], own.packets[why.index()]));
        let came = "Packets that the program saw, by what they came to";
        out.counters("forward_packets", came, packets.into_iter());
    }

    fn frontends(&self, out: &mut Families<'a>) {
        let frontends = &self.snapshot.frontends;
        let over = frontends.len() > MAX_FRONTENDS;
        out.gauge(
            "frontend_series_aggregated",
            "1 while there are too many frontends for series of their own",
            over,
        );
        if over {
            let total = frontends.iter().cloned().reduce(add_frontend);
            each_frontend(out, total.iter().map(|frontend| ([], frontend)));
        } else {
            let of = |such: fn(&PlaneChoice) -> bool| {
                let one = move |own: &'_ FrontendCounters| u64::from(such(&own.plane));
                frontends.iter().map(move |own| ([("frontend", own.name.as_str())], one(own)))
            };
            let forwarded = "1 while packets of the frontend are forwarded in the kernel";
            out.gauges("frontend_forwarded", forwarded, of(|plane| plane.forwarded));
            let kept = "1 while the frontend asks for the forward plane and the proxy serves it";
            out.gauges("frontend_forward_kept", kept, of(|plane| plane.asked && !plane.forwarded));
            each_frontend(
                out,
                frontends.iter().map(|frontend| ([("frontend", frontend.name.as_str())], frontend)),
            );
        }
    }

    fn pools(&self, out: &mut Families<'a>) {
        let pools = || self.snapshot.pools.iter().map(|pool| ([("pool", pool.name.as_str())], pool));
        let up =
            |pool: &PoolCounters| pool.backends.iter().filter(|backend| backend.status == Status::Up).count();
        let retries = "Connects to another backend after a failure";
        out.counters("pool_retries", retries, pools().map(|(labels, pool)| (labels, pool.retries)));
        let hedges = "Second connects raced against a late first";
        out.counters("pool_hedges", hedges, pools().map(|(labels, pool)| (labels, pool.hedges)));
        let exhausted = "Retries not made because the budget was spent";
        out.counters(
            "pool_retry_budget_exhausted",
            exhausted,
            pools().map(|(l, pool)| (l, pool.budget_exhausted)),
        );
        let queue = "Connections waiting for a free backend";
        out.gauges("pool_queue_length", queue, pools().map(|(labels, pool)| (labels, pool.queued)));
        let count = "Backend addresses of the pool";
        out.gauges(
            "pool_backends",
            count,
            pools().map(|(labels, pool)| (labels, pool.backends.len() as u64)),
        );
        let count = "Backend addresses of the pool that are up";
        out.gauges("pool_backends_up", count, pools().map(|(labels, pool)| (labels, up(pool) as u64)));
    }

    fn backends(&self, out: &mut Families<'a>) {
        let mut named: BTreeMap<(&str, &str), BackendSum> = BTreeMap::new();
        let mut pooled: BTreeMap<&str, BackendSum> = BTreeMap::new();
        for pool in &self.snapshot.pools {
            for backend in &pool.backends {
                named.entry((pool.name.as_str(), backend.name.as_str())).or_default().add(backend);
                pooled.entry(pool.name.as_str()).or_default().add(backend);
            }
        }
        let over = named.len() > MAX_BACKENDS;
        out.gauge(
            "backend_series_aggregated",
            "1 while there are too many backends for series of their own",
            over,
        );
        if over {
            return each_backend(out, pooled.iter().map(|(pool, sum)| ([("pool", *pool)], sum)));
        }
        let backends =
            || named.iter().map(|((pool, name), sum)| ([("pool", *pool), ("backend", *name)], sum));
        let up = "1 while the backend is up, at one of its addresses at least";
        out.gauges("backend_up", up, backends().map(|(labels, sum)| (labels, u64::from(sum.up))));
        each_backend(out, backends());
    }
}

fn each_frontend<'a, 'b, const N: usize>(
    out: &mut Families<'a>,
    frontends: impl Iterator<Item = ([(&'a str, &'a str); N], &'b FrontendCounters)> + Clone,
) {
    let of = |field: fn(&FrontendCounters) -> u64| {
        frontends.clone().map(move |(labels, own)| (labels, field(own)))
    };
    out.counters("frontend_connections_opened", "Connections accepted", of(|own| own.opened));
    out.counters(
        "frontend_connections_closed",
        "Connections ended, refused ones included",
        of(|own| own.closed),
    );
    out.gauges("frontend_connections_live", "Connections accepted and not yet ended", of(|own| own.live));
    out.counters("frontend_upstream_bytes", "Bytes from clients to backends", of(|own| own.bytes_up));
    out.counters("frontend_downstream_bytes", "Bytes from backends to clients", of(|own| own.bytes_down));
    let datagrams = |field: fn(&DatagramCounters) -> u64| {
        let told = frontends.clone().filter_map(|(labels, own)| own.datagrams.map(|own| (labels, own)));
        told.map(move |(labels, own)| (labels, field(&own)))
    };
    let up = "Datagrams from clients to backends";
    out.counters("frontend_upstream_datagrams", up, datagrams(|own| own.up));
    let down = "Datagrams from backends to clients";
    out.counters("frontend_downstream_datagrams", down, datagrams(|own| own.down));
    let lost = "Datagrams from clients that could not be sent on";
    out.counters("frontend_upstream_datagrams_lost", lost, datagrams(|own| own.lost_up));
    let lost = "Datagrams from backends that could not be sent on";
    out.counters("frontend_downstream_datagrams_lost", lost, datagrams(|own| own.lost_down));
    let refused = frontends.clone().flat_map(|(labels, own)| {
        let reason =
            move |reason: Reason| ((labels, [("reason", reason.as_str())]), own.refused[reason.index()]);
        Reason::ALL.into_iter().map(reason)
    });
    out.counters("frontend_refused", "Connections that got no backend, by reason", refused);
    each_relay(out, frontends.clone());
    let connect = frontends.clone().map(|(labels, own)| (labels, &own.connect_seconds));
    out.histograms("frontend_connect_seconds", "Time to connect a backend", connect);
    let session = frontends.map(|(labels, own)| (labels, &own.session_seconds));
    out.histograms("frontend_session_seconds", "Life of a connection", session);
}

fn each_relay<'a, 'b, const N: usize>(
    out: &mut Families<'a>,
    frontends: impl Iterator<Item = ([(&'a str, &'a str); N], &'b FrontendCounters)> + Clone,
) {
    let of = |field: fn(&RelayCounters) -> u64| {
        frontends.clone().flat_map(move |(labels, own)| {
            let one = move |relay: KernelRelay| {
                ((labels, [("relay", relay.as_str())]), field(&own.relays[relay.index()]))
            };
            KernelRelay::ALL.into_iter().map(one)
        })
    };
    out.gauges("frontend_relay_live", "Connections that the relay carries", of(|own| own.live));
    out.counters(
        "frontend_relay_promoted",
        "Connections that it took over from copy",
        of(|own| own.promoted),
    );
    out.counters("frontend_relay_kept", "Connections that were due and stayed with copy", of(|own| own.kept));
    let demoted = "Directions that userspace took back because of a slow reader";
    out.counters("frontend_relay_demoted", demoted, of(|own| own.demoted));
    out.counters("frontend_relay_resumed", "Of these, given back to the kernel", of(|own| own.resumed));
    out.counters("frontend_relay_bytes", "Bytes that did not pass through userspace", of(|own| own.bytes));
    let lulls = "Times that windows were closed for a moment, so that a stream could be handed over";
    out.counters("frontend_relay_lulls", lulls, of(|own| own.lulls));
}

fn each_backend<'a, 'b, L: Into<Labels<'a>>>(
    out: &mut Families<'a>,
    backends: impl Iterator<Item = (L, &'b BackendSum)> + Clone,
) {
    let of = |field: fn(&BackendSum) -> u64| backends.clone().map(move |(labels, sum)| (labels, field(sum)));
    out.gauges("backend_connections_live", "Connections that exist or are being made", of(|sum| sum.live));
    out.gauges("backend_connections_connecting", "Connections being made", of(|sum| sum.connecting));
    out.counters("backend_connections_opened", "Connections established", of(|sum| sum.opened));
    out.counters("backend_picks", "Times picked", of(|sum| sum.picks));
    out.counters("backend_connect_failures", "Connects that failed or timed out", of(|sum| sum.failures));
    out.counters("backend_resets", "Connections reset by the backend", of(|sum| sum.resets));
    out.counters("backend_upstream_bytes", "Bytes from clients to backends", of(|sum| sum.bytes_up));
    out.counters("backend_downstream_bytes", "Bytes from backends to clients", of(|sum| sum.bytes_down));
    // Series that the kernel told nothing of are left out: a zero would be a claim.
    let told = || backends.clone().filter_map(|(labels, sum)| sum.tcp.map(|tcp| (labels, tcp)));
    let tcp = |field: fn(&TcpCounters) -> u64| told().map(move |(labels, tcp)| (labels, field(&tcp)));
    let seconds = |micros: fn(&TcpCounters) -> u32| {
        told().map(move |(labels, tcp)| (labels, f64::from(micros(&tcp)) / 1e6))
    };
    let counts = |field: fn(&TcpCounts) -> u64| {
        let told = backends.clone().filter_map(|(labels, sum)| Some((labels, sum.tcp?.counts?)));
        told.map(move |(labels, counts)| (labels, field(&counts)))
    };
    let srtt = "Smoothed round-trip time, longest of the addresses";
    out.gauges("backend_tcp_srtt_seconds", srtt, seconds(|tcp| tcp.srtt_us));
    let connect = "Newest handshake as timed in the kernel, longest of the addresses";
    let handshakes = told().filter_map(|(labels, tcp)| Some((labels, tcp.counts?.connect_us)));
    let handshakes = handshakes.map(|(labels, micros)| (labels, f64::from(micros) / 1e6));
    out.gauges("backend_tcp_connect_seconds", connect, handshakes);
    out.counters("backend_tcp_retransmits", "Segments sent again", tcp(|tcp| tcp.retransmits));
    out.counters("backend_tcp_closes", "Established connections that ended", counts(|tcp| tcp.closes));
    let resets = "Of these, ended by a reset of the backend or a timeout";
    out.counters("backend_tcp_resets", resets, counts(|tcp| tcp.resets));
    let early = "Of these resets, before a byte went either way";
    out.counters("backend_tcp_early_resets", early, counts(|tcp| tcp.early_resets));
}

/// What the addresses of one backend, or the backends of one pool, counted together.
#[derive(Default)]
struct BackendSum {
    up: bool,
    live: u64,
    connecting: u64,
    opened: u64,
    picks: u64,
    failures: u64,
    resets: u64,
    bytes_up: u64,
    bytes_down: u64,
    tcp: Option<TcpCounters>,
}

impl BackendSum {
    fn add(&mut self, one: &BackendCounters) {
        self.up |= one.status == Status::Up;
        self.live += one.live;
        self.connecting += one.connecting;
        self.opened += one.opened;
        self.picks += one.picks;
        self.failures += one.failures;
        self.resets += one.resets;
        self.bytes_up += one.bytes_up;
        self.bytes_down += one.bytes_down;
        if let Some(one) = one.tcp {
            let none = TcpCounters { source: one.source, srtt_us: 0, retransmits: 0, counts: None };
            let sum = self.tcp.get_or_insert(none);
            sum.srtt_us = sum.srtt_us.max(one.srtt_us);
            sum.retransmits += one.retransmits;
            if let Some(one) = one.counts {
                let sum = sum.counts.get_or_insert_default();
                sum.connect_us = sum.connect_us.max(one.connect_us);
                sum.closes += one.closes;
                sum.resets += one.resets;
                sum.early_resets += one.early_resets;
            }
        }
    }
}

fn add_frontend(mut sum: FrontendCounters, one: FrontendCounters) -> FrontendCounters {
    sum.live += one.live;
    sum.opened += one.opened;
    sum.closed += one.closed;
    sum.bytes_up += one.bytes_up;
    sum.bytes_down += one.bytes_down;
    if let Some(one) = one.datagrams {
        let sum = sum.datagrams.get_or_insert_default();
        sum.up += one.up;
        sum.down += one.down;
        sum.lost_up += one.lost_up;
        sum.lost_down += one.lost_down;
    }
    sum.refused.iter_mut().zip(one.refused).for_each(|(sum, one)| *sum += one);
    sum.relays.iter_mut().zip(&one.relays).for_each(|(sum, one)| sum.add(one));
    for (sum, one) in
        [(&mut sum.connect_seconds, &one.connect_seconds), (&mut sum.session_seconds, &one.session_seconds)]
    {
        sum.counts.iter_mut().zip(one.counts).for_each(|(sum, one)| *sum += one);
        sum.sum += one.sum;
    }
    sum
}

mod format;
#[cfg(test)]
mod tests;
