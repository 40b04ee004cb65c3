//! Lemonade, a load balancer in one binary and one TOML file.
//!
//! A control plane decides, a data plane moves the bytes. `ARCHITECTURE.md` is the map.

use std::future::Future;
use std::pin::Pin;

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod health;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod model;
pub mod proxy;
pub mod shutdown;
pub mod state_dir;
pub mod strategy;
pub mod systemd;

/// A boxed future that a port hands to the composition root.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
