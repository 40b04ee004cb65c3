//! Reloads and drains: sessions go on where their backend stays, and nobody is handed around.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::datagrams::{Client, PATIENCE};
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::calls;
use lemonade_tests::setup::{Backend as Entry, Frontend, Pool};
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::{backends, setup};

#[test]
fn sessions_stay_over_reloads_that_add_and_remove_other_backends_and_frontends() {
    let (_echoes, addresses) = backends(4);
    let two = setup(&addresses[..2]);
    let lemonade = Lemonade::start(&two);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::of(lemonade.address("web"))).collect();
    let homes: Vec<char> = clients.iter_mut().map(|client| client.ask(50)).collect();
    for n in 0..6 {
        let mut more = two.clone();
        if n % 2 == 0 {
            more.pools[0].backends.extend([Entry::new("c", addresses[2]), Entry::new("d", addresses[3])]);
            more.frontends
                .push(Frontend { lines: two.frontends[0].lines.clone(), ..Frontend::new("more", "web") });
        }
        // Datagrams are under way while the table changes.
        for client in &mut clients {
            client.say(50);
        }
        lemonade.reload(&more);
        for (client, home) in clients.iter_mut().zip(&homes) {
            assert_eq!(client.hear(PATIENCE).map(|(letter, _)| letter), Some(*home), "none is lost or moved");
            assert_eq!(client.ask(50), *home);
        }
    }
}

#[test]
fn weight_0_and_disabled_keep_sessions_and_give_no_new_ones() {
    let (_echoes, addresses) = backends(2);
    let both = setup(&addresses);
    let lemonade = Lemonade::start(&both);
    let mut clients: Vec<Client> = (0..10).map(|_| Client::of(lemonade.address("web"))).collect();
    let homes: Vec<char> = clients.iter_mut().map(|client| client.ask(50)).collect();
    for line in ["weight = 0", "enabled = false"] {
        lemonade.reload(&both.clone().backend(0, &[line]));
        for (client, home) in clients.iter_mut().zip(&homes) {
            assert_eq!(client.ask(50), *home, "{line}");
        }
        assert!((0..10).all(|_| Client::of(lemonade.address("web")).ask(50) == 'b'), "{line}");
    }
}

#[test]
fn sessions_of_a_removed_backend_move_at_the_drain_deadline() {
    let (_echoes, addresses) = backends(2);
    let both = setup(&addresses).runtime(&["drain_timeout = \"500ms\""]);
    let lemonade = Lemonade::start(&both);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::of(lemonade.address("web"))).collect();
    for client in &mut clients {
        client.ask(50);
    }
    let mut one = both.clone();
    one.pools[0].backends.remove(0);
    lemonade.reload(&one);
    wait::until("all are on the other one", wait::SOON, || {
        // What is under way to the removed one when the deadline passes may get no answer.
        let homes: Vec<_> = clients.iter_mut().map(|client| client.try_ask(50)).collect();
        homes.iter().all(|home| *home == Some('b'))
    });
    assert!(lemonade.output().contains("\"end\":\"drain_deadline\""));
}

#[test]
fn a_removed_frontend_serves_its_sessions_and_takes_no_new_ones_and_can_come_back() {
    let (_echoes, addresses) = backends(2);
    let mut one = setup(&addresses);
    let mut two = one.clone();
    let address =
        std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    two.frontends.push(Frontend {
        lines: one.frontends[0].lines.clone(),
        ..Frontend::on("more", &address.to_string(), "web")
    });
    let lemonade = Lemonade::start(&two);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::of(address)).collect();
    let homes: Vec<char> = clients.iter_mut().map(|client| client.ask(50)).collect();

    lemonade.reload(&one);
    for (client, home) in clients.iter_mut().zip(&homes) {
        assert_eq!(client.ask(50), *home, "its session goes on");
    }
    let mut late = Client::of(address);
    late.say(50);
    assert_eq!(late.hear(Duration::from_millis(200)), None, "no new session");

    lemonade.reload(&two);
    for (client, home) in clients.iter_mut().zip(&homes) {
        assert_eq!(client.ask(50), *home, "the sockets were taken back: nobody was handed around");
    }
    late.ask(50);

    // Once the sessions are silent the address is free again.
    one.runtime.push("probes_per_second = 501".to_owned());
    lemonade.reload(&one);
    wait::until("the address is free", wait::SOON, || std::net::UdpSocket::bind(address).is_ok());
}

/// An address that is free for connections and for datagrams.
fn port_of_both() -> SocketAddr {
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").ok()?;
        let address = listener.local_addr().ok()?;
        std::net::UdpSocket::bind(address).ok().map(|_| address)
    };
    (0..100).find_map(|_| free()).expect("a port that is free for both")
}

#[test]
fn a_port_serves_both_protocols_and_a_frontend_can_change_its_own() {
    let (_echoes, addresses) = backends(1);
    let stream = Backend::start("stream");
    let address = port_of_both();
    let mut both = setup(&addresses);
    both.frontends[0].listen = vec![address.to_string()];
    both.frontends.push(Frontend::on("tcp", &address.to_string(), "tcp"));
    both.pools.push(Pool::new("tcp", &[stream.address]));
    let lemonade = Lemonade::start(&both);
    assert_eq!(Client::of(address).ask(50), 'a');
    assert_eq!(calls(address, 3), ["stream"; 3]);

    // Only datagrams, then only connections, on the same frontend.
    let mut now = both.clone();
    now.frontends.truncate(1);
    lemonade.reload(&now);
    wait::until("connections are refused", wait::SOON, || lemonade_tests::socket::refuses(address));
    assert_eq!(Client::of(address).ask(50), 'a');
    now.frontends[0].lines.clear();
    now.frontends[0].pool = "tcp".to_owned();
    lemonade.reload(&now);
    assert_eq!(calls(address, 3), ["stream"; 3]);
    assert_eq!(lemonade.status().listening("web"), [address]);
}

#[test]
fn a_drain_waits_for_sessions_that_speak_and_not_for_silent_ones() {
    let (_echoes, addresses) = backends(2);
    let mut lemonade = Lemonade::start(&setup(&addresses));
    let web = lemonade.address("web");
    let mut silent: Vec<Client> = (0..5).map(|_| Client::of(web)).collect();
    for client in &mut silent {
        client.ask(50);
    }
    let mut speaking = Client::of(web);
    let home = speaking.ask(50);
    lemonade.signal(Signal::TERM);
    let end = Instant::now() + Duration::from_secs(9);
    while Instant::now() < end {
        assert_eq!(speaking.ask(50), home, "served while the process drains");
        std::thread::sleep(Duration::from_millis(50));
    }
    let live = lemonade.metrics().connections().2;
    assert_eq!(live, 1, "the silent ones are over");
    assert!(
        lemonade.wait(Duration::from_secs(20)).success(),
        "once it is silent too, the process ends in order"
    );
}
