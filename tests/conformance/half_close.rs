//! Half-close: who closes first, behind data or without a byte, and whether the opposite side goes on sending.

use std::net::TcpStream;

use lemonade_tests::plane::Plane;
use lemonade_tests::trace::{Event, Length, finish, read_to_end, write_exactly};

use crate::stages::{Side, Stage};

/// More than the buffers of a relay, so that FIN has to wait behind it.
const DATA: u64 = 900_001;

/// Closes `first` behind `before` bytes; the opposite side sees that FIN, sends `after` bytes and closes.
fn shape(plane: &dyn Plane, first: Side, before: u64, after: u64) {
    let stage = Stage::start(plane);
    let (mut opener, mut other) = stage.connect(first);
    let (opener_saw, other_saw) = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let saw = read_to_end(&mut other, first.seed(), Length::Exact);
            send_and_finish(&mut other, first.other().seed(), after);
            saw
        });
        send_and_finish(&mut opener, first.seed(), before);
        let saw = read_to_end(&mut opener, first.other().seed(), Length::Exact);
        (saw, other.join().expect("no panic"))
    });
    assert_eq!(other_saw, [Event::Bytes(before), Event::Fin], "the other side, on {}", plane.name());
    assert_eq!(opener_saw, [Event::Bytes(after), Event::Fin], "who closed first, on {}", plane.name());
}

fn send_and_finish(stream: &mut TcpStream, seed: u64, bytes: u64) {
    write_exactly(stream, seed, bytes).expect("the connection is open this way");
    finish(stream);
}

pub(crate) fn client_closes_first_without_a_byte_and_backend_is_silent(plane: &dyn Plane) {
    shape(plane, Side::Client, 0, 0);
}

pub(crate) fn client_closes_first_without_a_byte_and_backend_goes_on(plane: &dyn Plane) {
    shape(plane, Side::Client, 0, DATA);
}

pub(crate) fn client_closes_first_behind_data_and_backend_is_silent(plane: &dyn Plane) {
    shape(plane, Side::Client, DATA, 0);
}

pub(crate) fn client_closes_first_behind_data_and_backend_goes_on(plane: &dyn Plane) {
    shape(plane, Side::Client, DATA, DATA);
}

pub(crate) fn backend_closes_first_without_a_byte_and_client_is_silent(plane: &dyn Plane) {
    shape(plane, Side::Backend, 0, 0);
}

pub(crate) fn backend_closes_first_without_a_byte_and_client_goes_on(plane: &dyn Plane) {
    shape(plane, Side::Backend, 0, DATA);
}

pub(crate) fn backend_closes_first_behind_data_and_client_is_silent(plane: &dyn Plane) {
    shape(plane, Side::Backend, DATA, 0);
}

pub(crate) fn backend_closes_first_behind_data_and_client_goes_on(plane: &dyn Plane) {
    shape(plane, Side::Backend, DATA, DATA);
}

pub(crate) fn both_close_at_once_behind_data(plane: &dyn Plane) {
    let stage = Stage::start(plane);
    for _ in 0..20 {
        let (mut client, mut backend) = stage.connect(Side::Client);
        let ends = [(&mut client, Side::Client), (&mut backend, Side::Backend)];
        std::thread::scope(|scope| {
            for (stream, side) in ends {
                let mut reader = stream.try_clone().expect("a second descriptor");
                scope.spawn(move || send_and_finish(stream, side.seed(), DATA));
                scope.spawn(move || {
                    let saw = read_to_end(&mut reader, side.other().seed(), Length::Exact);
                    assert_eq!(saw, [Event::Bytes(DATA), Event::Fin], "{side:?}");
                });
            }
        });
    }
}
