//! Plain validated types and the live cells that survive a reload; no I/O and no clock.

pub mod cell;
pub mod config;
pub mod ewma;
pub mod forward;
pub mod relay;
pub mod resolution;
pub mod tcp;
pub mod time;
pub mod wait;

pub use cell::{BackendCell, FrontendCell, PoolCell, ProcessCell};
pub use config::{Backend, Config, Frontend, Health, Name, Pool, StrategyKind, Target};
pub use resolution::Resolution;
pub use time::Moment;
