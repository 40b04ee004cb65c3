//! Adapters of the data-plane port.

pub mod model;
pub mod tokio_proxy;
