//! The forward plane between network namespaces: real connections through the program, attached by tcx.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use lemonade::proxy::adapters::bpf::Forward;
use lemonade::strategy::maglev::{Share, ring};
use lemonade_common::PacketReason as Reason;
use lemonade_common::flow::mapped;
use lemonade_common::forward::{NAT, Service, ServiceKey, Target, ended};
use lemonade_tests::backend::Backend;
use lemonade_tests::load::{Header, Kind, calls, tally};
use lemonade_tests::netns::Network;
use lemonade_tests::{transfer, wait};

/// Address of the service on the client's side, the balancer's own towards backends, and three backends.
pub const V4: [&str; 5] = ["10.77.1.2", "10.77.2.2", "10.77.2.3", "10.77.2.4", "10.77.2.5"];
pub const V6: [&str; 5] = ["fd77:1::2", "fd77:2::2", "fd77:2::3", "fd77:2::4", "fd77:2::5"];
pub const PORT: u16 = 8080;
const NAMES: [&str; 3] = ["a", "b", "c"];

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A plane in the balancer's namespace.
pub struct Plane<'n> {
    network: &'n Network,
    pub forward: Forward,
    addresses: [&'static str; 5],
    turn: u32,
    mode: u32,
}

impl<'n> Plane<'n> {
    /// Serves TCP and UDP at the service's address, with backends on `ports`.
    fn start(network: &'n Network, addresses: [&'static str; 5], ports: [u16; 3]) -> Self {
        Self::start_in(network, addresses, ports, NAT)
    }

    /// As [`Self::start`], in another mode.
    pub fn start_in(network: &'n Network, addresses: [&'static str; 5], ports: [u16; 3], mode: u32) -> Self {
        let (inside, forward) = network.balancer.enter(|| {
            let mut forward = Forward::load(1 << 14, 2, 7).expect("the program passes the verifier");
            for interface in ["to_client", "to_backends"] {
                forward.attach(interface).expect("the interface is there");
            }
            (interface_index("to_backends"), forward)
        });
        let mut plane = Self { network, forward, addresses, turn: 0, mode };
        for (n, port) in ports.into_iter().enumerate() {
            let target = Target {
                address: mapped(ip(addresses[2 + n])),
                snat: mapped(ip(addresses[1])),
                port: port.to_be_bytes(),
                first_port: 2_000_u16.to_be_bytes(),
                ports: if mode == NAT { 20_000 } else { 0 },
                interface: inside,
                weight: 1,
                most: 0,
            };
            plane.forward.put_target(n as u32, target).expect("there is room");
        }
        plane.weigh([1, 1, 1]);
        plane
    }

    /// Fills the spare ring by these weights and flips to it.
    fn weigh(&mut self, weights: [u32; 3]) {
        let share = |n: usize| Share { value: n as u32, identity: NAMES[n].to_owned(), weight: weights[n] };
        self.turn = 1 - self.turn;
        self.forward.fill_ring(self.turn, &ring(&[share(0), share(1), share(2)]));
        for protocol in [6, 17] {
            let address = mapped(ip(self.addresses[0]));
            let key = ServiceKey { address, port: PORT.to_be_bytes(), protocol: [0, protocol] };
            let service = Service { frontend: 1, ring: self.turn, mode: self.mode, ..Service::default() };
            self.forward.put_service(key, service).expect("there is room");
        }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(ip(self.addresses[0]), PORT)
    }

    fn calls(&self, n: usize) -> Vec<String> {
        self.network.client.enter(|| calls(self.address(), n))
    }
}

/// Index of an interface of this thread's namespace.
pub fn interface_index(name: &str) -> u32 {
    let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6").expect("proc is mounted");
    let line = text.lines().find(|line| line.ends_with(name)).expect("the interface has an address");
    let index = line.split_whitespace().nth(1).expect("its second field");
    u32::from_str_radix(index, 16).expect("a hexadecimal number")
}

fn backends(network: &Network, addresses: [&str; 5], speaking: bool) -> Vec<Backend> {
    let start = |n: usize| {
        let address = SocketAddr::new(ip(addresses[2 + n]), 0);
        network.backends.enter(|| {
            if speaking {
                Backend::start_speaking_on(NAMES[n], address)
            } else {
                Backend::start_on(NAMES[n], address)
            }
        })
    };
    (0..3).map(start).collect()
}

fn ports(backends: &[Backend]) -> [u16; 3] {
    [0, 1, 2].map(|n: usize| backends[n].address.port())
}

fn transfers(test: &str, addresses: [&'static str; 5]) {
    let Some(network) = Network::start(test) else { return };
    let backends = backends(&network, addresses, true);
    let plane = Plane::start(&network, addresses, ports(&backends));
    // The balancer's stack sees none of it, so loss is made at both ends.
    for namespace in [&network.client, &network.backends] {
        namespace.filter("meta l4proto tcp numgen random mod 100 < 1 drop");
    }
    let mut plan = transfer::plan(5, 60, 16 << 20);
    plan.iter_mut().for_each(|transfer| {
        transfer.up = transfer.up.min(4 << 20);
        transfer.down = transfer.down.min(4 << 20);
    });
    let address = plane.address();
    let failures = network.client.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(transfer::run(address, &plan, 30))
    });
    assert_eq!(failures, [""; 0]);
    for backend in &backends {
        assert!(backend.truth().served() > 0, "a backend served none");
        assert_eq!(backend.truth().failures(), [""; 0]);
    }
    let reasons = plane.forward.reasons();
    println!("{test}: {reasons:?}");
    assert_eq!(reasons[Reason::Opened.index()], 60);
    wait::until("every flow has ended", wait::SOON, || {
        let flows = plane.forward.flows().expect("the table is read");
        flows.len() == 120 && flows.iter().all(|(_, flow)| ended(flow.state()))
    });
}

