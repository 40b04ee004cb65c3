//! Changes while flows live: none of them notices, and new ones follow.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::load::{Header, Kind, Load, tally};
use lemonade_tests::netns::Network;
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::named::{Named, homes};
use crate::stage::{V4, ask, packets, start};

/// A probe that notices soon.
const PROBED: [&str; 5] =
    ["kind = \"tcp\"", "interval = \"100ms\"", "fast_interval = \"100ms\"", "fall = 2", "rise = 1"];

/// A connection on which everything is echoed.
struct Echo(TcpStream);

impl Echo {
    fn open(network: &Network, address: SocketAddr) -> Self {
        let mut stream = network.client.enter(|| TcpStream::connect(address)).expect("a backend accepts");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a live socket");
        let header = Header { kind: Kind::Flow, seed: 1, up: 0, down: 0 };
        stream.write_all(&header.encode()).expect("the backend reads");
        Self(stream)
    }

    fn check(&mut self) {
        self.0.write_all(b"still").expect("its backend lives");
        let mut echo = [0; 5];
        self.0.read_exact(&mut echo).expect("its backend answers");
        assert_eq!(&echo, b"still");
    }

    /// Waits until it is reset or closed, asking again and again.
    fn await_end(mut self) {
        wait::until("the connection has ended", wait::SOON, || {
            let mut byte = [0];
            self.0.write_all(b"x").is_err() || !matches!(self.0.read(&mut byte), Ok(1..))
        });
    }
}

#[test]
fn new_flows_follow_weights_and_live_ones_stay() {
    let Some(network) = Network::start("new_flows_follow_weights_and_live_ones_stay") else { return };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends).pool(&["strategy = \"weighted_round_robin\""]);
    let lemonade = start(&network, &setup);
    let mut live: Vec<Echo> = (0..30).map(|_| Echo::open(&network, V4.frontend())).collect();
    lemonade.reload(&setup.clone().backend(0, &["weight = 0"]).backend(2, &["weight = 3"]));
    let names = ask(&network, V4.frontend(), 300);
    let shares = tally(&names);
    assert_eq!(shares.get("a"), None, "a backend of weight 0 has new flows: {shares:?}");
    assert!((190..=255).contains(&shares["c"]), "three quarters of 300 are due to c: {shares:?}");
    live.iter_mut().for_each(Echo::check);
    lemonade.reload(&setup);
    let names = ask(&network, V4.frontend(), 60);
    assert_eq!(tally(&names).len(), 3, "it comes back");
    live.iter_mut().for_each(Echo::check);
    // The host knows no flow of these, so none was lost on the way.
    assert_eq!(packets(&lemonade, "unknown_flow"), 0);
}

#[test]
fn a_removed_backend_keeps_its_flows_until_the_drain_timeout() {
    let Some(network) = Network::start("a_removed_backend_keeps_its_flows_until_the_drain_timeout") else {
        return;
    };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends[..2]).runtime(&["drain_timeout = \"3s\""]);
    let lemonade = start(&network, &setup);
    let mut live: Vec<Echo> = (0..20).map(|_| Echo::open(&network, V4.frontend())).collect();
    let of = |name: &str| lemonade.metrics().sum("lemonade_backend_connections_live", &[("backend", name)]);
    wait::until("every flow is counted", wait::SOON, || of("a") + of("b") == 20);
    let stay = of("b");
    assert!(stay > 0 && stay < 20, "{stay} of 20 flows go to b");
    let mut without = setup;
    without.pools[0].backends.remove(0);
    lemonade.reload(&without);
    assert!(ask(&network, V4.frontend(), 20).iter().all(|name| name == "b"));
    live.iter_mut().for_each(Echo::check);
    wait::until("the flows of a are forgotten", wait::SOON, || {
        lemonade.metrics().sum("lemonade_forward_flows_live", &[]) == stay
    });
    let mut left = 0;
    for mut echo in live {
        let mut byte = [0; 5];
        let lives = echo.0.write_all(b"still").is_ok() && echo.0.read_exact(&mut byte).is_ok();
        left += u64::from(lives);
    }
    assert_eq!(left, stay, "those of b go on, the others are reset");
}

