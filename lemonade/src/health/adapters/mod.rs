//! Adapters of the health port: the service, its real prober, and a scripted prober.

pub mod backend;
pub mod probe;
pub mod scripted;
