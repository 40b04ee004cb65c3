//! Listeners over reloads: the new one serves before the old one closes, and a failed bind changes nothing.

use std::net::TcpStream;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Flows, Load, call};
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::{socket, wait};

#[test]
fn a_removed_listener_refuses_and_its_connections_live_on() {
    let backend = Backend::start("a");
    let one = Setup::single(&[backend.address]);
    let mut two = one.clone();
    two.frontends.push(Frontend::new("more", "web"));

    let lemonade = Lemonade::start(&two);
    let more = lemonade.address("more");
    let flows = Flows::start(more, 3, Duration::from_millis(5));
    lemonade.reload(&one);
    assert!(lemonade.status().listening("more").is_empty());
    wait::until("the removed listener refuses", wait::SOON, || socket::refuses(more));
    let rounds = flows.rounds();
    wait::until("its connections go on", wait::SOON, || flows.rounds() > rounds + 30);
    for flow in flows.stop() {
        flow.expect("a flow outlives its listener");
    }
}

#[test]
fn connections_of_a_removed_frontend_are_reset_at_the_drain_deadline() {
    let backend = Backend::start("a");
    let one = Setup::single(&[backend.address]).runtime(&["drain_timeout = \"500ms\""]);
    let mut two = one.clone();
    two.frontends.push(Frontend::new("more", "web"));

    let lemonade = Lemonade::start(&two);
    let stays = Flows::start(lemonade.address("web"), 2, Duration::from_millis(5));
    let goes = Flows::start(lemonade.address("more"), 2, Duration::from_millis(5));
    lemonade.reload(&one);
    wait::until("the drained connections are gone", wait::SOON, || lemonade.metrics().connections().2 == 2);
    for flow in goes.stop() {
        let why = flow.expect_err("it was reset");
        assert!(why.contains("reset"), "{why}");
    }
    for flow in stays.stop() {
        flow.expect("a flow of another frontend is unharmed");
    }
}

#[test]
fn a_new_address_serves_before_the_old_one_closes() {
    let backend = Backend::start("a");
    let addresses = [socket::refusing_address(), socket::refusing_address()];
    let on = |n: usize| {
        let mut setup = Setup::single(&[backend.address]);
        setup.frontends[0] = Frontend::on("web", &addresses[n % 2].to_string(), "web");
        setup
    };
    let lemonade = Lemonade::start(&on(0));
    for n in 1..=6 {
        let (old, new) = (addresses[(n + 1) % 2], addresses[n % 2]);
        lemonade.write(&on(n).text(lemonade.folder()));
        // At each moment one of the two answers.
        wait::until("the new address serves", wait::SOON, || match call(new) {
            Ok(_) => true,
            Err(_) => {
                let answer = call(old).or_else(|_| call(new));
                answer.expect("the old address serves until the new one does");
                false
            }
        });
        wait::until("the old address refuses", wait::SOON, || socket::refuses(old));
    }
}

#[test]
fn a_listener_that_cannot_be_bound_leaves_everything_as_it_was() {
    let backend = Backend::start("a");
    let taken = socket::listener();
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    let web = lemonade.address("web");
    let load = Load::start(web, 100);

    let mut bad = Setup::single(&[backend.address]).pool(&["strategy = \"adaptive\""]);
    bad.frontends.push(Frontend::new("fresh", "web"));
    let address = taken.local_addr().expect("a bound socket").to_string();
    bad.frontends.push(Frontend::on("taken", &address, "web"));
    let error = lemonade.reload_bad(&bad.text(lemonade.folder()));
    assert!(error.contains(&address), "the error names the address {address}: {error}");
    let status = lemonade.status();
    assert_eq!(status.frontends(), ["web"], "nothing is half applied");
    assert_eq!(status.pool("web")["strategy"], "round_robin", "nothing is half applied");
    assert_eq!(load.stop().failed, [""; 0]);

    drop(taken);
    lemonade.write(&bad.text(lemonade.folder()));
    lemonade.signal(rustix::process::Signal::HUP);
    wait::until("the same file is accepted once the address is free", wait::SOON, || {
        lemonade.status().frontends().len() == 3
    });
}

#[test]
fn closing_a_listener_loses_no_connection_that_was_accepted_by_the_kernel() {
    let backend = Backend::start("a");
    let one = Setup::single(&[backend.address]);
    let lemonade = Lemonade::start(&one);
    for round in 0..10 {
        let mut two = one.clone();
        two.frontends.push(Frontend::new("more", "web"));
        lemonade.reload(&two);
        let more = lemonade.address("more");
        let clients = std::thread::spawn(move || {
            let mut answered = 0;
            loop {
                match TcpStream::connect(more) {
                    Ok(stream) => {
                        drop(stream);
                        match call(more) {
                            Ok(_) => answered += 1,
                            // Refused at connect: the listener is gone.
                            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                                return Ok(answered);
                            }
                            Err(error) => return Err(format!("after {answered} calls: {error}")),
                        }
                    }
                    Err(_) => return Ok(answered),
                }
            }
        });
        lemonade.reload(&one);
        let answered = clients.join().expect("no panic");
        answered.unwrap_or_else(|why| panic!("round {round}: an accepted connection was lost {why}"));
    }
}
