//! A balancer whose frontend `web` asks for relay `splice`, and what is around it.

use std::net::SocketAddr;

use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::wait;

use crate::talk::Answerer;

pub const V4: [&str; 2] = ["10.77.1.2:8080", "10.77.2.3:0"];
pub const V6: [&str; 2] = ["[fd77:1::2]:8080", "[fd77:2::3]:0"];

pub fn parse(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

pub struct Stage {
    pub network: Network,
    pub frontend: SocketAddr,
    pub backend: Answerer,
    pub lemonade: Lemonade,
}

impl Stage {
    /// `None`, with a line among the skips, when the host does not allow it.
    pub fn start(test: &str, addresses: [&str; 2], further: &[&str]) -> Option<Self> {
        Self::start_with(test, addresses, |setup| setup.frontend(further))
    }

    pub fn start_with(
        test: &str,
        [frontend, target]: [&str; 2],
        change: impl FnOnce(Setup) -> Setup,
    ) -> Option<Self> {
        let network = Network::start(test)?;
        let backend = network.backends.enter(|| Answerer::start(parse(target)));
        Some(Self::between(network, backend, frontend, change))
    }

    /// The same in a network and before a backend that exist.
    pub fn between(
        network: Network,
        backend: Answerer,
        frontend: &str,
        change: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        let mut setup = Setup::single(&[backend.address]);
        setup.frontends[0] = Frontend::on("web", frontend, "web");
        let setup = change(setup.frontend(&["relay = \"splice\""]));
        let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
        let stage = Self { network, frontend: parse(frontend), backend, lemonade };
        wait::until("the relay is on", wait::SOON, || {
            stage.lemonade.status().frontend("web")["relay"] == "splice"
        });
        stage
    }

    /// A counter or gauge of the relay.
    pub fn relay(&self, name: &str) -> u64 {
        self.lemonade.metrics().maybe(&format!("lemonade_frontend_relay_{name}"), &[("relay", "splice")])
    }

    /// Connections that were due and stayed with copy, by reason.
    pub fn kept(&self, reason: &str) -> u64 {
        self.lemonade.status().frontend("web")["kept"][reason].as_u64().unwrap_or(0)
    }

    /// Waits until every connection has ended.
    pub fn ended(&self) {
        wait::until("every connection has ended", wait::SOON, || {
            self.lemonade.metrics().connections().2 == 0
        });
    }
}
