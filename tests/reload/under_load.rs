//! A hundred reloads under load.

use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Flows, Load, call, calls, tally};
use lemonade_tests::setup::{self, Frontend, Setup};
use lemonade_tests::wait;

const RELOADS: usize = 100;
const RATE: u32 = 500;
const STRATEGIES: [&str; 5] =
    ["round_robin", "weighted_round_robin", "least_connections", "fastest_response_time", "adaptive"];

/// The configuration after reload `n`: strategy, weights, backends and frontends all change.
fn variant(n: usize, backends: &[Backend]) -> Setup {
    // Backend `a` stays; each of the others comes and goes.
    let present: Vec<usize> = (0..backends.len()).filter(|&i| i == 0 || (n >> (i - 1)) & 1 == 0).collect();
    let addresses: Vec<_> = present.iter().map(|&i| backends[i].address).collect();
    let mut setup = Setup::single(&addresses).runtime(&["drain_timeout = \"10m\""]);
    for (entry, &i) in setup.pools[0].backends.iter_mut().zip(&present) {
        entry.name = setup::letter(i);
        entry.lines = vec![format!("weight = {}", 1 + (n + i) % 5)];
    }
    let strategy = format!("strategy = \"{}\"", STRATEGIES[n % STRATEGIES.len()]);
    let mut setup = setup.pool(&[&strategy]);
    for extra in 0..n % 3 {
        setup.frontends.push(Frontend::new(&format!("extra{extra}"), "web"));
    }
    setup
}

#[test]
fn a_hundred_reloads_under_load_fail_nothing_and_forget_nothing() {
    let backends = Backend::several(4);
    let lemonade = Lemonade::start(&variant(0, &backends));
    let web = lemonade.address("web");
    let load = Load::start(web, RATE);
    let flows = Flows::start(web, 20, Duration::from_millis(10));

    let mut opened = 0;
    for n in 1..=RELOADS {
        lemonade.reload(&variant(n, &backends));
        let status = lemonade.status();
        assert_eq!(status.listening("web"), [web], "the listener stays through reload {n}");
        assert_eq!(status.frontends().len(), 1 + n % 3, "after reload {n}");
        let now = lemonade.metrics().connections().0;
        assert!(now >= opened, "{opened} connections were opened before reload {n}, {now} after it");
        opened = now;
        // Both old and new tables see calls.
        let seen = load.answered();
        wait::until("calls are answered", wait::SOON, || load.answered() > seen + 5);
    }

    let rounds = flows.rounds();
    wait::until("flows go on", wait::SOON, || flows.rounds() > rounds + 40);
    let flows = flows.stop();
    let broken: Vec<_> = flows.iter().filter_map(|flow| flow.as_ref().err()).collect();
    assert!(broken.is_empty(), "long flows broke: {broken:?}");
    let outcome = load.stop();
    assert!(
        outcome.failed.is_empty(),
        "{} of {} calls failed over {RELOADS} reloads, first: {:?}",
        outcome.failed.len(),
        outcome.total(),
        &outcome.failed[..outcome.failed.len().min(5)]
    );
    eprintln!(
        "{} calls in {:?}, {} flows, {RELOADS} reloads, 0 failed",
        outcome.total(),
        outcome.took,
        flows.len()
    );

    wait::until("every connection has ended", wait::SOON, || lemonade.metrics().connections().2 == 0);
    let (opened, closed, _) = lemonade.metrics().connections();
    assert_eq!((opened, closed), (outcome.total() + 20, outcome.total() + 20), "opened minus closed is live");
}

#[test]
fn a_removed_disabled_or_weightless_backend_gets_no_new_connection_after_the_commit() {
    let backends = Backend::several(3);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let all = Setup::single(&addresses);
    let mut removed = all.clone();
    removed.pools[0].backends.remove(2);
    let without_c =
        [removed, all.clone().backend(2, &["enabled = false"]), all.clone().backend(2, &["weight = 0"])];

    let lemonade = Lemonade::start(&all);
    let web = lemonade.address("web");
    let load = Load::start(web, 200);
    for setup in without_c {
        lemonade.reload(&all);
        wait::until("the third backend serves", wait::SOON, || call(web).is_ok_and(|name| name == "c"));
        lemonade.reload(&setup);
        // Connections picked before the commit reach the backend within the connect timeout of one second.
        let mut served = backends[2].truth().served();
        wait::until("what was under way has arrived", wait::SOON, || {
            std::thread::sleep(Duration::from_millis(300));
            std::mem::replace(&mut served, backends[2].truth().served()) == backends[2].truth().served()
        });
        let names = calls(web, 60);
        assert!(!tally(&names).contains_key("c"), "{:?}", tally(&names));
        assert_eq!(backends[2].truth().served(), served, "a new connection went to the backend");
    }
    assert_eq!(load.stop().failed, [""; 0]);
}

#[test]
fn a_connection_to_a_removed_backend_lives_on_and_the_backend_may_come_back() {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let both = Setup::single(&addresses);
    let mut first = both.clone();
    first.pools[0].backends.remove(1);

    let lemonade = Lemonade::start(&both);
    let web = lemonade.address("web");
    let flows = Flows::start(web, 8, Duration::from_millis(5));
    let picked = lemonade.metrics().picks("a");
    assert!(picked >= 1, "round robin reaches both");
    for _ in 0..3 {
        lemonade.reload(&first);
        let rounds = flows.rounds();
        wait::until("every flow goes on", wait::SOON, || flows.rounds() > rounds + 64);
        lemonade.reload(&both);
        assert!(lemonade.metrics().picks("a") >= picked, "counters of what stayed are kept");
    }
    for flow in flows.stop() {
        flow.expect("a flow outlives the removal of its backend");
    }
}
