//! Streams that never pause are handed over in a lull, early and in both directions.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lemonade_tests::skip::full;
use lemonade_tests::wait;
use rustix::process::Signal;

use crate::ends::{Pair, Scene};
use crate::killed::{TURN, restart, until_on};
use crate::stage::{V4, V6};

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
fn stream(scene: &Scene, frontend: &str, upload: bool, bytes: usize, block: &[u8]) -> (u64, Duration) {
    let before = scene.relay("bytes_total");
    let Pair { mut client, mut backend } = scene.connect(frontend);
    let (from, to) = if upload { (&mut client, &mut backend) } else { (&mut backend, &mut client) };
    let began = Instant::now();
    let gap = std::thread::scope(|scope| {
        scope.spawn(|| send(from, block, bytes));
        receive(to, block, bytes)
    });
    let took = began.elapsed();
    drop((client, backend));
    wait::until("its end is counted", wait::SOON, || scene.lemonade.metrics().connections().2 == 0);
    let copied = bytes as u64 - (scene.relay("bytes_total") - before);
    println!("{copied} bytes copied, longest gap {gap:?}, {} MB/s", bytes as u128 / took.as_micros());
    (copied, gap)
}

/// Streams of one direction: nearly all are handed over, and early.
fn streams(test: &str, addresses: [&str; 2], upload: bool) {
    let Some(scene) = Scene::start(test, addresses, |setup| setup) else { return };
    let (block, count) = (twice(), if full() { 60 } else { 12 });
    let streams: Vec<(u64, Duration)> =
        (0..count).map(|_| stream(&scene, addresses[0], upload, BYTES, &block)).collect();
    let early = streams.iter().filter(|(copied, _)| *copied < BYTES as u64 / 2).count();
    let forgotten = streams.iter().filter(|(_, gap)| *gap > FORGOTTEN).count();
    println!("{early} of {count} early, {} lulls", scene.relay("lulls_total"));
    assert!(early * 100 >= count * 90, "{early} of {count} were handed over early");
    assert!(forgotten * 4 <= count, "{forgotten} of {count} had to ask for their window");
    assert!(scene.relay("lulls_total") > 0, "blocked: no stream needed a lull");
}

#[test]
fn downloads_that_never_pause_are_handed_over_early() {
    streams("downloads_that_never_pause_are_handed_over_early", V4, false);
}

#[test]
fn uploads_that_never_pause_are_handed_over_early() {
    streams("uploads_that_never_pause_are_handed_over_early", V6, true);
}

#[test]
fn streams_with_losses_arrive_exact() {
    let patient = ["connect_timeout = \"30s\"", "user_timeout = \"2m\""];
    let test = "streams_with_losses_arrive_exact";
    let Some(scene) = Scene::start(test, V4, |setup| setup.frontend(&patient)) else { return };
    for namespace in [&scene.network.client, &scene.network.balancer, &scene.network.backends] {
        namespace.filter("meta l4proto tcp numgen random mod 100 < 1 drop");
    }
    let block = twice();
    let each = if full() { 20 } else { 4 };
    for upload in [false, true] {
        for _ in 0..each {
            stream(&scene, V4[0], upload, 48 << 20, &block);
        }
    }
    let spliced = scene.relay("promoted_total");
    println!("{} lulls, {spliced} of {} handed over", scene.relay("lulls_total"), 2 * each);
    // A lull in which a packet is lost comes to nothing.
    assert!(spliced >= each, "{spliced} of {} were handed over", 2 * each);
}

/// Segments that the client's host loses, and their bytes: while one is missing, the balancer holds what came behind it, and
/// nothing can be handed over.
const PARTS: usize = 10;
const PART: usize = 777 - 20 - 32;

/// A time without bytes that a window which is not opened costs: its sender asks after 200 ms.
const FORGOTTEN: Duration = Duration::from_millis(150);

/// Sends from the client what gets lost, and something behind it.
fn leave_a_hole(client: &mut TcpStream, block: &[u8]) {
    for part in block[..PARTS * PART].chunks(PART) {
        client.write_all(part).expect("the connection lives");
    }
    client.write_all(&block[PARTS * PART..][..300]).expect("the connection lives");
}

