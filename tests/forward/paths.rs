//! What the way does: packets of 9,000 bytes, neighbours that are forgotten or change their address, loss, fragments.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lemonade_tests::datagrams::{Client, Echo};
use lemonade_tests::load::{Header, Kind, Load};
use lemonade_tests::netns::{Namespace, Network};
use lemonade_tests::skip::skip;
use lemonade_tests::{transfer, wait};
use socket2::SockRef;

use crate::stage::{Addresses, V4, V6, packets, parse, start};

/// What a neighbour's change may cost a flow that waits for an answer: some retransmissions of the peers.
const STALL: Duration = Duration::from_secs(5);

/// Connections on which a few bytes go to and fro all the time.
struct Pulse {
    stop: Arc<AtomicBool>,
    beats: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Result<Duration, String>>>,
}

impl Pulse {
    fn start(address: SocketAddr, count: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let beats: Vec<_> = (0..count).map(|_| Arc::<AtomicU64>::default()).collect();
        let threads = beats.iter().map(|beat: &Arc<AtomicU64>| {
            let (stop, beat) = (Arc::clone(&stop), Arc::clone(beat));
            std::thread::spawn(move || {
                beating(address, &stop, &beat).map_err(|error| format!("after {beat:?} beats: {error}"))
            })
        });
        let threads = threads.collect();
        Self { stop, beats, threads }
    }

    /// Waits until each has gone on.
    fn goes_on(&self) {
        let before: Vec<u64> = self.beats.iter().map(|beat| beat.load(Ordering::Relaxed)).collect();
        wait::until("every connection goes on", wait::SOON, || {
            self.beats.iter().zip(&before).all(|(beat, before)| beat.load(Ordering::Relaxed) > before + 3)
        });
    }

    /// The longest that one had to wait for its answer.
    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let waits = self.threads.into_iter().map(|thread| thread.join().expect("no panic"));
        waits.map(|longest| longest.expect("a live connection")).max().unwrap_or_default()
    }
}

