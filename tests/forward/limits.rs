//! `max_connections` on the forward plane: the same script on both planes, and what ends makes room there too.

use std::net::SocketAddr;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::datagrams::{Client, Echo};
use lemonade_tests::flood::{Flood, INVENTED};
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{call, tally};
use lemonade_tests::netns::Network;
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::least::{Held, apart, counts, hold};
use crate::stage::{Addresses, V4, V6, await_ended, packets, start};

/// Time in which a SYN comes but once.
const ONE_SYN: Duration = Duration::from_millis(700);

/// Three backends with limits of two, three and four connections.
fn limited(setup: Setup) -> Setup {
    let most = |n: usize| format!("max_connections = {}", n + 2);
    (0..3).fold(setup, |setup, n| setup.backend(n, &[&most(n)]))
}

/// The same configuration on the proxy.
fn proxied(addresses: &Addresses, backends: &[Backend]) -> Setup {
    let mut setup = Setup::single(&backends.iter().map(|backend| backend.address).collect::<Vec<_>>());
    setup.frontends[0] = Frontend::on("web", addresses.frontend, "web");
    setup
}

/// Nobody serves one more: the proxy accepts and closes, the kernel lets its SYN wait.
fn is_refused(network: &Network, lemonade: &Lemonade, address: SocketAddr, reason: &str) {
    let counted = || packets(lemonade, reason) + lemonade.metrics().refused(reason);
    let before = counted();
    assert!(network.client.enter(|| Held::within(address, ONE_SYN)).is_err(), "it was served");
    wait::until("it is counted", wait::SOON, || counted() > before);
}

/// Opens one, which is served once there is room for it.
fn comes_in(network: &Network, address: SocketAddr) -> Held {
    let mut held = None;
    wait::until("there is room", wait::SOON, || {
        held = network.client.enter(|| Held::within(address, ONE_SYN)).ok();
        held.is_some()
    });
    held.expect("it is served")
}

/// Backends are filled to their limits and no further; what closes or resets makes room for as many.
fn what_ends_makes_room(network: &Network, lemonade: &Lemonade, address: SocketAddr) {
    let mut held = hold(network, address, 9);
    assert_eq!(counts(&held), [2, 3, 4], "each at its limit");
    is_refused(network, lemonade, address, "backends_full");
    let (gone, rest) = apart(held, "b");
    gone.into_iter().for_each(Held::close);
    held = (0..3).map(|_| comes_in(network, address)).collect();
    assert_eq!(counts(&held), [0, 3, 0], "both sides have closed");
    held.extend(rest);
    is_refused(network, lemonade, address, "backends_full");
    let (gone, rest) = apart(held, "a");
    gone.into_iter().for_each(Held::reset);
    held = (0..2).map(|_| comes_in(network, address)).collect();
    assert_eq!(counts(&held), [2, 0, 0], "reset");
    held.extend(rest);
    is_refused(network, lemonade, address, "backends_full");
    for own in &mut held {
        let same = Held::named(&mut own.stream).expect("it lives");
        assert_eq!(same, own.backend);
    }
}

#[test]
fn backends_have_no_more_than_their_limits_on_either_plane() {
    let Some(network) = Network::start("backends_have_no_more_than_their_limits_on_either_plane") else {
        return;
    };
    for addresses in [&V4, &V6] {
        let backends = addresses.backends(&network);
        for strategy in ["round_robin", "least_connections", "source_hash"] {
            let strategy = format!("strategy = \"{strategy}\"");
            let setup = limited(addresses.setup(&backends)).pool(&[&strategy]);
            let lemonade = start(&network, &setup);
            what_ends_makes_room(&network, &lemonade, addresses.frontend());
            await_ended(&lemonade, 14);
            drop(lemonade);
            let setup = limited(proxied(addresses, &backends)).pool(&[&strategy]);
            let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
            what_ends_makes_room(&network, &lemonade, addresses.frontend());
        }
    }
}

