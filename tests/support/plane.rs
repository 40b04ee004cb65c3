//! What the conformance suite runs on: anything that carries TCP connections from clients to backends.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::lemonade::Lemonade;
use crate::netns::Namespace;
use crate::setup::Setup;
use crate::wait;

/// Questions with answers after which a connection lasts for sure.
const TURNS: usize = 8;

/// A way from clients to backends.
pub trait Plane: Sync {
    /// Its name in messages.
    fn name(&self) -> &'static str;

    /// Whether a balancer stands between: pools of several backends, retries and counters exist.
    fn balances(&self) -> bool;

    /// Queues of the kernel that a stream passes, in pairs.
    fn hops(&self) -> u64 {
        1 + u64::from(self.balances())
    }

    /// Whether its counters of bytes are those of packets, headers included.
    fn counts_packets(&self) -> bool {
        false
    }

    /// Where its backends are; clients are where the caller is.
    fn place(&self) -> Place<'_> {
        Place::here()
    }

    /// A configuration that it can be reloaded with.
    fn setup(&self, setup: &Setup) -> Setup {
        setup.clone().frontend(&["relay = \"copy\""])
    }

    /// Starts to serve `setup`, whose frontend is `web`.
    fn start(&self, setup: &Setup) -> Box<dyn Served>;
}

/// A plane that serves.
pub trait Served {
    /// Where clients connect.
    fn address(&self) -> SocketAddr;

    /// Its process, when it has one of its own.
    fn process(&self) -> Option<&Lemonade>;

    /// Brings a new connection to where the plane is to be tested; the streams of a case begin after that.
    fn settle(&self, _client: &mut TcpStream, _backend: &mut TcpStream) {}
}

/// Where backends are.
pub struct Place<'a> {
    /// Their network namespace, unless it is the caller's.
    pub namespace: Option<&'a Namespace>,
    /// Their address.
    pub ip: IpAddr,
}

impl Place<'_> {
    /// On this host's loopback.
    pub const fn here() -> Self {
        Self { namespace: None, ip: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }

    /// Runs `work` there, with an address on a port of the kernel's choice.
    pub fn enter<T: Send>(&self, work: impl FnOnce(SocketAddr) -> T + Send) -> T {
        let any = SocketAddr::new(self.ip, 0);
        match self.namespace {
            Some(namespace) => namespace.enter(|| work(any)),
            None => work(any),
        }
    }

    /// A listener there.
    ///
    /// # Panics
    /// When no port is left.
    pub fn listener(&self) -> TcpListener {
        self.enter(|any| TcpListener::bind(any).expect("a free port"))
    }
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
        Box::new(Proxied { process, address, relay: None })
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
        let process = Lemonade::start_on_unproven(&setup.clone().frontend(&["relay = \"sockmap\""]));
        let address = process.address("web");
        wait::until("the relay sockmap is on", wait::SOON, || {
            let relays = process.status().0["relays"].clone();
            let own = relays.as_array().into_iter().flatten().find(|own| own["relay"] == "sockmap").cloned();
            let own = own.expect("the status names the relay");
            let why = own["findings"]["why"].as_str().unwrap_or_default();
            assert!(own["usable"] == true || why.is_empty(), "the relay sockmap is off: {own:#}");
            own["usable"] == true
        });
        Box::new(Proxied { process, address, relay: Some("sockmap") })
    }
}

/// Lemonade's proxy with the `sk_msg` relay; clients and backends are this process, in a cgroup of its own.
pub struct SkMsg;

impl Plane for SkMsg {
    fn name(&self) -> &'static str {
        "sk_msg"
    }

    fn balances(&self) -> bool {
        true
    }

    /// Waits until the relay has passed its self-tests and sees this process.
    fn start(&self, setup: &Setup) -> Box<dyn Served> {
        let cgroup = format!("accelerate_cgroup = {:?}", crate::cgroup::own());
        let process = Lemonade::start(&setup.clone().frontend(&["relay = \"sk_msg\"", &cgroup]));
        let address = process.address("web");
        wait::until("the relay sk_msg is on", wait::SOON, || {
            let relays = process.status().0["relays"].clone();
            let own = relays.as_array().into_iter().flatten().find(|own| own["relay"] == "sk_msg").cloned();
            let own = own.expect("the status names the relay");
            let why = own["findings"]["why"].as_str().unwrap_or_default();
            assert!(own["usable"] == true || why.is_empty(), "the relay sk_msg is off: {own:#}");
            // Its words tell of messages from when it serves on.
            own["usable"] == true && why.contains("messages")
        });
        Box::new(Proxied { process, address, relay: Some("sk_msg") })
    }
}

struct Proxied {
    process: Lemonade,
    address: SocketAddr,
    /// The relay in the kernel that has to carry something.
    relay: Option<&'static str>,
}

impl Proxied {
    /// Connections that the relay took over.
    fn promoted(&self, relay: &str) -> u64 {
        self.process.metrics().maybe("lemonade_frontend_relay_promoted_total", &[("relay", relay)])
    }
}

impl Proxied {
    /// Messages that took the short way, as the program counted them; not known of a relay that is off.
    fn short_messages(&self) -> u64 {
        let relays = self.process.status().0["relays"].clone();
        let own = relays.as_array().into_iter().flatten().find(|own| own["relay"] == "sk_msg").cloned();
        let own = own.expect("the status names the relay");
        let why = own["findings"]["why"].as_str().unwrap_or_default();
        if own["usable"] == false {
            // A case that turns it off has looked before; its words say why now.
            return u64::MAX;
        }
        let count = why.split_once("messages: ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        count.unwrap_or(0)
    }
}

impl Drop for Proxied {
    /// A case that the relay took no part in says nothing of it.
    fn drop(&mut self) {
        if let Some(relay) = self.relay
            && !std::thread::panicking()
        {
            let metrics = self.process.metrics();
            let of =
                |name| metrics.maybe(&format!("lemonade_frontend_relay_{name}_total"), &[("relay", relay)]);
            let counters = ["promoted", "kept", "demoted", "resumed", "bytes"].map(|name| (name, of(name)));
            println!("relay {relay}: {counters:?}");
            if relay == "sk_msg" {
                wait::until("messages have taken the short way", wait::SOON, || self.short_messages() > 0);
            }
            assert!(self.promoted(relay) > 0, "blocked: relay {relay} carried no connection of this case");
        }
    }
}

impl Served for Proxied {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn process(&self) -> Option<&Lemonade> {
        Some(&self.process)
    }

    /// Exchanges bytes until the relay has taken the connection over.
    fn settle(&self, client: &mut TcpStream, backend: &mut TcpStream) {
        let Some(relay) = self.relay else { return };
        if relay == "sk_msg" {
            // It takes every connection when it is made.
            wait::until("the kernel carries the connection", wait::SOON, || self.promoted(relay) > 0);
            let kept =
                self.process.metrics().maybe("lemonade_frontend_relay_kept_total", &[("relay", relay)]);
            return assert_eq!(kept, 0, "connections that the relay did not take");
        }
        let before = self.promoted(relay);
        let mut byte = [0];
        for _ in 0..TURNS {
            client.write_all(&[1]).expect("an open connection");
            backend.read_exact(&mut byte).expect("an open connection");
            backend.write_all(&[1]).expect("an open connection");
            client.read_exact(&mut byte).expect("an open connection");
        }
        wait::until("the kernel carries the connection", wait::SOON, || self.promoted(relay) > before);
    }
}
