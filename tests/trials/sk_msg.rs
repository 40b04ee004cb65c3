//! Relay `sk_msg`: what its self-tests promise, and that they and canaries catch programs with faults.

use std::path::Path;
use std::time::Duration;

use lemonade::control::short_way::keep_trying;
use lemonade::model::relay::{RelayState, SelfTest};
use lemonade::proxy::adapters::bpf::Kernel;
use lemonade::proxy::relay::sk_msg::ShortWay;
use lemonade_tests::kernel_log::quietly;
use lemonade_tests::wait;
use tokio_util::sync::CancellationToken;

use super::alone;

/// Runs `case` in a cgroup of the process's own.
fn in_cgroup<T>(case: impl FnOnce(&Path) -> T) -> T {
    let _alone = alone();
    let mut kernel = Kernel::load().expect("the object is loaded");
    kernel.attach().expect("a cgroup of its own");
    quietly(|| case(kernel.cgroup().expect("it was joined")))
}

/// The relay over the object that has programs with faults beside the right one.
fn faulty(cgroup: &Path) -> ShortWay {
    let folder = std::env::var_os("LEMONADE_BPF_OBJECTS").expect("the folder of the objects");
    let object = std::fs::read(Path::new(&folder).join("faulty_sk_msg")).expect("the object with faults");
    ShortWay::load_object(cgroup, &object).expect("the programs pass the verifier")
}

fn failed(tests: &[SelfTest]) -> Vec<&SelfTest> {
    tests.iter().filter(|test| !test.passed).collect()
}

#[test]
fn the_self_tests_pass_on_this_kernel() {
    in_cgroup(|cgroup| {
        let relay = ShortWay::load(cgroup).expect("the programs pass the verifier");
        let tests = relay.try_out();
        println!("{:?}", relay.counts());
        for test in &tests {
            println!("{}: {:.1} ms {}", test.name, test.took_ms, test.detail);
        }
        assert_eq!(failed(&tests), Vec::<&SelfTest>::new());
    });
}

fn caught(program: &str) {
    in_cgroup(|cgroup| {
        let relay = faulty(cgroup);
        relay.switch(program).expect("the program passes the verifier");
        let tests = relay.try_out();
        let failed = failed(&tests);
        println!("{program}: {failed:#?}");
        assert!(!failed.is_empty(), "no self-test notices a program that {program} bytes: {tests:#?}");
        assert!(failed.iter().all(|test| !test.detail.is_empty()), "{failed:#?}");
    });
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

#[test]
fn a_fault_that_comes_later_is_caught_by_a_canary() {
    in_cgroup(|cgroup| {
        let (relay, state, stop) = (faulty(cgroup), RelayState::default(), CancellationToken::new());
        std::thread::scope(|scope| {
            let trying = scope.spawn(|| keep_trying(&relay, &state, Duration::from_millis(20), &stop));
            wait::until("the self-tests have passed", wait::SOON, || {
                assert!(!trying.is_finished(), "{:#?}", state.read().1);
                state.usable()
            });
            relay.switch("doubles").expect("the program passes the verifier");
            wait::until("a canary has failed", wait::SOON, || !state.usable());
            trying.join().expect("no panic");
        });
        let findings = state.read().1;
        println!("{}", findings.why);
        assert!(findings.why.contains("a canary failed while it was in use"), "{}", findings.why);
        assert_eq!((state.failed(), failed(&findings.tests).len()), (1, 1), "{findings:#?}");
    });
}

#[test]
fn canaries_of_a_sound_program_pass_until_the_end() {
    in_cgroup(|cgroup| {
        let (relay, state, stop) = (faulty(cgroup), RelayState::default(), CancellationToken::new());
        std::thread::scope(|scope| {
            let trying = scope.spawn(|| keep_trying(&relay, &state, Duration::from_millis(1), &stop));
            wait::until("the self-tests have passed", wait::SOON, || state.usable());
            let joined = || relay.counts()[lemonade_common::sk_msg::Count::Joined as usize];
            let before = joined();
            // Each makes several connections of four sockets.
            wait::until("every canary has had its turn", wait::SOON, || joined() > before + 200);
            stop.cancel();
            trying.join().expect("no panic");
        });
        assert!(state.usable() && state.failed() == 0, "{:#?}", state.read().1);
    });
}
