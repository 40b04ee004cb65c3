//! Whether backends may be picked: active probes and passive signals feed one state machine per backend.

pub mod adapters;
pub mod fsm;
pub mod port;
mod roster;
pub mod schedule;

#[cfg(test)]
mod testing;
