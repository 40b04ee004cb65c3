//! Counters read exactly, and series that follow the table.

use std::sync::atomic::Ordering;

use lemonade_common::Reason;
use proptest::prelude::*;

use super::*;
use crate::metrics::fixture::{name, state};

fn service(state: ControlState) -> (watch::Sender<Arc<ControlState>>, Arc<ProcessCell>, Aggregating) {
    let (sender, control) = watch::channel(Arc::new(state));
    let process = Arc::new(ProcessCell::default());
    let metrics = Aggregating::new(control, Arc::clone(&process));
    (sender, process, metrics)
}

#[test]
fn a_snapshot_repeats_each_cell() {
    let state = state(&["web"], &["a", "b"]);
    let entry = Arc::clone(state.table.frontends.values().next().expect("one frontend"));
    let (_sender, process, metrics) = service(state);
    entry.cell.opened.store(9, Ordering::Relaxed);
    entry.cell.closed.store(4, Ordering::Relaxed);
    entry.cell.live.store(5, Ordering::Relaxed);
    entry.cell.refused[Reason::QueueFull.index()].store(2, Ordering::Relaxed);
    entry.cell.connect_seconds.observe(1_500);
    entry.pool.cell.hedges.store(3, Ordering::Relaxed);
    entry.pool.backends[1].cell.picks.store(11, Ordering::Relaxed);
    process.events_dropped.store(8, Ordering::Relaxed);

    let snapshot = metrics.snapshot();
    let web = &snapshot.frontends[0];
    assert_eq!((web.opened, web.closed, web.live), (9, 4, 5));
    assert_eq!(web.refused.iter().sum::<u64>(), 2);
    assert_eq!(web.connect_seconds.counts.iter().sum::<u64>(), 1);
    assert!((web.connect_seconds.sum - 0.0015).abs() < 1e-12);
    assert_eq!(snapshot.pools[0].hedges, 3);
    assert_eq!(snapshot.pools[0].backends.iter().map(|backend| backend.picks).collect::<Vec<_>>(), [0, 11]);
    assert_eq!(snapshot.pools[0].backends[1].address, "192.0.2.1:80");
    assert_eq!((snapshot.process.events_dropped, snapshot.config_version), (8, 3));
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