#[test]
fn health_takes_a_dead_backend_out_of_the_ring_and_brings_it_back() {
    let test = "health_takes_a_dead_backend_out_of_the_ring_and_brings_it_back";
    let Some(network) = Network::start(test) else { return };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends).health(&PROBED);
    let lemonade = start(&network, &setup);
    wait::until("all are probed", wait::SOON, || {
        let status = lemonade.status();
        ["a", "b", "c"].iter().all(|name| !status.backend("web", name)["since"].is_null())
    });
    backends[0].refuse();
    wait::until("a is down", wait::SOON, || !lemonade.status().is_up("web", "a"));
    // The table is in the kernel before the status tells of it.
    let names = ask(&network, V4.frontend(), 60);
    let shares = tally(&names);
    assert_eq!((shares.get("a"), shares.len()), (None, 2), "{shares:?}");
    backends[0].accept();
    wait::until("a is up", wait::SOON, || lemonade.status().is_up("web", "a"));
    let names = ask(&network, V4.frontend(), 60);
    assert_eq!(tally(&names).len(), 3);
    for backend in &backends {
        backend.refuse();
    }
    wait::until("all are down", wait::SOON, || {
        let status = lemonade.status();
        ["a", "b", "c"].iter().all(|name| !status.is_up("web", name))
    });
    // The proxy behind says no, and counts it.
    let mut stream = network.client.enter(|| TcpStream::connect(V4.frontend())).expect("the proxy accepts");
    let mut byte = [0];
    assert!(!matches!(stream.read(&mut byte), Ok(1..)), "nobody could have answered");
    wait::until("the refusal is counted", wait::SOON, || {
        packets(&lemonade, "no_backend") > 0 && lemonade.metrics().refused("no_backend_up") > 0
    });
}

#[test]
fn a_backend_that_dies_and_comes_back_costs_its_own_flows_only() {
    let test = "a_backend_that_dies_and_comes_back_costs_its_own_flows_only";
    let Some(network) = Network::start(test) else { return };
    let mut backends = V4.backends(&network);
    let setup = V4.setup(&backends).health(&PROBED);
    let lemonade = start(&network, &setup);
    wait::until("all are probed", wait::SOON, || {
        let status = lemonade.status();
        ["a", "b", "c"].iter().all(|name| !status.backend("web", name)["since"].is_null())
    });
    let mut flows = Named::several(&network, V4.frontend(), 60);
    for round in 0..3 {
        let home = homes(&mut flows);
        let (dying, mut others): (Vec<_>, Vec<_>) =
            flows.into_iter().zip(home).partition(|(_, home)| home == "a");
        assert!(dying.len() > 5 && others.len() > 10, "round {round}: {} and {}", dying.len(), others.len());
        let dead = backends.remove(0);
        let address = dead.address;
        drop(dead);
        dying.into_iter().for_each(|(flow, _)| flow.await_end());
        wait::until("it is down", wait::SOON, || !lemonade.status().is_up("web", "a"));
        let mut fresh = Named::several(&network, V4.frontend(), 20);
        assert!(homes(&mut fresh).iter().all(|home| home != "a"), "a new flow went to who is down");
        backends.insert(0, network.backends.enter(|| Backend::start_on("a", address)));
        wait::until("it is up", wait::SOON, || lemonade.status().is_up("web", "a"));
        for (flow, home) in &mut others {
            flow.ask();
            assert_eq!(flow.hear(), *home, "round {round}: a flow moved");
        }
        flows = others.into_iter().map(|(flow, _)| flow).chain(fresh).collect();
        flows.extend(Named::several(&network, V4.frontend(), 40));
    }
}

