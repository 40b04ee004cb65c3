//! What `tracing` tells: spans of the control plane, and the lines of the log.

use std::cell::{Cell, RefCell};
use std::fmt::{Debug, Write as _};
use std::time::SystemTime;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::{Item, Otlp, attribute, identity, nanos, number, text};

/// Spans that are exported have this target.
const TARGET: &str = "lemonade::control";

thread_local! {
    /// Spans that this thread is in: their trace and their own identity.
    static INSIDE: RefCell<Vec<(Vec<u8>, Vec<u8>)>> = const { RefCell::new(Vec::new()) };
    /// Whether what this thread says would make it say more.
    static MUTE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps what this thread logs from being exported: the exporter's would never end.
pub(super) fn mute() {
    MUTE.set(true);
}

/// Exports the spans of the control plane, whatever the log's filter is.
#[derive(Debug)]
pub struct ControlSpans(Otlp);

/// Exports each event that reaches it as a log record.
#[derive(Debug)]
pub struct LogRecords(Otlp);

impl Otlp {
    /// The layer for spans of the control plane, with its filter.
    pub fn control_spans<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let control = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == TARGET;
        ControlSpans(self.clone()).with_filter(FilterFn::new(control))
    }

    /// The layer for log records; the filter of the log goes around it.
    pub fn log_records(&self) -> LogRecords {
        LogRecords(self.clone())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ControlSpans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if !self.0.on() {
            return;
        }
        let Some(span) = context.span(id) else { return };
        let parent = span.parent().and_then(|parent| {
            parent.extensions().get::<Span>().map(|span| (span.trace_id.clone(), span.span_id.clone()))
        });
        let (trace_id, parent_span_id) = parent.unwrap_or_else(|| (identity::<16>(), Vec::new()));
        let mut own = Span {
            trace_id,
            span_id: identity::<8>(),
            parent_span_id,
            name: attributes.metadata().name().to_owned(),
            kind: SpanKind::Internal.into(),
            start_time_unix_nano: nanos(SystemTime::now()),
            ..Span::default()
        };
        attributes.record(&mut Fields(&mut own.attributes));
        span.extensions_mut().insert(own);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(own) = span.extensions_mut().get_mut::<Span>()
        {
            values.record(&mut Fields(&mut own.attributes));
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(own) = span.extensions().get::<Span>()
        {
            INSIDE.with_borrow_mut(|inside| inside.push((own.trace_id.clone(), own.span_id.clone())));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(own) = span.extensions().get::<Span>()
        {
            INSIDE.with_borrow_mut(|inside| inside.retain(|(_, inside)| *inside != own.span_id));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(mut own) = span.extensions_mut().remove::<Span>() else { return };
        own.end_time_unix_nano = nanos(SystemTime::now());
        let error = own.attributes.iter().find(|attribute| attribute.key == "error");
        if let Some(error) = error.and_then(|error| error.value.as_ref()) {
            let message = match &error.value {
                Some(Value::StringValue(text)) => text.clone(),
                _ => String::new(),
            };
            own.status = Some(Status { message, code: StatusCode::Error.into() });
        }
        self.0.put(Item::Span(Box::new(own)));
    }
}

impl<S: Subscriber> Layer<S> for LogRecords {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !self.0.on() || MUTE.get() {
            return;
        }
        let metadata = event.metadata();
        let (severity_number, severity_text) = severity(*metadata.level());
        let now = nanos(SystemTime::now());
        let mut line = LogRecord {
            time_unix_nano: now,
            observed_time_unix_nano: now,
            severity_number: severity_number.into(),
            severity_text: severity_text.to_owned(),
            attributes: vec![text("target", metadata.target())],
            ..LogRecord::default()
        };
        event.record(&mut Fields(&mut line.attributes));
        if let Some(at) = line.attributes.iter().position(|attribute| attribute.key == "message") {
            line.body = line.attributes.swap_remove(at).value;
        }
        if line.body.is_none() {
            line.body = Some(AnyValue { value: Some(Value::StringValue(metadata.name().to_owned())) });
        }
        if let Some((trace, span)) = INSIDE.with_borrow(|inside| inside.last().cloned()) {
            (line.trace_id, line.span_id) = (trace, span);
        }
        self.0.put(Item::Log(Box::new(line)));
    }
}

const fn severity(level: Level) -> (SeverityNumber, &'static str) {
    match level {
        Level::ERROR => (SeverityNumber::Error, "ERROR"),
        Level::WARN => (SeverityNumber::Warn, "WARN"),
        Level::INFO => (SeverityNumber::Info, "INFO"),
        Level::DEBUG => (SeverityNumber::Debug, "DEBUG"),
        Level::TRACE => (SeverityNumber::Trace, "TRACE"),
    }
}

/// Fields as attributes.
struct Fields<'a>(&'a mut Vec<KeyValue>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut written = String::new();
        // A value that cannot be written is told as far as it could be.
        let _ = write!(written, "{value:?}");
        self.0.push(text(field.name(), written));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push(text(field.name(), value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push(number(field.name(), value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push(attribute(field.name(), Value::IntValue(value)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push(attribute(field.name(), Value::DoubleValue(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push(attribute(field.name(), Value::BoolValue(value)));
    }
}
