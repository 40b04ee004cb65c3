//! The two strategies that go by latency: exploration, staleness, errors and herding.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Bench;
use crate::model::{BackendCell, StrategyKind};

const KINDS: [StrategyKind; 2] = [StrategyKind::FastestResponseTime, StrategyKind::Adaptive];

#[test]
fn long_connections_do_not_count_as_slow_ones() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, &[1, 1]).measured(&[200, 200], &[1000, 9000]);
        // The sessions of the fast one last for an hour and move gigabytes; only its first bytes tell its speed.
        bench.cell(0).bytes_down.store(1 << 40, Ordering::Relaxed);
        assert_eq!(bench.picks(20), [0; 20], "{kind:?}");
    }
}

#[test]
fn a_backend_without_samples_is_explored_by_one_and_then_gets_its_share() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, &[10, 10, 1]).measured(&[100, 100], &[1000, 1000]);
        let first = (0..50).position(|_| bench.pick() == Some(2));
        assert!(first.is_some(), "{kind:?} never explored it");
        bench.cell(2).acquire(0);
        let mut herd = 0;
        for _ in 0..200 {
            herd += usize::from(bench.hold() == Some(2));
        }
        assert!(herd <= 200 / 21 + 3, "{kind:?}: {herd} on a backend nobody has measured");
    }
}

#[test]
fn a_connect_time_without_first_byte_does_not_pass_for_a_fast_answer() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, &[1, 1]).measured(&[100], &[20_000]);
        bench.cell(1).connect.observe(Duration::from_micros(100), bench.now);
        let mut live = [0, 0];
        for _ in 0..100 {
            live[bench.hold().expect("both are eligible")] += 1;
        }
        assert!(live[1] <= 55, "{kind:?}: {live:?}");
    }
}

#[test]
fn a_backend_that_was_slow_once_is_tried_again_one_connection_at_a_time() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, &[1, 1]).measured(&[100, 100], &[1000, 500_000]);
        assert_eq!(bench.picks(50), [0; 50], "{kind:?}");
        let mut tried = Vec::new();
        for millis in 0..150_000 {
            bench.wait(Duration::from_millis(1));
            let position = bench.pick().expect("both are eligible");
            if position == 1 {
                tried.push(millis);
            } else {
                bench.cell(0).first_byte.observe(Duration::from_millis(1), bench.now);
            }
        }
        assert!(!tried.is_empty(), "{kind:?} starves it");
        assert!(tried.windows(2).all(|pair| pair[1] - pair[0] > 1000), "{kind:?} herds: {tried:?}");
    }
}

#[test]
fn adaptive_avoids_what_fails_fast() {
    let mut bench = Bench::new(StrategyKind::Adaptive, &[1, 1]).measured(&[1000, 10], &[5000, 5000]);
    bench.cell(0).live.store(2, Ordering::Relaxed);
    assert_eq!(bench.picks(10), [1; 10]);
    for _ in 0..10 {
        bench.cell(1).failed(bench.now);
    }
    bench.cell(1).retry_at.store(0, Ordering::Relaxed);
    assert_eq!(bench.picks(10), [0; 10], "few connections are no merit of a backend that fails");
    bench.wait(Duration::from_secs(60));
    assert!(bench.picks(50).contains(&1), "it is tried again");
}

#[test]
fn two_choices_do_not_herd_on_a_fast_newcomer() {
    // 1,000 picks by workers that all believe the same stale averages, one of them far better than the rest.
    for kind in KINDS {
        let mut bench = Bench::new(kind, &[1; 10]).measured(&[100; 10], &[10_000; 10]);
        bench.candidates[3].cell = Arc::new(BackendCell::default());
        bench.cell(3).connect.observe(Duration::from_micros(100), bench.now);
        bench.cell(3).first_byte.observe(Duration::from_micros(100), bench.now);
        let mut live = [0; 10];
        for _ in 0..1000 {
            live[bench.hold().expect("all are eligible")] += 1;
        }
        // Of random pairs of ten, one in five holds the newcomer; four standard deviations above that.
        assert!(live[3] <= 200 + 51, "{kind:?}: {live:?}");
        assert!(live.iter().all(|&live| live >= 50), "{kind:?}: {live:?}");
    }
}

#[test]
fn two_choices_balance_equal_backends_closely() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, &[1; 16]).measured(&[100; 16], &[1000; 16]);
        for _ in 0..16 * 100 {
            bench.hold();
        }
        let live = (0..16).map(|position| bench.cell(position).live.load(Ordering::Relaxed));
        let highest = live.max().expect("there are backends");
        assert!(
            highest <= 104,
            "{kind:?}: {highest} where 100 is fair (ln ln 16 / ln 2 above it is the theory)"
        );
    }
}
