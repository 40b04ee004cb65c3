//! Sequence numbers that begin anew behind 2^32, in each of the four streams of numbers that a spliced flow has.

use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use lemonade_tests::skip::full;
use lemonade_tests::socket::reset;
use lemonade_tests::trace::{read_up_to, write_exactly, write_until_blocked};
use lemonade_tests::wait;

use crate::ends::{Pair, Scene};
use crate::stage::V4;

/// So near to 2^32 that a connection gets there soon.
const NEAR: u32 = 16 << 20;

/// Connections that are tried at most.
const TRIES: usize = 20_000;

/// What a socket sends next, and what it receives next.
fn places(stream: &TcpStream) -> [u32; 2] {
    const REPAIR_QUEUE: [libc::c_int; 2] = [2, 1];
    let tcp = libc::IPPROTO_TCP;
    let set = |option: libc::c_int, value: libc::c_int| {
        let size = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the option is one int, valid for the call.
        let result =
            unsafe { libc::setsockopt(stream.as_raw_fd(), tcp, option, (&raw const value).cast(), size) };
        assert_eq!(result, 0, "root may repair sockets");
    };
    set(libc::TCP_REPAIR, 1);
    let places = REPAIR_QUEUE.map(|queue| {
        set(libc::TCP_REPAIR_QUEUE, queue);
        let mut place = 0_u32;
        let mut size = size_of_val(&place) as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes, which is what `place` has.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                tcp,
                libc::TCP_QUEUE_SEQ,
                (&raw mut place).cast(),
                &raw mut size,
            )
        };
        assert_eq!(result, 0, "a socket in repair tells its numbers");
        place
    });
    set(libc::TCP_REPAIR, -1);
    places
}

/// Bytes until each of a connection's numbers begins anew: of what the client sends and is sent, then of the backend.
fn distances(pair: &Pair) -> [u32; 4] {
    let ([a, b], [c, d]) = (places(&pair.client), places(&pair.backend));
    [a, b, c, d].map(|place| 0_u32.wrapping_sub(place))
}

/// Sends `bytes` from one end to the other, who compares them.
fn pump((from, to): (&mut TcpStream, &mut TcpStream), seed: u64, bytes: u64) {
    std::thread::scope(|scope| {
        scope.spawn(|| write_exactly(from, seed, bytes).expect("the connection lives"));
        assert_eq!(read_up_to(to, seed, bytes), (bytes, None));
    });
}

impl Pair {
    /// Its ends, first the one whose bytes number `at` of [`distances`] counts.
    fn towards(&mut self, at: usize) -> (&mut TcpStream, &mut TcpStream) {
        match at {
            0 | 3 => (&mut self.client, &mut self.backend),
            _ => (&mut self.backend, &mut self.client),
        }
    }

    fn until_spliced(&mut self, scene: &Scene, before: u64) {
        wait::until("the connection is spliced", wait::SOON, || {
            self.exchange(64);
            scene.relay("promoted_total") > before
        });
    }

    /// Number `at` begins anew when the proxy has just begun to look for a moment to hand over.
    fn pass_during(&mut self, scene: &Scene, at: usize) {
        let before = scene.relay("promoted_total");
        // Nothing is handed over while bytes wait the other way.
        let waiting = write_until_blocked(self.towards(at).1, 7, 256 << 20);
        let distance = distances(self)[at];
        pump(self.towards(at), 8, u64::from(distance) - 300);
        assert_eq!(scene.relay("promoted_total"), before);
        assert_eq!(read_up_to(self.towards(at).0, 7, waiting), (waiting, None));
        self.until_spliced(scene, before);
    }

    /// Number `at` begins anew when packets pass by.
    fn pass_after(&mut self, scene: &Scene, at: usize) {
        let before = scene.relay("promoted_total");
        self.until_spliced(scene, before);
        let distance = distances(self)[at];
        pump(self.towards(at), 9, u64::from(distance) + 100_000);
    }
}

#[test]
fn numbers_that_begin_anew_during_and_after_the_hand_over_cost_no_byte() {
    let test = "numbers_that_begin_anew_during_and_after_the_hand_over_cost_no_byte";
    let Some(scene) = Scene::start(test, V4, |setup| setup) else { return };
    // By the number, and whether it is passed before or behind the hand-over.
    let mut left = [[if full() { 10 } else { 1 }; 2]; 4];
    for _ in 0..TRIES {
        let mut pair = scene.connect(V4[0]);
        let found = distances(&pair);
        let near = |at: &usize| (10_000..NEAR).contains(&found[*at]) && left[*at] != [0; 2];
        let Some(at) = (0..4).find(near) else {
            reset(pair.client);
            continue;
        };
        if left[at][0] > 0 {
            left[at][0] -= 1;
            pair.pass_during(&scene, at);
        } else {
            left[at][1] -= 1;
            pair.pass_after(&scene, at);
        }
        pair.exchange(50_000);
        assert!(distances(&pair)[at] > 1 << 31, "number {at} has not begun anew");
        if left == [[0; 2]; 4] {
            return;
        }
    }
    panic!("blocked: of {TRIES} connections none was near enough: {left:?}");
}

#[test]
fn a_long_stream_in_one_spliced_flow_arrives_exact() {
    let test = "a_long_stream_in_one_spliced_flow_arrives_exact";
    let Some(scene) = Scene::start(test, V4, |setup| setup) else { return };
    let mut pair = scene.spliced(V4[0]);
    // More than all numbers that there are.
    let bytes = if full() { 9 << 29 } else { 64 << 20 };
    pump((&mut pair.client, &mut pair.backend), 1, bytes);
    pump((&mut pair.backend, &mut pair.client), 2, bytes);
    pair.exchange(1_000);
}
