//! What is left when the process dies at a random moment.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::cgroup;
use lemonade_tests::kernel_log::quietly;
use lemonade_tests::lemonade::{Lemonade, binary};
use lemonade_tests::load::{Flows, call};
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::full;
use rustix::process::Signal;

const END: Duration = Duration::from_secs(20);

/// Times that the process is killed.
fn rounds() -> usize {
    if full() { 100 } else { 10 }
}

fn promoted(lemonade: &Lemonade) -> u64 {
    lemonade.metrics().maybe("lemonade_frontend_relay_promoted_total", &[("relay", "sk_msg")])
}

fn cgroup_of(lemonade: &Lemonade) -> PathBuf {
    let status = lemonade.status();
    let words = status.0["kernel"].as_str().expect("a line about the kernel");
    words.split_once("cgroup ").unwrap_or_else(|| panic!("nothing in the kernel: {words}")).1.into()
}

#[test]
fn a_process_killed_at_any_moment_leaves_nothing_and_the_next_one_serves_and_sweeps() {
    quietly(|| {
        let backend = Backend::start("a");
        let cgroup = format!("accelerate_cgroup = {:?}", cgroup::own());
        let setup = Setup::single(&[backend.address]).frontend(&["relay = \"sk_msg\"", &cgroup]);
        let mut random = fastrand::Rng::with_seed(11);
        let (mut left, mut starts, mut carried): (Option<PathBuf>, Vec<Duration>, _) = (None, Vec::new(), 0);
        for round in 0..rounds() {
            let begun = Instant::now();
            let mut lemonade = Lemonade::start(&setup);
            let address = lemonade.address("web");
            assert_eq!(call(address).expect("it serves at once"), "a", "round {round}");
            starts.push(begun.elapsed());
            if let Some(left) = left.take() {
                assert!(!left.exists(), "{} was left by the one before", left.display());
            }
            // The first begin while the relay tries itself, the others mostly when it is on.
            let mut flows = vec![Flows::start(address, 4, Duration::from_millis(1))];
            std::thread::sleep(Duration::from_millis(random.u64(0..2_500)));
            flows.push(Flows::start(address, 4, Duration::ZERO));
            std::thread::sleep(Duration::from_millis(random.u64(0..50)));
            carried += promoted(&lemonade);
            left = Some(cgroup_of(&lemonade));
            lemonade.signal(Signal::KILL);
            lemonade.wait(END);
            for flow in flows.into_iter().flat_map(Flows::stop) {
                assert!(flow.is_err(), "a connection outlived the process, or looks whole");
            }
            assert!(TcpStream::connect(address).is_err(), "its listener is gone");
        }
        starts.sort();
        let (typical, slowest) = (starts[starts.len() / 2], starts[starts.len() - 1]);
        println!(
            "{} kills, {carried} connections carried, start to answer {typical:?}, slowest {slowest:?}",
            rounds()
        );
        assert!(carried > 0, "blocked: no connection took the short way when the process was killed");
        assert!(typical < Duration::from_secs(1), "a start took {typical:?}");
        let swept = Command::new(binary()).arg("cleanup").output().expect("lemonade starts");
        let said = String::from_utf8_lossy(&swept.stdout).into_owned();
        assert!(swept.status.success(), "{said}{}", String::from_utf8_lossy(&swept.stderr));
        let left = left.expect("the last one was killed");
        // Another test that starts meanwhile may have been quicker.
        assert!(!left.exists(), "cleanup left {}: {said}", left.display());
    });
}
