//! `relay = "auto"`, the default: splice where packets meet its programs, copy elsewhere.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::wait;

use crate::ends::{Pair, Scene};
use crate::stage::{V4, parse};

/// A balancer whose frontend says nothing of a relay, and that may not have tried any yet.
fn start(test: &str) -> Option<Scene> {
    let network = Network::start(test)?;
    let listener = network.backends.enter(|| TcpListener::bind(parse(V4[1])).expect("a free port"));
    let mut setup = Setup::single(&[listener.local_addr().expect("a bound socket")]);
    setup.frontends[0] = Frontend::on("web", V4[0], "web");
    let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
    Some(Scene { network, listener, lemonade })
}

fn relay_of(lemonade: &Lemonade, frontend: &str) -> (String, String) {
    let own = lemonade.status().frontend(frontend).clone();
    let text = |field: &str| own[field].as_str().unwrap_or_default().to_owned();
    (text("relay"), text("relay_why"))
}

#[test]
fn a_frontend_that_names_no_relay_has_connections_that_last_spliced() {
    let Some(scene) = start("a_frontend_that_names_no_relay_has_connections_that_last_spliced") else {
        return;
    };
    // Accepted before the self-tests have passed, and due before that too.
    let mut early = scene.connect(V4[0]);
    for _ in 0..8 {
        early.exchange(100);
    }
    wait::until("the relay is on", wait::SOON, || relay_of(&scene.lemonade, "web").0 == "splice");
    let why = relay_of(&scene.lemonade, "web").1;
    assert!(why.starts_with("auto: connections that last"), "{why}");
    wait::until("the early connection is spliced", wait::SOON, || {
        early.exchange(100);
        scene.relay("promoted_total") == 1
    });
    early.exchange(100_000);
    // Three questions are not worth it, nor are bytes below the threshold.
    let mut short = scene.connect(V4[0]);
    for _ in 0..3 {
        short.exchange(1_000);
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(scene.relay("promoted_total"), 1);
    scene.spliced(V4[0]).exchange(100_000);
}

/// Beside a frontend that is spliced, one on loopback is copied as ever: it is not even counted as kept.
#[test]
fn loopback_is_copied_and_says_why() {
    let test = "loopback_is_copied_and_says_why";
    let Some(network) = Network::start(test) else { return };
    let local = network.balancer.enter(|| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let mut setup = Setup::single(&[local.local_addr().expect("a bound socket")]);
    setup.frontends[0] = Frontend::on("web", "127.0.0.1:8080", "web");
    let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
    let (relay, why) = relay_of(&lemonade, "web");
    assert_eq!(relay, "copy");
    assert!(why.contains("loopback"), "{why}");
    let mut client =
        network.balancer.enter(|| TcpStream::connect(parse("127.0.0.1:8080")).expect("a connection"));
    let mut backend = local.accept().expect("a connection").0;
    for _ in 0..50 {
        client.write_all(&[7; 2_000]).expect("a live socket");
        backend.read_exact(&mut [0; 2_000]).expect("the bytes arrive");
        backend.write_all(&[8; 2_000]).expect("a live socket");
        client.read_exact(&mut [0; 2_000]).expect("the bytes arrive");
    }
    let relays = lemonade.status().0["relays"].clone();
    let splice = relays.as_array().expect("a list").iter().find(|own| own["relay"] == "splice").cloned();
    assert_eq!(splice.expect("it is known")["findings"]["tests"].as_array().map(Vec::len), Some(0));
    // A frontend beyond loopback has the relay loaded, and the one on loopback stays as it was.
    let listener = network.backends.enter(|| TcpListener::bind(parse(V4[1])).expect("a free port"));
    let mut more = Setup::single(&[listener.local_addr().expect("a bound socket")]);
    more.frontends[0] = Frontend::on("far", V4[0], "web");
    more.frontends.push(setup.frontends[0].clone());
    lemonade.reload(&more);
    wait::until("the relay is on", wait::SOON, || relay_of(&lemonade, "far").0 == "splice");
    assert_eq!(relay_of(&lemonade, "web").0, "copy");
    let scene = Scene { network, listener, lemonade };
    scene.spliced(V4[0]);
    drop(Pair { client, backend });
}
