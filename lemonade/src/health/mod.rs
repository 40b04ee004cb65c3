//! Whether backends may be picked: active probes and passive signals feed one state machine per backend.

pub mod adapters;
pub mod fsm;
pub mod port;
pub mod schedule;
