//! Backends that refuse, do not answer, or die.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::load::{Flows, call, calls};
use lemonade_tests::plane::{Copy, Direct, Plane};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::{BlackHole, connect, refusing_address};
use lemonade_tests::trace::{Event, Length, read_to_end, read_up_to, write_exactly};
use lemonade_tests::wait;

/// Seed of what the process sends.
const SEED: u64 = 77;

struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(mode: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stream-backend"));
        let mut child = command.arg(mode).stdout(Stdio::piped()).spawn().expect("the backend starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("its address");
        Self { child, address: line.trim().parse().expect("its address") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the client sees of a backend killed in the middle of a stream.
fn killed(plane: &dyn Plane, mode: &str) -> Vec<Event> {
    let mut backend = Process::start(mode);
    let bystander = Backend::start("b");
    let served = plane.start(&Setup::single(&[backend.address, bystander.address]));
    let mut client = victim(served.address());
    let flows = plane.balances().then(|| {
        // The bystander alone takes new connections, so the flows run past the backend that dies.
        let process = served.process().expect("a process");
        let setup = Setup::single(&[backend.address, bystander.address])
            .frontend(&["relay = \"copy\""])
            .backend(0, &["weight = 0"]);
        process.reload(&setup);
        Flows::start(served.address(), 4, Duration::from_millis(1))
    });

    write_exactly(&mut client, 1, 1000).expect("an open connection");
    assert_eq!(read_up_to(&mut client, SEED, 200_000), (200_000, None));
    // What the client sent has arrived when the kernel has acknowledged it all.
    std::thread::sleep(Duration::from_millis(200));
    backend.child.kill().expect("the process is ours");
    backend.child.wait().expect("the process is ours");

    let mut rest = Vec::new();
    let end = loop {
        let mut buffer = [0; 65536];
        match lemonade_tests::socket::read(&mut client, &mut buffer) {
            Ok(0) => break Event::Fin,
            Ok(n) => rest.extend_from_slice(&buffer[..n]),
            Err(error) => break Event::of_error(&error),
        }
    };
    lemonade_tests::stream::check(SEED, 200_000, &rest).expect("a correct prefix up to the end");
    if let Some(flows) = flows {
        let rounds = flows.rounds();
        wait::until("other connections go on", wait::SOON, || flows.rounds() > rounds + 20);
        for flow in flows.stop() {
            flow.expect("other connections are unharmed");
        }
    }
    vec![Event::Prefix, end]
}

/// A connection to the first backend, which is the one that sends without being asked.
fn victim(address: SocketAddr) -> TcpStream {
    for _ in 0..8 {
        let stream = connect(address).expect("the plane accepts");
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a live socket");
        if stream.peek(&mut [0]).is_ok_and(|n| n > 0) {
            lemonade_tests::socket::bounded(&stream).expect("a live socket");
            return stream;
        }
    }
    panic!("no connection reached the first backend");
}

pub(crate) fn a_backend_killed_while_it_sends_ends_as_it_does_directly(plane: &dyn Plane) {
    let direct = killed(&Direct, "reads");
    assert_eq!(direct, [Event::Prefix, Event::Fin], "the kernel closes its sockets in order");
    assert_eq!(killed(plane, "reads"), direct);
}

pub(crate) fn a_backend_killed_with_bytes_unread_ends_as_it_does_directly(plane: &dyn Plane) {
    let direct = killed(&Direct, "deaf");
    assert_eq!(direct, [Event::Prefix, Event::Reset], "bytes unread make it a reset");
    assert_eq!(killed(plane, "deaf"), direct);
}

/// Only a balancer has another backend to turn to.
#[test]
fn when_every_backend_refuses_the_client_is_closed_and_the_refusal_counted() {
    let served = Copy.start(&Setup::single(&[refusing_address(), refusing_address()]));
    let process = served.process().expect("a process");
    for n in 1..=5 {
        let mut client = connect(served.address()).expect("the plane accepts");
        let saw = read_to_end(&mut client, 0, Length::Exact);
        assert!(
            matches!(saw[..], [Event::Bytes(0), Event::Fin | Event::Reset]),
            "connection {n} saw {saw:?}"
        );
        wait::until("the refusal is counted", wait::SOON, || process.metrics().refused_in_all() == n);
    }
    wait::until("nothing stays alive", wait::SOON, || process.metrics().connections() == (5, 5, 0));
}

#[test]
fn a_refusing_backend_costs_no_request_while_another_answers() {
    let good = Backend::start("good");
    let served = Copy.start(&Setup::single(&[refusing_address(), good.address]));
    let names = calls(served.address(), 40);
    assert!(names.iter().all(|name| name == "good"), "{names:?}");
}

#[test]
fn a_silent_backend_is_raced_by_another_one() {
    let (hole, good) = (BlackHole::start(), Backend::start("good"));
    let setup = Setup::single(&[hole.address(), good.address])
        .frontend(&["connect_timeout = \"30s\"", "hedge_after = \"100ms\""]);
    let served = Copy.start(&setup);
    for n in 0..4 {
        let begun = Instant::now();
        assert_eq!(call(served.address()).expect("an answer"), "good");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "call {n} took {took:?}; the connect timeout is 30 s");
    }
    let metrics = served.process().expect("a process").metrics();
    assert!(metrics.sum("lemonade_pool_hedges_total", &[]) >= 1, "a race was run and counted");
}

#[test]
fn a_silent_backend_ends_in_a_connect_timeout_when_there_is_no_other() {
    let hole = BlackHole::start();
    let setup =
        Setup::single(&[hole.address()]).frontend(&["connect_timeout = \"300ms\"", "hedge_after = \"off\""]);
    let served = Copy.start(&setup);
    let mut client = connect(served.address()).expect("the plane accepts");
    let saw = read_to_end(&mut client, 0, Length::Exact);
    assert!(matches!(saw[..], [Event::Bytes(0), Event::Fin | Event::Reset]), "{saw:?}");
    let metrics = served.process().expect("a process").metrics();
    assert_eq!(metrics.refused("connect_timeout"), 1);
}
