//! What each side sees of the other's end, of a slow reader, and of Lemonade's own limits.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::socket::reset;
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::stage::{Stage, V4, V6, parse};

/// A client and a backend whose connections have become one.
pub struct Pair {
    pub client: TcpStream,
    pub backend: TcpStream,
}

/// A balancer with one backend that the test plays itself.
pub struct Scene {
    pub network: Network,
    pub listener: TcpListener,
    pub lemonade: Lemonade,
}

impl Scene {
    pub fn start(
        test: &str,
        [frontend, target]: [&str; 2],
        change: impl FnOnce(Setup) -> Setup,
    ) -> Option<Self> {
        let network = Network::start(test)?;
        let listener = network.backends.enter(|| TcpListener::bind(parse(target)).expect("a free port"));
        let mut setup = Setup::single(&[listener.local_addr().expect("a bound socket")]);
        setup.frontends[0] = Frontend::on("web", frontend, "web");
        let setup = change(setup.frontend(&["relay = \"splice\""]));
        let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
        let scene = Self { network, listener, lemonade };
        wait::until("the relay is on", wait::SOON, || {
            scene.lemonade.status().frontend("web")["relay"] == "splice"
        });
        Some(scene)
    }

    pub fn relay(&self, name: &str) -> u64 {
        self.lemonade.metrics().maybe(&format!("lemonade_frontend_relay_{name}"), &[("relay", "splice")])
    }

    /// A connection that is not spliced yet.
    pub fn connect(&self, frontend: &str) -> Pair {
        let client = self.network.client.enter(|| TcpStream::connect(parse(frontend)).expect("a connection"));
        let backend = self.listener.accept().expect("a connection").0;
        for stream in [&client, &backend] {
            stream.set_nodelay(true).expect("a live socket");
            stream.set_read_timeout(Some(wait::SOON)).expect("a live socket");
        }
        Pair { client, backend }
    }

    /// A connection that was spliced.
    pub fn spliced(&self, frontend: &str) -> Pair {
        let before = self.relay("promoted_total");
        let mut pair = self.connect(frontend);
        wait::until("the connection is spliced", wait::SOON, || {
            for _ in 0..20 {
                pair.exchange(100);
            }
            self.relay("promoted_total") == before + 1
        });
        pair.exchange(1000);
        pair
    }
}

impl Pair {
    pub fn exchange(&mut self, bytes: usize) {
        send(&mut self.client, &mut self.backend, bytes);
        send(&mut self.backend, &mut self.client, bytes);
    }
}

fn send(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) {
    let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    from.write_all(&sent).expect("the connection lives");
    let mut got = vec![0; bytes];
    to.read_exact(&mut got).expect("the bytes arrive");
    assert!(got == sent);
}

pub fn is_reset(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 8]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        other => panic!("instead of a reset came {other:?}"),
    }
}

#[test]
fn each_side_sees_how_the_other_ends() {
    for (test, addresses) in
        [("each_side_sees_how_the_other_ends", V4), ("each_side_sees_how_the_other_ends", V6)]
    {
        let Some(scene) = Scene::start(test, addresses, |setup| setup) else { return };
        for client_first in [true, false] {
            let Pair { client, backend } = scene.spliced(addresses[0]);
            let (mut first, mut second) = if client_first { (client, backend) } else { (backend, client) };
            first.shutdown(std::net::Shutdown::Write).expect("a live socket");
            assert_eq!(second.read(&mut [0; 8]).expect("an orderly end"), 0);
            send(&mut second, &mut first, 100_000);
            drop(second);
            assert_eq!(first.read(&mut [0; 8]).expect("an orderly end"), 0);
        }
        for client_resets in [true, false] {
            let Pair { client, backend } = scene.spliced(addresses[0]);
            let (resets, mut sees) = if client_resets { (client, backend) } else { (backend, client) };
            reset(resets);
            assert!(is_reset(&mut sees));
        }
        wait::until("every flow has ended", wait::SOON, || scene.lemonade.metrics().connections().2 == 0);
        assert_eq!(scene.relay("promoted_total"), 4);
    }
}

