//! What the load side reports to the bench.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Requests that waited for their answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Closed {
    /// Length of the measured window.
    pub seconds: f64,
    /// Answers complete in the window.
    pub done: u64,
    /// Connections that broke.
    pub errors: u64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// Processor seconds of the watched processes in the window.
    pub watched: f64,
    /// Processor seconds of the whole machine in the window.
    pub machine: f64,
    /// Processor seconds of the generator in the window.
    pub own: f64,
}

/// Bytes moved in one direction.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bulk {
    /// Length of the measured window.
    pub seconds: f64,
    /// Bytes moved in the window.
    pub bytes: u64,
    /// Connections that ended before the window did.
    pub errors: u64,
    /// Processor seconds of the watched processes in the window.
    pub watched: f64,
    /// Processor seconds of the whole machine in the window.
    pub machine: f64,
    /// Processor seconds of the generator in the window.
    pub own: f64,
}

/// Which way bulk data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

/// Connections opened and answered once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// Connections open now.
    pub held: u64,
    /// Connections that failed while they were opened.
    pub failed: u64,
}

/// One connection of the steady load.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Moment of its start, nanoseconds of the monotonic clock.
    pub start_ns: u64,
    /// Start to last byte of the answer, or to the failure, in microseconds.
    pub took_us: u32,
    /// Backend that answered; 0 when it failed.
    pub answer: u8,
}

impl Outcome {
    /// Moment of its end, nanoseconds of the monotonic clock.
    pub fn end_ns(self) -> u64 {
        self.start_ns + u64::from(self.took_us) * 1000
    }
}

/// All connections of the steady load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Steady {
    /// In order of their ends.
    pub outcomes: Vec<Outcome>,
    /// Starts that came more than 50 ms late: the generator was the limit then.
    pub late: u64,
}

/// A time in which a conversation waited for an answer, over a millisecond.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Silence {
    /// Its beginning, nanoseconds of the monotonic clock.
    pub since_ns: u64,
    /// Its length in nanoseconds; it goes on over a new connection in place of one that broke.
    pub took_ns: u64,
}

/// Conversations that last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Talks {
    /// Answers complete.
    pub answers: u64,
    /// Connections that broke after an answer had come on them.
    pub broken: u64,
    /// In order of their ends.
    pub silences: Vec<Silence>,
}

/// The moment an answer came.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct First {
    /// Nanoseconds of the monotonic clock; nothing when the time ran out.
    pub at_ns: Option<u64>,
}
