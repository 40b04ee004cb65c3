//! The relay goes on being tried while it serves: when it no longer works, new connections are left to TCP.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::kernel_log::quietly;
use lemonade_tests::load::{Flows, calls};
use lemonade_tests::plane::{Plane as _, SkMsg};
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;

/// Canaries come every ten seconds.
const CANARY: Duration = Duration::from_secs(60);

#[test]
fn a_relay_that_no_longer_works_is_off_for_new_connections_and_says_why() {
    quietly(|| {
        let backend = Backend::start("a");
        let served = SkMsg.start(&Setup::single(&[backend.address]));
        let lemonade = served.process().expect("a process of its own");
        let counter = |name: &str| {
            let name = format!("lemonade_frontend_relay_{name}_total");
            lemonade.metrics().maybe(&name, &[("relay", "sk_msg")])
        };
        let old = Flows::start(served.address(), 4, Duration::from_millis(5));
        assert!(counter("promoted") >= 4, "blocked: the relay carries nothing");

        // Somebody moves the process out of the cgroup whose sockets the programs see.
        let status = lemonade.status();
        let words = status.0["kernel"].as_str().expect("a line about the kernel");
        let own = Path::new(words.split_once("cgroup ").expect("the programs are attached").1);
        let parent = own.parent().expect("a child of where it was started").join("cgroup.procs");
        fs::write(parent, lemonade.pid().as_raw_nonzero().to_string()).expect("a cgroup of the test");

        wait::until("a canary has failed", CANARY, || {
            let web = lemonade.status().0["frontends"][0].clone();
            web["relay"] == "copy"
                && web["relay_why"].as_str().is_some_and(|why| why.contains("a canary failed"))
        });
        assert!(
            lemonade.output().contains("relay sk_msg is off for new connections"),
            "{}",
            lemonade.output()
        );
        assert_eq!(lemonade.metrics().maybe("lemonade_relay_usable", &[("relay", "sk_msg")]), 0);

        let before = (counter("promoted"), counter("kept"));
        assert_eq!(calls(served.address(), 20), ["a"; 20]);
        assert_eq!((counter("promoted"), counter("kept")), before, "new connections are copied");
        for flow in old.stop() {
            flow.expect("connections that the relay carries go on");
        }
    });
}
