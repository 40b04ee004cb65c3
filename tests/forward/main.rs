//! Lemonade's forward plane from its file to packets: client, balancer and backends in namespaces of their own.

#![cfg(target_os = "linux")]

mod changes;
mod examples;
mod fallback;
mod serving;
mod stage;
