//! Every frontend on the best plane that can carry it: packets in the kernel where that is asked for and possible, the
//! Tokio plane for the rest and behind it.

use std::sync::Arc;
use std::time::Duration;

use super::tokio_proxy::TokioProxy;
use crate::BoxFuture;
use crate::control::table::DispatchTable;
use crate::proxy::error::ApplyError;
#[cfg(target_os = "linux")]
use crate::proxy::forward::ForwardPlane;
use crate::proxy::port::{Capabilities, Connection, DrainScope, PlaneCounters, ProxyService, Which};

/// The planes of a process.
pub struct Tiered {
    proxy: Arc<TokioProxy>,
    #[cfg(target_os = "linux")]
    forward: Arc<ForwardPlane>,
}

impl Tiered {
    /// Puts `forward` before `proxy`.
    pub const fn new(proxy: Arc<TokioProxy>, #[cfg(target_os = "linux")] forward: Arc<ForwardPlane>) -> Self {
        Self {
            proxy,
            #[cfg(target_os = "linux")]
            forward,
        }
    }
}

impl ProxyService for Tiered {
    fn offers(&self) -> Capabilities {
        self.proxy.offers()
    }

    fn apply(&self, table: Arc<DispatchTable>) -> Result<(), ApplyError> {
        #[cfg(target_os = "linux")]
        return self.forward.apply(&table, || self.proxy.apply(Arc::clone(&table)));
        #[cfg(not(target_os = "linux"))]
        self.proxy.apply(table)
    }

    fn drain(&self, scope: DrainScope, deadline: Duration) -> BoxFuture<u64> {
        let proxied = self.proxy.drain(scope.clone(), deadline);
        #[cfg(target_os = "linux")]
        {
            let forwarded = self.forward.drain(scope, deadline);
            Box::pin(async move {
                let (proxied, forwarded) = tokio::join!(proxied, forwarded);
                proxied + forwarded
            })
        }
        #[cfg(not(target_os = "linux"))]
        proxied
    }

    fn observe(&self) -> PlaneCounters {
        #[cfg_attr(not(target_os = "linux"), expect(unused_mut, reason = "nothing to add"))]
        let mut counters = self.proxy.observe();
        #[cfg(target_os = "linux")]
        {
            counters.live += self.forward.live();
        }
        counters
    }

    fn connections(&self, which: Which, such: &dyn Fn(&Connection) -> bool) -> Vec<Connection> {
        #[cfg_attr(not(target_os = "linux"), expect(unused_mut, reason = "nothing to add"))]
        let mut connections = self.proxy.connections(which, such);
        #[cfg(target_os = "linux")]
        connections.extend(self.forward.connections(which, such));
        connections
    }
}
