//! Slow readers: the sender is pressed back, memory stays bounded, and no byte is lost when reading goes on.

use std::net::TcpStream;
use std::time::Duration;

use lemonade_tests::plane::Plane;
use lemonade_tests::skip::{alone, full};
use lemonade_tests::trace::{Event, Length, finish, read_to_end, write_exactly, write_for};
use lemonade_tests::{socket, stream};

use crate::stages::{DOWN, Side, Stage};

const PAIRS: usize = 64;
/// With `LEMONADE_FULL=1`: so many, as far as the host's TCP memory goes, pressed for so long.
const FULL: (u64, Duration) = (200, Duration::from_secs(60));
/// What the kernel holds at most of one pair whose reader has stopped, in bytes, with its own overhead.
const HELD: u64 = 12 << 20;
/// What a relay may hold of one direction whose reader has stopped, in bytes, less than its `relay_buffer` on average.
const RELAY_BUFFER: u64 = 64 << 10;
/// What tasks, sockets and the allocator may cost beside the relay buffers.
const SLACK: u64 = 24 << 20;

pub(crate) fn stopped_readers_press_back_and_cost_bounded_memory(plane: &dyn Plane) {
    let room = || {
        let most = memory_without_pressure().map_or(PAIRS as u64, |memory| FULL.0.min(memory / HELD));
        usize::try_from(most).expect("a small number")
    };
    stopped_readers(plane, if full() { room() } else { PAIRS });
}

/// A single one, for relays that have to be quicker than the machine is busy.
pub(crate) fn a_stopped_reader_presses_back(plane: &dyn Plane) {
    stopped_readers(plane, 1);
}

fn stopped_readers(plane: &dyn Plane, count: usize) {
    let _alone = alone();
    let stage = Stage::start(plane);
    let mut pairs: Vec<(TcpStream, TcpStream)> = (0..count).map(|_| stage.connect(Side::Backend)).collect();
    let before = stage.served.process().map(|process| process.resident());
    if full() {
        for (backend, client) in &pairs {
            socket::small_buffers(backend);
            socket::small_buffers(client);
        }
    }

    // The kernel's buffers on every hop at their largest, plus what the relay may hold.
    let limit = plane.hops() * (kernel_limit("tcp_rmem") + kernel_limit("tcp_wmem")) + RELAY_BUFFER;
    let least = if full() { FULL.1 } else { Duration::ZERO };
    let taken: Vec<u64> = std::thread::scope(|scope| {
        let writers =
            pairs.iter_mut().map(|(backend, _)| scope.spawn(move || write_for(backend, DOWN, limit, least)));
        let writers: Vec<_> = writers.collect();
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });

    if let (Some(process), Some(before)) = (stage.served.process(), before) {
        let now = process.resident();
        let cap = before + count as u64 * 2 * RELAY_BUFFER + SLACK;
        assert!(now <= cap, "{now} bytes resident with {count} stopped readers; {before} before, cap {cap}");
    }
    for ((backend, client), taken) in pairs.iter_mut().zip(taken) {
        finish(backend);
        assert_eq!(read_to_end(client, DOWN, Length::Exact), [Event::Bytes(taken), Event::Fin]);
    }
}

/// Largest buffer that the kernel gives a socket, in bytes, with its own overhead allowed for.
fn kernel_limit(name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).expect("a Linux host");
    text.split_whitespace().last().and_then(|n| n.parse().ok()).expect("three numbers")
}

/// Bytes that all TCP sockets of the host may hold before the kernel presses on them; only its first network namespace tells.
fn memory_without_pressure() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").ok()?;
    let pages: u64 = text.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("three numbers");
    Some(pages * rustix::param::page_size() as u64)
}

pub(crate) fn a_trickling_reader_gets_every_byte(plane: &dyn Plane) {
    const BYTES: u64 = 24 << 20;
    let stage = Stage::start(plane);
    let (mut backend, mut client) = stage.connect(Side::Backend);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            write_exactly(&mut backend, DOWN, BYTES).expect("the client reads, slowly");
            finish(&backend);
            assert_eq!(read_to_end(&mut backend, 0, Length::Exact), [Event::Bytes(0), Event::Fin]);
        });
        let mut random = fastrand::Rng::with_seed(5);
        let mut buffer = vec![0; 256 << 10];
        let mut at = 0;
        loop {
            let want = random.usize(1..buffer.len());
            match socket::read(&mut client, &mut buffer[..want]).expect("the backend sends") {
                0 => break,
                n => stream::check(DOWN, at, &buffer[..n]).map(|()| at += n as u64).expect("every byte"),
            }
            if random.u8(..) < 64 {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        assert_eq!(at, BYTES);
        finish(&client);
    });
}
