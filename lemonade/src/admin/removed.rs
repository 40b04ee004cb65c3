//! What left the configuration while connections of it live, for the status.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::status::rfc3339;
use crate::control::{ControlState, Leaving, Left};

/// A frontend or backend that was removed, as long as connections of it live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedStatus {
    /// `backend POOL/NAME` or `frontend NAME`.
    pub what: String,
    /// Address of a backend; `None` for a frontend, or where the port is the client's.
    pub address: Option<String>,
    /// Connections that live.
    pub live: u64,
    /// When they are reset, RFC 3339; `None`: a host name has this address no more, and they may go on.
    pub reset_at: Option<String>,
}

impl RemovedStatus {
    /// In a sentence.
    pub fn words(&self) -> String {
        let Self { what, address, live, reset_at } = self;
        let address = address.as_ref().map(|address| format!(" ({address})")).unwrap_or_default();
        match reset_at {
            Some(at) => format!("{what}{address}: removed, draining: {live} live, reset at {at}"),
            None => format!("{what}{address}: its host name has this address no more: {live} live go on"),
        }
    }
}

/// What still has connections.
pub(super) fn read(control: &ControlState) -> Vec<RemovedStatus> {
    let one = |own: &Leaving| {
        let live = own.what.live();
        let (what, address) = match &own.what {
            Left::Frontend(entry) => (format!("frontend {}", entry.frontend.name), None),
            Left::Backend(entry) => {
                let id = &entry.id;
                (format!("backend {id}"), id.port.map(|port| id.address(port).to_string()))
            }
        };
        (live > 0).then(|| RemovedStatus { what, address, live, reset_at: own.until.map(rfc3339) })
    };
    control.leaving.iter().filter_map(one).collect()
}
