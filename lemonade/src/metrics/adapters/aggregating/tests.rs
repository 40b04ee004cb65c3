//! Counters read exactly, and series that follow the table.

use std::sync::atomic::Ordering;

use lemonade_common::Reason;
use proptest::prelude::*;

use super::*;
use crate::metrics::fixture::{name, state};
use crate::model::Moment;

fn service(state: ControlState) -> (watch::Sender<Arc<ControlState>>, Arc<ProcessCell>, Aggregating) {
    let (sender, control) = watch::channel(Arc::new(state));
    let process = Arc::new(ProcessCell::default());
    let metrics = Aggregating::new(control, Arc::clone(&process));
    (sender, process, metrics)
}

/// Each cell gets a number of its own, so that no two can be taken for each other.
#[test]
fn a_snapshot_repeats_each_cell() {
    let state = state(&["web"], &["a", "b"]);
    let entry = Arc::clone(state.table.frontends.values().next().expect("one frontend"));
    let (_sender, process, metrics) = service(state);
    let (web, pool, b) = (&entry.cell, &entry.pool.cell, &entry.pool.backends[1].cell);
    let small = [&web.live, &process.live, &pool.queued, &b.live, &b.connecting];
    (1..).zip(small).for_each(|(number, cell)| cell.store(number, Ordering::Relaxed));
    let large = [
        &web.opened,
        &web.closed,
        &web.bytes_up,
        &web.bytes_down,
        &pool.retries,
        &pool.hedges,
        &pool.budget_exhausted,
        &b.picks,
        &b.opened,
        &b.failures,
        &b.resets,
        &b.bytes_up,
        &b.bytes_down,
        &process.opened,
        &process.closed,
        &process.accept_pauses,
        &process.events_dropped,
        &process.health_transitions,
        &process.probes,
        &process.reloads_accepted,
        &process.reloads_refused,
        &process.telemetry_dropped,
        &process.telemetry_failures,
    ];
    (11..).zip(large).for_each(|(number, cell)| cell.store(number, Ordering::Relaxed));
    (40..).zip(&web.refused).for_each(|(number, cell)| cell.store(number, Ordering::Relaxed));
    process.last_reload_failed.store(1, Ordering::Relaxed);
    web.connect_seconds.observe(1_500);
    web.session_seconds.observe(2_000_000);
    b.connect.observe(Duration::from_micros(250), Moment(0));
    b.first_byte.observe(Duration::from_micros(750), Moment(0));

    let snapshot = metrics.snapshot();
    assert_eq!((snapshot.table_version, snapshot.config_version), (7, 3));
    let seen = &snapshot.frontends[0];
    assert_eq!((seen.name.as_str(), seen.pool.as_str(), seen.live), ("web", "web", 1));
    assert_eq!([seen.opened, seen.closed, seen.bytes_up, seen.bytes_down], [11, 12, 13, 14]);
    assert_eq!(seen.refused, std::array::from_fn(|reason| 40 + reason as u64));
    assert_eq!((seen.connect_seconds.counts[4], seen.connect_seconds.sum), (1, 0.0015));
    assert_eq!((seen.session_seconds.counts[11], seen.session_seconds.sum), (1, 2.0));
    let seen = &snapshot.pools[0];
    assert_eq!([seen.queued, seen.retries, seen.hedges, seen.budget_exhausted], [3, 15, 16, 17]);
    assert_eq!(seen.backends[0].picks, 0);
    let seen = &seen.backends[1];
    assert_eq!((seen.name.as_str(), seen.address.as_str()), ("b", "192.0.2.1:80"));
    assert_eq!([seen.live, seen.connecting, seen.picks, seen.opened, seen.failures], [4, 5, 18, 19, 20]);
    assert_eq!([seen.resets, seen.bytes_up, seen.bytes_down], [21, 22, 23]);
    assert_eq!((seen.connect_us, seen.first_byte_us), (Some(250), Some(750)));
    let expected = ProcessCounters {
        live: 2,
        opened: 24,
        closed: 25,
        accept_pauses: 26,
        events_dropped: 27,
        health_transitions: 28,
        probes: 29,
        reloads_accepted: 30,
        reloads_refused: 31,
        telemetry_dropped: 32,
        telemetry_failures: 33,
        last_reload_failed: true,
    };
    assert_eq!(snapshot.process, expected);
}

#[test]
fn what_a_removed_frontend_counted_goes_with_it_and_the_process_total_stays() {
    let (sender, process, metrics) = service(state(&["web", "old"], &["a"]));
    process.opened.store(10, Ordering::Relaxed);
    metrics.sample();
    assert_eq!(metrics.series(Some(&name("old"))).samples.len(), 1);

    sender.send_replace(Arc::new(state(&["web"], &["a"])));
    metrics.sample();
    assert!(metrics.series(Some(&name("old"))).samples.is_empty());
    assert_eq!(metrics.snapshot().frontends.len(), 1);
    assert_eq!(metrics.snapshot().process.opened, 10);
    assert_eq!(metrics.series(None).samples.iter().map(|sample| sample.opened).sum::<u64>(), 10);
}

#[test]
fn more_frontends_than_the_limit_leave_the_process_series_only() {
    let names: Vec<String> = (0..=MAX_FRONTEND_SERIES).map(|i| format!("f{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (sender, _process, metrics) = service(state(&names[1..], &["a"]));
    metrics.sample();
    assert_eq!(metrics.series(Some(&name("f1"))).samples.len(), 1);
    sender.send_replace(Arc::new(state(&names, &["a"])));
    metrics.sample();
    assert!(metrics.series(Some(&name("f1"))).samples.is_empty());
    assert_eq!(metrics.series(None).samples.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_sample_is_taken_each_second_until_stop() {
    let (_sender, _process, metrics) = service(state(&["web"], &["a"]));
    let metrics = Arc::new(metrics);
    let stop = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&metrics).run(stop.clone()));
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    assert_eq!(metrics.series(None).samples.len(), 5);
    stop.cancel();
    task.await.expect("the sampler ends without a panic");
}

proptest! {
    /// The samples of a series add up to the counter, and a ring never holds more than it should.
    #[test]
    fn samples_add_up_to_the_counters(steps in prop::collection::vec((0_u64..50, 0_u64..5, 0_u64..9_999), 1..KEPT)) {
        let state = state(&["web"], &["a"]);
        let cell = Arc::clone(&state.table.frontends.values().next().expect("one frontend").cell);
        let (_sender, process, metrics) = service(state);
        for (opened, refused, bytes) in &steps {
            process.opened.fetch_add(*opened, Ordering::Relaxed);
            cell.opened.fetch_add(*opened, Ordering::Relaxed);
            cell.refused[Reason::NoPorts.index()].fetch_add(*refused, Ordering::Relaxed);
            cell.bytes_down.fetch_add(*bytes, Ordering::Relaxed);
            metrics.sample();
        }
        for series in [metrics.series(None), metrics.series(Some(&name("web")))] {
            let sum = |field: fn(&Sample) -> u64| series.samples.iter().map(field).sum::<u64>();
            prop_assert_eq!(sum(|s| s.opened), steps.iter().map(|s| s.0).sum::<u64>());
            prop_assert_eq!(sum(|s| s.refused), steps.iter().map(|s| s.1).sum::<u64>());
            prop_assert_eq!(sum(|s| s.bytes_down), steps.iter().map(|s| s.2).sum::<u64>());
        }
        for _ in 0..KEPT {
            metrics.sample();
        }
        prop_assert_eq!(metrics.series(None).samples, vec![Sample::default(); KEPT]);
    }
}
