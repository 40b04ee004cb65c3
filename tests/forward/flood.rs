//! A flood of SYNs from clients that do not exist, beside clients that do.

use std::net::SocketAddr;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::flood::{Flood, INVENTED};
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::Load;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::full;
use lemonade_tests::wait;

use crate::modes::Unwrapping;
use crate::stage::{V4, packets, parse, start};

/// SYNs a second at most.
const RATE: u64 = 100_000;

/// Calls a second beside them.
const CALLS: u32 = 500;

/// Interface of the balancer towards clients.
const BALANCER: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// Gives invented clients a way back, which ends at the host of the real ones.
fn ways(network: &Network) {
    network.balancer.ip("link set to_client address 02:00:00:00:01:02");
    network.balancer.ip(&format!("route add {INVENTED} via 10.77.1.1"));
}

/// Calls and a flood beside them; says which share of a thousand calls was answered, and prints what was measured.
fn flooded(network: &Network, lemonade: &Lemonade, mode: &str) -> f64 {
    let time = Duration::from_secs(if full() { 30 } else { 4 });
    let (load, flood) = network.client.enter(|| {
        let load = Load::start(V4.frontend(), CALLS);
        std::thread::sleep(Duration::from_millis(500));
        (load, Flood::start("to_balancer", BALANCER, V4.frontend(), RATE, time))
    });
    let sent = flood.end();
    let outcome = load.stop();
    // Counters follow in rounds over the table.
    wait::until("nearly every SYN is counted", 4 * wait::SOON, || {
        let counted =
            ["opened", "half_open_full", "unrecorded", "forwarded"].map(|why| packets(lemonade, why));
        counted.iter().sum::<u64>() > sent.packets * 9 / 10
    });
    let (answered, failed) = (outcome.total(), outcome.failed.len() as u64);
    let per_mille = 1_000.0 * answered as f64 / (answered + failed) as f64;
    let reasons = ["opened", "half_open_full", "unrecorded", "ports_exhausted", "table_full", "unknown_flow"];
    let counted = reasons.map(|reason| (reason, packets(lemonade, reason)));
    let rate = sent.packets as f64 / sent.took.as_secs_f64();
    println!(
        "{mode}: {rate:.0} SYNs a second for {:.1?}; {answered} calls answered, {failed} failed ({per_mille:.2} per mille); {counted:?}, first of the failed: {:?}",
        sent.took,
        outcome.failed.first()
    );
    assert!(sent.packets > 20_000, "no flood: {sent:?}");
    per_mille
}

fn setup(mode: &str, setup: Setup) -> Setup {
    setup.frontend(&[&format!("forward.mode = \"{mode}\""), "forward.connection_table = 262144"])
}

#[test]
fn a_flood_leaves_clients_their_connections_in_mode_nat() {
    let Some(network) = Network::start("a_flood_leaves_clients_their_connections_in_mode_nat") else {
        return;
    };
    ways(&network);
    let backends = V4.backends(&network);
    let lemonade = start(&network, &setup("nat", V4.setup(&backends)));
    let answered = flooded(&network, &lemonade, "nat");
    assert!(answered >= 990.0, "{answered} of a thousand calls were answered");
    for reason in ["ports_exhausted", "table_full"] {
        assert_eq!(packets(&lemonade, reason), 0, "{reason}");
    }
    let replaced = lemonade.metrics().sum("lemonade_forward_half_open_replaced_total", &[]);
    assert!(replaced > 1_000, "{replaced} handshakes made room");
}

#[test]
fn a_flood_leaves_clients_their_connections_past_the_balancer() {
    let test = "a_flood_leaves_clients_their_connections_past_the_balancer";
    let Some(network) = Network::start(test) else { return };
    past_the_balancer(&network, "dsr-l2");
}

#[test]
fn a_flood_leaves_clients_their_connections_in_wrapped_packets() {
    let test = "a_flood_leaves_clients_their_connections_in_wrapped_packets";
    let Some(network) = Network::start(test) else { return };
    let _decap = network.backends.enter(Unwrapping::start);
    past_the_balancer(&network, "dsr-ipip");
}

fn past_the_balancer(network: &Network, mode: &str) {
    ways(network);
    network.pass_by(&["10.77.1.2/32"]);
    network.backends.ip(&format!("route add {INVENTED} via 10.77.3.1 dev past"));
    let vip = V4.frontend();
    let _server = network.backends.enter(|| Backend::start_on("all", vip));
    let at = V4.backends.map(|backend| SocketAddr::new(parse(backend).ip(), vip.port()));
    let lemonade = start(network, &setup(mode, V4.setup_at(&at)));
    let answered = flooded(network, &lemonade, mode);
    assert!(answered >= 999.0, "{answered} of a thousand calls were answered");
    assert_eq!(packets(&lemonade, "table_full"), 0);
}
