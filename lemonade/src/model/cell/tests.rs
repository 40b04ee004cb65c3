use super::*;

const START: Moment = Moment(1_000_000);

#[test]
fn back_off_doubles_to_ten_seconds_and_ends_with_a_success() {
    let cell = BackendCell::default();
    let mut pauses = Vec::new();
    for _ in 0..40 {
        cell.failed(START);
        pauses.push((cell.retry_at.load(Ordering::Relaxed) - START.0) / 1000);
    }
    assert_eq!(pauses[..9], [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    assert_eq!(pauses[39], 10_000);
    assert!(cell.backing_off(START));
    assert!(!cell.backing_off(START.plus(LONGEST_BACK_OFF)));

    cell.connected(Duration::from_millis(3), START);
    assert!(!cell.backing_off(START));
    assert_eq!(cell.streak.load(Ordering::Relaxed), 0);
    assert_eq!(cell.connect.read(), Some(Duration::from_millis(3)));
    cell.failed(START);
    assert_eq!(cell.retry_at.load(Ordering::Relaxed), START.plus(FIRST_BACK_OFF).0);
}

#[test]
fn a_late_report_does_not_shorten_the_back_off() {
    let cell = BackendCell::default();
    cell.streak.store(5, Ordering::Relaxed);
    cell.failed(START.plus(Duration::from_secs(5)));
    let until = cell.retry_at.load(Ordering::Relaxed);
    cell.streak.store(0, Ordering::Relaxed);
    cell.failed(START);
    assert_eq!(cell.retry_at.load(Ordering::Relaxed), until);
}

#[test]
fn slots_end_at_the_limit() {
    let cell = BackendCell::default();
    assert!(cell.acquire(2) && cell.acquire(2));
    assert!(!cell.acquire(2));
    cell.release();
    assert!(cell.acquire(2));
}
