//! least_connections in the kernel: what each backend has decides, and what has ended counts no longer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lemonade_tests::lemonade::{Lemonade, run};
use lemonade_tests::load::{Header, Kind, NAME, tally};
use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::stage::{V4, V6, ask, await_ended, start};

/// A connection that stays, and the backend that has it.
pub struct Held {
    pub stream: TcpStream,
    pub backend: String,
}

impl Held {
    pub fn open(address: SocketAddr) -> Self {
        Self::within(address, wait::SOON).expect("a connection that is served")
    }

    /// Opens one that a backend has answered, if it is there in this time.
    pub fn within(address: SocketAddr, time: Duration) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, time)?;
        stream.set_read_timeout(Some(wait::SOON))?;
        let header = Header { kind: Kind::Named, seed: 1, up: 0, down: 0 };
        stream.write_all(&header.encode())?;
        let backend = Self::named(&mut stream)?;
        Ok(Self { stream, backend })
    }

    pub fn named(stream: &mut TcpStream) -> std::io::Result<String> {
        let mut answer = [0; NAME + 8];
        stream.write_all(&[7; 8])?;
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..NAME]).trim().to_owned())
    }

    /// Ends in order; both sides have sent FIN afterwards.
    pub fn close(mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("a live socket");
        assert_eq!(self.stream.read(&mut [0; 1]).expect("the backend ends too"), 0);
    }

    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).expect("a live socket");
    }
}

pub fn hold(network: &Network, address: SocketAddr, n: usize) -> Vec<Held> {
    network.client.enter(|| (0..n).map(|_| Held::open(address)).collect())
}

/// Of `a`, `b` and `c`.
pub fn counts(held: &[Held]) -> [usize; 3] {
    let names: Vec<String> = held.iter().map(|own| own.backend.clone()).collect();
    let tally = tally(&names);
    ["a", "b", "c"].map(|name| tally.get(name).copied().unwrap_or(0))
}

/// Those of a backend, and the others.
pub fn apart(held: Vec<Held>, backend: &str) -> (Vec<Held>, Vec<Held>) {
    held.into_iter().partition(|own| own.backend == backend)
}

fn least(setup: Setup) -> Setup {
    setup.pool(&["strategy = \"least_connections\""])
}

/// Connections that stay are shared by weight, exactly; whatever ends makes room for as many.
fn what_ends_makes_room(network: &Network, address: SocketAddr) {
    let mut held = hold(network, address, 60);
    assert_eq!(counts(&held), [10, 20, 30], "by weight");
    let (gone, rest) = apart(held, "b");
    gone.into_iter().for_each(Held::close);
    held = hold(network, address, 20);
    assert_eq!(counts(&held), [0, 20, 0], "FIN of both sides");
    held.extend(rest);
    let (gone, rest) = apart(held, "c");
    gone.into_iter().for_each(Held::reset);
    held = hold(network, address, 30);
    assert_eq!(counts(&held), [0, 0, 30], "reset");
    held.extend(rest);
    for own in &mut held {
        let same = Held::named(&mut own.stream).expect("it lives");
        assert_eq!(same, own.backend);
    }
}

fn weighted(setup: Setup) -> Setup {
    least(setup).backend(1, &["weight = 2"]).backend(2, &["weight = 3"])
}

#[test]
fn connections_are_shared_by_what_each_backend_has() {
    let Some(network) = Network::start("connections_are_shared_by_what_each_backend_has") else { return };
    for addresses in [&V4, &V6] {
        let backends = addresses.backends(&network);
        let lemonade = start(&network, &weighted(addresses.setup(&backends)));
        what_ends_makes_room(&network, addresses.frontend());
        await_ended(&lemonade, 110);
        // Equals take turns, as the proxy's do.
        let names = ask(&network, addresses.frontend(), 30);
        assert_eq!(tally(&names).len(), 3, "{names:?}");
        let socket = lemonade.socket();
        let question = ["explain", "10.9.9.9:5000", "--admin", socket.to_str().expect("UTF-8")];
        let told = String::from_utf8(run(&question).stdout).expect("text");
        assert!(told.contains("the kernel compares its own counts"), "{told}");
    }
}

#[test]
fn by_the_gateway_they_are_too() {
    let Some(network) = Network::start("by_the_gateway_they_are_too") else { return };
    network.backends.ip("route add 10.77.1.0/24 via 10.77.2.2");
    let backends = V4.backends(&network);
    let setup = weighted(V4.setup(&backends)).frontend(&["forward.mode = \"nat-gateway\""]);
    let lemonade = start(&network, &setup);
    what_ends_makes_room(&network, V4.frontend());
    await_ended(&lemonade, 110);
}

#[test]
fn what_is_forgotten_counts_no_longer() {
    let Some(network) = Network::start("what_is_forgotten_counts_no_longer") else { return };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &least(V4.setup(&backends)).frontend(&["idle_timeout = \"2s\""]));
    let (of_a, held) = apart(hold(&network, V4.frontend(), 30), "a");
    assert_eq!((of_a.len(), counts(&held)), (10, [0, 10, 10]));
    of_a.into_iter().for_each(Held::close);
    // Silent for as long as idle_timeout, the others are forgotten while their ends hold them.
    await_ended(&lemonade, 30);
    assert_eq!(counts(&hold(&network, V4.frontend(), 9)), [3, 3, 3], "nobody has any");
    drop(held);
}

/// The counts are the maps', which a killed process leaves to the next.
#[test]
fn counts_outlive_the_process() {
    let Some(network) = Network::start("counts_outlive_the_process") else { return };
    let _turn = crate::killed::TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let backends = V4.backends(&network);
    let setup = least(V4.setup(&backends));
    let mut lemonade = start(&network, &setup);
    let (of_a, held) = apart(hold(&network, V4.frontend(), 30), "a");
    lemonade.signal(Signal::KILL);
    lemonade.wait(wait::SOON);
    of_a.into_iter().for_each(Held::close);
    network.balancer.enter(|| lemonade.restart());
    let more = hold(&network, V4.frontend(), 10);
    assert_eq!(counts(&more), [10, 0, 0], "what ended while nobody was there");
    drop((held, more));
    await_ended_all(&lemonade);
}

fn await_ended_all(lemonade: &Lemonade) {
    wait::until("every flow has ended", wait::SOON, || {
        lemonade.metrics().sum("lemonade_forward_flows_live", &[]) == 0
    });
}

#[test]
fn where_answers_pass_by_it_is_said_what_counts() {
    let Some(network) = Network::start("where_answers_pass_by_it_is_said_what_counts") else { return };
    network.pass_by(&["10.77.1.2/32", "fd77:1::2/128"]);
    let vip = V4.frontend();
    let _server = network.backends.enter(|| lemonade_tests::backend::Backend::start_on("all", vip));
    let at = V4.backends.map(|backend| SocketAddr::new(crate::stage::parse(backend).ip(), vip.port()));
    let setup = least(V4.setup_at(&at)).frontend(&["forward.mode = \"dsr-l2\""]);
    let lemonade = start(&network, &setup);
    let status = lemonade.status();
    let why = status.frontend("web")["plane_why"].as_str().expect("words");
    assert!(why.contains("does not see backends' FIN in this mode"), "{why}");
    let held = hold(&network, vip, 12);
    wait::until("they are picked evenly", wait::SOON, || {
        let metrics = lemonade.metrics();
        ["a", "b", "c"].map(|name| metrics.picks(name)) == [4, 4, 4]
    });
    held.into_iter().for_each(Held::close);
    await_ended_all(&lemonade);
    assert_eq!(hold(&network, vip, 3).len(), 3);
}
