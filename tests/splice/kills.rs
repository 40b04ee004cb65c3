//! Killed again and again under load: no spliced flow breaks.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::skip::full;
use lemonade_tests::{stream, wait};
use rustix::process::Signal;

use crate::ends::Scene;
use crate::killed::{TURN, listed, until_on};
use crate::stage::{V4, parse};

/// Bytes of a question, of every second conversation.
const SIZES: [usize; 2] = [200, 40_000];

/// Conversations that last from the first to the last kill, and those that begin shortly before each.
const LASTING: usize = 10;
const YOUNG: usize = 10;

/// Time without an answer after which a conversation is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Echoes until its client is gone.
fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// A conversation that goes on until it is told to stop.
struct Talk {
    client: SocketAddr,
    stop: Arc<AtomicBool>,
    /// Longest time without an answer since it was asked last.
    gap: Arc<Mutex<Duration>>,
    thread: JoinHandle<Result<(), String>>,
}

impl Talk {
    fn start(network: &Network, number: usize) -> Self {
        let stream = network.client.enter(|| TcpStream::connect(parse(V4[0])).expect("a connection"));
        stream.set_nodelay(true).expect("a live socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        let client = stream.local_addr().expect("a live socket");
        let (stop, gap) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Duration>>::default());
        let (told, longest) = (Arc::clone(&stop), Arc::clone(&gap));
        let thread = std::thread::spawn(move || talk(stream, number, &told, &longest));
        Self { client, stop, gap, thread }
    }

    fn gap(&self) -> Duration {
        std::mem::take(&mut *self.gap.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stop(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

fn talk(
    mut stream: TcpStream,
    number: usize,
    stop: &AtomicBool,
    gap: &Mutex<Duration>,
) -> Result<(), String> {
    let (seed, size) = (number as u64, SIZES[number % 2]);
    let (mut sent, mut got) = (vec![0; size], vec![0; size]);
    let (mut at, mut last) = (0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        stream::fill(seed, at, &mut sent);
        stream.write_all(&sent).map_err(|error| format!("a question at {at}: {error}"))?;
        stream.read_exact(&mut got).map_err(|error| format!("an answer at {at}: {error}"))?;
        stream::check(seed, at, &got).map_err(|wrong| format!("{wrong:?}"))?;
        at += size as u64;
        let mut longest = gap.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = longest.max(last.elapsed());
        drop(longest);
        last = Instant::now();
        std::thread::sleep(Duration::from_millis(1 + number as u64 % 3));
    }
    Ok(())
}

/// Clients of connections that the process has spliced.
fn spliced(scene: &Scene) -> BTreeSet<SocketAddr> {
    let list = listed(scene);
    let own = list.iter().filter(|own| own["relay"] == "splice");
    own.map(|own| own["client"].as_str().and_then(|text| text.parse().ok()).expect("an address")).collect()
}

#[test]
fn killed_under_load_it_breaks_no_spliced_flow() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(network) = Network::start("killed_under_load_it_breaks_no_spliced_flow") else { return };
    let listener = network.backends.enter(|| TcpListener::bind(parse(V4[1])).expect("a free port"));
    let mut setup = Setup::single(&[listener.local_addr().expect("a bound socket")]);
    setup.frontends[0] = Frontend::on("web", V4[0], "web");
    let setup = setup.frontend(&["relay = \"splice\""]);
    let lemonade = network.balancer.enter(|| Lemonade::start(&setup));
    let accepting = listener.try_clone().expect("a live socket");
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in accepting.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            std::thread::spawn(move || echo(stream));
        }
    });
    let mut scene = Scene { network, listener, lemonade };
    until_on(&scene);
    let lasting: Vec<Talk> = (0..LASTING).map(|number| Talk::start(&scene.network, number)).collect();
    wait::until("they are spliced", wait::SOON, || spliced(&scene).len() == LASTING);
    std::thread::sleep(Duration::from_millis(500));
    lasting.iter().map(Talk::gap).for_each(|_| ());
    std::thread::sleep(Duration::from_secs(2));
    let calm = lasting.iter().map(Talk::gap).max().unwrap_or_default();
    let kills = if full() { 100 } else { 10 };
    let (mut gaps, mut young, mut broken) = (Vec::new(), 0, Vec::new());
    for kill in 0..kills {
        until_on(&scene);
        let talks: Vec<Talk> =
            (0..YOUNG).map(|number| Talk::start(&scene.network, 100 + kill * YOUNG + number)).collect();
        // Some are handed over now, some were and some will have been.
        std::thread::sleep(Duration::from_millis(fastrand::u64(10..80)));
        let known = spliced(&scene);
        lasting.iter().map(Talk::gap).for_each(|_| ());
        scene.lemonade.signal(Signal::KILL);
        scene.lemonade.wait(wait::SOON);
        std::thread::sleep(Duration::from_millis(100));
        let Scene { network, lemonade, .. } = &mut scene;
        network.balancer.enter(|| lemonade.restart());
        let taken = spliced(&scene);
        assert!(known.is_subset(&taken), "kill {kill}: {known:?} were spliced, {taken:?} were taken over");
        std::thread::sleep(Duration::from_millis(200));
        gaps.push(lasting.iter().map(Talk::gap).max().unwrap_or_default());
        for talk in talks {
            let client = talk.client;
            match talk.stop() {
                Err(why) if taken.contains(&client) => broken.push(format!("kill {kill}: {why}")),
                // The process has copied its bytes.
                Err(_) => {}
                Ok(()) => young += 1,
            }
        }
        wait::until("the young ones have ended", wait::SOON, || spliced(&scene).len() == LASTING);
    }
    let outcomes: Vec<String> = lasting.into_iter().filter_map(|talk| talk.stop().err()).collect();
    gaps.sort();
    println!(
        "{kills} kills: {} of {LASTING} lasting flows broken, {young} young ones lived on and {} broke; longest gap {:?}, median of the kills' longest {:?}, longest without a kill {calm:?}",
        outcomes.len(),
        broken.len(),
        gaps.last().copied().unwrap_or_default(),
        gaps[gaps.len() / 2]
    );
    assert_eq!((outcomes, broken), (Vec::new(), Vec::new()));
    assert!(young > 0, "blocked: no young flow was spliced when the process was killed");
}
