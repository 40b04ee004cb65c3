//! What passes is what was sent: whole, once, to nobody else, and from the right address.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lemonade_tests::datagrams::{Client, Echo, HEADER, LONGEST, PATIENCE};
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::setup::Frontend;
use lemonade_tests::wait;
use quinn_udp::{Transmit, UdpSocketState};

use crate::{backends, count, setup};

#[test]
fn each_session_stays_on_one_backend_and_gets_its_own_answers() {
    let (echoes, addresses) = backends(3);
    let lemonade = Lemonade::start(&setup(&addresses));
    let mut clients: Vec<Client> = (0..60).map(|_| Client::of(lemonade.address("web"))).collect();
    // All of them at once fit into the buffers that any kernel gives.
    let sizes = [HEADER, 40, 512, 1_000, 1_400];
    let homes: Vec<char> = clients.iter_mut().map(|client| client.ask(HEADER)).collect();
    for round in 0..50 {
        // All ask before the first one hears, so that answers could be mixed up.
        let numbers: Vec<u64> =
            clients.iter_mut().map(|client| client.say(sizes[round % sizes.len()])).collect();
        for ((client, number), home) in clients.iter().zip(numbers).zip(&homes) {
            assert_eq!(client.hear(PATIENCE), Some((*home, number)), "its own answer from its own backend");
        }
    }
    let mut shares: BTreeMap<char, u32> = BTreeMap::new();
    homes.iter().for_each(|home| *shares.entry(*home).or_default() += 1);
    assert_eq!(shares, BTreeMap::from([('a', 20), ('b', 20), ('c', 20)]), "strict turns");
    for client in &clients {
        assert_eq!(client.hear(Duration::from_millis(1)), None, "no answer comes twice");
    }
    for echo in &echoes {
        let heard = echo.heard();
        assert_eq!(heard.len(), 20, "a session has a sender of its own");
        assert!(heard.values().all(|&datagrams| datagrams == 51), "each datagram came once: {heard:?}");
    }
    let (up, down) =
        (count(&lemonade, "upstream_datagrams_total"), count(&lemonade, "downstream_datagrams_total"));
    assert_eq!((up, down), (60 * 51, 60 * 51));
}

#[test]
fn datagrams_of_every_length_pass_whole() {
    let (_echoes, addresses) = backends(1);
    let lemonade = Lemonade::start(&setup(&addresses));
    let mut client = Client::of(lemonade.address("web"));
    for length in
        [0, 1, HEADER - 1, HEADER, 1_472, 1_473, 16_384, 65_000, LONGEST - 1, LONGEST, 100, 0, LONGEST]
    {
        let letter = client.ask(length);
        assert_eq!(letter, if length == 0 { ' ' } else { 'a' }, "{length} bytes");
    }
    assert_eq!(count(&lemonade, "upstream_datagrams_lost_total"), 0);
}

#[test]
fn datagrams_sent_together_arrive_one_by_one_and_in_order() {
    let (echoes, addresses) = backends(1);
    let lemonade = Lemonade::start(&setup(&addresses));
    let mut client = Client::of(lemonade.address("web"));
    let wire = UdpSocketState::new((&client.socket).into()).expect("a live socket");
    client.socket.set_nonblocking(false).expect("a live socket");
    for (each, last) in [(1_200, 1_200), (1_200, 7 + HEADER), (100, 50), (HEADER, HEADER)] {
        let mut together = Vec::new();
        let numbers: Vec<u64> = (0..20)
            .map(|n| {
                let (number, bytes) = client.next(if n == 19 { last } else { each });
                together.extend(bytes);
                number
            })
            .collect();
        let transmit = Transmit {
            destination: client.server,
            ecn: None,
            contents: &together,
            segment_size: Some(each),
            src_ip: None,
        };
        wire.try_send((&client.socket).into(), &transmit).expect("segments that go");
        let heard: Vec<u64> = (0..20).map(|_| client.hear(PATIENCE).expect("an answer to each").1).collect();
        assert_eq!(heard, numbers);
    }
    assert_eq!(echoes[0].heard().values().sum::<u64>(), 80);
}

#[test]
fn answers_come_from_the_address_that_the_client_used() {
    let (_echoes, addresses) = backends(2);
    let port = wildcard_port();
    let mut setup = setup(&addresses);
    setup.frontends[0].listen = vec![format!("0.0.0.0:{port}")];
    setup
        .frontends
        .push(Frontend { lines: setup.frontends[0].lines.clone(), ..Frontend::on("all", "[::]:0", "web") });
    let lemonade = Lemonade::start(&setup);
    let all = lemonade.address("all").port();
    let servers = ["127.0.0.1", "127.0.0.2", "127.3.4.5"].map(|ip| format!("{ip}:{port}"));
    let more = ["127.0.0.1", "127.0.0.9", "[::1]"].map(|ip| format!("{ip}:{all}"));
    for server in servers.iter().chain(&more) {
        // The client checks where the answer comes from.
        let mut client = Client::of(server.parse().expect("an address"));
        client.ask(100);
        client.ask(3_000);
    }
    // One socket that uses two addresses has two sessions.
    let mut client = Client::of(servers[0].parse().expect("an address"));
    let first = client.ask(50);
    client.server = servers[1].parse().expect("an address");
    assert_ne!(client.ask(50), first);
}

#[test]
fn a_range_of_ports_is_kept_towards_backends_that_give_none() {
    let port = wildcard_port();
    let echoes: Vec<Echo> =
        (0..2).map(|n| Echo::on(b'a' + n, ([127, 0, 7, 7], port + u16::from(n)).into())).collect();
    let mut setup = setup(&[echoes[0].address]);
    setup.frontends[0].listen = vec![format!("127.0.0.1:{port}-{}", port + 1)];
    let lemonade = {
        let mut text = String::new();
        let setup = setup.clone();
        let lemonade = Lemonade::start(&setup);
        text.push_str(&setup.text(lemonade.folder()));
        let text = text.replace(&format!("address = \"127.0.7.7:{port}\""), "address = \"127.0.7.7\"");
        lemonade.write(&text);
        wait::until("the file is in force", wait::SOON, || lemonade.status().config_version() == 2);
        lemonade
    };
    let mut seen = BTreeSet::new();
    for n in 0..2 {
        seen.insert(Client::of(([127, 0, 0, 1], port + n).into()).ask(30));
    }
    assert_eq!(seen, BTreeSet::from(['a', 'b']));
    drop(lemonade);
}

/// A port that is free on every address, and the next one too.
fn wildcard_port() -> u16 {
    loop {
        let one = std::net::UdpSocket::bind("[::]:0").expect("a free port");
        let port = one.local_addr().expect("a bound socket").port();
        if port < u16::MAX && std::net::UdpSocket::bind(("0.0.0.0", port + 1)).is_ok() {
            return port;
        }
    }
}
