//! The admin interface under many clients, many connections and readers that do not read.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Flows, Load, calls};
use lemonade_tests::setup::{Frontend, Pool, Setup};
use lemonade_tests::wait;
use serde_json::Value;

/// Memory that a thousand clients may cost for good.
const ROOM: u64 = 64 * 1024 * 1024;

fn started() -> (Backend, Lemonade) {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    (backend, lemonade)
}

#[test]
fn a_thousand_clients_are_answered_and_leave_nothing_behind() {
    let (_backend, lemonade) = started();
    let address = lemonade.admin_address();
    let before = lemonade.resident();
    let answered = std::thread::scope(|scope| {
        let ask = |n: usize| {
            let path = ["/api/v1/status", "/metrics", "/api/v1/connections", "/api/v1/journal"][n % 4];
            // 256 are served at a time; who waits longer than it has patience comes again, as a scraper would.
            (0..3).any(|_| http::get(address, path).is_ok_and(|answer| answer.status == 200))
        };
        let clients: Vec<_> = (0..1_000).map(|n| scope.spawn(move || ask(n))).collect();
        // Traffic goes on meanwhile.
        calls(lemonade.address("web"), 50);
        clients
            .into_iter()
            .map(|client| client.join().expect("no panic"))
            .filter(|answered| *answered)
            .count()
    });
    assert_eq!(answered, 1_000);
    let grown = lemonade.resident().saturating_sub(before);
    assert!(grown < ROOM, "{grown} bytes more");
}

#[test]
fn every_live_connection_is_listed_once_over_the_pages() {
    let count = if lemonade_tests::skip::full() { 10_000 } else { 2_000 };
    // Half of them wait for a backend, with one descriptor each: 20,000 are all that many hosts give a process.
    let (first, second) = (Backend::start("a"), Backend::start("b"));
    let mut setup = Setup::single(&[first.address])
        .backend(0, &[&format!("max_connections = {}", count / 2)])
        .pool(&[&format!("queue = {count}"), "queue_timeout = \"5m\""])
        .runtime(&[&format!("max_connections = {}", 2 * count), "drain_timeout = \"1s\""]);
    setup.frontends.push(Frontend::new("other", "other"));
    setup.pools.push(Pool::new("other", &[second.address]));
    let lemonade = Lemonade::start(&setup);
    let web = lemonade.address("web");
    let held: Vec<TcpStream> = (0..count)
        .map(|n| TcpStream::connect(web).unwrap_or_else(|error| panic!("connection {n}: {error}")))
        .collect();
    wait::until("all are counted", wait::SOON, || lemonade.metrics().connections().2 == count);
    let load = Load::start(lemonade.address("other"), 20);
    let mut ids = BTreeSet::new();
    for offset in (0..count + 1_000).step_by(1_000) {
        let path = format!("/api/v1/connections?sort=id&limit=1000&offset={offset}");
        let answer = http::get_unix(&lemonade.socket(), &path).expect("it answers");
        let page: Value = serde_json::from_str(&answer.body).expect("JSON");
        ids.extend(page["connections"].as_array().expect("rows").iter().filter_map(|row| row["id"].as_u64()));
    }
    assert!(ids.len() as u64 >= count, "{} of {count} were listed", ids.len());
    let outcome = load.stop();
    assert_eq!(outcome.failed.len(), 0, "{:?}", outcome.failed);
    drop(held);
}

#[test]
fn readers_that_do_not_read_hold_nobody_up() {
    let (_backend, lemonade) = started();
    let web = lemonade.address("web");
    let before = lemonade.resident();
    let readers: Vec<UnixStream> = (0..50)
        .map(|_| {
            let mut reader = UnixStream::connect(lemonade.socket()).expect("it accepts");
            write!(reader, "GET /api/v1/events?rate=10000 HTTP/1.0\r\n\r\n").expect("it reads");
            reader
        })
        .collect();
    let flows = Flows::start(web, 4, Duration::from_millis(5));
    calls(web, 300);
    assert_eq!(http::get_unix(&lemonade.socket(), "/healthz").expect("it answers").status, 200);
    for flow in flows.stop() {
        flow.expect("a flow is unharmed");
    }
    let grown = lemonade.resident().saturating_sub(before);
    assert!(grown < ROOM, "{grown} bytes more");
    drop(readers);
}

#[test]
fn a_reader_that_asks_for_less_than_happens_is_told_what_it_lost() {
    let (_backend, lemonade) = started();
    let mut reader = UnixStream::connect(lemonade.socket()).expect("it accepts");
    reader.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    write!(reader, "GET /api/v1/events?rate=1&kind=end HTTP/1.0\r\n\r\n").expect("it reads");
    let mut told = String::new();
    let mut more = |told: &mut String| {
        let mut buffer = [0; 4096];
        if let Ok(read) = reader.read(&mut buffer) {
            told.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    wait::until("the stream is open", wait::SOON, || {
        more(&mut told);
        told.contains(": reading")
    });
    calls(lemonade.address("web"), 40);
    // Each end is either shown or counted as lost.
    let sum = |told: &str| {
        let lost =
            told.split("{\"lost\":").skip(1).filter_map(|rest| rest.split('}').next()?.parse::<usize>().ok());
        told.matches("event: end").count() + lost.sum::<usize>()
    };
    wait::until("all are accounted for", wait::SOON, || {
        more(&mut told);
        sum(&told) == 40
    });
    assert!(told.contains("event: lost") && told.matches("event: end").count() < 40, "{told}");
}
