//! Backends that die under connections.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::load::Flows;
use lemonade_tests::plane::{Direct, Place, Plane};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::connect;
use lemonade_tests::trace::{Event, read_up_to, write_exactly};
use lemonade_tests::wait;

/// Seed of what the process sends.
const SEED: u64 = 77;

struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(mode: &str, place: &Place) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stream-backend"));
        command.args([mode, &place.ip.to_string()]).stdout(Stdio::piped());
        let mut child = place.enter(|_| command.spawn().expect("the backend starts"));
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
    let place = plane.place();
    let mut backend = Process::start(mode, &place);
    let bystander = place.enter(|any| Backend::start_on("b", any));
    let served = plane.start(&Setup::single(&[backend.address, bystander.address]));
    let mut client = victim(served.address());
    let flows = plane.balances().then(|| {
        // The bystander alone takes new connections, so the flows run past the backend that dies.
        let process = served.process().expect("a process");
        let setup = Setup::single(&[backend.address, bystander.address]).backend(0, &["weight = 0"]);
        process.reload(&plane.setup(&setup));
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
    for _ in 0..24 {
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
