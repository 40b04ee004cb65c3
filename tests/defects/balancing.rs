//! Defects of balancing: 6 and 7.

use std::collections::BTreeSet;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Flows, calls, tally};
use lemonade_tests::setup::{self, Backend as Entry, Setup};
use lemonade_tests::wait;

/// Map iteration order made round robin random.
#[test]
fn defect_06_round_robin_takes_turns() {
    let backends = Backend::several(3);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let lemonade = Lemonade::start(&Setup::single(&addresses));
    let names = calls(lemonade.address("web"), 30);
    for turn in names.chunks(3) {
        assert_eq!(turn.iter().collect::<BTreeSet<_>>().len(), 3, "each once in a turn: {names:?}");
    }
}

/// Weighted round robin came in bursts, and its proportions were not exact.
#[test]
fn defect_06_weighted_round_robin_is_smooth_and_exact() {
    let backends = Backend::several(3);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let setup = Setup::single(&addresses)
        .pool(&["strategy = \"weighted_round_robin\""])
        .backend(0, &["weight = 5"])
        .backend(1, &["weight = 1"])
        .backend(2, &["weight = 1"]);
    let lemonade = Lemonade::start(&setup);
    let names = calls(lemonade.address("web"), 70);
    for cycle in names.chunks(7) {
        assert_eq!(tally(cycle), [("a", 5), ("b", 1), ("c", 1)].into(), "exact in each cycle: {names:?}");
    }
    let longest = names.chunk_by(|x, y| x == y).map(<[String]>::len).max();
    assert!(longest <= Some(4), "the heavy one comes in bursts: {names:?}");
}

/// There was no weighted least connections.
#[test]
fn defect_06_least_connections_counts_what_is_alive_by_weight() {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let setup = Setup::single(&addresses)
        .pool(&["strategy = \"least_connections\""])
        .backend(0, &["weight = 3"])
        .backend(1, &["weight = 1"]);
    let lemonade = Lemonade::start(&setup);
    let mut flows = Vec::new();
    for _ in 0..16 {
        flows.push(Flows::start(lemonade.address("web"), 1, Duration::from_millis(20)));
    }
    let served = [backends[0].truth().served(), backends[1].truth().served()];
    assert!((11..=13).contains(&served[0]), "3 to 1 of 16, got {served:?}");
    for flow in flows.into_iter().flat_map(Flows::stop) {
        flow.expect("a flow is unharmed");
    }
}

/// A maximum of connections was summed over all backends.
#[test]
fn defect_06_each_backend_has_its_own_limit() {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let setup = Setup::single(&addresses).backend(0, &["max_connections = 1"]);
    let lemonade = Lemonade::start(&setup);
    let flows = Flows::start(lemonade.address("web"), 9, Duration::from_millis(20));
    assert_eq!([backends[0].truth().served(), backends[1].truth().served()], [1, 8]);
    for flow in flows.stop() {
        flow.expect("a flow is unharmed");
    }
}

/// Backends without metrics were never picked, and long connections counted as slow ones.
#[test]
fn defect_07_fastest_response_explores_newcomers_and_ignores_the_length_of_connections() {
    let backends = Backend::several(3);
    // Alike, but for what the host adds, which is little beside this.
    backends.iter().for_each(|backend| backend.think(10));
    let of = |n: usize| {
        let mut setup = Setup::single(&[]).pool(&["strategy = \"fastest_response_time\""]);
        let entries = backends[..n].iter().enumerate();
        setup.pools[0].backends =
            entries.map(|(n, backend)| Entry::new(&setup::letter(n), backend.address)).collect();
        setup
    };
    let lemonade = Lemonade::start(&of(2));
    let web = lemonade.address("web");
    // Connections that last long say nothing about latency.
    let flows = Flows::start(web, 6, Duration::from_millis(50));
    calls(web, 60);
    std::thread::sleep(Duration::from_millis(1500));
    for flow in flows.stop() {
        flow.expect("a flow is unharmed");
    }
    let names = calls(web, 120);
    assert_eq!(tally(&names).len(), 2, "none starves: {:?}", tally(&names));

    lemonade.reload(&of(3));
    let names = calls(web, 150);
    let share = tally(&names).get("c").copied().unwrap_or_default();
    assert!(share >= 10, "the newcomer got {share} of 150: {:?}", tally(&names));
    wait::until("nothing leaks", wait::SOON, || lemonade.metrics().connections().2 == 0);
}
