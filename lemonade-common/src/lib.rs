//! What every data plane of Lemonade shares: ids, flow keys, the flow hash and the reasons for a verdict.
//!
//! Nothing here allocates, reads a clock or performs I/O, so the same code can run in the kernel.

#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod flow;
pub mod hash;
pub mod ids;
pub mod sk_msg;
pub mod verdict;

pub use flow::FlowKey;
pub use ids::{BackendIx, FrontendIx};
pub use verdict::Reason;
