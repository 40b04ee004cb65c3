//! Relay `sockmap`: its self-tests, and that they catch programs with faults.

use std::sync::Arc;

use lemonade::model::relay::SelfTest;
use lemonade::proxy::adapters::bpf::{Kernel, Sockmap};
use lemonade::proxy::relay::sockmap::Relay;
use lemonade::proxy::relay::trial;

/// Runs the self-tests on the programs of `kernel`.
fn tried(mut kernel: Kernel) -> Vec<SelfTest> {
    kernel.attach().expect("a cgroup of our own");
    let maps = Sockmap::attach(&mut kernel).expect("the program is attached");
    let relay = Arc::new(Relay::new(maps, 64 << 10).expect("a set of sockets"));
    relay.want(true).expect("a map of ours");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let lookout = Arc::clone(&relay);
    runtime.expect("a runtime").block_on(async move {
        let waking = tokio::spawn(async move { lookout.run().await });
        let tests = trial::run(&relay).await;
        assert!(!waking.is_finished(), "the relay no longer waits for events");
        tests
    })
}

#[test]
fn the_self_tests_pass_on_this_kernel() {
    let tests = tried(Kernel::load().expect("the object is loaded"));
    for test in &tests {
        println!("{}: {:.1} ms {}", test.name, test.took_ms, test.detail);
    }
    let failed: Vec<_> = tests.iter().filter(|test| !test.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
