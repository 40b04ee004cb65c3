//! The data-plane port and its adapters: the Tokio proxy moves the bytes.

pub mod adapters;
pub mod error;
pub mod port;
