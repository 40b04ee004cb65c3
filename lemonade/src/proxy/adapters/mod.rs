//! Adapters of the data-plane port.

pub mod tokio_proxy;
