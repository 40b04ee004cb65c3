//! `max_connections` of a frontend, of a backend and in total; idle time.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Flows, call};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::{accept, connect, listener};
use lemonade_tests::trace::{Event, Length, finish, read_to_end};
use lemonade_tests::wait;

/// Opens `n` connections and keeps them, each served.
fn held(lemonade: &Lemonade, n: u64) -> Flows {
    let flows = Flows::start(lemonade.address("web"), n, Duration::from_millis(20));
    wait::until("they are counted", wait::SOON, || lemonade.metrics().connections().2 == n);
    flows
}

/// The next connection gets nothing and is closed.
fn is_refused(lemonade: &Lemonade, reason: &str) {
    let before = lemonade.metrics().refused(reason);
    // A limit may show as a connection that is closed at once.
    if let Ok(mut client) = connect(lemonade.address("web")) {
        let saw = read_to_end(&mut client, 0, Length::Exact);
        assert!(matches!(saw[..], [Event::Bytes(0), Event::Fin | Event::Reset]), "{saw:?}");
    }
    wait::until(&format!("a refusal for {reason} is counted"), wait::SOON, || {
        lemonade.metrics().refused(reason) > before
    });
}

fn ends(flows: Flows) {
    for flow in flows.stop() {
        flow.expect("a connection within the limit is unharmed");
    }
}

#[test]
fn a_frontend_takes_no_more_than_its_limit() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]).frontend(&["max_connections = 5"]));
    let flows = held(&lemonade, 5);
    is_refused(&lemonade, "frontend_limit");
    ends(flows);
    wait::until("there is room again", wait::SOON, || call(lemonade.address("web")).is_ok());
}

#[test]
fn the_process_takes_no_more_than_its_limit() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]).runtime(&["max_connections = 6"]));
    let flows = held(&lemonade, 6);
    is_refused(&lemonade, "total_limit");
    ends(flows);
    wait::until("there is room again", wait::SOON, || call(lemonade.address("web")).is_ok());
}

fn full_backends(pool: &[&str]) -> (Vec<Backend>, Lemonade) {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let setup = Setup::single(&addresses)
        .pool(pool)
        .backend(0, &["max_connections = 2"])
        .backend(1, &["max_connections = 3"]);
    let lemonade = Lemonade::start(&setup);
    (backends, lemonade)
}

#[test]
fn full_backends_without_a_queue_refuse() {
    let (backends, lemonade) = full_backends(&[]);
    let flows = held(&lemonade, 5);
    assert_eq!((backends[0].truth().served(), backends[1].truth().served()), (2, 3), "each at its limit");
    is_refused(&lemonade, "backends_full");
    ends(flows);
    wait::until("there is room again", wait::SOON, || call(lemonade.address("web")).is_ok());
}

#[test]
fn full_backends_with_a_queue_serve_who_waits_as_soon_as_there_is_room() {
    let (_backends, lemonade) = full_backends(&["queue = 4", "queue_timeout = \"60s\""]);
    let web = lemonade.address("web");
    let flows = held(&lemonade, 5);
    let waiting: Vec<_> = (0..4).map(|_| std::thread::spawn(move || call(web))).collect();
    wait::until("four wait", wait::SOON, || lemonade.metrics().sum("lemonade_pool_queue_length", &[]) == 4);
    is_refused(&lemonade, "queue_full");
    ends(flows);
    for call in waiting {
        call.join().expect("no panic").expect("who waited is served");
    }
    assert_eq!(lemonade.metrics().sum("lemonade_pool_queue_length", &[]), 0);
}

/// One backend with one slot, one worker: the order of the connections is the order in which they are served.
#[test]
fn the_queue_is_served_in_the_order_of_arrival() {
    const CONNECTIONS: u32 = 400;
    let listener = listener();
    let setup = Setup::single(&[listener.local_addr().expect("a bound socket")])
        .runtime(&["workers = 1"])
        .pool(&["queue = 1000", "queue_timeout = \"60s\""])
        .backend(0, &["max_connections = 1"]);
    let lemonade = Lemonade::start(&setup);
    let web = lemonade.address("web");
    let serving = std::thread::spawn(move || {
        let served = (0..CONNECTIONS).map(|_| {
            let mut stream = accept(&listener);
            let mut number = [0; 4];
            std::io::Read::read_exact(&mut stream, &mut number).expect("the client sends its number");
            u32::from_be_bytes(number)
        });
        served.collect::<Vec<_>>()
    });
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        let mut client = connect(web).expect("it accepts");
        std::io::Write::write_all(&mut client, &number.to_be_bytes()).expect("an open connection");
        finish(&client);
        clients.push(client);
        // Slots come free while newcomers arrive.
        if number % 16 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let served = serving.join().expect("no panic");
    assert!(served.is_sorted(), "served as {served:?}");
}

