//! A killed process takes nothing along: spliced flows go on, and the next process goes on with them.

use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lemonade_tests::http;
use lemonade_tests::lemonade::run;
use lemonade_tests::setup::Frontend;
use lemonade_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

use crate::ends::{Pair, Scene, is_reset};
use crate::stage::{V4, V6};

/// `lemonade cleanup` takes away what any killed process has left, so that these tests take turns.
pub static TURN: Mutex<()> = Mutex::new(());

/// Connections as the process lists them.
pub fn listed(scene: &Scene) -> Vec<Value> {
    let answer = http::get_unix(&scene.lemonade.socket(), "/api/v1/connections").expect("it answers");
    let list: Value = serde_json::from_str(&answer.body).expect("JSON");
    list["connections"].as_array().expect("a list").clone()
}

/// Where maps and links have their names; another plane's have none here.
fn set(scene: &Scene) -> Option<PathBuf> {
    let own = format!("pid-{}", scene.lemonade.pid().as_raw_nonzero());
    let sets = std::fs::read_dir("/sys/fs/bpf/lemonade").into_iter().flatten().flatten();
    sets.map(|set| set.path()).find(|set| set.join(&own).exists())
}

pub fn kill(scene: &mut Scene) {
    scene.lemonade.signal(Signal::KILL);
    scene.lemonade.wait(wait::SOON);
}

pub fn restart(scene: &mut Scene) {
    let Scene { network, lemonade, .. } = scene;
    network.balancer.enter(|| lemonade.restart());
}

pub fn until_taken_over(scene: &Scene, flows: usize) {
    wait::until("the flows are taken over", wait::SOON, || {
        let list = listed(scene);
        list.len() == flows && list.iter().all(|own| own["relay"] == "splice")
    });
}

/// Waits until new connections can be spliced.
pub fn until_on(scene: &Scene) {
    wait::until("the relay is on", wait::SOON, || {
        scene.lemonade.status().frontend("web")["relay"] == "splice"
    });
}

/// Whether what is sent meets a reset, unless one has come before.
fn is_refused(stream: &mut TcpStream) -> bool {
    match stream.write_all(b"x") {
        Ok(()) => is_reset(stream),
        Err(error) => matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}

/// Whether somebody of the balancer's host has the port of the connection to the backend.
fn port_is_held(scene: &Scene, pair: &Pair) -> bool {
    let backend = pair.backend.local_addr().expect("a live socket");
    let own = pair.backend.peer_addr().expect("a live socket");
    scene.network.balancer.enter(|| {
        let domain = socket2::Domain::for_address(own);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("a live socket");
        let taken = socket.bind(&own.into()).and_then(|()| socket.set_nonblocking(true));
        match taken.and_then(|()| socket.connect(&backend.into())) {
            Err(error) => matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable),
            Ok(()) => panic!("a connection at once"),
        }
    })
}

#[test]
fn flows_go_on_without_a_process_and_with_the_next_one() {
    for (addresses, rounds) in [(V4, 2), (V6, 1)] {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let test = "flows_go_on_without_a_process_and_with_the_next_one";
        let Some(mut scene) =
            Scene::start(test, addresses, |setup| setup.runtime(&["drain_timeout = \"1s\""]))
        else {
            return;
        };
        let mut pairs: Vec<Pair> = (0..4).map(|_| scene.spliced(addresses[0])).collect();
        let client = pairs[0].client.local_addr().expect("a live socket").to_string();
        for round in 0..rounds {
            // The sockets fall silent when their peers have acknowledged.
            std::thread::sleep(Duration::from_millis(200));
            let bytes = |scene: &Scene| {
                let list = listed(scene);
                let own = list.iter().find(|own| own["client"] == client.as_str()).expect("it is listed");
                [own["bytes_up"].as_u64(), own["bytes_down"].as_u64()].map(Option::unwrap)
            };
            let before = bytes(&scene);
            kill(&mut scene);
            pairs.iter_mut().for_each(|pair| pair.exchange(10_000));
            restart(&mut scene);
            until_taken_over(&scene, pairs.len());
            assert!(pairs.iter().all(|pair| port_is_held(&scene, pair)), "round {round}");
            assert_eq!(bytes(&scene), before.map(|count| count + 10_000));
            pairs.iter_mut().for_each(|pair| pair.exchange(10_000));
            wait::until("bytes are counted", wait::SOON, || {
                bytes(&scene) == before.map(|count| count + 20_000)
            });
            assert_eq!((scene.relay("live"), scene.relay("promoted_total")), (4, 0));
            let metrics = scene.lemonade.metrics();
            assert_eq!(metrics.connections(), (4, 0, 4));
            assert_eq!(
                metrics.maybe("lemonade_backend_connections_live", &[("pool", "web"), ("backend", "a")]),
                4
            );
        }
        let own = listed(&scene);
        assert!(own.iter().all(|own| own["frontend"] == "web"), "{own:?}");
        let socket = scene.lemonade.socket();
        let why = run(&["why", &client, "--admin", socket.to_str().expect("UTF-8")]);
        let why = String::from_utf8_lossy(&why.stdout).into_owned();
        assert!(why.contains("picked by the process before this one"), "{why}");
        until_on(&scene);
        // New ones find room and ports beside them.
        pairs.push(scene.spliced(addresses[0]));
        // Each end is seen, and counted.
        let ended = pairs.remove(0);
        ended.client.shutdown(std::net::Shutdown::Write).expect("a live socket");
        drop(ended);
        wait::until("an end is counted", wait::SOON, || listed(&scene).len() == pairs.len());
        // In order it takes everything along.
        let set = set(&scene).expect("it has names");
        scene.lemonade.signal(Signal::INT);
        for pair in &mut pairs {
            assert!(is_reset(&mut pair.client) && is_reset(&mut pair.backend));
        }
        scene.lemonade.wait(wait::SOON);
        assert!(!set.exists(), "{} is left", set.display());
    }
}