#[test]
fn by_the_gateway_they_have_no_more_either() {
    let Some(network) = Network::start("by_the_gateway_they_have_no_more_either") else { return };
    network.backends.ip("route add 10.77.1.0/24 via 10.77.2.2");
    let backends = V4.backends(&network);
    let setup = limited(V4.setup(&backends)).frontend(&["forward.mode = \"nat-gateway\""]);
    let lemonade = start(&network, &setup);
    what_ends_makes_room(&network, &lemonade, V4.frontend());
    await_ended(&lemonade, 14);
}

#[test]
fn a_frontend_has_no_more_than_its_limit() {
    let Some(network) = Network::start("a_frontend_has_no_more_than_its_limit") else { return };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &V4.setup(&backends).frontend(&["max_connections = 5"]));
    let mut held = hold(&network, V4.frontend(), 5);
    is_refused(&network, &lemonade, V4.frontend(), "frontend_limit");
    held.pop().expect("five").close();
    held.push(comes_in(&network, V4.frontend()));
    is_refused(&network, &lemonade, V4.frontend(), "frontend_limit");
    // More by a reload, which leaves those that there are.
    lemonade.reload(&V4.setup(&backends).frontend(&["max_connections = 7"]));
    held.extend(hold(&network, V4.frontend(), 2));
    is_refused(&network, &lemonade, V4.frontend(), "frontend_limit");
    lemonade.reload(&V4.setup(&backends).frontend(&["max_connections = 3"]));
    is_refused(&network, &lemonade, V4.frontend(), "frontend_limit");
    for own in &mut held {
        Held::named(&mut own.stream).expect("a limit ends nothing");
    }
    assert_eq!(held.len(), 7);
}

/// Many at once, from both sides of the balancer's cores.
#[test]
fn those_that_come_at_once_pass_no_limit() {
    let Some(network) = Network::start("those_that_come_at_once_pass_no_limit") else { return };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &limited(V4.setup(&backends)));
    for _ in 0..10 {
        let held: Vec<Held> = network.client.enter(|| {
            std::thread::scope(|scope| {
                let ask = || Held::within(V4.frontend(), ONE_SYN).ok();
                let asking: Vec<_> = (0..24).map(|_| scope.spawn(ask)).collect();
                asking.into_iter().filter_map(|own| own.join().expect("no panic")).collect()
            })
        });
        assert_eq!(counts(&held), [2, 3, 4]);
        held.into_iter().for_each(Held::close);
    }
    assert!(packets(&lemonade, "backends_full") >= 10 * 15);
}

/// Counts are the maps', which a killed process leaves to the next.
#[test]
fn limits_hold_while_nobody_is_there_and_after() {
    let Some(network) = Network::start("limits_hold_while_nobody_is_there_and_after") else { return };
    let _turn = crate::killed::TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let backends = V4.backends(&network);
    let mut lemonade = start(&network, &limited(V4.setup(&backends)).frontend(&["max_connections = 8"]));
    let held = hold(&network, V4.frontend(), 8);
    lemonade.signal(Signal::KILL);
    lemonade.wait(wait::SOON);
    assert!(network.client.enter(|| Held::within(V4.frontend(), ONE_SYN)).is_err(), "it is full");
    let (of_b, mut held) = apart(held, "b");
    let gone = of_b.len();
    of_b.into_iter().for_each(Held::close);
    held.push(network.client.enter(|| Held::within(V4.frontend(), ONE_SYN)).expect("there is room"));
    network.balancer.enter(|| lemonade.restart());
    held.extend(hold(&network, V4.frontend(), gone - 1));
    is_refused(&network, &lemonade, V4.frontend(), "frontend_limit");
    let [a, b, c] = counts(&held);
    assert!(a <= 2 && b <= 3 && c <= 4 && a + b + c == 8, "{:?}", [a, b, c]);
}

