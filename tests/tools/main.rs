//! The tools that people already run read what Lemonade writes.

mod access;
mod commands;
mod confinement;
mod guide;
mod openapi;
mod package;
mod prometheus;
