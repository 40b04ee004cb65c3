//! Programs of relays with a fault each, for tests of their self-tests.

pub mod sk_msg;
pub mod sockmap;
