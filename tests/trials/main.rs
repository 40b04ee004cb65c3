//! Relays `sockmap` and `sk_msg` in the process of the test: their self-tests, that they catch programs with faults, and what stays out.

#![cfg(target_os = "linux")]

mod order;
mod overlap;
mod sk_msg;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lemonade::model::relay::{RelayCell, SelfTest};
use lemonade::proxy::adapters::bpf::{Kernel, Sockmap};
use lemonade::proxy::flow::Direction;
use lemonade::proxy::relay::sockmap::{Carried, Relay};
use lemonade::proxy::relay::trial;
use lemonade_tests::kernel_log::{MISCOUNTED, quietly_but_for};
use lemonade_tests::skip::skip;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The process has one cgroup, so one test at a time is in it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the relay into the kernel with a program of `kernel`.
fn relay(kernel: &mut Kernel, program: &str) -> Arc<Relay> {
    kernel.attach().expect("a cgroup of our own");
    let maps = Sockmap::attach_program(kernel, program).expect("the program is attached");
    let relay = Arc::new(Relay::new(maps, 64 << 10).expect("a set of sockets"));
    relay.want(true).expect("a map of ours");
    relay
}

/// Runs the self-tests on a program of `kernel`.
fn tried(kernel: Kernel, program: &str) -> Vec<SelfTest> {
    let _alone = alone();
    // Dropped before the lock is, as an argument would not be: the cgroup goes with it.
    let mut kernel = kernel;
    let relay = relay(&mut kernel, program);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let lookout = Arc::clone(&relay);
    quietly_but_for(&MISCOUNTED, || {
        let tests = runtime.expect("a runtime").block_on(async move {
            let waking = tokio::spawn(async move { lookout.run().await });
            let tests = trial::run(&relay).await;
            assert!(!waking.is_finished(), "the relay no longer waits for events");
            tests
        });
        // The kernel looks at its accounts when it lets go of a socket, after a grace period that nothing tells of; the next
        // test in line may have no excuse for it.
        std::thread::sleep(Duration::from_millis(200));
        tests
    })
}

#[test]
fn the_self_tests_pass_on_this_kernel() {
    let tests = tried(Kernel::load().expect("the object is loaded"), "sockmap");
    for test in &tests {
        println!("{}: {:.1} ms {}", test.name, test.took_ms, test.detail);
    }
    let failed: Vec<_> = tests.iter().filter(|test| !test.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Loads the programs with faults, which are built beside the others.
fn faulty(program: &str) -> Vec<SelfTest> {
    let folder = std::env::var_os("LEMONADE_BPF_OBJECTS").expect("the folder of the objects");
    let object = std::fs::read(Path::new(&folder).join("faulty")).expect("the object with faults");
    tried(Kernel::load_object(&object).expect("the object is loaded"), program)
}

fn caught(program: &str) {
    let tests = faulty(program);
    let failed: Vec<_> = tests.iter().filter(|test| !test.passed).collect();
    println!("{program}: {failed:#?}");
    assert!(!failed.is_empty(), "no self-test notices a program that {program} bytes: {tests:#?}");
    assert!(failed.iter().all(|test| !test.detail.is_empty()), "{failed:#?}");
}

#[test]
fn a_program_that_drops_bytes_fails_the_self_tests() {
    caught("drops");
}

#[test]
fn a_program_that_holds_bytes_back_fails_the_self_tests() {
    caught("holds");
}

#[test]
fn a_program_that_doubles_bytes_fails_the_self_tests() {
    caught("doubles");
}

/// Both ends of a connection over loopback, with `protocol`.
fn pair(protocol: Protocol) -> (TcpStream, TcpStream) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).expect("a socket");
    let listener = socket();
    listener.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
    listener.listen(1).expect("a bound socket");
    let one = socket();
    one.connect(&listener.local_addr().expect("bound")).expect("a connection");
    (one.into(), listener.accept().expect("a connection").0.into())
}

/// The relay does not take the connection, and nothing has happened to it.
fn stays(client: &mut TcpStream, near_client: &mut TcpStream, near_backend: &TcpStream) {
    let _alone = alone();
    let mut kernel = Kernel::load().expect("the object is loaded");
    let relay = relay(&mut kernel, "sockmap");
    let cell = RelayCell::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let carried = runtime.block_on(async {
        let meter = |_: Direction, _: u64| {};
        let idle = Duration::from_secs(60);
        let carried = relay.carry(near_client, near_backend, &meter, &cell, idle, std::future::pending());
        tokio::time::timeout(Duration::from_secs(5), carried).await.expect("a refusal is told at once")
    });
    assert_eq!(carried, Carried::Refused);
    let counters = cell.read();
    assert_eq!((counters.kept, counters.promoted, counters.live), (1, 0, 0));
    near_client.write_all(b"goes on").expect("an open connection");
    let mut read = [0; 7];
    client.read_exact(&mut read).expect("an open connection");
    assert_eq!(&read, b"goes on");
}

#[test]
fn a_connection_that_the_client_has_half_closed_stays_in_userspace() {
    let ((mut client, mut near_client), (near_backend, _backend)) =
        (pair(Protocol::TCP), pair(Protocol::TCP));
    client.shutdown(Shutdown::Write).expect("an open connection");
    assert_eq!(near_client.read(&mut [0]).expect("the end of the stream"), 0);
    stays(&mut client, &mut near_client, &near_backend);
}

#[test]
fn an_mptcp_connection_stays_in_userspace() {
    if Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_err() {
        return skip("an_mptcp_connection_stays_in_userspace", "this kernel has no MPTCP");
    }
    let ((mut client, mut near_client), (near_backend, _backend)) =
        (pair(Protocol::MPTCP), pair(Protocol::TCP));
    stays(&mut client, &mut near_client, &near_backend);
}
