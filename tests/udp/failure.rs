//! Backends that are gone: sessions go to another one, and the failure is counted.

use std::net::TcpListener;

use lemonade_tests::datagrams::{Client, Echo};
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::wait;

use crate::{backends, setup};

#[test]
fn a_session_whose_backend_is_gone_goes_to_another_with_its_next_datagram() {
    let (mut echoes, addresses) = backends(2);
    // Once it counted as down, sessions would leave it without finding out for themselves.
    let lemonade = Lemonade::start(&setup(&addresses).health(&["kind = \"off\"", "fall = 1000"]));
    let mut clients: Vec<Client> = (0..10).map(|_| Client::of(lemonade.address("web"))).collect();
    let homes: Vec<char> = clients.iter_mut().map(|client| client.ask(50)).collect();
    drop(echoes.remove(0));
    for (client, home) in clients.iter_mut().zip(&homes) {
        if *home == 'a' {
            // This one is answered by the kernel: nobody listens there.
            client.say(50);
        }
    }
    wait::until("the failures are noticed", wait::SOON, || {
        lemonade.status().backend("web", "a")["failures"].as_u64() >= Some(5)
    });
    for client in &mut clients {
        assert_eq!(client.ask(50), 'b');
        assert_eq!(client.ask(50), 'b', "and stays there");
    }
}

#[test]
fn three_unreachable_ports_in_a_row_take_a_backend_without_probes_down() {
    let (mut echoes, addresses) = backends(2);
    let lemonade = Lemonade::start(&setup(&addresses));
    let mut clients: Vec<Client> = (0..6).map(|_| Client::of(lemonade.address("web"))).collect();
    let homes: Vec<char> = clients.iter_mut().map(|client| client.ask(50)).collect();
    drop(echoes.remove(0));
    for (client, _) in clients.iter_mut().zip(&homes).filter(|(_, home)| **home == 'a') {
        client.say(50);
    }
    wait::until("it is down", wait::SOON, || lemonade.status().backend("web", "a")["status"] == "down");
    assert_eq!(Client::of(lemonade.address("web")).ask(50), 'b');
}

#[test]
fn the_only_backend_is_tried_again_and_found_when_it_is_back() {
    let echo = Echo::start(b'a');
    let address = echo.address;
    let lemonade = Lemonade::start(&setup(&[address]).health(&["kind = \"off\"", "fall = 1000"]));
    let mut client = Client::of(lemonade.address("web"));
    assert_eq!(client.ask(50), 'a');
    drop(echo);
    client.say(50);
    wait::until("the failure is noticed", wait::SOON, || {
        lemonade.status().backend("web", "a")["failures"].as_u64() >= Some(1)
    });
    let _echo = Echo::on(b'a', address);
    assert_eq!(client.ask(50), 'a');
}

#[test]
fn a_backend_that_probes_take_down_is_left_by_its_sessions_and_gets_no_new_ones() {
    // Probes need a port that is free for connections too.
    let both = || {
        let (echoes, addresses) = backends(2);
        let probed: std::io::Result<Vec<_>> = addresses.iter().map(TcpListener::bind).collect();
        probed.ok().map(|probed| (echoes, addresses, probed))
    };
    let (_echoes, addresses, probed) = (0..100).find_map(|_| both()).expect("ports that are free for both");
    let quick = ["kind = \"tcp\"", "interval = \"100ms\"", "timeout = \"500ms\"", "fall = 2", "rise = 1"];
    let lemonade = Lemonade::start(&setup(&addresses).health(&quick));
    let mut clients: Vec<Client> = (0..6).map(|_| Client::of(lemonade.address("web"))).collect();
    let homes: Vec<char> = clients.iter_mut().map(|client| client.ask(50)).collect();
    assert_eq!(homes.iter().filter(|home| **home == 'a').count(), 3);
    let mut probed = probed.into_iter();
    drop(probed.next());
    wait::until("it is down", wait::SOON, || lemonade.status().backend("web", "a")["status"] == "down");
    for client in &mut clients {
        assert_eq!(client.ask(50), 'b', "its datagrams would still be answered by the other, which is down");
    }
    assert_eq!(lemonade.status().backend("web", "a")["live"], 0, "its places are free");
    let _back = TcpListener::bind(addresses[0]).expect("the port is free for TCP");
    wait::until("it is up", wait::SOON, || lemonade.status().backend("web", "a")["status"] == "up");
    for client in &mut clients {
        assert_eq!(client.ask(50), 'b', "a session moves only when it must");
    }
    drop(probed);
}

#[test]
fn without_a_backend_datagrams_are_refused_and_counted() {
    let (_echoes, addresses) = backends(1);
    let lemonade = Lemonade::start(&setup(&addresses).backend(0, &["enabled = false"]));
    let mut client = Client::of(lemonade.address("web"));
    for _ in 0..3 {
        client.say(50);
    }
    wait::until("they are counted", wait::SOON, || lemonade.metrics().refused("no_backend_up") == 3);
    let (opened, closed, live) = lemonade.metrics().connections();
    assert_eq!((opened, closed, live), (3, 3, 0));
    wait::until("the access record says why", wait::SOON, || {
        lemonade.output().contains("\"end\":\"no_backend_up\"")
    });
}
