//! Waiting for conditions instead of for time.

use std::time::{Duration, Instant};

/// Bound of a wait that ends within milliseconds on a quiet machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `ready` holds.
///
/// # Panics
/// When it does not within `bound`; the message carries `what`.
pub fn until(what: &str, bound: Duration, mut ready: impl FnMut() -> bool) {
    for_some(what, bound, || ready().then_some(()));
}

/// Waits until `look` finds something and returns it.
///
/// # Panics
/// When it does not within `bound`; the message carries `what`.
pub fn for_some<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + bound;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`until`], from asynchronous code.
///
/// # Panics
/// When it does not hold within `bound`; the message carries `what`.
pub async fn until_async(what: &str, bound: Duration, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + bound;
    while !ready() {
        assert!(Instant::now() < end, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
