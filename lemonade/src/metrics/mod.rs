//! What happened: access records, the time series, Prometheus text.

pub mod port;
pub mod snapshot;
