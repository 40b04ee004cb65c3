//! Relay `sk_msg`: what its self-tests promise.

use std::collections::BTreeSet;

use lemonade::proxy::adapters::bpf::{Kernel, SkMsg};
use lemonade::proxy::relay::sk_msg::trials;

#[test]
fn every_trial_passes() {
    let mut kernel = Kernel::load().expect("the object is loaded");
    kernel.attach().expect("a cgroup of its own");
    let cgroup = kernel.cgroup().expect("it was joined").to_path_buf();
    let relay = SkMsg::load(&cgroup).expect("the programs pass the verifier");
    relay.see(&BTreeSet::from([cgroup])).expect("it is ours");
    let name = |address| relay.name(&BTreeSet::from([address])).map_err(|error| error.to_string());
    let trials = trials::run(&relay, name);
    println!("{:?}", relay.counts());
    for trial in &trials {
        println!(
            "{} {} {} {:.1} ms",
            if trial.passed { "pass" } else { "FAIL" },
            trial.name,
            trial.detail,
            trial.took_ms
        );
    }
    assert!(trials.iter().all(|trial| trial.passed));
}
