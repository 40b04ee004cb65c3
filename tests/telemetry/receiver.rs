//! A receiver of OTLP over HTTP in the test process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use lemonade_tests::socket::listener;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// What the receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Takes it.
    Takes,
    /// Answers that it is overloaded.
    Overloaded,
    /// Reads it and never answers.
    Silent,
}

/// What has come so far.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Metrics of the newest report, and how many there were.
    pub metrics: Vec<Metric>,
    pub reports: usize,
    pub spans: Vec<Span>,
    pub lines: Vec<LogRecord>,
    /// Attributes of the resource that came last.
    pub resource: Vec<KeyValue>,
    /// Headers of the request that came last.
    pub headers: BTreeMap<String, String>,
    /// Requests of any kind, taken or not.
    pub requests: usize,
}

pub struct Receiver {
    pub address: SocketAddr,
    state: Arc<Mutex<(Mood, Received)>>,
}

impl Receiver {
    pub fn start(mood: Mood) -> Self {
        let listener = listener();
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(Mutex::new((mood, Received::default())));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, state }
    }

    /// The line of `[telemetry]` that leads here.
    pub fn endpoint(&self) -> String {
        format!("endpoint = \"http://{}\"", self.address)
    }

    pub fn set(&self, mood: Mood) {
        self.state.lock().expect("no panic").0 = mood;
    }

    pub fn received(&self) -> Received {
        self.state.lock().expect("no panic").1.clone()
    }

    /// The span of this name for which `right` holds.
    pub fn span(&self, name: &str, right: impl Fn(&Span) -> bool) -> Option<Span> {
        self.received().spans.into_iter().find(|span| span.name == name && right(span))
    }
}

/// An attribute in words, whatever its type.
pub fn told(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let value = found.and_then(|attribute| attribute.value.as_ref()).and_then(|value| value.value.as_ref());
    match value {
        None => format!("no {key}"),
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(holds)) => holds.to_string(),
        Some(other) => format!("{other:?}"),
    }
}

fn serve(stream: TcpStream, state: &Mutex<(Mood, Received)>) {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_ok_and(|read| read > 0) && line != "\r\n" {
            head.push(line.trim_end().to_owned());
        } else {
            break;
        }
    }
    let Some(first) = head.first() else { return };
    let headers: BTreeMap<String, String> = head[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mood = {
        let (mood, received) = &mut *state.lock().expect("no panic");
        received.requests += 1;
        received.headers = headers;
        if *mood == Mood::Takes {
            take(received, &path, &body);
        }
        *mood
    };
    let answer = match mood {
        Mood::Takes => "200 OK",
        Mood::Overloaded => "503 Service Unavailable",
        Mood::Silent => {
            // Ends when the sender has given up.
            let _ = reader.read(&mut [0]);
            return;
        }
    };
    let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    // The sender may be gone.
    let _ = reader.get_mut().write_all(answer.as_bytes());
}

fn take(received: &mut Received, path: &str, body: &[u8]) {
    match path {
        "/v1/metrics" => {
            let request = ExportMetricsServiceRequest::decode(body).expect("metrics");
            received.reports += 1;
            for resource in request.resource_metrics {
                received.resource = resource.resource.unwrap_or_default().attributes;
                received.metrics = resource.scope_metrics.into_iter().flat_map(|one| one.metrics).collect();
            }
        }
        "/v1/traces" => {
            let request = ExportTraceServiceRequest::decode(body).expect("spans");
            let scopes = request.resource_spans.into_iter().flat_map(|one| one.scope_spans);
            received.spans.extend(scopes.flat_map(|scope| scope.spans));
        }
        "/v1/logs" => {
            let request = ExportLogsServiceRequest::decode(body).expect("log records");
            let scopes = request.resource_logs.into_iter().flat_map(|one| one.scope_logs);
            received.lines.extend(scopes.flat_map(|scope| scope.log_records));
        }
        other => panic!("nothing is sent to {other}"),
    }
}