#[test]
fn backends_that_leave_keep_their_flows_until_these_are_closed() {
    let test = "backends_that_leave_keep_their_flows_until_these_are_closed";
    let Some(network) = Network::start(test) else { return };
    let backends = V4.backends(&network);
    let setup = V4.setup(&backends);
    let lemonade = start(&network, &setup);
    let mut removed = setup.clone();
    removed.pools[0].backends.remove(0);
    for without in [setup.clone().backend(0, &["enabled = false"]), removed] {
        let mut flows = Named::several(&network, V4.frontend(), 40);
        let home = homes(&mut flows);
        lemonade.reload(&without);
        let mut fresh = Named::several(&network, V4.frontend(), 20);
        assert!(homes(&mut fresh).iter().all(|home| home != "a"), "a new flow went to who leaves");
        assert_eq!(homes(&mut flows), home, "they stay where they are");
        flows.into_iter().chain(fresh).for_each(Named::close);
        wait::until("nothing is left", wait::SOON, || {
            lemonade.metrics().sum("lemonade_forward_flows_live", &[]) == 0
        });
        lemonade.reload(&setup);
    }
    assert_eq!(packets(&lemonade, "unknown_flow"), 0);
}

#[test]
fn a_frontend_changes_its_plane_under_load_and_no_flow_breaks() {
    let Some(network) = Network::start("a_frontend_changes_its_plane_under_load_and_no_flow_breaks") else {
        return;
    };
    let backends = V4.backends(&network);
    let forward = V4.setup(&backends);
    let proxy = forward.clone().frontend(&["data_plane = \"proxy\""]);
    let lemonade = start(&network, &forward);
    let load = network.client.enter(|| Load::start(V4.frontend(), 150));
    let mut live: Vec<Echo> = Vec::new();
    for round in 0..10 {
        let before = load.answered();
        wait::until("the load goes on", wait::SOON, || load.answered() >= before + 30);
        live.extend((0..10).map(|_| Echo::open(&network, V4.frontend())));
        live.iter_mut().for_each(Echo::check);
        let setup = if round % 2 == 0 { &proxy } else { &forward };
        lemonade.reload(setup);
        let plane = if round % 2 == 0 { "proxy" } else { "forward" };
        assert_eq!(lemonade.status().frontend("web")["plane"], plane);
        live.iter_mut().for_each(Echo::check);
    }
    let outcome = load.stop();
    assert_eq!(outcome.failed, [""; 0], "of {} calls", outcome.total());
    println!("{} calls and {} live flows over 10 changes of plane", outcome.total(), live.len());
    let metrics = lemonade.metrics();
    let forwarded = metrics.sum("lemonade_forward_flows_opened_total", &[]);
    let (opened, ..) = metrics.connections();
    assert!(forwarded > 150 && opened > forwarded + 150, "both planes carried: {forwarded} of {opened}");
}

#[test]
fn a_stop_waits_for_flows_and_takes_everything_away() {
    let Some(network) = Network::start("a_stop_waits_for_flows_and_takes_everything_away") else { return };
    let backends = V4.backends(&network);
    let mut lemonade = start(&network, &V4.setup(&backends));
    let mut echo = Echo::open(&network, V4.frontend());
    lemonade.signal(Signal::INT);
    wait::until("it drains", wait::SOON, || {
        lemonade.try_status().is_none_or(|status| status.phase() == "draining")
    });
    wait::until("new connections are refused", wait::SOON, || {
        network.client.enter(|| TcpStream::connect(V4.frontend())).is_err()
    });
    echo.check();
    assert!(lemonade.exited().is_none(), "it waits");
    drop(echo);
    assert!(lemonade.wait(wait::SOON).success());
    let refused = network.client.enter(|| TcpStream::connect(V4.frontend()));
    assert!(refused.is_err(), "nothing forwards any more");
}

#[test]
fn a_second_signal_resets_what_is_left() {
    let Some(network) = Network::start("a_second_signal_resets_what_is_left") else { return };
    let backends = V4.backends(&network);
    let mut lemonade = start(&network, &V4.setup(&backends));
    let mut echo = Echo::open(&network, V4.frontend());
    echo.check();
    lemonade.signal(Signal::INT);
    wait::until("it drains", wait::SOON, || {
        lemonade.try_status().is_none_or(|status| status.phase() == "draining")
    });
    lemonade.signal(Signal::INT);
    assert!(lemonade.wait(wait::SOON).success());
    echo.await_end();
}
