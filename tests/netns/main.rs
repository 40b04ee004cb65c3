//! Lemonade between network namespaces: IPv6, packet loss, silent and unreachable backends, vanished clients.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Load, call, calls, tally};
use lemonade_tests::netns::Network;
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::socket::{SILENCE, accept, await_abort, connect, reset};
use lemonade_tests::trace::Event;
use lemonade_tests::{transfer, wait};

const V4: [&str; 2] = ["10.77.1.2:8080", "10.77.2.3:0"];
const V6: [&str; 2] = ["[fd77:1::2]:8080", "[fd77:2::3]:0"];

fn parse(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// Backends in their namespace and a balancer in its own, with the frontend on `listen`.
fn start(
    network: &Network,
    listen: &str,
    setup: impl FnOnce(Setup) -> Setup,
    backends: &[Backend],
) -> Lemonade {
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let mut config = setup(Setup::single(&addresses));
    config.frontends[0] =
        Frontend { lines: config.frontends[0].lines.clone(), ..Frontend::on("web", listen, "web") };
    network.balancer.enter(|| Lemonade::start(&config))
}

fn backend(network: &Network, name: &str, address: &str) -> Backend {
    network.backends.enter(|| Backend::start_on(name, parse(address)))
}

/// Transfers under loss in both directions on both links.
fn exact_under_loss(test: &str, [listen, target]: [&str; 2]) {
    let Some(network) = Network::start(test) else { return };
    let speaking = network.backends.enter(|| Backend::start_speaking_on("a", parse(target)));
    let setup = |setup: Setup| setup.frontend(&["connect_timeout = \"30s\"", "user_timeout = \"2m\""]);
    let lemonade = start(&network, listen, setup, std::slice::from_ref(&speaking));
    for namespace in [&network.client, &network.balancer, &network.backends] {
        namespace.filter("meta l4proto tcp numgen random mod 100 < 2 drop");
    }
    let mut plan = transfer::plan(4, 60, 16 << 20);
    // The two streams of the largest size are for faster links.
    plan.iter_mut().for_each(|transfer| {
        transfer.up = transfer.up.min(4 << 20);
        transfer.down = transfer.down.min(4 << 20);
    });
    let failures = network.client.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(transfer::run(parse(listen), &plan, 30))
    });
    assert_eq!(failures, [""; 0]);
    wait::until("every connection has ended", Duration::from_secs(60), || {
        lemonade.metrics().connections().2 == 0
    });
    assert_eq!(speaking.truth().failures(), [""; 0]);
}

#[test]
fn transfers_are_exact_under_packet_loss_over_ipv4() {
    exact_under_loss("transfers_are_exact_under_packet_loss_over_ipv4", V4);
}

#[test]
fn transfers_are_exact_under_packet_loss_over_ipv6() {
    exact_under_loss("transfers_are_exact_under_packet_loss_over_ipv6", V6);
}

#[test]
fn ipv6_clients_reach_ipv4_backends_and_the_other_way_round() {
    let test = "ipv6_clients_reach_ipv4_backends_and_the_other_way_round";
    let Some(network) = Network::start(test) else { return };
    let backends = [backend(&network, "four", V4[1]), backend(&network, "six", V6[1])];
    for listen in [V4[0], V6[0]] {
        let _lemonade = start(&network, listen, |setup| setup, &backends);
        let names = network.client.enter(|| calls(parse(listen), 10));
        assert_eq!(tally(&names), [("four", 5), ("six", 5)].into(), "on {listen}");
    }
}

#[test]
fn a_backend_that_falls_silent_fails_no_request() {
    let Some(network) = Network::start("a_backend_that_falls_silent_fails_no_request") else { return };
    let backends = [backend(&network, "a", "10.77.2.3:0"), backend(&network, "b", "10.77.2.4:0")];
    let setup = |setup: Setup| setup.frontend(&["connect_timeout = \"30s\"", "hedge_after = \"100ms\""]);
    let lemonade = start(&network, V4[0], setup, &backends);
    let load = network.client.enter(|| Load::start(parse(V4[0]), 100));
    wait::until("both serve", wait::SOON, || backends.iter().all(|backend| backend.truth().served() > 20));
    // Connections in flight are left alone: only new ones meet silence.
    network.backends.filter("ip daddr 10.77.2.3 tcp flags & (syn | ack) == syn drop");
    let served = backends[1].truth().served();
    wait::until("the other one serves", wait::SOON, || backends[1].truth().served() > served + 200);
    let outcome = load.stop();
    assert_eq!(outcome.failed, [""; 0], "of {}", outcome.total());
    assert!(lemonade.metrics().sum("lemonade_pool_hedges_total", &[]) >= 1, "races are counted");
}

#[test]
fn an_unreachable_backend_is_retried_elsewhere_at_once() {
    let Some(network) = Network::start("an_unreachable_backend_is_retried_elsewhere_at_once") else { return };
    let backends = [backend(&network, "a", "10.77.2.3:0"), backend(&network, "b", "10.77.2.4:0")];
    let setup = |setup: Setup| setup.frontend(&["connect_timeout = \"60s\"", "hedge_after = \"off\""]);
    let _lemonade = start(&network, V4[0], setup, &backends);
    network.backends.filter("ip daddr 10.77.2.3 reject with icmp type host-unreachable");
    let names = network.client.enter(|| calls(parse(V4[0]), 10));
    assert_eq!(tally(&names), [("b", 10)].into());
}

