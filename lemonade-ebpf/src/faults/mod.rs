//! Programs of relays with a fault each, for tests of their self-tests, and networks with faults.

#[cfg(feature = "sk_msg")]
pub mod sk_msg;
#[cfg(feature = "proxy")]
pub mod sockmap;
pub mod unruly;
