//! The strategies; `docs/guide/strategies.md` gives each formula and its source.

mod adaptive;
mod fastest_response_time;
mod least_connections;
mod round_robin;
mod source_hash;
mod two_choices;
mod weighted_round_robin;

pub use adaptive::Adaptive;
pub use fastest_response_time::FastestResponseTime;
pub use least_connections::LeastConnections;
pub use round_robin::RoundRobin;
pub use source_hash::SourceHash;
pub use weighted_round_robin::WeightedRoundRobin;
