//! Datagrams: sessions of one client address and port, each on one backend for its life.
//!
//! A frontend with protocol = "udp" has one socket per worker and address; the kernel's hash keeps a client on one of
//! them, so a session belongs to one worker. Towards its backend a session has a connected socket of its own.

mod group;
mod listener;
mod session;
mod sessions;
mod socket;

pub(super) use group::Group;
pub(super) use listener::Datagrams;
pub(super) use socket::{open, probe_address};
