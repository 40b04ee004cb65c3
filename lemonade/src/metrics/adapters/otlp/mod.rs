//! OpenTelemetry: metrics, logs, and traces of the control plane and of a share of connections, sent by OTLP.
//!
//! Everything waits in one bounded queue that a thread of its own empties. What finds the queue full is lost and counted:
//! neither the data plane nor the control plane ever waits for a receiver.

mod export;
mod layer;
mod points;
mod post;
mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::{mpsc, watch};

use crate::metrics::port::{AccessRecord, Recorder};
use crate::model::ProcessCell;
use crate::model::config::Telemetry;

pub use export::{Exporter, Sources};
pub use layer::{ControlSpans, LogRecords};

/// Spans and log records that may wait for the exporter.
pub const CAPACITY: usize = 8_192;

/// Where spans and log records go; clones lead to the same exporter.
#[derive(Clone, Debug)]
pub struct Otlp {
    queue: mpsc::Sender<Item>,
    settings: watch::Sender<Arc<Telemetry>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Whether an endpoint is set; connections sampled, of each 2^32.
    share: AtomicU64,
    process: Arc<ProcessCell>,
}

/// Set in `share` while an endpoint is set.
const ON: u64 = 1 << 63;

/// Something that waits for the exporter.
#[derive(Debug)]
enum Item {
    /// Made into a span by the exporter, so that the data plane has no work with it.
    Connection(Box<AccessRecord>),
    Span(Box<Span>),
    Log(Box<LogRecord>),
}

/// Makes the way in and the exporter at its end; nothing is taken in before [`Otlp::set`].
pub fn channel(process: Arc<ProcessCell>) -> (Otlp, Exporter) {
    let (queue, items) = mpsc::channel(CAPACITY);
    let (settings, receiver) = watch::channel(Arc::new(Telemetry::default()));
    let shared = Arc::new(Shared { share: AtomicU64::new(0), process });
    let exporter = Exporter::new(items, receiver, Arc::clone(&shared));
    (Otlp { queue, settings, shared }, exporter)
}

impl Otlp {
    /// Takes `telemetry` as what to send where from now on.
    pub fn set(&self, telemetry: &Telemetry) {
        let share = match &telemetry.endpoint {
            Some(_) => ON | (telemetry.sample * (1_u64 << 32) as f64) as u64,
            None => 0,
        };
        self.shared.share.store(share, Ordering::Relaxed);
        self.settings.send_if_modified(|now| {
            let differs = **now != *telemetry;
            if differs {
                *now = Arc::new(telemetry.clone());
            }
            differs
        });
    }

    fn on(&self) -> bool {
        self.shared.share.load(Ordering::Relaxed) & ON != 0
    }

    fn put(&self, item: Item) {
        if self.queue.try_send(item).is_err() {
            self.shared.process.telemetry_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Recorder for Otlp {
    /// Takes evenly spaced numbers of connections, so that a share of them is that share of any stretch.
    fn wants(&self, id: u64) -> bool {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let share = self.shared.share.load(Ordering::Relaxed) & !ON;
        share != 0 && id.wrapping_mul(GOLDEN) >> 32 < share
    }

    fn record(&self, record: AccessRecord) {
        self.put(Item::Connection(Box::new(record)));
    }
}

fn attribute(key: impl Into<String>, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(key: impl Into<String>, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn number(key: impl Into<String>, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn nanos(time: std::time::SystemTime) -> u64 {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Random bytes of an identity, never all zero.
fn identity<const N: usize>() -> Vec<u8> {
    let mut bytes = [0; N];
    fastrand::fill(&mut bytes);
    bytes[0] |= 1;
    bytes.to_vec()
}

#[cfg(test)]
mod tests;