#[test]
fn who_waits_too_long_is_refused() {
    let (_backends, lemonade) = full_backends(&["queue = 4", "queue_timeout = \"300ms\""]);
    let flows = held(&lemonade, 5);
    is_refused(&lemonade, "queue_timeout");
    ends(flows);
}

#[test]
fn a_client_that_leaves_the_queue_gives_its_place_back() {
    let (_backends, lemonade) = full_backends(&["queue = 1", "queue_timeout = \"10m\""]);
    let flows = held(&lemonade, 5);
    let queue = || lemonade.metrics().sum("lemonade_pool_queue_length", &[]);
    for _ in 0..3 {
        let client = connect(lemonade.address("web")).expect("it accepts");
        wait::until("one waits", wait::SOON, || queue() == 1);
        lemonade_tests::socket::reset(client);
        wait::until("its place is free", wait::SOON, || queue() == 0);
    }
    ends(flows);
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let listener = listener();
    let setup = Setup::single(&[listener.local_addr().expect("a bound socket")]);
    let lemonade = Lemonade::start(&setup.frontend(&["idle_timeout = \"2s\""]));
    let web = lemonade.address("web");
    let mut idle = connect(web).expect("it serves");
    let mut idle_backend = accept(&listener);
    let (mut busy, busy_backend) = (connect(web).expect("it serves"), accept(&listener));

    let begun = Instant::now();
    let mut echo = busy_backend.try_clone().expect("a second descriptor");
    let echoing = std::thread::spawn(move || {
        let mut byte = [0; 1];
        while std::io::Read::read_exact(&mut echo, &mut byte).is_ok() {
            std::io::Write::write_all(&mut echo, &byte).expect("the client reads");
        }
    });
    while begun.elapsed() < Duration::from_secs(6) {
        std::io::Write::write_all(&mut busy, b"x").expect("a busy connection stays open");
        std::io::Read::read_exact(&mut busy, &mut [0; 1]).expect("a busy connection stays open");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (stream, who) in [(&mut idle, "client"), (&mut idle_backend, "backend")] {
        let saw = read_to_end(stream, 0, Length::Exact);
        assert!(
            matches!(saw[..], [Event::Bytes(0), Event::Fin | Event::Reset]),
            "the idle {who} saw {saw:?}"
        );
    }
    finish(&busy);
    drop(busy_backend);
    echoing.join().expect("no panic");
}

#[test]
fn opened_minus_closed_is_live_whatever_becomes_of_connections() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]).frontend(&["max_connections = 20"]));
    let web = lemonade.address("web");
    let flows = held(&lemonade, 10);
    for n in 0..40 {
        match n % 4 {
            0 => drop(call(web)),
            1 => lemonade_tests::socket::reset(connect(web).expect("it serves")),
            2 => drop(TcpStream::connect(web)),
            _ => finish(&connect(web).expect("it serves")),
        }
        let (opened, closed, live) = lemonade.metrics().connections();
        assert!(opened >= closed, "{opened} opened, {closed} closed");
        assert!(live <= opened, "{live} live of {opened}");
    }
    wait::until("only the held ones are alive", wait::SOON, || {
        let (opened, closed, live) = lemonade.metrics().connections();
        live == 10 && opened - closed == live
    });
    let status = lemonade.metrics();
    assert_eq!(status.sum("lemonade_backend_connections_live", &[("backend", "a")]), 10);
    ends(flows);
    wait::until("nothing is alive", wait::SOON, || {
        let metrics = lemonade.metrics();
        let (opened, closed, live) = metrics.connections();
        live == 0 && opened == closed && metrics.sum("lemonade_backend_connections_live", &[]) == 0
    });
}