#[test]
fn a_client_that_vanishes_is_given_up_after_the_user_timeout() {
    let test = "a_client_that_vanishes_is_given_up_after_the_user_timeout";
    let Some(network) = Network::start(test) else { return };
    let listener = network.backends.enter(|| TcpListener::bind("10.77.2.3:0").expect("our address"));
    let address = listener.local_addr().expect("a bound socket");
    let mut config = Setup::single(&[address]).frontend(&["user_timeout = \"1s\""]);
    config.frontends[0].listen = vec![V4[0].to_owned()];
    let lemonade = network.balancer.enter(|| Lemonade::start(&config));
    let _client = network.client.enter(|| connect(parse(V4[0])).expect("it serves"));
    let mut backend = accept(&listener);
    network.client.filter("drop");
    std::io::Write::write_all(&mut backend, b"is anybody there?").expect("the balancer takes it");
    assert_eq!(await_abort(&backend, SILENCE), Event::Reset);
    wait::until("nothing leaks", wait::SOON, || lemonade.metrics().connections().2 == 0);
}

#[test]
fn a_backend_that_vanishes_is_given_up_after_the_user_timeout() {
    let test = "a_backend_that_vanishes_is_given_up_after_the_user_timeout";
    let Some(network) = Network::start(test) else { return };
    let listener = network.backends.enter(|| TcpListener::bind("10.77.2.3:0").expect("our address"));
    let address = listener.local_addr().expect("a bound socket");
    let mut config = Setup::single(&[address]).frontend(&["user_timeout = \"1s\""]);
    config.frontends[0].listen = vec![V4[0].to_owned()];
    let lemonade = network.balancer.enter(|| Lemonade::start(&config));
    let mut client = network.client.enter(|| connect(parse(V4[0])).expect("it serves"));
    let _backend = accept(&listener);
    // The options of a connection are those of one that has lasted; nothing is sent meanwhile.
    std::thread::sleep(Duration::from_secs(3));
    network.backends.filter("drop");
    std::io::Write::write_all(&mut client, b"is anybody there?").expect("the balancer takes it");
    assert_eq!(await_abort(&client, SILENCE), Event::Reset);
    wait::until("nothing leaks", wait::SOON, || lemonade.metrics().connections().2 == 0);
}

#[test]
fn connections_come_from_the_configured_source_address() {
    let test = "connections_come_from_the_configured_source_address";
    let Some(network) = Network::start(test) else { return };
    network.balancer.ip("addr add 10.77.2.99/24 dev to_backends");
    let listener = network.backends.enter(|| TcpListener::bind("10.77.2.3:0").expect("our address"));
    let address = listener.local_addr().expect("a bound socket");
    let mut config = Setup::single(&[address]).pool(&["source = \"10.77.2.99\""]);
    config.frontends[0].listen = vec![V4[0].to_owned()];
    let _lemonade = network.balancer.enter(|| Lemonade::start(&config));
    let _client = network.client.enter(|| connect(parse(V4[0])).expect("it serves"));
    let peer = accept(&listener).peer_addr().expect("a live socket");
    assert_eq!(peer.ip(), parse("10.77.2.99:0").ip());
}

#[test]
fn a_listener_on_every_address_serves_both_families() {
    let Some(network) = Network::start("a_listener_on_every_address_serves_both_families") else { return };
    let backends = [backend(&network, "a", V4[1])];
    let mut config = Setup::single(&[backends[0].address]);
    config.frontends[0].listen = vec!["[::]:8080".to_owned()];
    let lemonade = network.balancer.enter(|| Lemonade::start(&config));
    for address in [V4[0], V6[0]] {
        let name = network.client.enter(|| call(parse(address)));
        assert_eq!(name.unwrap_or_else(|error| panic!("{address}: {error}")), "a");
    }
    wait::until("both are recorded", wait::SOON, || lemonade.output().contains("fd77:1::1"));
    let output = lemonade.output();
    assert!(output.contains("10.77.1.1:") && output.contains("10.77.1.2:8080"), "{output}");
    assert!(!output.contains("::ffff:"), "{output}");
    let unused = network.client.enter(|| connect(parse("10.77.1.2:8081")));
    assert!(unused.is_err(), "only the configured port");
}

#[test]
fn want_of_local_ports_refuses_and_passes() {
    let Some(network) = Network::start("want_of_local_ports_refuses_and_passes") else { return };
    // Ten ports, one or two of which the admin interface takes.
    network.balancer.enter(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "50000 50009").expect("root may set it");
    });
    let backends = [backend(&network, "a", V4[1])];
    let mut lemonade = start(&network, V4[0], |setup| setup, &backends);
    let crowd: Vec<_> = network.client.enter(|| (0..30).filter_map(|_| connect(parse(V4[0])).ok()).collect());
    wait::until("what finds no port is refused", wait::SOON, || lemonade.metrics().refused("no_ports") >= 20);
    let live = lemonade.metrics().connections().2;
    assert!((5..=10).contains(&live), "{live} connections on 10 ports");
    let before = lemonade.processor_time();
    std::thread::sleep(Duration::from_secs(1));
    let spent = lemonade.processor_time() - before;
    assert!(spent < Duration::from_millis(500), "{spent:?} of processor time in 1 s of waiting");
    assert!(lemonade.exited().is_none(), "it lives on:\n{}", lemonade.output());
    let failures = lemonade.metrics().sum("lemonade_backend_connect_failures_total", &[]);
    assert_eq!(failures, 0, "a backend is not to blame for want of ports");

    // Reset, so that no port waits in TIME_WAIT.
    crowd.into_iter().for_each(reset);
    wait::until("it serves again", wait::SOON, || network.client.enter(|| call(parse(V4[0]))).is_ok());
}
