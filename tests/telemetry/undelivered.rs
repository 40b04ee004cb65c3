//! Receivers that are dead, slow or overloaded.

use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::refusing_address;
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::receiver::{Mood, Receiver};

/// Everything is answered, nothing waits: what cannot be delivered is counted as lost once telemetry is turned off.
fn costs_nothing(endpoint: &str) -> Lemonade {
    let backend = Backend::start("a");
    let plain = Setup::single(&[backend.address]);
    let lemonade =
        Lemonade::start(&plain.clone().telemetry(&[endpoint, "sample = 1.0", "interval = \"1s\""]));
    let answers = calls(lemonade.address("web"), 200);
    assert!(answers.iter().all(|name| name == "a"), "every connection is served");
    let sum = |name: &str| lemonade.metrics().sum(name, &[]);
    wait::until("the failures are counted", wait::SOON, || sum("lemonade_telemetry_failures_total") >= 1);
    wait::until("the failure is said", wait::SOON, || lemonade.output().contains("cannot deliver telemetry"));
    assert_eq!(calls(lemonade.address("web"), 50).len(), 50);
    lemonade.reload(&plain);
    wait::until("what was lost is counted", wait::SOON, || sum("lemonade_telemetry_dropped_total") >= 250);
    lemonade
}

#[test]
fn a_dead_receiver_costs_the_data_path_nothing_and_its_losses_are_counted() {
    costs_nothing(&format!("endpoint = \"http://{}\"", refusing_address()));
}

#[test]
fn a_silent_receiver_costs_the_data_path_nothing_and_its_losses_are_counted() {
    let receiver = Receiver::start(Mood::Silent);
    costs_nothing(&receiver.endpoint());
    assert!(receiver.received().requests >= 1 && receiver.received().spans.is_empty());
}

#[test]
fn a_silent_receiver_does_not_hold_up_the_end() {
    let receiver = Receiver::start(Mood::Silent);
    let backend = Backend::start("a");
    let setup = Setup::single(&[backend.address]).telemetry(&[&receiver.endpoint(), "sample = 1.0"]);
    let mut lemonade = Lemonade::start(&setup);
    calls(lemonade.address("web"), 10);
    wait::until("a request is under way", wait::SOON, || receiver.received().requests >= 1);
    lemonade.signal(Signal::TERM);
    assert!(lemonade.wait(Duration::from_secs(15)).success());
}

#[test]
fn an_overloaded_receiver_gets_everything_once_it_takes_it() {
    let receiver = Receiver::start(Mood::Overloaded);
    let backend = Backend::start("a");
    let setup = Setup::single(&[backend.address]).telemetry(&[&receiver.endpoint(), "sample = 1.0"]);
    let lemonade = Lemonade::start(&setup);
    calls(lemonade.address("web"), 100);
    let sum = |name: &str| lemonade.metrics().sum(name, &[]);
    wait::until("it was asked in vain", wait::SOON, || sum("lemonade_telemetry_failures_total") >= 1);
    receiver.set(Mood::Takes);
    let spans = || receiver.received().spans.iter().filter(|span| span.name == "connection web").count();
    wait::until("everything arrives", Duration::from_secs(60), || spans() == 100);
    assert_eq!(sum("lemonade_telemetry_dropped_total"), 0);
    wait::until("the end of it is said", wait::SOON, || lemonade.output().contains("delivered again"));
}

#[test]
fn the_last_spans_leave_before_the_process_does() {
    let receiver = Receiver::start(Mood::Takes);
    let backend = Backend::start("a");
    let setup = Setup::single(&[backend.address]).telemetry(&[&receiver.endpoint(), "sample = 1.0"]);
    let mut lemonade = Lemonade::start(&setup);
    calls(lemonade.address("web"), 30);
    lemonade.signal(Signal::TERM);
    assert!(lemonade.wait(wait::SOON).success());
    let spans = receiver.received().spans.iter().filter(|span| span.name == "connection web").count();
    assert_eq!(spans, 30);
}
