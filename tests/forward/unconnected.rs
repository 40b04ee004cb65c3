//! What happens before a connection reaches its backend, where this plane differs from the proxy: see
//! tests/conformance/unconnected.rs for the proxy's view, and docs/guide/forward.md for both.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::between::{Between, Way};
use lemonade_tests::load::call;
use lemonade_tests::netns::Network;
use lemonade_tests::wait;

use crate::sessions;
use crate::stage::{V4, packets, parse, start};

/// The backend's refusal is the client's.
#[test]
fn a_backend_that_refuses_refuses_the_client_and_no_other_is_tried() {
    let test = "a_backend_that_refuses_refuses_the_client_and_no_other_is_tried";
    let Some(network) = Network::start(test) else { return };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &V4.setup(&backends));
    backends[0].refuse();
    let mut refused = 0;
    for _ in 0..40 {
        match network.client.enter(|| call(V4.frontend())) {
            Ok(name) => assert_ne!(name, "a"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
                refused += 1;
            }
        }
    }
    assert!((1..40).contains(&refused), "{refused} of 40 were refused");
    wait::until("each is a flow that has ended", wait::SOON, || {
        let (opened, closed, live) = lemonade.metrics().connections();
        (opened, closed, live) == (40, 40, 0)
    });
    assert_eq!(lemonade.metrics().picks("a"), refused);
    assert_eq!(lemonade.metrics().refused_in_all(), 0, "the balancer refused nothing");
}

/// A client whose handshake nobody answers waits for as long as itself wants; clients of others are served.
#[test]
fn a_backend_that_is_silent_is_the_clients_own_timeout() {
    let test = "a_backend_that_is_silent_is_the_clients_own_timeout";
    let Some(network) = Network::start(test) else { return };
    let silent = network.backends.enter(|| Backend::start_on("a", parse(V4.backends[0])));
    let lemonade = start(&network, &V4.setup(std::slice::from_ref(&silent)));
    network.backends.filter("tcp flags & (syn | ack) == syn drop");
    let begun = Instant::now();
    let patience = Duration::from_millis(1_500);
    let outcome = network.client.enter(|| TcpStream::connect_timeout(&V4.frontend(), patience));
    assert_eq!(outcome.expect_err("nobody answers").kind(), ErrorKind::TimedOut);
    assert!(begun.elapsed() >= patience, "it was told nothing before");
    wait::until("one flow is half open", wait::SOON, || {
        lemonade.metrics().sum("lemonade_forward_flows_live", &[]) == 1 && packets(&lemonade, "forwarded") > 0
    });
    assert_eq!(packets(&lemonade, "opened"), 1, "its second SYN is of the same flow");
}

#[test]
fn the_same_scripts_look_alike_on_the_proxy_and_in_the_kernel() {
    let test = "the_same_scripts_look_alike_on_the_proxy_and_in_the_kernel";
    let Some(network) = Network::start(test) else { return };
    let [proxied, forwarded] = [Way::Proxy, Way::Forward]
        .map(|way| network.client.enter(|| sessions::traces(&Between::new(&network, way))));
    for (seed, (proxied, forwarded)) in proxied.iter().zip(&forwarded).enumerate() {
        assert_eq!(forwarded, proxied, "session {seed}");
    }
}
