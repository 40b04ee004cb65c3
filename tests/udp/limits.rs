//! Floods of forged senders, descriptors that run out, a second instance: all bounded, counted and survived.

use std::net::UdpSocket;
use std::process::Command;

use lemonade_tests::datagrams::{Client, Echo};
use lemonade_tests::lemonade::{Lemonade, binary};
use lemonade_tests::setup::Frontend;
use lemonade_tests::wait;

use crate::{backends, count, setup};

/// So many datagrams fit into the socket of a worker that is not running for a moment.
const AT_ONCE: usize = 100;

/// Datagrams of `senders` ports that nobody reads answers on, all of which arrive.
fn flood(lemonade: &Lemonade, senders: usize) {
    let web = lemonade.address("web");
    let before = lemonade.metrics().connections().0;
    for n in 0..senders {
        if n % AT_ONCE == 0 {
            wait::until("those before are counted", wait::SOON, || {
                lemonade.metrics().connections().0 >= before + n as u64
            });
        }
        let ip = [127, 0, 9, u8::try_from(n % 250).expect("below 250") + 1];
        let sender = UdpSocket::bind((std::net::IpAddr::from(ip), 0)).expect("a free port");
        sender.send_to(b"a flood of forged senders", web).expect("a datagram that goes");
    }
}

#[test]
fn forged_senders_fill_the_limit_and_no_more_and_are_counted() {
    let (_echoes, addresses) = backends(2);
    let lemonade = Lemonade::start(&setup(&addresses).frontend(&["max_connections = 40"]));
    let mut client = Client::of(lemonade.address("web"));
    let home = client.ask(60);
    flood(&lemonade, 2_000);
    wait::until("all are counted", wait::SOON, || lemonade.metrics().connections().0 == 2_001);
    assert_eq!(count(&lemonade, "connections_live"), 40);
    assert_eq!(lemonade.metrics().refused("frontend_limit"), 2_001 - 40);
    assert_eq!(client.ask(60), home, "who was there before is served");
    let told = lemonade.output().matches("\"end\":\"frontend_limit\"").count();
    assert!((1..500).contains(&told), "{told} of the refusals are told, so that they do not fill the log");
}

#[test]
fn without_a_limit_of_its_own_a_frontend_of_datagrams_leaves_half_of_the_places() {
    let (_echoes, addresses) = backends(1);
    let lemonade = Lemonade::start(&setup(&addresses).runtime(&["max_connections = 30"]));
    flood(&lemonade, 200);
    wait::until("all are counted", wait::SOON, || lemonade.metrics().connections().0 == 200);
    assert_eq!(count(&lemonade, "connections_live"), 15);
}

#[test]
fn a_full_backend_gets_no_more_sessions() {
    let (_echoes, addresses) = backends(2);
    let lemonade = Lemonade::start(&setup(&addresses).backend(0, &["max_connections = 1"]));
    let mut clients: Vec<Client> = (0..6).map(|_| Client::of(lemonade.address("web"))).collect();
    let homes: String = clients.iter_mut().map(|client| client.ask(60)).collect();
    assert_eq!(homes.matches('a').count(), 1, "{homes}");
}

#[test]
fn running_out_of_descriptors_refuses_and_recovers() {
    let (_echoes, addresses) = backends(1);
    let quick = setup(&addresses)
        .runtime(&["max_connections = 1000", "workers = 1"])
        .frontend(&["idle_timeout = \"1s\""]);
    let mut lemonade = Lemonade::start_limited(&quick, 64);
    flood(&lemonade, 300);
    wait::until("all are counted", wait::SOON, || {
        lemonade.metrics().sum("lemonade_connections_opened_total", &[]) == 300
    });
    assert!(
        lemonade.metrics().refused("no_descriptors") > 200,
        "{}",
        lemonade.metrics().refused("no_descriptors")
    );
    assert!(lemonade.exited().is_none());
    wait::until("silent sessions end", wait::SOON, || lemonade.metrics().connections().2 == 0);
    assert_eq!(Client::of(lemonade.address("web")).ask(60), 'a');
}

#[test]
fn a_silent_session_ends_and_its_record_says_what_passed() {
    let (_echoes, addresses) = backends(1);
    let lemonade = Lemonade::start(&setup(&addresses).frontend(&["idle_timeout = \"1s\""]));
    let mut client = Client::of(lemonade.address("web"));
    (0..3).for_each(|_| assert_eq!(client.ask(100), 'a'));
    wait::until("it ends", wait::SOON, || lemonade.metrics().connections() == (1, 1, 0));
    wait::until("its record is written", wait::SOON, || {
        lemonade.output().contains("\"end\":\"idle_timeout\"")
    });
    let output = lemonade.output();
    let line = output.lines().find(|line| line.contains("idle_timeout")).expect("a record");
    for part in [
        "\"datagrams_up\":3",
        "\"datagrams_down\":3",
        "\"bytes_up\":300",
        "\"bytes_down\":300",
        "\"backend\":\"a\"",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert_eq!(client.ask(100), 'a', "the next datagram begins a new session");
    assert_eq!(lemonade.status().backend("web", "a")["picks"], 2);
}

#[test]
fn a_second_instance_on_the_same_address_is_refused_with_a_clear_error() {
    let (first, second) = (Echo::start(b'a'), Echo::start(b'b'));
    let lemonade = Lemonade::start(&setup(&[first.address]));
    let web = lemonade.address("web");
    let mut other = setup(&[second.address]);
    other.frontends[0] =
        Frontend { lines: other.frontends[0].lines.clone(), ..Frontend::on("web", &web.to_string(), "web") };
    let mut other = Lemonade::spawn(Command::new(binary()), &other, |_| {});
    assert_eq!(other.wait(wait::SOON).code(), Some(1), "{}", other.output());
    let said = other.output();
    assert!(said.contains(&web.to_string()) && said.contains("in use"), "{said}");
    assert!((0..40).all(|_| Client::of(web).ask(60) == 'a'));
    assert!(second.heard().is_empty());
}
