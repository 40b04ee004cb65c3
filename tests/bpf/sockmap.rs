//! Relay `sockmap`: its self-tests, and that they catch programs with faults.

use std::path::Path;
use std::sync::Arc;

use lemonade::model::relay::SelfTest;
use lemonade::proxy::adapters::bpf::{Kernel, Sockmap};
use lemonade::proxy::relay::sockmap::Relay;
use lemonade::proxy::relay::trial;

/// Runs the self-tests on a program of `kernel`.
fn tried(mut kernel: Kernel, program: &str) -> Vec<SelfTest> {
    kernel.attach().expect("a cgroup of our own");
    let maps = Sockmap::attach_program(&mut kernel, program).expect("the program is attached");
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
    let tests = tried(Kernel::load().expect("the object is loaded"), "sockmap");
    for test in &tests {
        println!("{}: {:.1} ms {}", test.name, test.took_ms, test.detail);
    }
    let failed: Vec<_> = tests.iter().filter(|test| !test.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Loads the programs with faults, which are built beside the others.
fn faulty(program: &str) -> Vec<SelfTest> {
    let folder = std::env::var_os("LEMONADE_BPF_OBJECTS").expect("the folder of the objects");
    let object = std::fs::read(Path::new(&folder).join("faulty")).expect("the object with faults");
    tried(Kernel::load_object(&object).expect("the object is loaded"), program)
}

fn caught(program: &str) {
    let tests = faulty(program);
    let failed: Vec<_> = tests.iter().filter(|test| !test.passed).collect();
    println!("{program}: {failed:#?}");
    assert!(!failed.is_empty(), "no self-test notices a program that {program} bytes: {tests:#?}");
    assert!(failed.iter().all(|test| !test.detail.is_empty()), "{failed:#?}");
}

#[test]
fn a_program_that_drops_bytes_fails_the_self_tests() {
    caught("drops");
}

#[test]
fn a_program_that_holds_bytes_back_fails_the_self_tests() {
    caught("holds");
}

#[test]
fn a_program_that_doubles_bytes_fails_the_self_tests() {
    caught("doubles");
}
