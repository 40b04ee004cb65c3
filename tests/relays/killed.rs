//! What is left when the process dies with connections in the kernel, and how it serves where bpf(2) is refused.

use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, binary};
use lemonade_tests::load::{Flows, call};
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::{full, skip};
use lemonade_tests::wait;
use rustix::process::Signal;

const END: Duration = Duration::from_secs(20);

/// Times that the process is killed.
fn rounds() -> usize {
    if full() { 100 } else { 10 }
}

fn relay(lemonade: &Lemonade) -> serde_json::Value {
    let relays = lemonade.status().0["relays"].clone();
    let own = relays.as_array().into_iter().flatten().find(|own| own["relay"] == "sockmap").cloned();
    own.expect("the status names the relay")
}

fn promoted(lemonade: &Lemonade) -> u64 {
    lemonade.metrics().maybe("lemonade_frontend_relay_promoted_total", &[("relay", "sockmap")])
}

fn cgroup(lemonade: &Lemonade) -> PathBuf {
    let status = lemonade.status();
    let words = status.0["kernel"].as_str().expect("a line about the kernel");
    words.split_once("cgroup ").unwrap_or_else(|| panic!("nothing in the kernel: {words}")).1.into()
}

#[test]
fn a_killed_process_leaves_nothing_that_acts_and_the_next_one_sweeps() {
    let backend = Backend::start("a");
    let setup = Setup::single(&[backend.address]).frontend(&["relay = \"sockmap\""]);
    let mut random = fastrand::Rng::with_seed(7);
    let (mut left, mut slowest): (Option<PathBuf>, _) = (None, Duration::ZERO);
    let mut carried = 0;
    for round in 0..rounds() {
        let begun = Instant::now();
        let mut lemonade = Lemonade::start_on_unproven(&setup);
        let address = lemonade.address("web");
        assert_eq!(call(address).expect("it serves at once"), "a", "round {round}");
        slowest = slowest.max(begun.elapsed());
        if let Some(left) = left.take() {
            assert!(!left.exists(), "{} was left by the one before", left.display());
        }
        wait::until("the relay is on", wait::SOON, || relay(&lemonade)["usable"] == true);
        let flows = Flows::start(address, 8, Duration::from_millis(1));
        wait::until("connections are in the kernel", wait::SOON, || promoted(&lemonade) > 0);
        std::thread::sleep(Duration::from_millis(random.u64(0..300)));
        carried += promoted(&lemonade);
        left = Some(cgroup(&lemonade));
        lemonade.signal(Signal::KILL);
        lemonade.wait(END);
        // Its sockets are gone with it, and with them every redirect: the peers see the end at once.
        assert!(flows.stop().iter().any(Result::is_err), "connections outlived the process");
        assert!(TcpStream::connect(address).is_err(), "its listener is gone");
    }
    println!("{} kills, {carried} connections carried, slowest start to first answer {slowest:?}", rounds());
    assert!(slowest < Duration::from_secs(5), "a start took {slowest:?}");
    let swept = Command::new(binary()).arg("cleanup").output().expect("lemonade starts");
    let said = String::from_utf8_lossy(&swept.stdout).into_owned();
    assert!(swept.status.success(), "{said}{}", String::from_utf8_lossy(&swept.stderr));
    let left = left.expect("the last one was killed");
    // Another test that starts meanwhile may have been quicker.
    assert!(!left.exists(), "cleanup left {}: {said}", left.display());
}

#[test]
fn where_bpf_is_refused_userspace_serves_and_says_so_once() {
    const NAME: &str = "where_bpf_is_refused_userspace_serves_and_says_so_once";
    if Command::new("strace").arg("--version").output().is_err() {
        return skip(NAME, "needs strace, which can make bpf(2) fail");
    }
    let backend = Backend::start("a");
    let setup = Setup::single(&[backend.address]).frontend(&["relay = \"sockmap\""]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=bpf", "-e", "inject=bpf:error=EPERM"]);
    strace.arg(binary());
    // A group of its own, since it is the tracer that is started and the traced process that serves.
    let lemonade = Lemonade::start_through(strace, &setup, |command| {
        command.process_group(0);
    });
    assert_eq!(call(lemonade.address("web")).expect("it serves"), "a");
    let own = relay(&lemonade);
    assert_eq!(own["usable"], false);
    assert!(own["findings"]["why"].as_str().is_some_and(|why| why.contains("not permitted")), "{own}");
    let status = lemonade.status();
    let web = &status.0["frontends"][0];
    assert_eq!(web["relay"], "copy");
    assert!(
        web["relay_why"].as_str().is_some_and(|why| why.contains("sockmap is asked for but off")),
        "{web}"
    );
    let lines = lemonade.output().lines().filter(|line| line.contains("serving in userspace")).count();
    assert_eq!(lines, 1, "{}", lemonade.output());
    let group = lemonade.pid();
    rustix::process::kill_process_group(group, Signal::KILL).expect("the group is ours");
}
