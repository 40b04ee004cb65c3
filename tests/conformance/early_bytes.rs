//! Bytes that come early: from the client before the backend is connected, from the server before it is asked.

use std::io::{Read as _, Write as _};

use lemonade_tests::plane::Plane;
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::connect;
use lemonade_tests::trace::{Event, Length, finish, read_to_end, read_up_to, write_exactly};
use lemonade_tests::{socket, stream};

use crate::stages::{DOWN, Side, Stage, UP};

/// Lengths around the sizes at which buffers change hands.
pub(crate) const OFFSETS: [usize; 12] =
    [1, 2, 100, 1447, 1449, 4096, 16_384, 65_535, 65_536, 65_537, 131_073, 1_000_003];

pub(crate) fn bytes_sent_before_anything_else_arrive(plane: &dyn Plane) {
    let listener = plane.place().listener();
    let served = plane.start(&Setup::single(&[listener.local_addr().expect("a bound socket")]));
    let mut random = fastrand::Rng::with_seed(3);
    for total in OFFSETS {
        let cut = random.usize(1..=total);
        let mut bytes = vec![0; total];
        stream::fill(UP, 0, &mut bytes);
        let mut client = connect(served.address()).expect("the plane accepts");
        std::thread::scope(|scope| {
            // Nothing is accepted at the backend before the first bytes are on their way.
            scope.spawn(|| {
                client.write_all(&bytes[..cut]).expect("an open connection");
                std::thread::yield_now();
                client.write_all(&bytes[cut..]).expect("an open connection");
                finish(&client);
            });
            let mut backend = socket::accept(&listener);
            let saw = read_to_end(&mut backend, UP, Length::Exact);
            assert_eq!(saw, [Event::Bytes(total as u64), Event::Fin], "cut at {cut} of {total}");
        });
        assert_eq!(read_to_end(&mut client, DOWN, Length::Exact), [Event::Bytes(0), Event::Fin]);
    }
    // One that lasts behind its early byte, so that a relay in the kernel has its part in the case.
    let mut client = connect(served.address()).expect("the plane accepts");
    client.write_all(&[1]).expect("an open connection");
    let mut backend = socket::accept(&listener);
    backend.read_exact(&mut [0]).expect("the early byte");
    served.settle(&mut client, &mut backend);
}

pub(crate) fn a_server_that_speaks_first_is_heard(plane: &dyn Plane) {
    let stage = Stage::start(plane);
    for total in OFFSETS {
        let (mut backend, mut client) = stage.connect(Side::Backend);
        std::thread::scope(|scope| {
            scope.spawn(|| write_exactly(&mut backend, DOWN, total as u64).expect("the client reads"));
            assert_eq!(read_up_to(&mut client, DOWN, total as u64), (total as u64, None));
        });
    }
}
