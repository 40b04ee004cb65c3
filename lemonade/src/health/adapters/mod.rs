//! Adapters of the health port: the real prober and a scripted one.

pub mod probe;
pub mod scripted;
