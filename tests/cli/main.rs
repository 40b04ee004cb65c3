//! The command line and bad input: clear errors, the right exit code, no panic.

mod bad_input;
mod changes;
mod commands;
#[cfg(target_os = "linux")]
mod doctor;
mod operate;
mod questions;
mod screen;
mod socket;
mod top;