#[test]
fn transfers_through_the_kernel_are_exact_under_loss_over_ipv4() {
    transfers("transfers_through_the_kernel_are_exact_under_loss_over_ipv4", V4);
}

#[test]
fn transfers_through_the_kernel_are_exact_under_loss_over_ipv6() {
    transfers("transfers_through_the_kernel_are_exact_under_loss_over_ipv6", V6);
}

fn datagrams(test: &str, addresses: [&'static str; 5]) {
    let Some(network) = Network::start(test) else { return };
    // Three echoing servers, each on an address of its own.
    let servers: Vec<UdpSocket> = network.backends.enter(|| {
        let bind = |n: usize| UdpSocket::bind((ip(addresses[2 + n]), 0)).expect("our address");
        (0..3).map(bind).collect()
    });
    let port = |n: usize| servers[n].local_addr().expect("a bound socket").port();
    let plane = Plane::start(&network, addresses, [port(0), port(1), port(2)]);
    for server in servers {
        std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            server.set_read_timeout(Some(Duration::from_secs(20))).expect("a live socket");
            while let Ok((n, from)) = server.recv_from(&mut buffer) {
                server.send_to(&buffer[..n], from).expect("the balancer is near");
            }
        });
    }
    let any = if ip(addresses[0]).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let address = plane.address();
    network.client.enter(|| {
        // All at once, so that no port comes twice.
        let clients: Vec<_> = (0..40).map(|_| UdpSocket::bind(any).expect("a free port")).collect();
        for (n, client) in clients.iter().enumerate() {
            client.set_read_timeout(Some(Duration::from_secs(5))).expect("a live socket");
            client.connect(address).expect("a route");
            for round in 0..3 {
                let sent = vec![(n + round) as u8; 1 + n * 33];
                client.send(&sent).expect("a route");
                let mut got = [0; 2_048];
                let length = client.recv(&mut got).expect("an answer from the service's own address");
                assert_eq!(&got[..length], sent);
            }
        }
    });
    let flows = plane.forward.flows().expect("the table is read");
    assert_eq!(flows.len(), 80);
    let used: BTreeSet<u32> = flows.iter().map(|(_, flow)| flow.backend).collect();
    assert_eq!(used.len(), 3);
}

#[test]
fn datagrams_go_through_the_kernel_and_back_over_ipv4() {
    datagrams("datagrams_go_through_the_kernel_and_back_over_ipv4", V4);
}

#[test]
fn datagrams_go_through_the_kernel_and_back_over_ipv6() {
    datagrams("datagrams_go_through_the_kernel_and_back_over_ipv6", V6);
}

#[test]
fn new_flows_follow_the_weights_and_live_ones_stay_where_they_are() {
    let test = "new_flows_follow_the_weights_and_live_ones_stay_where_they_are";
    let Some(network) = Network::start(test) else { return };
    let backends = backends(&network, V4, false);
    let mut plane = Plane::start(&network, V4, ports(&backends));
    let before = tally(&plane.calls(90)).len();
    assert_eq!(before, 3, "all three serve");
    // Live flows that echo, checked after each change of the ring.
    let address = plane.address();
    let mut live: Vec<TcpStream> = network.client.enter(|| {
        let open = |_| {
            let mut stream = TcpStream::connect(address).expect("a backend accepts");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a live socket");
            // A flow of the test's own protocol: its first byte says that everything is echoed.
            let header = Header { kind: Kind::Flow, seed: 1, up: 0, down: 0 };
            stream.write_all(&header.encode()).expect("the backend reads");
            stream
        };
        (0..200).map(open).collect()
    });
    for change in 0..200_u32 {
        // One of the three leaves, comes back, or counts twice.
        plane.weigh([0, 1, 2].map(|n| if change % 3 == n { change % 2 * 2 } else { 1 }));
        if change % 20 == 0 {
            for stream in &mut live {
                stream.write_all(b"still").expect("its backend lives");
                let mut echo = [0; 5];
                stream.read_exact(&mut echo).expect("its backend answers");
                assert_eq!(&echo, b"still");
            }
        }
    }
    assert_eq!(plane.forward.reasons()[Reason::UnknownFlow.index()], 0);
    plane.weigh([0, 1, 3]);
    let names = plane.calls(400);
    let shares = tally(&names);
    assert_eq!(shares.get("a"), None, "a backend of weight 0 has new flows: {shares:?}");
    let c = shares["c"];
    assert!((250..350).contains(&c), "three quarters of 400 are due to c: {shares:?}");
    plane.weigh([0, 0, 0]);
    let refused = network.client.enter(|| TcpStream::connect(address));
    assert_eq!(refused.map(drop).map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(plane.forward.reasons()[Reason::NoBackend.index()], 1);
}
