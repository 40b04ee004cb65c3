//! Empties the queue and sends what was in it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use hyper::Uri;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::points::{self, metrics};
use super::post::{Failure, post};
use super::spans::span;
use super::{Item, Shared, identity, layer, nanos, number, text};
use crate::metrics::adapters::prometheus::families;
use crate::metrics::port::MetricsService;
use crate::model::config::Telemetry;
use crate::shutdown::Phase;

/// Time between two looks into the queue; nobody is woken for each item.
const LOOK: Duration = Duration::from_millis(250);

/// Items of one request at most.
const BATCH: usize = 2_048;

/// Shortest and longest time for which a receiver that takes nothing is left alone.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Time for what is left when the process stops.
const LAST: Duration = Duration::from_secs(1);

/// What is exported of, besides the queue.
pub struct Sources {
    /// Counters.
    pub metrics: Arc<dyn MetricsService>,
    /// Phase, one of the metrics.
    pub phase: watch::Receiver<Phase>,
}

/// The end of the queue.
#[derive(Debug)]
pub struct Exporter {
    items: mpsc::Receiver<Item>,
    settings: watch::Receiver<Arc<Telemetry>>,
    shared: Arc<Shared>,
    started: SystemTime,
    instance: String,
    waiting: VecDeque<Request>,
    pause: Duration,
    not_before: Instant,
}

/// Spans or log records on their way; tried again until they are taken or refused for good.
#[derive(Debug)]
struct Request {
    path: &'static str,
    body: Bytes,
    items: u64,
    rejected: fn(Bytes) -> u64,
}

/// Where everything goes.
struct Receiver {
    endpoint: Uri,
    headers: HeaderMap,
    resource: Resource,
}

impl Exporter {
    pub(super) fn new(
        items: mpsc::Receiver<Item>,
        settings: watch::Receiver<Arc<Telemetry>>,
        shared: Arc<Shared>,
    ) -> Self {
        let instance = identity::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
        let not_before = Instant::now();
        let waiting = VecDeque::new();
        let started = SystemTime::now();
        Self { items, settings, shared, started, instance, waiting, pause: PAUSE.0, not_before }
    }

    #[cfg(test)]
    pub(super) fn queued(&mut self) -> Vec<Item> {
        std::iter::from_fn(|| self.items.try_recv().ok()).collect()
    }