#[test]
fn a_lull_that_comes_to_nothing_is_over_soon() {
    let test = "a_lull_that_comes_to_nothing_is_over_soon";
    let Some(scene) = Scene::start(test, V4, |setup| setup) else { return };
    let (block, stop) = (twice(), AtomicBool::new(false));
    let Pair { mut client, mut backend } = scene.connect(V4[0]);
    let lossy = scene.network.client.fault("to_balancer", "swallow");
    leave_a_hole(&mut client, &block);
    let (bytes, forgotten, vain) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut at = 0;
            while !stop.load(Ordering::Relaxed) {
                let count = (&backend).write(&block[at % BLOCK..][..64 << 10]).expect("the connection lives");
                at += count;
            }
            backend.shutdown(std::net::Shutdown::Write).expect("a live socket");
            at
        });
        let receiver = scope.spawn(|| {
            let (mut at, mut forgotten, mut buffer) = (0, 0, vec![0; 256 << 10]);
            loop {
                let began = Instant::now();
                let count = (&client).read(&mut buffer).expect("the bytes arrive");
                forgotten += u64::from(at > 0 && began.elapsed() > FORGOTTEN);
                if count == 0 {
                    return (at, forgotten);
                }
                assert!(buffer[..count] == block[at % BLOCK..][..count], "other bytes behind {at}");
                at += count;
            }
        });
        wait::until("lulls come to nothing", wait::SOON, || scene.relay("lulls_total") >= 3);
        let vain = scene.relay("lulls_total");
        assert_eq!(scene.relay("promoted_total"), 0, "it was handed over with a hole in a stream");
        wait::until("the stream is spliced", wait::SOON, || scene.relay("promoted_total") == 1);
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("it has sent");
        let (received, forgotten) = receiver.join().expect("it has received");
        assert_eq!(sent, received);
        (sent, forgotten, vain)
    });
    println!("{bytes} bytes, {vain} lulls in vain, {forgotten} long waits");
    assert!(forgotten < vain, "{forgotten} windows were not opened in time, of {vain}");
    let mut got = vec![0; PARTS * PART + 300];
    backend.read_exact(&mut got).expect("the bytes arrive");
    assert!(got == block[..got.len()]);
    drop(lossy);
}

#[test]
fn killed_in_a_lull_it_leaves_nobody_waiting() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut scene) = Scene::start("killed_in_a_lull_it_leaves_nobody_waiting", V4, |setup| setup) else {
        return;
    };
    let block = twice();
    for round in 0..3 {
        let Pair { mut client, backend } = scene.connect(V4[0]);
        let lossy = scene.network.client.fault("to_balancer", "swallow");
        leave_a_hole(&mut client, &block);
        backend.set_write_timeout(Some(wait::SOON)).expect("a live socket");
        let (ended, told) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                loop {
                    if let Err(error) = (&backend).write(&block[..64 << 10]) {
                        return error.kind();
                    }
                }
            });
            let receiver = scope.spawn(|| {
                let mut buffer = vec![0; 256 << 10];
                while matches!((&client).read(&mut buffer), Ok(1..)) {}
                Instant::now()
            });
            // A lull in vain lasts for 20 ms.
            while scene.relay("lulls_total") == 0 {
                std::thread::yield_now();
            }
            assert_eq!(scene.relay("promoted_total"), 0);
            scene.lemonade.signal(Signal::KILL);
            let killed = Instant::now();
            let told = sender.join().expect("it sees the end");
            (receiver.join().expect("it sees the end").saturating_duration_since(killed), told)
        });
        println!("round {round}: the client saw the end {ended:?} later, the backend {told:?}");
        assert!(
            matches!(told, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe),
            "{told}"
        );
        assert!(ended < Duration::from_secs(5), "{ended:?}");
        drop(lossy);
        scene.lemonade.wait(wait::SOON);
        restart(&mut scene);
        until_on(&scene);
    }
}
