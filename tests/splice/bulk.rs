//! Streams that never pause are handed over in a lull, early and in both directions.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lemonade_tests::skip::full;
use lemonade_tests::wait;

use crate::ends::{Pair, Scene};
use crate::stage::V4;

/// Bytes after which a stream repeats itself: a byte that is lost or comes twice shows, since no power of two divides it.
const BLOCK: usize = 1_000_003;

/// Bytes of a stream.
const BYTES: usize = 512 << 20;

fn block() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(5);
    (0..2 * BLOCK).map(|at| if at < BLOCK { random.u8(..) } else { 0 }).collect()
}

/// Twice the same, so that any part of a stream lies in one piece.
fn twice() -> Vec<u8> {
    let mut block = block();
    block.copy_within(..BLOCK, BLOCK);
    block
}

/// Sends a stream of so many bytes as fast as it is taken.
fn send(to: &mut TcpStream, block: &[u8], bytes: usize) {
    let mut at = 0;
    while at < bytes {
        let count = (bytes - at).min(256 << 10);
        to.write_all(&block[at % BLOCK..][..count]).expect("the connection lives");
        at += count;
    }
}

/// Receives it, and compares every byte; tells the longest time in which none came.
fn receive(from: &mut TcpStream, block: &[u8], bytes: usize) -> Duration {
    let (mut at, mut gap, mut buffer) = (0, Duration::ZERO, vec![0; 256 << 10]);
    let mut last = Instant::now();
    while at < bytes {
        let count = from.read(&mut buffer).expect("the bytes arrive");
        assert!(count > 0, "the stream ended at {at}");
        // The first bytes wait for the sender's thread.
        if at > 0 {
            gap = gap.max(last.elapsed());
        }
        last = Instant::now();
        assert!(buffer[..count] == block[at % BLOCK..][..count], "other bytes behind {at}");
        at += count;
    }
    gap
}

/// One stream on a new connection: bytes that were copied before the hand-over, and the longest time in which none came.
fn stream(scene: &Scene, upload: bool, block: &[u8]) -> (u64, Duration) {
    let before = scene.relay("bytes_total");
    let Pair { mut client, mut backend } = scene.connect(V4[0]);
    let (from, to) = if upload { (&mut client, &mut backend) } else { (&mut backend, &mut client) };
    let began = Instant::now();
    let gap = std::thread::scope(|scope| {
        scope.spawn(|| send(from, block, BYTES));
        receive(to, block, BYTES)
    });
    let took = began.elapsed();
    drop((client, backend));
    wait::until("its end is counted", wait::SOON, || scene.lemonade.metrics().connections().2 == 0);
    let copied = BYTES as u64 - (scene.relay("bytes_total") - before);
    println!("{copied} bytes copied, longest gap {gap:?}, {} MB/s", BYTES as u128 / took.as_micros());
    (copied, gap)
}

/// Streams of one direction: nearly all are handed over, and early.
fn streams(test: &str, upload: bool) {
    let Some(scene) = Scene::start(test, V4, |setup| setup) else { return };
    let (block, count) = (twice(), if full() { 60 } else { 12 });
    let early = (0..count).filter(|_| stream(&scene, upload, &block).0 < BYTES as u64 / 2).count();
    println!("{early} of {count} early, {} lulls", scene.relay("lulls_total"));
    assert!(early * 100 >= count * 90, "{early} of {count} were handed over early");
    assert!(scene.relay("lulls_total") > 0, "blocked: no stream needed a lull");
}

#[test]
fn downloads_that_never_pause_are_handed_over_early() {
    streams("downloads_that_never_pause_are_handed_over_early", false);
}

#[test]
fn uploads_that_never_pause_are_handed_over_early() {
    streams("uploads_that_never_pause_are_handed_over_early", true);
}
