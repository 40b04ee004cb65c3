//! The data-plane port and its adapters: the Tokio proxy moves the bytes.

pub mod adapters;
mod admit;
mod budget;
mod buffer;
pub mod clock;
mod conn;
pub mod error;
mod establish;
pub mod flow;
#[cfg(target_os = "linux")]
pub mod forward;
pub mod port;
pub mod recent;
pub mod relay;
mod sample;
mod seat;
mod shared;
pub mod socket;
pub mod tap;
mod udp;
mod worker;
