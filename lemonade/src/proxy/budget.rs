//! The retry budget: retries are a share of connects, over a floor, so that a dead pool does not multiply its load.

use crate::model::Moment;
use crate::model::cell::RetryTokens;

/// Retries per second that are always allowed.
const FLOOR_PER_SECOND: f64 = 10.0;

/// Seconds of floor and of share that may be saved up.
const SAVED_SECONDS: f64 = 10.0;

/// Share saved up at most, in retries.
const SAVED_SHARE: f64 = 1000.0;

/// A connect was made: its share is added (Finagle's `RetryBudget`: a deposit per request, a withdrawal per retry).
pub(super) fn deposit(tokens: &mut RetryTokens, share: f64, now: Moment) {
    refill(tokens, now);
    tokens.balance = (tokens.balance + share).min(SAVED_SHARE);
}

/// Takes one retry out, or says that there is none.
pub(super) fn withdraw(tokens: &mut RetryTokens, now: Moment) -> bool {
    refill(tokens, now);
    let allowed = tokens.balance >= 1.0;
    if allowed {
        tokens.balance -= 1.0;
    }
    allowed
}

fn refill(tokens: &mut RetryTokens, now: Moment) {
    let floor = FLOOR_PER_SECOND * SAVED_SECONDS;
    if tokens.at == Moment(0) {
        tokens.balance = floor;
    } else if tokens.balance < floor {
        tokens.balance = (tokens.balance + now.since(tokens.at).as_secs_f64() * FLOOR_PER_SECOND).min(floor);
    }
    tokens.at = now.max(Moment(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Retries allowed in ten seconds at `connects` per second, each asking for one retry.
    fn allowed(connects: u64, share: f64) -> u64 {
        let mut tokens = RetryTokens { balance: 0.0, at: Moment(1) };
        let mut retries = 0;
        for i in 0..connects * 10 {
            let now = Moment(1 + i * 1_000_000 / connects);
            deposit(&mut tokens, share, now);
            retries += u64::from(withdraw(&mut tokens, now));
        }
        retries
    }

    #[test]
    fn a_busy_pool_retries_its_share_and_the_floor() {
        let retries = allowed(1000, 0.2);
        assert!((2000..=2101).contains(&retries), "{retries}");
    }

    #[test]
    fn a_quiet_pool_always_has_the_floor() {
        assert_eq!(allowed(5, 0.0), 49, "all but the first, made before any token was there");
    }

    #[test]
    fn a_new_pool_starts_with_ten_seconds_of_floor() {
        let mut tokens = RetryTokens::default();
        let retries = (0..200).filter(|_| withdraw(&mut tokens, Moment(5))).count();
        assert_eq!(retries, 100);
    }
}
