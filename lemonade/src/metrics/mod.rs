//! What happened: access records, the time series, Prometheus text.

pub mod adapters;
#[cfg(test)]
pub(crate) mod fixture;
pub mod port;
pub mod snapshot;