#[test]
fn a_stopped_reader_stops_the_writer_and_gets_every_byte_later() {
    let test = "a_stopped_reader_stops_the_writer_and_gets_every_byte_later";
    let Some(scene) = Scene::start(test, V4, |setup| setup) else { return };
    let Pair { mut client, mut backend } = scene.spliced(V4[0]);
    let block: Vec<u8> = (0..1 << 20).map(|at| (at % 241) as u8).collect();
    backend.set_write_timeout(Some(Duration::from_millis(500))).expect("a live socket");
    let mut sent = 0;
    loop {
        match backend.write(&block[sent % block.len()..]) {
            Ok(count) => sent += count,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                break;
            }
        }
        assert!(sent < 64 << 20, "nobody reads, and {sent} bytes were taken");
    }
    backend.shutdown(std::net::Shutdown::Write).expect("a live socket");
    let (mut got, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let count = client.read(&mut buffer).expect("the bytes arrive");
        if count == 0 {
            break;
        }
        for byte in &buffer[..count] {
            assert_eq!(*byte, block[got % block.len()], "at {got}");
            got += 1;
        }
    }
    assert_eq!(got, sent);
}

#[test]
fn a_drain_deadline_resets_both_ends() {
    let test = "a_drain_deadline_resets_both_ends";
    let Some(mut scene) = Scene::start(test, V4, |setup| setup.runtime(&["drain_timeout = \"1s\""])) else {
        return;
    };
    let mut pair = scene.spliced(V4[0]);
    // The hand-over is long over when nothing has moved for a while.
    std::thread::sleep(Duration::from_millis(300));
    pair.exchange(10);
    scene.lemonade.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(500));
    pair.exchange(10);
    assert!(is_reset(&mut pair.client) && is_reset(&mut pair.backend));
    scene.lemonade.wait(wait::SOON);
}

#[test]
fn an_idle_flow_is_reset_and_a_busy_one_is_not() {
    let test = "an_idle_flow_is_reset_and_a_busy_one_is_not";
    let Some(scene) = Scene::start(test, V4, |setup| setup.frontend(&["idle_timeout = \"2s\""])) else {
        return;
    };
    let mut pair = scene.spliced(V4[0]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        pair.exchange(10);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(is_reset(&mut pair.client) && is_reset(&mut pair.backend));
}

#[test]
fn what_cannot_be_spliced_is_copied_and_says_why() {
    let test = "what_cannot_be_spliced_is_copied_and_says_why";
    let mixed = [V4[0], V6[1]];
    let Some(scene) = Scene::start(test, mixed, |setup| setup) else { return };
    let kept = |reason: &str| scene.lemonade.status().frontend("web")["kept"][reason].as_u64().unwrap_or(0);
    let mut pair = scene.connect(mixed[0]);
    for _ in 0..50 {
        pair.exchange(100);
    }
    wait::until("the reason is told", wait::SOON, || kept("families") == 1);
    assert_eq!(scene.relay("promoted_total"), 0);

    let Some(scene) = Scene::start(test, V4, |setup| setup) else { return };
    let kept = |reason: &str| scene.lemonade.status().frontend("web")["kept"][reason].as_u64().unwrap_or(0);
    // The backend's host has no timestamps: the connection to it has none, and the client's has.
    scene
        .network
        .backends
        .enter(|| std::fs::write("/proc/sys/net/ipv4/tcp_timestamps", "0").expect("root may"));
    let mut pair = scene.connect(V4[0]);
    for _ in 0..50 {
        pair.exchange(100);
    }
    wait::until("the reason is told", wait::SOON, || kept("options") == 1);
    // Neither has them: that can be translated.
    scene
        .network
        .client
        .enter(|| std::fs::write("/proc/sys/net/ipv4/tcp_timestamps", "0").expect("root may"));
    scene.spliced(V4[0]);
}

#[test]
fn a_client_that_takes_its_port_again_is_served_as_a_new_one() {
    let test = "a_client_that_takes_its_port_again_is_served_as_a_new_one";
    let Some(scene) = Scene::start(test, V4, |setup| setup) else { return };
    let Pair { client, .. } = scene.spliced(V4[0]);
    let own = client.local_addr().expect("a connected socket");
    reset(client);
    let client = scene.network.client.enter(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("a live socket");
        socket.bind(&own.into()).expect("the port is free");
        socket.connect(&parse(V4[0]).into()).expect("it is accepted");
        TcpStream::from(socket)
    });
    let backend = scene.listener.accept().expect("a connection").0;
    for stream in [&client, &backend] {
        stream.set_read_timeout(Some(wait::SOON)).expect("a live socket");
    }
    let mut pair = Pair { client, backend };
    for _ in 0..50 {
        pair.exchange(100);
    }
}

#[test]
fn a_stage_has_no_failures_of_its_own() {
    let Some(stage) = Stage::start("a_stage_has_no_failures_of_its_own", V4, &[]) else { return };
    assert_eq!((stage.kept("busy"), stage.backend.failures().len()), (0, 0));
}
