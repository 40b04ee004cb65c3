//! Relay `sk_msg`: what its self-tests promise.

use super::alone;
use lemonade::proxy::adapters::bpf::Kernel;
use lemonade::proxy::relay::sk_msg::ShortWay;

#[test]
fn the_self_tests_pass_on_this_kernel() {
    let _alone = alone();
    let mut kernel = Kernel::load().expect("the object is loaded");
    kernel.attach().expect("a cgroup of its own");
    let relay =
        ShortWay::load(kernel.cgroup().expect("it was joined")).expect("the programs pass the verifier");
    let tests = relay.try_out();
    println!("{:?}", relay.counts());
    for test in &tests {
        println!("{}: {:.1} ms {}", test.name, test.took_ms, test.detail);
    }
    let failed: Vec<_> = tests.iter().filter(|test| !test.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
