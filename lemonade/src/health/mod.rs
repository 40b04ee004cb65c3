//! Whether backends may be picked: active probes and passive signals feed one state machine per backend.

pub mod fsm;
pub mod port;
pub mod schedule;