#[test]
fn sessions_of_datagrams_count_until_they_are_idle() {
    let Some(network) = Network::start("sessions_of_datagrams_count_until_they_are_idle") else { return };
    let at = V4.backends.map(|backend| SocketAddr::new(crate::stage::parse(backend).ip(), 8080));
    let _echoes: Vec<Echo> = network
        .backends
        .enter(|| (b'a'..).zip(at).map(|(letter, address)| Echo::on(letter, address)).collect());
    let setup =
        V4.setup_at(&at).frontend(&["protocol = \"udp\"", "idle_timeout = \"3s\"", "max_connections = 4"]);
    let lemonade = start(&network, &setup);
    let ask = |n: usize| -> Vec<Option<char>> {
        network.client.enter(|| {
            let mut clients: Vec<Client> = (0..n).map(|_| Client::of(V4.frontend())).collect();
            clients.iter_mut().map(|client| client.try_ask(60)).collect()
        })
    };
    let answered = ask(6);
    assert_eq!(answered.iter().flatten().count(), 4, "{answered:?}");
    wait::until("there is room again", 2 * wait::SOON, || ask(1)[0].is_some());
    assert!(packets(&lemonade, "frontend_limit") >= 2);
}

/// Handshakes that nobody completes have a place for five seconds where there is none left, not for thirty.
#[test]
fn clients_that_were_invented_do_not_keep_the_places() {
    let Some(network) = Network::start("clients_that_were_invented_do_not_keep_the_places") else { return };
    network.balancer.ip("link set to_client address 02:00:00:00:01:02");
    network.balancer.ip(&format!("route add {INVENTED} via 10.77.1.1"));
    let backends = V4.backends(&network);
    let lemonade = start(&network, &V4.setup(&backends).frontend(&["max_connections = 20"]));
    let flood = network.client.enter(|| {
        let to = [2, 0, 0, 0, 1, 2];
        Flood::start("to_balancer", to, V4.frontend(), 1_000, Duration::from_millis(500))
    });
    assert!(flood.end().packets > 20);
    is_refused(&network, &lemonade, V4.frontend(), "frontend_limit");
    let begun = std::time::Instant::now();
    wait::until("they are forgotten", 2 * wait::SOON, || {
        network.client.enter(|| Held::within(V4.frontend(), ONE_SYN)).is_ok()
    });
    println!("a client was served {:.1?} after the flood", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn where_ends_are_not_seen_the_proxy_keeps_limits() {
    let Some(network) = Network::start("where_ends_are_not_seen_the_proxy_keeps_limits") else { return };
    let backends = V4.backends(&network);
    let at: Vec<SocketAddr> = backends.iter().map(|own| SocketAddr::new(own.address.ip(), 8080)).collect();
    let setup = V4.setup_at(&at).frontend(&["forward.mode = \"dsr-l2\"", "max_connections = 5"]);
    let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
    let status = lemonade.status();
    let web = status.frontend("web");
    let why = web["plane_why"].as_str().expect("words");
    assert_eq!(web["plane"], "proxy");
    assert!(why.contains("mode dsr-l2 does not see their ends"), "{why}");
}

/// What the proxy serves besides, here for a client on the balancer's own host, counts too.
#[test]
fn what_the_proxy_has_beside_it_counts() {
    let Some(network) = Network::start("what_the_proxy_has_beside_it_counts") else { return };
    let backends = V4.backends(&network);
    let lemonade = start(&network, &V4.setup(&backends).frontend(&["max_connections = 3"]));
    let own = network.balancer.enter(|| Held::within(V4.frontend(), ONE_SYN)).expect("the proxy serves");
    // The kernel hears of it within a quarter of a second.
    std::thread::sleep(Duration::from_secs(1));
    let held = hold(&network, V4.frontend(), 2);
    is_refused(&network, &lemonade, V4.frontend(), "frontend_limit");
    own.close();
    let more = comes_in(&network, V4.frontend());
    assert_eq!(
        tally(&held.iter().chain([&more]).map(|own| own.backend.clone()).collect::<Vec<_>>())
            .values()
            .sum::<usize>(),
        3
    );
    drop((held, more));
    wait::until("calls are served", wait::SOON, || network.client.enter(|| call(V4.frontend())).is_ok());
}
