//! Defects of control, health and lifecycle: 1, 8, 9 and 10.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Flows, call, calls};
use lemonade_tests::setup::{Backend as Entry, Setup};
use lemonade_tests::wait;
use rustix::process::Signal;

const FAST: [&str; 4] =
    ["interval = \"100ms\"", "fast_interval = \"50ms\"", "timeout = \"2s\"", "path = \"/\""];

fn http_health(further: &[&'static str]) -> Vec<&'static str> {
    [&["kind = \"http\""], &FAST[..], further].concat()
}

fn probes(backend: &Backend) -> u64 {
    backend.truth().probes.load(Ordering::Relaxed)
}

/// After about a hundred events nobody received, health checking stopped for ever.
#[test]
fn defect_01_probing_goes_on_after_hundreds_of_events() {
    let backends = Backend::several(4);
    let addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    let health =
        ["kind = \"http\"", "interval = \"20ms\"", "fast_interval = \"10ms\"", "rise = 1", "fall = 1"];
    let setup = Setup::single(&addresses).runtime(&["probes_per_second = 10000"]).health(&health);
    let mut lemonade = Lemonade::start(&setup);
    let transitions = || lemonade.metrics().sum("lemonade_health_transitions_total", &[]);
    let up = |expected: bool| {
        let status = lemonade.status();
        ["a", "b", "c", "d"].iter().all(|name| status.is_up("web", name) == expected)
    };
    // Each round is eight transitions and dozens of probes.
    for _ in 0..30 {
        backends.iter().for_each(|backend| backend.answer_http(503));
        wait::until("all are down", wait::SOON, || up(false));
        backends.iter().for_each(|backend| backend.answer_http(200));
        wait::until("all are up", wait::SOON, || up(true));
    }
    assert!(transitions() >= 240, "{} transitions", transitions());
    let seen = probes(&backends[0]);
    wait::until("probing goes on", wait::SOON, || probes(&backends[0]) > seen + 20);
    lemonade.signal(Signal::TERM);
    assert_eq!(lemonade.wait(wait::SOON).code(), Some(0), "health sees the end as well");
}

/// One failed check flipped the state.
#[test]
fn defect_08_a_state_flips_only_after_rise_and_fall_checks() {
    let backend = Backend::start("a");
    let health = http_health(&["fall = 1000", "rise = 2"]);
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]).health(&health));
    backend.answer_http(503);
    let seen = probes(&backend);
    wait::until("ten checks have failed", wait::SOON, || probes(&backend) > seen + 10);
    assert!(lemonade.status().is_up("web", "a"), "ten failures of a thousand allowed");
    assert_eq!(lemonade.metrics().sum("lemonade_health_transitions_total", &[]), 0);
}

/// Checks ran one after the other, so one that hung held up the others.
#[test]
fn defect_08_a_check_that_hangs_delays_no_other_one() {
    let backends = Backend::several(2);
    let health = [
        "kind = \"http\"",
        "interval = \"100ms\"",
        "fast_interval = \"50ms\"",
        "timeout = \"60s\"",
        "fall = 2",
    ];
    let addresses = [backends[0].address, backends[1].address];
    let lemonade = Lemonade::start(&Setup::single(&addresses).health(&health));
    backends[0].hold_http(true);
    backends[1].answer_http(500);
    wait::until("the other one is seen down", wait::SOON, || !lemonade.status().is_up("web", "b"));
}

/// Configuration was captured at the start, and busy backends were not checked.
#[test]
fn defect_08_a_reload_reaches_health_and_busy_backends_are_checked() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]).health(&http_health(&["fall = 2"])));
    let flows = Flows::start(lemonade.address("web"), 120, Duration::from_millis(100));
    let seen = probes(&backend);
    wait::until("a busy backend is checked", wait::SOON, || probes(&backend) > seen + 5);
    let strict = http_health(&["fall = 2", "expect = [\"204\"]"]);
    lemonade.reload(&Setup::single(&[backend.address]).health(&strict));
    wait::until("the new expectation is in force", wait::SOON, || !lemonade.status().is_up("web", "a"));
    for flow in flows.stop() {
        flow.expect("a failed check breaks no connection");
    }
}

/// Changes were found by polling the modification time, and nothing was validated.
#[test]
fn defect_09_a_change_is_noticed_whatever_its_time_and_a_bad_one_is_refused() {
    let backend = Backend::start("a");
    let setup = Setup::single(&[backend.address]);
    let lemonade = Lemonade::start(&setup);
    let next = lemonade.folder().join("next.toml");
    let text = setup.clone().pool(&["strategy = \"adaptive\""]).text(lemonade.folder());
    std::fs::write(&next, text).expect("a folder");
    // The new file carries the time of the old one.
    let old = std::fs::metadata(lemonade.config()).and_then(|old| old.modified()).expect("a file");
    std::fs::File::options().write(true).open(&next).and_then(|file| file.set_modified(old)).expect("a file");
    std::fs::rename(&next, lemonade.config()).expect("a folder");
    wait::until("the change is noticed", wait::SOON, || {
        lemonade.status().pool("web")["strategy"] == "adaptive"
    });
    let error = lemonade.reload_bad("[pool.web]\nbackends = 1\n");
    assert!(!error.is_empty());
    call(lemonade.address("web")).expect("it goes on");
}

/// SIGTERM was not handled, and the end was waited for without a bound.
#[test]
fn defect_10_sigterm_ends_the_process_within_its_deadline() {
    let backend = Backend::start("a");
    let setup = Setup::single(&[backend.address]).runtime(&["drain_timeout = \"500ms\""]);
    let mut lemonade = Lemonade::start(&setup);
    let flows = Flows::start(lemonade.address("web"), 3, Duration::from_millis(10));
    lemonade.signal(Signal::TERM);
    let status = lemonade.wait(wait::SOON);
    assert!(status.code().is_some(), "by itself, not by the signal: {status}");
    assert!(flows.stop().iter().all(Result::is_err), "what was left was reset");
}

/// A backend's number had eight bits.
#[test]
fn defect_10_more_than_256_backends_are_served() {
    const BACKENDS: usize = 300;
    let backend = Backend::start_on("many", "0.0.0.0:0".parse().expect("an address"));
    let mut setup = Setup::single(&[]);
    let entry = |n: usize| {
        let octets =
            [127, 0, u8::try_from(1 + n / 200).expect("small"), u8::try_from(1 + n % 200).expect("small")];
        Entry::new(&format!("b{n}"), SocketAddr::from((octets, backend.address.port())))
    };
    setup.pools[0].backends = (0..BACKENDS).map(entry).collect();
    let lemonade = Lemonade::start(&setup);
    calls(lemonade.address("web"), BACKENDS);
    let metrics = lemonade.metrics();
    for n in 0..BACKENDS {
        assert_eq!(metrics.picks(&format!("b{n}")), 1, "backend {n}");
    }
}
