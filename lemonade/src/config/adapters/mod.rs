//! Where configurations come from.

pub mod fixed;
pub mod notify;
