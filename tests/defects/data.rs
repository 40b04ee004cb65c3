//! Defects of the data path: 2, 3, 4 and 5.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Load, call};
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::socket::{self, BlackHole, accept, connect};
use lemonade_tests::trace::{Event, Length, finish, read_to_end, write_exactly};
use lemonade_tests::wait;

/// On EOF the write half was only dropped, so peers waited for ever and connections leaked.
#[test]
fn defect_02_half_close_is_passed_on_and_nothing_leaks() {
    let listener = socket::listener();
    let lemonade = Lemonade::start(&Setup::single(&[listener.local_addr().expect("a bound socket")]));
    for _ in 0..10 {
        let mut client = connect(lemonade.address("web")).expect("it serves");
        let mut backend = accept(&listener);
        write_exactly(&mut client, 1, 1000).expect("an open connection");
        finish(&client);
        assert_eq!(read_to_end(&mut backend, 1, Length::Exact), [Event::Bytes(1000), Event::Fin]);
        write_exactly(&mut backend, 2, 1000).expect("still open this way");
        finish(&backend);
        assert_eq!(read_to_end(&mut client, 2, Length::Exact), [Event::Bytes(1000), Event::Fin]);
    }
    wait::until("no connection leaks", wait::SOON, || lemonade.metrics().connections() == (10, 10, 0));
}

/// A pick between "marked draining" and "published" dropped the client.
#[test]
fn defect_03_no_client_is_dropped_while_backends_are_replaced() {
    let backends = Backend::several(4);
    let pair = |n: usize| Setup::single(&[backends[n].address, backends[n + 1].address]);
    let lemonade = Lemonade::start(&pair(0));
    let load = Load::start(lemonade.address("web"), 300);
    for round in 0..12 {
        lemonade.reload(&pair(2 * ((round + 1) % 2)));
        let seen = load.answered();
        wait::until("calls are answered", wait::SOON, || load.answered() > seen + 20);
    }
    let outcome = load.stop();
    assert_eq!(outcome.failed, [""; 0], "of {}", outcome.total());
}

/// The old listener was dropped before the new one was bound, with no way back.
#[test]
fn defect_04_a_listen_address_that_cannot_be_bound_keeps_the_old_one() {
    let backend = Backend::start("a");
    let taken = socket::listener();
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    let web = lemonade.address("web");
    let load = Load::start(web, 200);
    let mut moved = Setup::single(&[backend.address]);
    let address = taken.local_addr().expect("a bound socket").to_string();
    moved.frontends[0] = Frontend::on("web", &address, "web");
    lemonade.reload_bad(&moved.text(lemonade.folder()));
    assert_eq!(lemonade.status().listening("web"), [web]);
    call(web).expect("the old address serves");
    assert_eq!(load.stop().failed, [""; 0]);
}

/// No connect timeout and no retry on another backend.
#[test]
fn defect_05_a_silent_or_refusing_backend_is_retried_elsewhere() {
    let (hole, good) = (BlackHole::start(), Backend::start("good"));
    let setup = Setup::single(&[hole.address(), socket::refusing_address(), good.address])
        .frontend(&["connect_timeout = \"300ms\"", "hedge_after = \"off\""]);
    let lemonade = Lemonade::start(&setup);
    for _ in 0..6 {
        let begun = Instant::now();
        assert_eq!(call(lemonade.address("web")).expect("another backend answers"), "good");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    let metrics = lemonade.metrics();
    assert!(metrics.sum("lemonade_pool_retries_total", &[]) >= 1, "retries are counted");
}

/// Without TCP_NODELAY, two small writes wait for a delayed acknowledgement (40 ms) on each hop.
#[test]
fn defect_05_small_writes_are_not_held_back() {
    const ROUNDS: u32 = 50;
    let listener = socket::listener();
    let lemonade = Lemonade::start(&Setup::single(&[listener.local_addr().expect("a bound socket")]));
    let mut client: TcpStream = connect(lemonade.address("web")).expect("it serves");
    let mut backend = accept(&listener);
    let served = std::thread::spawn(move || {
        let mut two = [0; 2];
        for _ in 0..ROUNDS {
            backend.read_exact(&mut two).expect("two bytes");
            backend.write_all(b"x").expect("an open connection");
            backend.write_all(b"y").expect("an open connection");
        }
    });
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        client.write_all(b"a").expect("an open connection");
        // The first byte travels alone.
        std::thread::sleep(Duration::from_millis(1));
        client.write_all(b"b").expect("an open connection");
        client.read_exact(&mut [0; 2]).expect("two bytes");
    }
    let took = begun.elapsed();
    served.join().expect("no panic");
    assert!(
        took < Duration::from_millis(1600),
        "{ROUNDS} rounds took {took:?}; delayed ones take 40 ms each"
    );
}
