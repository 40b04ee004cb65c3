//! Programs of relays with a fault each, for tests of their self-tests.

#[cfg(feature = "sk_msg")]
pub mod sk_msg;
#[cfg(feature = "proxy")]
pub mod sockmap;