#[test]
fn flows_of_a_frontend_that_is_gone_go_on_until_their_end() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let test = "flows_of_a_frontend_that_is_gone_go_on_until_their_end";
    let mut kept = None;
    let Some(mut scene) = Scene::start(test, V4, |setup| {
        kept = Some(setup.clone());
        setup
    }) else {
        return;
    };
    let mut pairs: Vec<Pair> = (0..2).map(|_| scene.spliced(V4[0])).collect();
    kill(&mut scene);
    let mut setup = kept.expect("a setup");
    setup.frontends[0] = Frontend::on("other", "10.77.1.2:8081", "web");
    scene.lemonade.write(&setup.text(scene.lemonade.folder()));
    restart(&mut scene);
    until_taken_over(&scene, 2);
    assert!(listed(&scene).iter().all(|own| own["frontend"] == "gone"));
    pairs.iter_mut().for_each(|pair| pair.exchange(10_000));
    for Pair { client, backend } in pairs.drain(..) {
        client.shutdown(std::net::Shutdown::Write).expect("a live socket");
        drop((backend, client));
    }
    wait::until("they have ended", wait::SOON, || listed(&scene).is_empty());
    // Nobody asks for the relay any more.
    let left = set(&scene).expect("it has names");
    scene.lemonade.signal(Signal::INT);
    scene.lemonade.wait(wait::SOON);
    assert!(!left.exists());
}

#[test]
fn a_flow_that_was_left_is_reset_when_it_is_idle_for_too_long() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let test = "a_flow_that_was_left_is_reset_when_it_is_idle_for_too_long";
    let Some(mut scene) = Scene::start(test, V4, |setup| setup.frontend(&["idle_timeout = \"3s\""])) else {
        return;
    };
    let mut pair = scene.spliced(V4[0]);
    std::thread::sleep(Duration::from_millis(200));
    kill(&mut scene);
    restart(&mut scene);
    until_taken_over(&scene, 1);
    pair.exchange(10);
    assert!(is_reset(&mut pair.client) && is_reset(&mut pair.backend));
}

#[test]
fn what_a_killed_process_left_can_be_taken_away() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut scene) = Scene::start("what_a_killed_process_left_can_be_taken_away", V4, |setup| setup)
    else {
        return;
    };
    let mut pair = scene.spliced(V4[0]);
    let set = set(&scene).expect("it has names");
    let said = run(&["cleanup"]);
    let own = set.display().to_string();
    assert!(!String::from_utf8_lossy(&said.stdout).contains(&own), "it is in use");
    std::thread::sleep(Duration::from_millis(200));
    kill(&mut scene);
    pair.exchange(1000);
    let said = run(&["cleanup"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(&format!("removed {}\n", set.display())), "{said}");
    assert!(!set.exists());
    // Packets come to the host, which knows nothing of the connection.
    assert!(is_refused(&mut pair.client));
}

#[test]
fn another_versions_flows_go_on_beside_until_the_drain_deadline() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let test = "another_versions_flows_go_on_beside_until_the_drain_deadline";
    let Some(mut scene) = Scene::start(test, V4, |setup| setup.runtime(&["drain_timeout = \"4s\""])) else {
        return;
    };
    let mut before = scene.spliced(V4[0]);
    let former = set(&scene).expect("it has names");
    std::thread::sleep(Duration::from_millis(200));
    kill(&mut scene);
    // Without its version nobody knows what it is.
    std::fs::remove_file(former.join("ABI")).expect("root may");
    restart(&mut scene);
    assert!(scene.lemonade.output().contains("is of another version"));
    until_on(&scene);
    let mut after = scene.spliced(V4[0]);
    before.exchange(100_000);
    after.exchange(100_000);
    wait::until("the former set is taken away", wait::SOON, || !former.exists());
    after.exchange(100_000);
    assert!(is_refused(&mut before.client));
}
