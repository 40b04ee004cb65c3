//! Addresses of host names, as the resolver last saw them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Addresses by host name, sorted; a name that never resolved is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// By host name.
    pub hosts: BTreeMap<Arc<str>, Vec<IpAddr>>,
}
