//! Thousands of flows while backends come, go and change their weights: none moves.

use std::collections::BTreeMap;

use lemonade_tests::backend::Backend;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::{self, Setup};
use lemonade_tests::skip::full;
use lemonade_tests::wait;

use crate::named::{self, Named, homes};
use crate::stage::{V4, packets, parse, start};

/// Flows that live through all of it.
const FLOWS: usize = 2_000;

/// The pool after event `n`: one of its backends goes, comes back or gets another weight; one stays as it is.
fn event(setup: &mut Setup, all: &Setup, random: &mut fastrand::Rng) -> String {
    let backends = &mut setup.pools[0].backends;
    let whole = &all.pools[0].backends;
    let at = random.usize(1..whole.len());
    let name = &whole[at].name;
    let there = backends.iter().position(|backend| backend.name == *name);
    match (there, random.bool()) {
        (Some(there), true) => {
            backends.remove(there);
            format!("{name} goes")
        }
        (Some(there), false) => {
            // Two of the same weight in a row would be no event.
            let weight = random.u32(1..1_000);
            backends[there].lines = vec![format!("weight = {weight}")];
            format!("{name} weighs {weight}")
        }
        (None, _) => {
            backends.push(whole[at].clone());
            format!("{name} comes")
        }
    }
}

#[test]
fn no_flow_moves_while_its_backend_lives_through_events_of_the_pool() {
    let test = "no_flow_moves_while_its_backend_lives_through_events_of_the_pool";
    let Some(network) = Network::start(test) else { return };
    let backends: Vec<Backend> = (0..8)
        .map(|n| {
            let address = parse(V4.backends[n % 3]);
            network.backends.enter(|| Backend::start_on(&setup::letter(n), address))
        })
        .collect();
    let all = V4.setup(&backends).runtime(&["drain_timeout = \"10m\""]);
    let lemonade = start(&network, &all);
    let mut flows = Named::several(&network, V4.frontend(), FLOWS);
    let home = homes(&mut flows);
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    home.iter().for_each(|name| *shares.entry(name).or_default() += 1);
    assert!(shares.len() == 8 && shares.values().all(|share| *share > FLOWS / 16), "{shares:?}");

    let events = if full() { 200 } else { 40 };
    let mut random = fastrand::Rng::with_seed(7);
    let mut setup = all.clone();
    let mut opened = FLOWS;
    for n in 0..events {
        let what = event(&mut setup, &all, &mut random);
        lemonade.reload(&setup);
        let now = homes(&mut flows);
        let moved = now.iter().zip(&home).filter(|(now, home)| now != home).count();
        assert_eq!(moved, 0, "flows moved by event {n}: {what}");
        // New ones go to who is there.
        let mut probes = Named::several(&network, V4.frontend(), 8);
        for name in homes(&mut probes) {
            let there = setup.pools[0].backends.iter().any(|backend| backend.name == name);
            assert!(there, "a new flow went to {name} after event {n}: {what}");
        }
        opened += probes.len();
    }
    let bytes: u64 = flows.iter().map(|flow| flow.asked * named::BYTES as u64).sum();
    println!("{events} events, {FLOWS} flows, {bytes} bytes each way exact, 0 moved");
    wait::until("every flow is counted", wait::SOON, || packets(&lemonade, "opened") == opened as u64);
    assert_eq!(packets(&lemonade, "unknown_flow"), 0);
    wait::until("those of the test's own are left", 2 * wait::SOON, || {
        lemonade.metrics().sum("lemonade_forward_flows_live", &[]) == FLOWS as u64
    });
}
