//! Killed between the hand-over and the silence of its sockets, which still owe their peers bytes.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use lemonade_tests::wait;

use crate::ends::{Pair, Scene};
use crate::killed::{TURN, kill, listed, restart, until_on, until_taken_over};
use crate::stage::{V4, V6};

/// Connections of a round, and questions that each asks while answers or questions get lost.
const PAIRS: usize = 20;
const QUESTIONS: usize = 10;
const QUESTION: usize = 100;

/// Bytes at which a packet has data.
const LOST: &str = "meta l4proto tcp meta length > 140 drop";

/// Packets of its own sockets that the programs have held back or changed.
fn own_packets(scene: &Scene) -> u64 {
    let status = scene.lemonade.status();
    let relays = status.0["relays"].as_array().expect("a list");
    let splice = relays.iter().find(|own| own["relay"] == "splice").expect("it is known");
    let why = splice["findings"]["why"].as_str().expect("a text");
    let count = |name: &str| {
        let (before, _) = why.split_once(name).unwrap_or_else(|| panic!("no {name} in {why}"));
        before.rsplit([' ', ',']).next().and_then(|count| count.parse::<u64>().ok()).expect("a count")
    };
    count(" held") + count(" renewed")
}

fn question(number: usize) -> [u8; QUESTION] {
    std::array::from_fn(|at| (number * 7 + at) as u8)
}

/// Kills the process while sockets of flows that were handed over wait to send again; tells how many flows there were.
fn killed_in_the_window(test: &str, addresses: [&str; 2], to_client: bool) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut scene) = Scene::start(test, addresses, |setup| setup) else { return };
    let mut pairs: Vec<Pair> = (0..PAIRS).map(|_| scene.connect(addresses[0])).collect();
    // One turn before they are due.
    for _ in 0..3 {
        pairs.iter_mut().for_each(|pair| pair.exchange(QUESTION));
    }
    assert_eq!(scene.relay("promoted_total"), 0);
    let far = if to_client { &scene.network.client } else { &scene.network.backends };
    far.filter(LOST);
    for number in 0..QUESTIONS {
        for Pair { client, backend } in &mut pairs {
            client.write_all(&question(number)).expect("a live socket");
            backend.write_all(&question(number)).expect("a live socket");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let spliced: Vec<SocketAddr> = listed(&scene)
        .iter()
        .filter(|own| own["relay"] == "splice")
        .map(|own| own["client"].as_str().and_then(|text| text.parse().ok()).expect("an address"))
        .collect();
    kill(&mut scene);
    let far = if to_client { &scene.network.client } else { &scene.network.backends };
    far.no_filter();
    println!("{} of {PAIRS} flows were handed over while their sockets owed bytes", spliced.len());
    assert!(spliced.len() * 2 >= PAIRS, "blocked: {} of {PAIRS} were spliced", spliced.len());
    pairs.retain(|pair| spliced.contains(&pair.client.local_addr().expect("a live socket")));
    for Pair { client, backend } in &mut pairs {
        let mut got = [0; QUESTION];
        for by in [client, backend] {
            for number in 0..QUESTIONS {
                by.read_exact(&mut got).expect("what a dying socket owes");
                assert_eq!(got, question(number));
            }
        }
    }
    pairs.iter_mut().for_each(|pair| pair.exchange(50_000));
    restart(&mut scene);
    until_taken_over(&scene, pairs.len());
    until_on(&scene);
    // What the dying sockets said was kept from their peers.
    wait::until("packets of dying sockets are counted", wait::SOON, || {
        own_packets(&scene) >= pairs.len() as u64
    });
    pairs.iter_mut().for_each(|pair| pair.exchange(50_000));
    // They end as any.
    let count = pairs.len();
    for Pair { client, mut backend } in pairs {
        client.shutdown(std::net::Shutdown::Write).expect("a live socket");
        assert_eq!(backend.read(&mut [0; 8]).expect("an orderly end"), 0);
        drop((backend, client));
    }
    wait::until("they have ended", wait::SOON, || scene.lemonade.metrics().connections().1 == count as u64);
}

#[test]
fn killed_while_a_socket_owes_its_client_bytes() {
    killed_in_the_window("killed_while_a_socket_owes_its_client_bytes", V4, true);
}

#[test]
fn killed_while_a_socket_owes_its_backend_bytes() {
    killed_in_the_window("killed_while_a_socket_owes_its_backend_bytes", V6, false);
}
