//! What every data plane of Lemonade shares: ids, flow keys, the flow hash, reasons, and the packet core of the
//! forward plane.
//!
//! Nothing here allocates, reads a clock or performs I/O, so the same code can run in the kernel.

#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod answer;
pub mod connect;
pub mod csum;
pub mod decap;
pub mod decide;
pub mod flow;
pub mod forward;
pub mod gate;
pub mod half_open;
pub mod hash;
pub mod hop;
pub mod ids;
pub mod least;
pub mod maglev;
pub mod notice;
mod open;
pub mod packet;
pub mod place;
pub mod restore;
pub mod rewrite;
pub mod sk_msg;
pub mod splice;
pub mod verdict;

pub use flow::FlowKey;
pub use ids::{BackendIx, FrontendIx};
pub use verdict::{PacketReason, Reason};
