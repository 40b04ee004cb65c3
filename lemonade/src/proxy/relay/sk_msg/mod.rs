//! Relay `sk_msg`: `copy`, whose hops within this host skip TCP.

pub mod trials;
pub mod unread;
