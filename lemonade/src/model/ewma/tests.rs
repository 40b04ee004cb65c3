use super::*;

fn at(seconds: f64) -> Moment {
    Moment((seconds * 1e6) as u64)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_peak_replaces_the_average_and_decays_by_time() {
    let average = PeakEwma::default();
    assert_eq!(average.read(), None);
    assert_eq!(average.decayed(at(1.0), Moment(0)), None);
    average.observe(ms(10), at(1.0));
    average.observe(ms(100), at(1.0));
    assert_eq!(average.read(), Some(ms(100)));
    average.observe(ms(10), at(11.0));
    let expected = 100.0 / std::f64::consts::E + 10.0 * (1.0 - 1.0 / std::f64::consts::E);
    let seen = average.read().unwrap().as_secs_f64() * 1e3;
    assert!((seen - expected).abs() < 0.01, "{seen} instead of {expected}");
    assert_eq!(average.sampled_at_ms(), Some(11_000));
}

#[test]
fn a_stale_average_fades_until_it_is_tried() {
    let average = PeakEwma::default();
    average.observe(ms(100), at(1.0));
    let faded = average.decayed(at(21.0), Moment(0)).unwrap();
    assert!((faded / 1e5 - (-2.0_f64).exp()).abs() < 1e-3, "{faded}");
    assert_eq!(average.decayed(at(21.0), at(21.0)), Some(1e5), "a trial restores it");
    assert_eq!(average.read(), Some(ms(100)), "reading changes nothing");
}

#[test]
fn the_wrap_of_the_clock_is_seamless() {
    let average = PeakEwma::default();
    let wrap = f64::from(u32::MAX) / 1e3;
    average.observe(ms(100), at(wrap - 5.0));
    let faded = average.decayed(at(wrap + 5.0), at(wrap - 5.0)).unwrap();
    assert!((faded / 1e5 - (-1.0_f64).exp()).abs() < 1e-3, "{faded}");
}

#[test]
fn a_late_sample_does_not_turn_the_clock_back() {
    let average = PeakEwma::default();
    average.observe(ms(10), at(5.0));
    average.observe(ms(20), at(4.0));
    assert_eq!((average.sampled_at_ms(), average.read()), (Some(5_000), Some(ms(20))));
    average.observe(ms(1), at(4.0));
    assert_eq!(average.read(), Some(ms(20)));
}

#[test]
fn failures_raise_the_ratio_and_time_or_success_lowers_it() {
    let ratio = FailureRatio::default();
    assert_eq!(ratio.read(at(1.0)), 0.0);
    let mut last = 0.0;
    for _ in 0..50 {
        ratio.observe(true, at(1.0));
        let now = ratio.read(at(1.0));
        assert!(now > last || now > 0.999, "{last} -> {now}");
        last = now;
    }
    assert!((0.99..=1.0).contains(&last));
    assert!(ratio.read(at(60.0)) < 0.01);
    ratio.observe(false, at(1.0));
    assert!(ratio.read(at(1.0)) < last);
}

#[test]
fn no_sample_of_any_thread_is_lost() {
    let ratio = FailureRatio::default();
    let peak = PeakEwma::default();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (ratio, peak) = (&ratio, &peak);
            scope.spawn(move || {
                for sample in 0..1000 {
                    ratio.observe(true, at(1.0));
                    peak.observe(Duration::from_micros(1 + sample * 4 + thread), at(1.0));
                }
            });
        }
    });
    assert_eq!(peak.read(), Some(Duration::from_micros(1 + 999 * 4 + 3)), "the peak of all threads stays");
    assert!(ratio.read(at(1.0)) > 0.999);
}
