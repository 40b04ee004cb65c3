//! The packet core against a model of its own: reading, deciding, rewriting.

mod deciding;
mod modes;
mod reading;
