//! A balancer whose frontend `web` asks for the forward plane, and what is around it.

use std::net::SocketAddr;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::calls;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::wait;

/// Address of the frontend, and addresses of three backends.
pub struct Addresses {
    pub frontend: &'static str,
    pub backends: [&'static str; 3],
}

pub const V4: Addresses =
    Addresses { frontend: "10.77.1.2:8080", backends: ["10.77.2.3:0", "10.77.2.4:0", "10.77.2.5:0"] };

pub const V6: Addresses =
    Addresses { frontend: "[fd77:1::2]:8080", backends: ["[fd77:2::3]:0", "[fd77:2::4]:0", "[fd77:2::5]:0"] };

impl Addresses {
    pub fn frontend(&self) -> SocketAddr {
        parse(self.frontend)
    }

    /// Backends `a`, `b` and `c` of the tests' own protocol.
    pub fn backends(&self, network: &Network) -> Vec<Backend> {
        self.each(|name, address| network.backends.enter(|| Backend::start_on(name, address)))
    }

    /// The same, which check what they are sent.
    pub fn speaking(&self, network: &Network) -> Vec<Backend> {
        self.each(|name, address| network.backends.enter(|| Backend::start_speaking_on(name, address)))
    }

    fn each(&self, start: impl Fn(&str, SocketAddr) -> Backend) -> Vec<Backend> {
        ["a", "b", "c"].iter().zip(self.backends).map(|(name, address)| start(name, parse(address))).collect()
    }

    /// A configuration whose frontend asks for the forward plane, with a small table.
    pub fn setup(&self, backends: &[Backend]) -> Setup {
        self.setup_at(&backends.iter().map(|backend| backend.address).collect::<Vec<_>>())
    }

    /// The same with backends at these addresses.
    pub fn setup_at(&self, backends: &[SocketAddr]) -> Setup {
        let mut setup = Setup::single(backends);
        setup.frontends[0] = Frontend::on("web", self.frontend, "web");
        setup.frontend(&["data_plane = \"forward\"", "forward.connection_table = 16384"])
    }
}

pub fn parse(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// Starts a balancer and waits until the kernel serves `web`.
pub fn start(network: &Network, setup: &Setup) -> Lemonade {
    let lemonade = network.balancer.enter(|| Lemonade::start(setup));
    let status = lemonade.status();
    let web = status.frontend("web");
    assert_eq!(web["plane"], "forward", "{web:#}");
    lemonade
}

/// Names of the backends that answer `n` calls from the client's side.
pub fn ask(network: &Network, address: SocketAddr, n: usize) -> Vec<String> {
    network.client.enter(|| calls(address, n))
}

/// Packets that came to `reason`.
pub fn packets(lemonade: &Lemonade, reason: &str) -> u64 {
    lemonade.metrics().sum("lemonade_forward_packets_total", &[("reason", reason)])
}

/// Waits until the counters say that so many flows were opened in the kernel and none is left.
pub fn await_ended(lemonade: &Lemonade, opened: u64) {
    wait::until("every flow has ended", wait::SOON, || {
        let metrics = lemonade.metrics();
        let of = |name: &str| metrics.sum(&format!("lemonade_forward_flows_{name}"), &[]);
        (of("opened_total"), of("closed_total"), of("live")) == (opened, opened, 0)
    });
}
