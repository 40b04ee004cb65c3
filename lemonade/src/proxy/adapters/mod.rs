//! Data planes, and what the kernel carries for them.

pub mod bpf;
pub mod model;
pub mod tiered;
pub mod tokio_proxy;
