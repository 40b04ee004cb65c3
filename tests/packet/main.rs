//! The packet core against a model of its own: reading, deciding, rewriting.

mod deciding;
mod half_open;
mod least;
mod limits;
mod local;
mod modes;
mod reading;
