//! Backends that come and go under load: no client notices while another one is up.

use std::io::{Read, Write};
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::Load;
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;

const HEALTH: [&str; 6] = [
    "kind = \"tcp\"",
    "interval = \"200ms\"",
    "fast_interval = \"100ms\"",
    "timeout = \"2s\"",
    "rise = 2",
    "fall = 2",
];

#[test]
fn a_backend_that_flaps_fails_no_request_and_its_history_says_so() {
    let backends = Backend::several(3);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let lemonade = Lemonade::start(&Setup::single(&addresses).health(&HEALTH));
    let up = |n: &str| lemonade.status().is_up("web", n);
    let load = Load::start(lemonade.address("web"), 200);
    // Short absences are met by retries, long ones by probes too.
    for round in 0..6 {
        for flapping in &backends[1..] {
            flapping.refuse();
        }
        if round % 2 == 0 {
            wait::until("both are seen down", wait::SOON, || !up("b") && !up("c"));
        } else {
            std::thread::sleep(Duration::from_millis(60));
        }
        for flapping in &backends[1..] {
            flapping.accept();
        }
        wait::until("both are seen up", wait::SOON, || up("b") && up("c"));
        let served = backends[1].truth().served();
        wait::until("it serves again", wait::SOON, || backends[1].truth().served() > served + 5);
    }
    let outcome = load.stop();
    assert_eq!(outcome.failed, [""; 0], "of {} requests", outcome.total());
    let metrics = lemonade.metrics();
    assert!(
        metrics.sum("lemonade_health_transitions_total", &[]) >= 12,
        "three falls and rises of two backends"
    );
    let dump = lemonade_tests::http::get_unix(&lemonade.socket(), "/api/v1/dump").expect("a dump").body;
    assert!(dump.contains("refused"), "the history names the cause: {dump}");
}

/// A client that sends its first bytes with the end of the handshake, as Lemonade does, must not lose them to the test kit.
#[test]
fn a_backend_of_the_tests_serves_a_handshake_that_is_half_open_when_it_closes() {
    let backend = Backend::start("a");
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    client.set_tcp_quickack(false).expect("option of a live socket");
    client.connect(&backend.address.into()).expect("it listens");
    backend.refuse();
    let mut client = std::net::TcpStream::from(client);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("a live connection");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with('a'), "{answer}");
    assert!(lemonade_tests::socket::refuses(backend.address), "new connections are refused");
}

#[test]
fn when_all_are_down_connections_are_refused_at_once_and_later_served_again() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]).health(&HEALTH));
    let web = lemonade.address("web");
    backend.refuse();
    wait::until("it is seen down", wait::SOON, || !lemonade.status().is_up("web", "a"));
    let before = lemonade.metrics().refused("no_backend_up");
    lemonade_tests::load::call(web).expect_err("nobody is there");
    wait::until("the refusal is counted", wait::SOON, || {
        lemonade.metrics().refused("no_backend_up") > before
    });
    backend.accept();
    wait::until("it is seen up", wait::SOON, || lemonade.status().is_up("web", "a"));
    wait::until("it serves again", wait::SOON, || lemonade_tests::load::call(web).is_ok());
}

#[test]
fn fail_open_tries_a_backend_that_probes_think_is_down() {
    let backend = Backend::start("a");
    backend.answer_http(503);
    let health = ["kind = \"http\"", "interval = \"100ms\"", "fast_interval = \"50ms\"", "fall = 2"];
    let setup = Setup::single(&[backend.address]).health(&health).pool(&["when_all_down = \"try_all\""]);
    let lemonade = Lemonade::start(&setup);
    wait::until("it is seen down", wait::SOON, || !lemonade.status().is_up("web", "a"));
    assert_eq!(lemonade_tests::load::calls(lemonade.address("web"), 5), ["a"; 5]);
}
