//! The example that ships, as it is, between namespaces that have its addresses.

use std::net::TcpListener;
use std::path::Path;

use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;

use crate::ends::Scene;
use crate::stage::parse;

#[test]
fn the_example_splices_connections_that_last() {
    let Some(network) = Network::start("the_example_splices_connections_that_last") else { return };
    network.balancer.ip("addr add 192.0.2.10/32 dev to_client");
    network.client.ip("route add 192.0.2.10/32 via 10.77.1.2");
    network.balancer.ip("addr add 10.0.0.1/24 dev to_backends");
    network.backends.ip("addr add 10.0.0.11/24 dev to_balancer");
    let listener =
        network.backends.enter(|| TcpListener::bind(parse("10.0.0.11:8080")).expect("a free port"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples/splice.toml");
    let text = std::fs::read_to_string(file).expect("the example");
    // Its own folder and admin address, so that it meets no other process; one backend, which the test plays.
    let head = Setup { frontends: Vec::new(), pools: Vec::new(), ..Setup::single(&[]) };
    let (text, _) = text.split_once("[[pool.web.backend]]\nname = \"b\"").expect("two backends");
    let text = text.replace("[pool.web]\n", "[pool.web]\nhealth.kind = \"off\"\n");
    let lemonade =
        network.balancer.enter(|| Lemonade::start_text(|folder| format!("{}\n{text}", head.text(folder))));
    let scene = Scene { network, listener, lemonade };
    wait::until("the relay is on", wait::SOON, || {
        scene.lemonade.status().frontend("web")["relay"] == "splice"
    });
    scene.spliced("192.0.2.10:80").exchange(100_000);
}
