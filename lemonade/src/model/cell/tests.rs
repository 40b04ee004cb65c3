use super::*;

const START: Moment = Moment(1_000_000);

#[test]
fn back_off_doubles_to_ten_seconds_and_ends_with_a_success() {
    let cell = BackendCell::default();
    let mut pauses = Vec::new();
    let mut now = START;
    for _ in 0..40 {
        cell.failed(now);
        assert!(cell.backing_off(now));
        let until = Moment(cell.retry_at.load(Ordering::Relaxed));
        pauses.push(until.since(now).as_millis());
        now = until;
        assert!(!cell.backing_off(now));
    }
    assert_eq!(pauses[..9], [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    assert_eq!(pauses[39], 10_000);

    cell.failed(now);
    cell.connected(Duration::from_millis(3), now);
    assert!(!cell.backing_off(now));
    assert_eq!(cell.streak.load(Ordering::Relaxed), 0);
    assert_eq!(cell.connect.read(), Some(Duration::from_millis(3)));
    cell.failed(now);
    assert_eq!(cell.retry_at.load(Ordering::Relaxed), now.plus(FIRST_BACK_OFF).0);
}

#[test]
fn a_burst_of_failures_is_one_step() {
    let cell = BackendCell::default();
    for after in 0..50 {
        cell.failed(START.plus(Duration::from_millis(after)));
    }
    assert_eq!(cell.retry_at.load(Ordering::Relaxed), START.plus(FIRST_BACK_OFF).0);
    assert_eq!(cell.streak.load(Ordering::Relaxed), 1);
    assert!(cell.failure_ratio.read(START) > 0.99);
}

#[test]
fn slots_end_at_the_limit() {
    let cell = BackendCell::default();
    assert!(cell.acquire(2) && cell.acquire(2));
    assert!(!cell.acquire(2));
    cell.release();
    assert!(cell.acquire(2));
}

#[test]
fn what_tcp_tells_stands_in_for_the_time_of_connects() {
    let cell = BackendCell::default();
    let millis = Duration::from_millis;
    let at = |seconds| START.plus(Duration::from_secs(seconds));
    cell.connected(millis(30), START);
    cell.told(millis(40), at(1));
    cell.connected(millis(90), at(2));
    assert_eq!(cell.connect.read(), Some(millis(40)), "the proxy's own delay");
    // Nobody told for a while.
    cell.connected(millis(90), at(7));
    assert_eq!(cell.connect.read(), Some(millis(90)));
}

#[test]
fn the_first_that_tcp_tells_replaces_what_the_proxy_had_measured() {
    let cell = BackendCell::default();
    let micros = Duration::from_micros;
    cell.connected(micros(900), START);
    cell.told(micros(20), START.plus(Duration::from_secs(1)));
    assert_eq!(cell.connect.read(), Some(micros(20)), "a slow first connect does not stay with a newcomer");
}
