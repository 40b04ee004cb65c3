//! Urgent data (`MSG_OOB`): the stream neither stalls at the urgent mark nor loses the byte.
//!
//! Both ends read it inline, as RFC 6093 asks of every application: it is a byte of the stream like any other. That it
//! was marked as urgent ends at a proxy.

use std::net::TcpStream;

use lemonade_tests::plane::Plane;
use lemonade_tests::stream;
use lemonade_tests::trace::{finish, read_on};
use socket2::SockRef;

use crate::stages::{Side, Stage};

/// Times that an urgent byte is sent; where the reader finds it is up to timing.
const ROUNDS: usize = 40;

/// Sends `length` bytes of stream `seed` in one go; the last one before `urgent` is the urgent one.
fn send(stream: &TcpStream, seed: u64, at: u64, length: usize, urgent: usize) {
    let mut bytes = vec![0; length];
    stream::fill(seed, at, &mut bytes);
    let socket = SockRef::from(stream);
    // Held back until all is written, so that the mark arrives with bytes on both sides of it.
    socket.set_tcp_cork(true).expect("an option of a live socket");
    let (marked, rest) = bytes.split_at(urgent);
    assert_eq!(socket.send_out_of_band(marked).expect("an open connection"), urgent);
    assert_eq!(socket.send(rest).expect("an open connection"), rest.len());
    socket.set_tcp_cork(false).expect("an option of a live socket");
}

fn from(plane: &dyn Plane, sender: Side) {
    let stage = Stage::start(plane);
    let (sending, mut receiving) = stage.connect(sender);
    SockRef::from(&receiving).set_out_of_band_inline(true).expect("an option of a live socket");
    let mut at = 0;
    for round in 0..ROUNDS {
        let (length, urgent) = (1000 + round, 1 + 20 * round);
        send(&sending, sender.seed(), at, length, urgent);
        // Nothing follows before all of it has arrived: what stalls is seen.
        let until = at + length as u64;
        let (read, end) = read_on(&mut receiving, sender.seed(), at, until);
        assert_eq!((read, end), (until, None), "round {round} on {}", plane.name());
        at = until;
    }
    finish(&sending);
}

pub(crate) fn an_urgent_byte_from_the_client_is_one_of_the_stream(plane: &dyn Plane) {
    from(plane, Side::Client);
}

pub(crate) fn an_urgent_byte_from_the_backend_is_one_of_the_stream(plane: &dyn Plane) {
    from(plane, Side::Backend);
}
