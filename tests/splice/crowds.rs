//! Many connections at once, clients that ask on while nobody has answered, and ports that are used again.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::Duration;

use lemonade_tests::skip::full;
use lemonade_tests::wait;
use socket2::{Domain, Socket, Type};

use crate::ends::{Pair, Scene};
use crate::stage::{Stage, V4, parse};
use crate::talk::{Talk, plan};
use crate::transfers::exact;

#[test]
fn a_thousand_connections_at_once_are_spliced() {
    // The backend's queue of handshakes is shorter than the crowd.
    let patient = ["connect_timeout = \"30s\""];
    let Some(stage) = Stage::start("a_thousand_connections_at_once_are_spliced", V4, &patient) else {
        return;
    };
    let talks: Vec<Talk> =
        plan(81, 1_000, 30_000).into_iter().map(|talk| Talk { turns: 30, pause: 100, ..talk }).collect();
    let (most, done) = (AtomicU64::new(0), Mutex::new(()));
    std::thread::scope(|scope| {
        // Given back in whatever way it ends.
        let _under_way = done.lock().expect("nobody else has it");
        scope.spawn(|| {
            while done.try_lock().is_err_and(|error| matches!(error, TryLockError::WouldBlock)) {
                most.fetch_max(stage.relay("live"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        exact(&stage, &talks, 1_000);
    });
    let most = most.into_inner();
    println!("{most} were spliced at the same time");
    assert!(most >= 500, "blocked: only {most} were spliced at the same time");
}

#[test]
fn clients_that_ask_on_before_they_are_answered_get_every_byte() {
    let test = "clients_that_ask_on_before_they_are_answered_get_every_byte";
    let Some(stage) = Stage::start(test, V4, &[]) else { return };
    let talks: Vec<Talk> = plan(82, if full() { 4_000 } else { 200 }, 200_000)
        .into_iter()
        .map(|talk| Talk { turns: talk.turns * 4, pause: talk.pause / 2, pipelined: true, ..talk })
        .collect();
    exact(&stage, &talks, 40);
}

#[test]
fn few_ports_towards_backends_are_used_again_and_again() {
    let Some(stage) = Stage::start("few_ports_towards_backends_are_used_again_and_again", V4, &[]) else {
        return;
    };
    stage.network.balancer.sysctl("ipv4/ip_local_port_range", "40000 40249");
    for round in 0..if full() { 40 } else { 3 } {
        exact(&stage, &plan(83 + round, 150, 20_000), 50);
        // Ports are held for a while behind the end of their flow.
        std::thread::sleep(Duration::from_millis(3_300));
    }
}

/// A client that takes the port again of its last connection, which was spliced and ended in order.
#[test]
fn a_port_whose_flow_has_ended_in_order_serves_again() {
    let Some(scene) = Scene::start("a_port_whose_flow_has_ended_in_order_serves_again", V4, |setup| setup)
    else {
        return;
    };
    let mut own = None;
    for _ in 0..3 {
        let before = scene.relay("promoted_total");
        let client = scene.network.client.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_reuse_address(true).expect("a live socket");
            if let Some(own) = own {
                socket.bind(&own).expect("the port is free");
            }
            socket.connect(&parse(V4[0]).into()).expect("it is accepted");
            TcpStream::from(socket)
        });
        let backend = scene.listener.accept().expect("a connection").0;
        for stream in [&client, &backend] {
            stream.set_nodelay(true).expect("a live socket");
            stream.set_read_timeout(Some(wait::SOON)).expect("a live socket");
        }
        own = Some(client.local_addr().expect("a connected socket").into());
        let mut pair = Pair { client, backend };
        wait::until("the connection is spliced", wait::SOON, || {
            pair.exchange(100);
            scene.relay("promoted_total") > before
        });
        pair.exchange(100_000);
        // Who closes last has no TIME_WAIT.
        for (from, to) in [(&pair.backend, &pair.client), (&pair.client, &pair.backend)] {
            from.shutdown(Shutdown::Write).expect("a live socket");
            assert_eq!(std::io::Read::read(&mut &*to, &mut [0; 8]).expect("an orderly end"), 0);
        }
    }
}
