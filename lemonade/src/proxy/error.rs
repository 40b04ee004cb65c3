//! What can go wrong when a plane takes a table.

use std::net::SocketAddr;

use crate::model::Name;

/// A listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("frontend.{frontend}: cannot listen on {address}: {cause}")]
pub struct ListenError {
    /// Frontend that asked for it.
    pub frontend: Name,
    /// Address.
    pub address: SocketAddr,
    /// Cause in words, with what to do.
    pub cause: String,
}

/// Why a table was not taken; the plane goes on with the one it had.
#[derive(Debug, thiserror::Error)]
#[error("{}", .listeners.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ApplyError {
    /// Every listener that failed.
    pub listeners: Vec<ListenError>,
}
