//! Clients on the balancer's own host: their sockets get a backend when they connect.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use lemonade_tests::cgroup::Cgroup;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::tally;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::killed::{TURN, set};
use crate::serving::words;
use crate::stage::{Addresses, V4, V6, ask, parse, start};

const CLIENT: &str = env!("CARGO_BIN_EXE_local-client");

/// A frontend for the sockets of a cgroup.
fn connects(setup: Setup, cgroup: &Cgroup) -> Setup {
    let named = format!("accelerate_cgroup = {:?}", cgroup.path());
    setup.frontend(&["forward.hook = \"connect\"", &named])
}

/// What so many sockets were answered, and whom they saw: of a process in `cgroup`, or of one outside.
pub fn asked(
    network: &Network,
    cgroup: Option<&Cgroup>,
    kind: &str,
    address: SocketAddr,
    number: usize,
) -> Vec<(String, String)> {
    let (address, number) = (address.to_string(), number.to_string());
    let arguments = [kind, &address, &number];
    let mut command = match cgroup {
        Some(cgroup) => cgroup.command(CLIENT, &arguments),
        None => Command::new(CLIENT),
    };
    if cgroup.is_none() {
        command.args(arguments);
    }
    let output = network.balancer.enter(|| command.output().expect("the client runs"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text.lines().map(|line| line.split_once(' ').expect("two words"));
    lines.map(|(who, peer)| (who.to_owned(), peer.to_owned())).collect()
}

/// Whoever answered, after a look at whom they all saw.
pub fn names(said: Vec<(String, String)>, peer: SocketAddr) -> Vec<String> {
    let strangers: Vec<_> = said.iter().filter(|(_, saw)| *saw != peer.to_string()).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    said.into_iter().map(|(who, _)| who).collect()
}

fn connections(test: &str, addresses: &Addresses) {
    let Some(network) = Network::start(test) else { return };
    let cgroup = Cgroup::make(test);
    let backends = addresses.backends(&network);
    let setup = addresses.setup(&backends).pool(&["strategy = \"weighted_round_robin\""]);
    let lemonade = start(&network, &connects(setup.backend(0, &["weight = 2"]), &cgroup));
    assert!(words(&lemonade).starts_with(&format!("connect on {}", cgroup.path().display())));
    assert_eq!(lemonade.status().frontend("web")["relay"], "connect");
    let inside =
        names(asked(&network, Some(&cgroup), "tcp", addresses.frontend(), 400), addresses.frontend());
    let shares = tally(&inside);
    // Half of 400, give or take five standard deviations, and a quarter each.
    assert!((150..=250).contains(&shares["a"]), "{shares:?}");
    assert!(["b", "c"].iter().all(|name| (56..=144).contains(&shares[*name])), "{shares:?}");
    wait::until("each connect is counted", wait::SOON, || {
        let metrics = lemonade.metrics();
        let opened = metrics.sum("lemonade_frontend_connections_opened_total", &[("frontend", "web")]);
        (opened, metrics.sum("lemonade_forward_flows_live", &[])) == (400, 0)
    });
    let metrics = lemonade.metrics();
    for (name, count) in &shares {
        assert_eq!(metrics.picks(name), *count as u64, "{name}");
    }
    assert_eq!(metrics.bytes(), (0, 0), "their packets are nobody's");
    // One outside the cgroup goes by the proxy, which counts bytes.
    let outside = asked(&network, None, "tcp", addresses.frontend(), 12);
    assert_eq!(tally(&names(outside, addresses.frontend())).len(), 3);
    wait::until("the proxy has carried them", wait::SOON, || lemonade.metrics().bytes().0 > 0);
    // A backend that leaves gets none.
    lemonade.reload(&connects(addresses.setup(&backends).backend(0, &["enabled = false"]), &cgroup));
    let inside = names(asked(&network, Some(&cgroup), "tcp", addresses.frontend(), 60), addresses.frontend());
    assert_eq!(tally(&inside).into_keys().collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn local_connects_reach_backends_by_weight_over_ipv4() {
    connections("local_connects_reach_backends_by_weight_over_ipv4", &V4);
}

#[test]
fn local_connects_reach_backends_by_weight_over_ipv6() {
    connections("local_connects_reach_backends_by_weight_over_ipv6", &V6);
}

fn datagrams(test: &str, addresses: &Addresses) {
    let Some(network) = Network::start(test) else { return };
    let cgroup = Cgroup::make(test);
    let servers = addresses.backends.map(|own| {
        let server = network.backends.enter(|| UdpSocket::bind(parse(own))).expect("our address");
        let address = server.local_addr().expect("a bound socket");
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            server.set_read_timeout(Some(Duration::from_secs(30))).expect("a live socket");
            while let Ok((_, from)) = server.recv_from(&mut buffer) {
                server.send_to(address.to_string().as_bytes(), from).expect("the client is near");
            }
        });
        address
    });
    let setup = connects(addresses.setup_at(&servers), &cgroup).frontend(&["protocol = \"udp\""]);
    let lemonade = start(&network, &setup);
    for (at, kind) in ["datagrams", "connected"].iter().enumerate() {
        let said = asked(&network, Some(&cgroup), kind, addresses.frontend(), 60);
        let said = names(said, addresses.frontend());
        let shares = tally(&said);
        assert_eq!(shares.len(), 3, "{kind}: {shares:?}");
        // Sockets of datagrams count when they get a backend, connected ones at each connect.
        wait::until("they are counted", wait::SOON, || {
            let opened = lemonade.metrics().sum("lemonade_frontend_connections_opened_total", &[]);
            opened == [60, 180][at]
        });
    }
}

#[test]
fn local_datagrams_reach_backends_over_ipv4() {
    datagrams("local_datagrams_reach_backends_over_ipv4", &V4);
}

#[test]
fn local_datagrams_reach_backends_over_ipv6() {
    datagrams("local_datagrams_reach_backends_over_ipv6", &V6);
}

#[test]
fn of_a_killed_process_local_clients_notice_nothing() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let test = "of_a_killed_process_local_clients_notice_nothing";
    let Some(network) = Network::start(test) else { return };
    let cgroup = Cgroup::make(test);
    let backends = V4.backends(&network);
    let mut lemonade = start(&network, &connects(V4.setup(&backends), &cgroup));
    let links = |lemonade: &Lemonade| {
        let set = set(lemonade).expect("it has names");
        let names = std::fs::read_dir(&set).expect("its folder").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("cgroup-")).count()
    };
    for _ in 0..2 {
        assert_eq!(links(&lemonade), 8);
        lemonade.signal(Signal::KILL);
        lemonade.wait(wait::SOON);
        let inside = names(asked(&network, Some(&cgroup), "tcp", V4.frontend(), 30), V4.frontend());
        assert_eq!(tally(&inside).len(), 3, "{inside:?}");
        let outside = asked(&network, None, "tcp", V4.frontend(), 1);
        assert_eq!(outside[0].0, "failed", "nobody listens: {outside:?}");
        network.balancer.enter(|| lemonade.restart());
        let told = || lemonade.output().contains("takes over what a killed process left");
        wait::until("it says that it takes over", wait::SOON, told);
    }
    let set = set(&lemonade).expect("it has names");
    lemonade.signal(Signal::INT);
    assert!(lemonade.wait(wait::SOON).success());
    assert!(!set.exists(), "{} is left", set.display());
    let inside = asked(&network, Some(&cgroup), "tcp", V4.frontend(), 1);
    assert_eq!(inside[0].0, "failed", "nothing is left: {inside:?}");
}

