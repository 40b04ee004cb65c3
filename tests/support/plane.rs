//! What the conformance suite runs on: anything that carries TCP connections from clients to backends.

use std::net::SocketAddr;

use crate::lemonade::Lemonade;
use crate::setup::Setup;
use crate::wait;

/// A way from clients to backends.
pub trait Plane: Sync {
    /// Its name in messages.
    fn name(&self) -> &'static str;

    /// Whether a balancer stands between: pools of several backends, retries and counters exist.
    fn balances(&self) -> bool;

    /// Starts to serve `setup`, whose frontend is `web`.
    fn start(&self, setup: &Setup) -> Box<dyn Served>;
}

/// A plane that serves.
pub trait Served {
    /// Where clients connect.
    fn address(&self) -> SocketAddr;

    /// Its process, when it has one of its own.
    fn process(&self) -> Option<&Lemonade>;
}

/// No balancer: validates the suite itself and gives the traces that the other planes are compared with.
pub struct Direct;

impl Plane for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn balances(&self) -> bool {
        false
    }

    fn start(&self, setup: &Setup) -> Box<dyn Served> {
        Box::new(setup.pools[0].backends[0].address)
    }
}

impl Served for SocketAddr {
    fn address(&self) -> SocketAddr {
        *self
    }

    fn process(&self) -> Option<&Lemonade> {
        None
    }
}

/// Lemonade's proxy with the `copy` relay.
pub struct Copy;

/// Lemonade's proxy with the `sockmap` relay for connections that last.
pub struct Sockmap;

impl Plane for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn balances(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Box<dyn Served> {
        let process = Lemonade::start(&setup.clone().frontend(&["relay = \"copy\""]));
        let address = process.address("web");
        Box::new(Proxied { process, address })
    }
}

impl Plane for Sockmap {
    fn name(&self) -> &'static str {
        "sockmap"
    }

    fn balances(&self) -> bool {
        true
    }

    /// Waits until the relay has passed its self-tests.
    fn start(&self, setup: &Setup) -> Box<dyn Served> {
        let process = Lemonade::start(&setup.clone().frontend(&["relay = \"sockmap\""]));
        let address = process.address("web");
        wait::until("the relay sockmap is on", wait::SOON, || {
            let relays = process.status().0["relays"].clone();
            let own = relays.as_array().into_iter().flatten().find(|own| own["relay"] == "sockmap").cloned();
            let own = own.expect("the status names the relay");
            let why = own["findings"]["why"].as_str().unwrap_or_default();
            assert!(own["usable"] == true || why.is_empty(), "the relay sockmap is off: {own:#}");
            own["usable"] == true
        });
        Box::new(Proxied { process, address })
    }
}

struct Proxied {
    process: Lemonade,
    address: SocketAddr,
}

impl Served for Proxied {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn process(&self) -> Option<&Lemonade> {
        Some(&self.process)
    }
}
