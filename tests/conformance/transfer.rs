//! Streams of random sizes, 0 B to 64 MiB, in both directions at the same time.

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::plane::Plane;
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::{alone, full};
use lemonade_tests::transfer::{self, Transfer};
use lemonade_tests::wait;

/// Shares of the connections, and how many of them run at a time.
const PHASES: [(usize, usize); 4] = [(5, 1), (25, 8), (40, 64), (30, 256)];

pub(crate) fn streams_of_every_size_arrive_exact_in_both_directions(plane: &dyn Plane) {
    let _alone = alone();
    let seed = std::env::var("LEMONADE_SEED").map_or(20_260, |text| text.parse().expect("a number"));
    let (connections, budget) = if full() { (20_000, 64 << 30) } else { (1000, 1 << 30) };
    let place = plane.place();
    let backends = ["a", "b"].map(|name| place.enter(|any| Backend::start_speaking_on(name, any)));
    let served = plane.start(&Setup::single(&backends.each_ref().map(|backend| backend.address)));
    let plan = transfer::plan(seed, connections, budget);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let failures = runtime.expect("a runtime").block_on(async {
        let mut failures = Vec::new();
        let mut rest: &[Transfer] = &plan;
        for (share, concurrency) in PHASES {
            let (now, later) = rest.split_at((connections * share / 100).min(rest.len()));
            failures.extend(transfer::run(served.address(), now, concurrency).await);
            rest = later;
        }
        failures
    });

    let truths = || backends.iter().map(Backend::truth);
    let told = || truths().flat_map(|truth| truth.failures()).collect::<Vec<_>>();
    assert_eq!(
        failures,
        [""; 0],
        "{} of {connections} transfers failed, seed {seed}; the backends say {:?}",
        failures.len(),
        told()
    );
    wait::until("every connection ended at the backends", wait::SOON, || {
        truths().all(|truth| truth.live.load(std::sync::atomic::Ordering::Relaxed) == 0)
    });
    assert_eq!(told(), [""; 0], "seed {seed}");
    assert_eq!(truths().map(|truth| truth.served()).sum::<u64>(), connections as u64);
    if let Some(process) = served.process() {
        counters_agree(plane, process, &backends, connections as u64);
    }
}

/// What the process counted equals what the backends saw.
fn counters_agree(plane: &dyn Plane, process: &Lemonade, backends: &[Backend], connections: u64) {
    use std::sync::atomic::Ordering::Relaxed;
    wait::until("no connection is alive", wait::SOON, || process.metrics().connections().2 == 0);
    let sum = |field: fn(&Backend) -> u64| backends.iter().map(field).sum::<u64>();
    let truth = (sum(|b| b.truth().received.load(Relaxed)), sum(|b| b.truth().sent.load(Relaxed)));
    let metrics = process.metrics();
    if !plane.counts_packets() {
        assert_eq!(metrics.connections(), (connections, connections, 0));
        return assert_eq!(metrics.bytes(), truth, "bytes up and down");
    }
    // A handshake that meets a port in TIME_WAIT at the backend is reset there by the client, and tried again.
    let (opened, closed, _) = metrics.connections();
    assert_eq!(opened, closed);
    assert!((connections..=connections + handshakes_again()).contains(&opened), "{opened} were opened");
    // Headers, acknowledgements and what was sent again come on top.
    let within = |counted, bytes| (bytes..bytes + bytes / 10 + connections * 4_096).contains(&counted);
    wait::until("the bytes of packets are those of streams and their headers", wait::SOON, || {
        let (up, down) = process.metrics().bytes();
        within(up, truth.0) && within(down, truth.1)
    });
}

/// SYNs that clients in this network namespace have sent again.
fn handshakes_again() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("a Linux host");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let (_, value) = names.zip(values).find(|(name, _)| *name == "TCPSynRetrans").expect("Linux 3.12");
    value.parse().expect("a number")
}
