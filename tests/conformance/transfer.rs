//! Streams of random sizes, 0 B to 64 MiB, in both directions at the same time.

use lemonade_tests::backend::Backend;
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
    let backends = [Backend::start_speaking("a"), Backend::start_speaking("b")];
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
        counters_agree(process, &backends, connections as u64);
    }
}

/// What the process counted equals what the backends saw.
fn counters_agree(process: &lemonade_tests::lemonade::Lemonade, backends: &[Backend], connections: u64) {
    use std::sync::atomic::Ordering::Relaxed;
    wait::until("no connection is alive", wait::SOON, || process.metrics().connections().2 == 0);
    let metrics = process.metrics();
    assert_eq!(metrics.connections(), (connections, connections, 0));
    let sum = |field: fn(&Backend) -> u64| backends.iter().map(field).sum::<u64>();
    let truth = (sum(|b| b.truth().received.load(Relaxed)), sum(|b| b.truth().sent.load(Relaxed)));
    assert_eq!(metrics.bytes(), truth, "bytes up and down");
}
