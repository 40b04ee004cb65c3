//! What happens before a connection reaches its backend: here planes differ, and this is the proxy's view.
//!
//! The forward plane's is in tests/forward/unconnected.rs, and docs/guide/forward.md has both side by side.

use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::load::{call, calls};
use lemonade_tests::plane::{Copy, Plane as _};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::{BlackHole, connect, refusing_address};
use lemonade_tests::trace::{Event, Length, read_to_end};
use lemonade_tests::transfer::{self, Transfer};
use lemonade_tests::wait;

use crate::early_bytes::OFFSETS;

/// Only a balancer has another backend to turn to.
#[test]
fn when_every_backend_refuses_the_client_is_closed_and_the_refusal_counted() {
    let served = Copy.start(&Setup::single(&[refusing_address(), refusing_address()]));
    let process = served.process().expect("a process");
    for n in 1..=5 {
        let mut client = connect(served.address()).expect("the plane accepts");
        let saw = read_to_end(&mut client, 0, Length::Exact);
        assert!(
            matches!(saw[..], [Event::Bytes(0), Event::Fin | Event::Reset]),
            "connection {n} saw {saw:?}"
        );
        wait::until("the refusal is counted", wait::SOON, || process.metrics().refused_in_all() == n);
    }
    wait::until("nothing stays alive", wait::SOON, || process.metrics().connections() == (5, 5, 0));
}

#[test]
fn a_refusing_backend_costs_no_request_while_another_answers() {
    let good = Backend::start("good");
    let served = Copy.start(&Setup::single(&[refusing_address(), good.address]));
    let names = calls(served.address(), 40);
    assert!(names.iter().all(|name| name == "good"), "{names:?}");
}

#[test]
fn a_silent_backend_is_raced_by_another_one() {
    let (hole, good) = (BlackHole::start(), Backend::start("good"));
    let setup = Setup::single(&[hole.address(), good.address])
        .frontend(&["connect_timeout = \"30s\"", "hedge_after = \"100ms\""]);
    let served = Copy.start(&setup);
    for n in 0..4 {
        let begun = Instant::now();
        assert_eq!(call(served.address()).expect("an answer"), "good");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "call {n} took {took:?}; the connect timeout is 30 s");
    }
    let metrics = served.process().expect("a process").metrics();
    assert!(metrics.sum("lemonade_pool_hedges_total", &[]) >= 1, "a race was run and counted");
}

#[test]
fn a_silent_backend_ends_in_a_connect_timeout_when_there_is_no_other() {
    let hole = BlackHole::start();
    let setup =
        Setup::single(&[hole.address()]).frontend(&["connect_timeout = \"300ms\"", "hedge_after = \"off\""]);
    let served = Copy.start(&setup);
    let mut client = connect(served.address()).expect("the plane accepts");
    let saw = read_to_end(&mut client, 0, Length::Exact);
    assert!(matches!(saw[..], [Event::Bytes(0), Event::Fin | Event::Reset]), "{saw:?}");
    let metrics = served.process().expect("a process").metrics();
    assert_eq!(metrics.refused("connect_timeout"), 1);
}

/// The first backend never answers, so the client's bytes wait in the balancer until the second is connected.
#[test]
fn bytes_sent_long_before_a_backend_is_connected_arrive() {
    let (hole, good) = (BlackHole::start(), Backend::start_speaking("good"));
    let setup = Setup::single(&[hole.address(), good.address])
        .frontend(&["connect_timeout = \"30s\"", "hedge_after = \"150ms\""]);
    let served = Copy.start(&setup);
    let plan = OFFSETS.map(|early| Transfer {
        seed: early as u64,
        up: early as u64 + 5000,
        down: 70_000,
        early: early as u64,
        waits: false,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let failures = runtime.block_on(transfer::run(served.address(), &plan, plan.len()));
    assert_eq!(failures, [""; 0]);
    assert_eq!(good.truth().failures(), [""; 0]);
}
