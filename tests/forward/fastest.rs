//! fastest_response_time and adaptive in the kernel: who answers SYNs late gets fewer of them.

use lemonade_tests::load::{call, tally};
use lemonade_tests::netns::Network;
use lemonade_tests::wait;

use crate::stage::{V4, ask, start};

#[test]
fn who_answers_late_gets_less() {
    let Some(network) = Network::start("who_answers_late_gets_less") else { return };
    let backends = V4.backends(&network);
    let late = backends[2].address.ip();
    let setup = V4.setup(&backends).pool(&["strategy = \"fastest_response_time\""]).health(&[]);
    let _lemonade = start(&network, &setup);
    let before = ask(&network, V4.frontend(), 90);
    let before = tally(&before).get("c").copied().unwrap_or(0);
    assert!(before > 15, "nobody is known to be slow: {before} of 90");
    // Half of its SYNs are lost, and come again after a second.
    network
        .backends
        .filter(&format!("ip daddr {late} tcp flags & (syn | ack) == syn numgen random mod 2 < 1 drop"));
    ask(&network, V4.frontend(), 30);
    wait::until("it gets a small share", 3 * wait::SOON, || {
        let names = ask(&network, V4.frontend(), 60);
        tally(&names).get("c").copied().unwrap_or(0) <= 4
    });
}

/// A refused connect is the client's to see, and the strategy's to learn of.
#[test]
fn who_refuses_gets_less() {
    let Some(network) = Network::start("who_refuses_gets_less") else { return };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends).pool(&["strategy = \"adaptive\""]).health(&[]);
    let lemonade = start(&network, &setup);
    let failed = |n: usize| -> usize {
        network.client.enter(|| (0..n).filter(|_| call(V4.frontend()).is_err()).count())
    };
    assert_eq!(failed(30), 0);
    backends[2].refuse();
    assert!(failed(60) > 8, "nobody knows yet");
    // A ring follows within five seconds; what is not asked for a while is forgotten again.
    wait::until("it gets a small share", 3 * wait::SOON, || failed(60) <= 4);
    assert!(lemonade.metrics().sum("lemonade_backend_connect_failures_total", &[("backend", "c")]) > 8);
    backends[2].accept();
    wait::until("it has its share again", 5 * wait::SOON, || {
        let names = ask(&network, V4.frontend(), 60);
        tally(&names).get("c").copied().unwrap_or(0) > 10
    });
}
