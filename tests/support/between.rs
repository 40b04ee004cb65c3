//! A plane whose clients, balancer and backends are in network namespaces of their own.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::lemonade::Lemonade;
use crate::netns::Network;
use crate::plane::{Place, Plane, Served};
use crate::setup::Setup;
use crate::wait;

/// The frontend's address.
const FRONTEND: &str = "10.77.1.2:8080";

/// Questions with answers between two looks at whether a connection was taken over.
const TURNS: usize = 8;

/// How bytes pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel forwards packets.
    Forward,
    /// The proxy copies.
    Proxy,
    /// The proxy begins, and packets pass by once a connection lasts.
    Splice,
}

/// Lemonade between namespaces: one process, which is reloaded for each case. Cases run among clients, see [`run`].
pub struct Between<'a> {
    network: &'a Network,
    way: Way,
    process: Mutex<Option<Arc<Lemonade>>>,
}

/// A case of a suite, with its name.
pub type Case<'a> = (&'a str, fn(&dyn Plane));

/// Runs `cases` one after the other among the clients of such a plane, unless the host has no namespaces.
pub fn run(way: Way, test: &str, cases: &[Case<'_>]) {
    let Some(network) = Network::start(test) else { return };
    let plane = Between::new(&network, way);
    for (name, case) in cases {
        println!("{name}");
        network.client.enter(|| case(&plane));
    }
}

impl<'a> Between<'a> {
    /// A plane between the clients and backends of `network`.
    pub const fn new(network: &'a Network, way: Way) -> Self {
        Self { network, way, process: Mutex::new(None) }
    }
}

impl Plane for Between<'_> {
    fn name(&self) -> &'static str {
        match self.way {
            Way::Forward => "forward",
            Way::Proxy => "proxy",
            Way::Splice => "splice",
        }
    }

    fn balances(&self) -> bool {
        true
    }

    /// The peers' own queues only, where packets are forwarded.
    fn hops(&self) -> u64 {
        if self.way == Way::Proxy { 2 } else { 1 }
    }

    fn counts_packets(&self) -> bool {
        self.way == Way::Forward
    }

    fn place(&self) -> Place<'_> {
        Place { namespace: Some(&self.network.backends), ip: [10, 77, 2, 3].into() }
    }

    fn setup(&self, setup: &Setup) -> Setup {
        let mut setup = setup.clone();
        setup.frontends[0].listen = vec![FRONTEND.to_owned()];
        setup.frontend(match self.way {
            Way::Forward => &["data_plane = \"forward\"", "forward.connection_table = 16384"],
            Way::Proxy => &["data_plane = \"proxy\"", "relay = \"copy\"", "forward.connection_table = 16384"],
            Way::Splice => &["relay = \"splice\""],
        })
    }

    fn start(&self, setup: &Setup) -> Box<dyn Served> {
        let setup = self.setup(setup);
        let mut running = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let process =
            running.get_or_insert_with(|| Arc::new(self.network.balancer.enter(|| Lemonade::start(&setup))));
        process.reload(&setup);
        if self.way == Way::Splice {
            wait::until("the relay is on", wait::SOON, || {
                process.status().frontend("web")["relay"] == "splice"
            });
        } else {
            assert_eq!(process.status().frontend("web")["plane"], self.name());
        }
        Box::new(Apart { before: taken(process, self.way), process: Arc::clone(process), way: self.way })
    }
}

/// Connections that the kernel took, and all of them.
fn taken(process: &Lemonade, way: Way) -> (u64, u64) {
    let metrics = process.metrics();
    let taken = match way {
        Way::Forward => metrics.maybe("lemonade_forward_flows_opened_total", &[]),
        Way::Proxy => 0,
        Way::Splice => metrics.maybe("lemonade_frontend_relay_promoted_total", &[("relay", "splice")]),
    };
    (taken, metrics.connections().0)
}

struct Apart {
    process: Arc<Lemonade>,
    way: Way,
    /// Connections before this case.
    before: (u64, u64),
}

impl Served for Apart {
    fn address(&self) -> SocketAddr {
        FRONTEND.parse().expect("an address")
    }

    fn process(&self) -> Option<&Lemonade> {
        Some(&self.process)
    }

    /// Exchanges bytes until packets pass by.
    fn settle(&self, client: &mut TcpStream, backend: &mut TcpStream) {
        if self.way != Way::Splice {
            return;
        }
        let before = taken(&self.process, self.way).0;
        let mut byte = [0];
        wait::until("packets pass by", wait::SOON, || {
            for _ in 0..TURNS {
                client.write_all(&[1]).expect("an open connection");
                backend.read_exact(&mut byte).expect("an open connection");
                backend.write_all(&[1]).expect("an open connection");
                client.read_exact(&mut byte).expect("an open connection");
            }
            taken(&self.process, self.way).0 > before
        });
    }
}

impl Drop for Apart {
    /// A case that the kernel took no part in says nothing of it.
    fn drop(&mut self) {
        if self.way == Way::Proxy || std::thread::panicking() {
            return;
        }
        wait::until("the kernel has carried connections of this case", wait::SOON, || {
            let (taken, all) = taken(&self.process, self.way);
            taken > self.before.0 && (taken == all || self.way == Way::Splice)
        });
        if self.way == Way::Splice {
            let (taken, all) = taken(&self.process, self.way);
            println!("{} of {} connections were spliced", taken - self.before.0, all - self.before.1);
        }
    }
}