#[test]
fn packets_and_local_connects_of_one_frontend_go_by_one_ring() {
    let test = "packets_and_local_connects_of_one_frontend_go_by_one_ring";
    let Some(network) = Network::start(test) else { return };
    let cgroup = Cgroup::make(test);
    let backends = V4.backends(&network);
    let named = format!("accelerate_cgroup = {:?}", cgroup.path());
    let setup = V4.setup(&backends).pool(&["strategy = \"source_hash\""]).frontend(&[&named]);
    let lemonade = start(&network, &setup);
    let said = words(&lemonade);
    let expected = format!("tc on to_backends, to_client, connect on {}; goes on", cgroup.path().display());
    assert!(said.starts_with(&expected), "{said}");
    assert_eq!(tally(&ask(&network, V4.frontend(), 20)).len(), 1);
    let inside = names(asked(&network, Some(&cgroup), "tcp", V4.frontend(), 20), V4.frontend());
    assert_eq!(tally(&inside).len(), 1, "this host is one source: {inside:?}");
    // The proxy makes the same choice for it.
    let outside = names(asked(&network, None, "tcp", V4.frontend(), 20), V4.frontend());
    assert_eq!(outside, inside);
}

#[test]
fn a_folder_that_is_no_cgroup_is_refused() {
    let Some(network) = Network::start("a_folder_that_is_no_cgroup_is_refused") else { return };
    let backends = V4.backends(&network);
    let setup =
        V4.setup(&backends).frontend(&["forward.hook = \"connect\"", "accelerate_cgroup = \"/proc\""]);
    let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
    let status = lemonade.status();
    let web = status.frontend("web");
    assert_eq!(web["plane"], "proxy");
    let why = web["plane_why"].as_str().expect("words");
    assert!(why.contains("hook connect: accelerate_cgroup /proc: it is no cgroup v2"), "{why}");
}
