//! The planes.

pub mod model;