    /// Sends what comes until `stop`, and then what is left, for a second at most. Runs on a thread of its own.
    pub async fn run(mut self, sources: Sources, stop: CancellationToken) {
        layer::mute();
        while !stop.is_cancelled() {
            let settings = Arc::clone(&self.settings.borrow_and_update());
            let Some(receiver) = self.receiver(&settings) else {
                self.discard();
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = self.settings.changed() => if changed.is_err() { return },
                }
                continue;
            };
            (self.pause, self.not_before) = (PAUSE.0, Instant::now());
            let mut settings_of = self.settings.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = settings_of.changed() => continue,
                () = self.serve(&receiver, &sources, settings.interval) => {}
            }
            self.not_before = Instant::now();
            let last = async {
                self.measure(&receiver, &sources).await;
                self.forward(&receiver).await;
            };
            // What a receiver does not take in this time is lost with the process.
            let _ = tokio::time::timeout(LAST, last).await;
        }
        self.discard();
    }

    async fn serve(&mut self, receiver: &Receiver, sources: &Sources, every: Duration) {
        let mut look = interval(LOOK);
        let mut measure = interval(every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = measure.tick() => self.measure(receiver, sources).await,
                _ = look.tick() => self.forward(receiver).await,
            }
        }
    }

    fn receiver(&self, settings: &Telemetry) -> Option<Receiver> {
        // Checked when the file was read.
        let endpoint = settings.endpoint.as_ref()?.parse().ok()?;
        let header = |(name, value): (&String, &String)| {
            Some((name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?))
        };
        let mut attributes = vec![
            text("service.name", settings.service_name.as_str()),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", self.instance.as_str()),
            number("process.pid", std::process::id().into()),
        ];
        let host = rustix::system::uname();
        attributes.push(text("host.name", host.nodename().to_string_lossy()));
        Some(Receiver {
            endpoint,
            headers: settings.headers.iter().filter_map(header).collect(),
            resource: Resource { attributes, ..Resource::default() },
        })
    }

    /// Sends the counters as they are now. They are totals, so a request that is lost costs no more than its moment.
    async fn measure(&mut self, receiver: &Receiver, sources: &Sources) {
        if Instant::now() < self.not_before {
            return;
        }
        let body = {
            let snapshot = sources.metrics.snapshot();
            let span = points::Span { start: nanos(self.started), now: nanos(snapshot.at) };
            let metrics = metrics(&families(&snapshot, *sources.phase.borrow()), span);
            let scope_metrics =
                vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }];
            let resource = Some(receiver.resource.clone());
            let resource_metrics =
                vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }];
            ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
        };
        let answer = post(&receiver.endpoint, "/v1/metrics", &receiver.headers, body.into()).await;
        self.noted(&receiver.endpoint, answer.map(drop)).ok();
    }

    /// Sends what waits, until nothing does or the receiver takes no more.
    async fn forward(&mut self, receiver: &Receiver) {
        while Instant::now() >= self.not_before {
            if self.waiting.is_empty() {
                self.pack(&receiver.resource);
            }
            let Some(first) = self.waiting.front() else { return };
            let answer = post(&receiver.endpoint, first.path, &receiver.headers, first.body.clone()).await;
            let (items, rejected) = (first.items, first.rejected);
            match self.noted(&receiver.endpoint, answer) {
                Ok(answer) => {
                    self.lost(rejected(answer).min(items));
                    self.waiting.pop_front();
                }
                Err(Failure::Never(_)) => {
                    self.lost(items);
                    self.waiting.pop_front();
                }
                Err(Failure::Later(_)) => return,
            }
        }
    }

    /// Takes a batch out of the queue.
    fn pack(&mut self, resource: &Resource) {
        let (mut spans, mut log_records) = (Vec::new(), Vec::new());
        while spans.len() + log_records.len() < BATCH {
            match self.items.try_recv() {
                Ok(Item::Connection(record)) => spans.push(span(&record)),
                Ok(Item::Span(span)) => spans.push(*span),
                Ok(Item::Log(line)) => log_records.push(*line),
                Err(_) => break,
            }
        }
        if !spans.is_empty() {
            let items = spans.len() as u64;
            let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() }];
            let resource = Some(resource.clone());
            let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
            let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec().into();
            self.waiting.push_back(Request { path: "/v1/traces", body, items, rejected: rejected_spans });
        }
        if !log_records.is_empty() {
            let items = log_records.len() as u64;
            let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records, ..ScopeLogs::default() }];
            let resource = Some(resource.clone());
            let resource_logs = vec![ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }];
            let body = ExportLogsServiceRequest { resource_logs }.encode_to_vec().into();
            self.waiting.push_back(Request { path: "/v1/logs", body, items, rejected: rejected_lines });
        }
    }

    /// Says once that a receiver takes nothing, and that it does again; leaves it alone for longer each time.
    fn noted<T>(&mut self, endpoint: &Uri, answer: Result<T, Failure>) -> Result<T, Failure> {
        let well = self.pause == PAUSE.0;
        match &answer {
            Ok(_) => {
                if !well {
                    tracing::info!(%endpoint, "telemetry is delivered again");
                }
                self.pause = PAUSE.0;
            }
            Err(Failure::Later(why) | Failure::Never(why)) => {
                self.shared.process.telemetry_failures.fetch_add(1, Ordering::Relaxed);
                if well {
                    tracing::warn!(%endpoint, why, "cannot deliver telemetry; lemonade_telemetry_dropped_total counts the spans and log records that are lost");
                }
                self.not_before = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(PAUSE.1);
            }
        }
        answer
    }

    /// Counts what was not delivered and never will be.
    fn discard(&mut self) {
        let mut lost: u64 = self.waiting.drain(..).map(|request| request.items).sum();
        while self.items.try_recv().is_ok() {
            lost += 1;
        }
        self.lost(lost);
    }

    fn lost(&self, items: u64) {
        self.shared.process.telemetry_dropped.fetch_add(items, Ordering::Relaxed);
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "lemonade".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn rejected_spans(answer: Bytes) -> u64 {
    let partial = ExportTraceServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
    partial.map_or(0, |partial| partial.rejected_spans.max(0).unsigned_abs())
}

fn rejected_lines(answer: Bytes) -> u64 {
    let partial = ExportLogsServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
    partial.map_or(0, |partial| partial.rejected_log_records.max(0).unsigned_abs())
}
