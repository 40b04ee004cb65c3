//! Readers of the live cells and takers of access records.

pub mod access;
mod access_file;
pub mod access_format;
pub mod aggregating;
pub mod families;
pub mod memory;
pub mod otlp;
pub mod prometheus;