fn beating(address: SocketAddr, stop: &AtomicBool, beat: &AtomicU64) -> std::io::Result<Duration> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(wait::SOON))?;
    stream.write_all(&Header { kind: Kind::Flow, seed: 1, up: 0, down: 0 }.encode())?;
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let sent = beat.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let begun = Instant::now();
        stream.write_all(&sent)?;
        let mut got = [0; 8];
        stream.read_exact(&mut got)?;
        longest = longest.max(begun.elapsed());
        if got != sent {
            return Err(std::io::Error::other(format!("{got:?} came instead of {sent:?}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(longest)
}

/// Flows through the plane and beside it, by plain routing over the same links, while something happens to the links.
fn beside_routing(test: &str, addresses: &Addresses, prepare: fn(&Network), event: fn(&Network, u8)) {
    let Some(network) = Network::start(test) else { return };
    network.route();
    prepare(&network);
    let backends = addresses.backends(&network);
    let lemonade = start(&network, &addresses.setup(&backends));
    let behind = backends[0].address;
    let (load, forwarded, routed) = network.client.enter(|| {
        (
            Load::start(addresses.frontend(), 50),
            Pulse::start(addresses.frontend(), 12),
            Pulse::start(behind, 4),
        )
    });
    forwarded.goes_on();
    routed.goes_on();
    for round in 0..5 {
        event(&network, round);
        forwarded.goes_on();
        routed.goes_on();
    }
    let (stall, direct) = (forwarded.longest(), routed.longest());
    println!("the longest wait for an answer: forwarded {stall:?}, routed {direct:?}");
    assert!(stall < STALL.max(2 * direct), "a flow stood still for {stall:?}; a routed one {direct:?}");
    let outcome = load.stop();
    assert_eq!(outcome.failed, [""; 0], "of {} calls", outcome.total());
    assert!(outcome.total() > 10);
    assert_eq!(packets(&lemonade, "not_sent"), 0);
}

fn ends(network: &Network) -> [&Namespace; 3] {
    [&network.client, &network.balancer, &network.backends]
}

fn forget_neighbours(network: &Network, _round: u8) {
    for _ in 0..4 {
        for namespace in ends(network) {
            namespace.ip("-4 neigh flush all");
            namespace.ip("-6 neigh flush all");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn forgotten_neighbours_break_no_flow_over_ipv4() {
    beside_routing("forgotten_neighbours_break_no_flow_over_ipv4", &V4, |_| {}, forget_neighbours);
}

#[test]
fn forgotten_neighbours_break_no_flow_over_ipv6() {
    beside_routing("forgotten_neighbours_break_no_flow_over_ipv6", &V6, |_| {}, forget_neighbours);
}

/// Backends keep their addresses and get another card.
fn change_card(network: &Network, round: u8) {
    network.backends.ip(&format!("link set to_balancer address 02:00:00:77:00:{round:02x}"));
}

fn announce(network: &Network) {
    network.backends.sysctl("ipv4/conf/to_balancer/arp_notify", "1");
    network.backends.sysctl("ipv6/conf/to_balancer/ndisc_notify", "1");
}

#[test]
fn a_backends_new_card_that_is_announced_breaks_no_flow_over_ipv4() {
    let test = "a_backends_new_card_that_is_announced_breaks_no_flow_over_ipv4";
    beside_routing(test, &V4, announce, change_card);
}

#[test]
fn a_backends_new_card_that_is_announced_breaks_no_flow_over_ipv6() {
    let test = "a_backends_new_card_that_is_announced_breaks_no_flow_over_ipv6";
    beside_routing(test, &V6, announce, change_card);
}

/// The balancer learns of a new card when its entry is too old, and asks again: sooner here than by default.
fn expire_soon(network: &Network) {
    for family in ["ipv4", "ipv6"] {
        let to_backends = format!("{family}/neigh/to_backends");
        for (name, value) in [
            ("base_reachable_time_ms", "500"),
            ("delay_first_probe_time", "0"),
            ("retrans_time_ms", "100"),
            ("ucast_solicit", "1"),
        ] {
            network.balancer.sysctl(&format!("{to_backends}/{name}"), value);
        }
    }
}

#[test]
fn a_backends_new_card_is_found_when_its_entry_expires_over_ipv4() {
    let test = "a_backends_new_card_is_found_when_its_entry_expires_over_ipv4";
    beside_routing(test, &V4, expire_soon, change_card);
}

#[test]
fn a_backends_new_card_is_found_when_its_entry_expires_over_ipv6() {
    let test = "a_backends_new_card_is_found_when_its_entry_expires_over_ipv6";
    beside_routing(test, &V6, expire_soon, change_card);
}

/// Backends `a`, `b` and `c` of datagrams behind the forward plane.
fn datagrams(
    network: &Network,
    addresses: &Addresses,
    lines: &[&str],
) -> (Vec<Echo>, lemonade_tests::lemonade::Lemonade) {
    let echo = |(letter, address): (u8, &str)| network.backends.enter(|| Echo::on(letter, parse(address)));
    let echoes: Vec<Echo> = (b'a'..).zip(addresses.backends).map(echo).collect();
    let at: Vec<_> = echoes.iter().map(|echo| echo.address).collect();
    let setup = addresses.setup_at(&at).frontend(&["protocol = \"udp\""]).frontend(lines);
    let lemonade = start(network, &setup.runtime(&["drain_timeout = \"1s\""]));
    (echoes, lemonade)
}

/// Streams and datagrams whose packets are as long as links of 9,000 bytes take.
fn jumbo(test: &str, addresses: &Addresses, header: usize) {
    let Some(network) = Network::start(test) else { return };
    network.mtu(9_000);
    let backends = addresses.speaking(&network);
    let lemonade = start(&network, &addresses.setup(&backends));
    let mut plan = transfer::plan(6, 60, 64 << 20);
    plan.iter_mut().for_each(|transfer| transfer.up = transfer.up.min(16 << 20));
    let failures = network.client.enter(|| {
        let stream = TcpStream::connect(addresses.frontend()).expect("a connection");
        // The header of IP and one of TCP with its timestamps.
        let segment = SockRef::from(&stream).tcp_mss().expect("a live socket");
        assert_eq!(segment as usize, 9_000 - header - 20 - 12, "bytes in a segment");
        drop(stream);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(transfer::run(addresses.frontend(), &plan, 30))
    });
    assert_eq!(failures, [""; 0]);
    for backend in &backends {
        assert_eq!(backend.truth().failures(), [""; 0]);
    }
    assert_eq!((packets(&lemonade, "too_big"), packets(&lemonade, "not_sent")), (0, 0));
    drop(lemonade);
    let (_echoes, lemonade) = datagrams(&network, addresses, &[]);
    let longest = 9_000 - header - 8;
    let mut clients: Vec<Client> =
        network.client.enter(|| (0..20).map(|_| Client::of(addresses.frontend())).collect());
    for length in [100, 1_472, 1_473, longest - 1, longest] {
        clients.iter_mut().for_each(|client| {
            client.ask(length);
        });
    }
    wait::until("each is counted", wait::SOON, || packets(&lemonade, "forwarded") >= 20 * 9);
    assert_eq!((packets(&lemonade, "fragment"), packets(&lemonade, "too_big")), (0, 0));
}

#[test]
fn packets_of_9000_bytes_pass_whole_over_ipv4() {
    jumbo("packets_of_9000_bytes_pass_whole_over_ipv4", &V4, 20);
}

#[test]
fn packets_of_9000_bytes_pass_whole_over_ipv6() {
    jumbo("packets_of_9000_bytes_pass_whole_over_ipv6", &V6, 40);
}

/// Packets of more than 64 KiB (BIG TCP), which are cut where they leave: each segment fits. Those of IPv4 have 0 in the field of
/// their length, those of IPv6 say it in a header of its own.
#[test]
fn packets_of_more_than_64_kib_pass_whole() {
    let test = "packets_of_more_than_64_kib_pass_whole";
    for addresses in [&V4, &V6] {
        let Some(network) = Network::start(test) else { return };
        if let Err(error) = network.large_packets(185_000) {
            return skip(test, &format!("this kernel makes no packets of IPv4 of more than 64 KiB: {error}"));
        }
        for namespace in [&network.client, &network.backends] {
            namespace.filter("meta length > 70000 counter");
        }
        let backends = addresses.speaking(&network);
        let lemonade = start(&network, &addresses.setup(&backends));
        let mut plan = transfer::plan(7, 20, 64 << 20);
        plan.iter_mut().for_each(|transfer| transfer.up = transfer.up.min(32 << 20));
        let failures = network.client.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(transfer::run(addresses.frontend(), &plan, 4))
        });
        assert_eq!(failures, [""; 0]);
        let large = network.client.counted() + network.backends.counted();
        println!("{large} packets of more than 70,000 bytes");
        assert_eq!((packets(&lemonade, "too_big"), packets(&lemonade, "not_sent")), (0, 0));
        if large == 0 {
            return skip(test, "this kernel makes no packets of more than 64 KiB");
        }
    }
}

/// One datagram in a hundred is lost at either end: what comes is what was asked for, from where it was before.
fn lossy(test: &str, addresses: &Addresses) {
    const ROUNDS: usize = 50;
    let Some(network) = Network::start(test) else { return };
    let (echoes, lemonade) = datagrams(&network, addresses, &[]);
    let mut clients: Vec<Client> =
        network.client.enter(|| (0..60).map(|_| Client::of(addresses.frontend())).collect());
    let homes: Vec<char> = clients.iter_mut().map(|client| client.ask(64)).collect();
    for namespace in [&network.client, &network.backends] {
        namespace.filter("meta l4proto udp numgen random mod 100 < 1 drop");
    }
    for round in 0..ROUNDS {
        for client in &mut clients {
            client.say(64 + round * 25);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut heard = 0;
    for (client, home) in clients.iter().zip(&homes) {
        // Twice is too often, and another's answer panics.
        let mut before = 1;
        while let Some((letter, number)) = client.hear(Duration::from_millis(50)) {
            assert_eq!(letter, *home, "a session stays");
            assert!(number > before, "answer {number} came behind {before}");
            before = number;
            heard += 1;
        }
    }
    let sent = clients.len() * ROUNDS;
    let arrived: u64 = echoes.iter().flat_map(|echo| echo.heard().into_values()).sum();
    println!("{heard} answers to {sent} datagrams, {arrived} of which came to a backend");
    assert!((sent * 95 / 100..sent).contains(&heard), "{heard} of {sent}: some are lost and few");
    // What the filters did not drop has passed.
    assert_eq!(packets(&lemonade, "opened"), 60);
    let passed = packets(&lemonade, "opened") + packets(&lemonade, "forwarded");
    assert_eq!(passed, sent as u64 + 60 + arrived);
}

#[test]
fn datagrams_are_exact_under_loss_over_ipv4() {
    lossy("datagrams_are_exact_under_loss_over_ipv4", &V4);
}

#[test]
fn datagrams_are_exact_under_loss_over_ipv6() {
    lossy("datagrams_are_exact_under_loss_over_ipv6", &V6);
}

/// A datagram in three fragments.
fn fragmented(test: &str, addresses: &Addresses) {
    let Some(network) = Network::start(test) else { return };
    let (_echoes, lemonade) = datagrams(&network, addresses, &["forward.fragments = \"drop\""]);
    let mut client = network.client.enter(|| Client::of(addresses.frontend()));
    client.ask(1_000);
    client.say(4_000);
    assert_eq!(client.hear(Duration::from_millis(300)), None, "fragments are dropped");
    // Of later ones nobody can tell whose they are; without the first the host cannot put them together.
    wait::until("it is counted", wait::SOON, || {
        (packets(&lemonade, "fragment"), packets(&lemonade, "later_fragment")) == (1, 2)
    });
    client.ask(1_000);
    drop(lemonade);
    let (_echoes, lemonade) = datagrams(&network, addresses, &["forward.fragments = \"pass\""]);
    let mut client = network.client.enter(|| Client::of(addresses.frontend()));
    client.ask(1_000);
    client.ask(4_000);
    wait::until("the host puts them together, and the proxy has a session of its own", wait::SOON, || {
        lemonade.metrics().sum("lemonade_frontend_connections_opened_total", &[]) == 2
    });
    assert_eq!(packets(&lemonade, "opened"), 1);
}

#[test]
fn fragments_are_dropped_or_left_to_the_proxy_as_asked_over_ipv4() {
    fragmented("fragments_are_dropped_or_left_to_the_proxy_as_asked_over_ipv4", &V4);
}

#[test]
fn fragments_are_dropped_or_left_to_the_proxy_as_asked_over_ipv6() {
    fragmented("fragments_are_dropped_or_left_to_the_proxy_as_asked_over_ipv6", &V6);
}

#[test]
fn a_frontends_address_answers_echo_requests() {
    let test = "a_frontends_address_answers_echo_requests";
    let Some(network) = Network::start(test) else { return };
    if std::process::Command::new("ping").arg("-V").output().is_err() {
        return skip(test, "needs ping");
    }
    for addresses in [&V4, &V6] {
        let backends = addresses.backends(&network);
        let lemonade = start(&network, &addresses.setup(&backends));
        let vip = addresses.frontend().ip().to_string();
        let answered = network.client.enter(|| {
            std::process::Command::new("ping").args(["-c", "3", "-i", "0.05", "-W", "2", &vip]).output()
        });
        let answered = answered.expect("ping runs");
        assert!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stdout));
        // By the host, to which the program leaves them.
        wait::until("they are counted", wait::SOON, || packets(&lemonade, "other_protocol") >= 3);
    }
}
