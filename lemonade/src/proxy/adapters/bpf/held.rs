//! Links of programs to interfaces, which may outlive the process by their names.

#![cfg(target_os = "linux")]

use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};

use super::Unavailable;
use super::loader::corrupt;

/// A link to an interface.
#[derive(Debug)]
pub(super) enum Held<L> {
    /// It goes with the process.
    Own(L),
    /// It goes with its name.
    Pinned(PinnedLink),
}

pub(super) type Failure = Box<dyn std::error::Error>;

/// A link that another process has left, if its interface is the same.
///
/// # Errors
/// What is there instead.
pub(super) fn left(interface: &str, index: u32, path: &Path) -> Result<FdLink, Failure> {
    if index_of(interface) != Some(index) {
        return Err("the interface is gone".into());
    }
    Ok(FdLink::from(PinnedLink::from_pin(path)?))
}

/// Gives a link its name.
///
/// # Errors
/// As bpf(2), in words.
pub(super) fn pinned(link: FdLink, interface: &str, path: &Path) -> Result<PinnedLink, Unavailable> {
    link.pin(path).map_err(|error| corrupt(&format!("interface {interface}: its link gets no name: {error}")))
}

/// What an interface refuses, with its name.
pub(super) fn of_interface(interface: &str, Unavailable { why, cure }: Unavailable) -> Unavailable {
    Unavailable { why: format!("interface {interface}: {why}"), cure }
}

/// Index of an interface of this thread's namespace.
pub(super) fn index_of(interface: &str) -> Option<u32> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::name_to_index(socket, interface).ok()
}
