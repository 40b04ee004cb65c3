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

/// A frontend that cannot be forwarded and must not fall back.
#[derive(Debug, thiserror::Error)]
#[error("frontend.{frontend}: packets cannot be forwarded: {why}; or write fallback = \"proxy\"")]
pub struct ForwardError {
    /// Frontend that asked for it.
    pub frontend: Name,
    /// Why not, in words.
    pub why: String,
}

/// Why a table was not taken; the plane goes on with the one it had.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(.listeners, .forward))]
pub struct ApplyError {
    /// Every listener that failed.
    pub listeners: Vec<ListenError>,
    /// Every frontend that cannot be forwarded.
    pub forward: Vec<ForwardError>,
}

fn lines(listeners: &[ListenError], forward: &[ForwardError]) -> String {
    let listeners = listeners.iter().map(ToString::to_string);
    listeners.chain(forward.iter().map(ToString::to_string)).collect::<Vec<_>>().join("\n")
}
