use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;
const PACE: Pace = Pace { interval: Duration::from_secs(2), fast: Duration::from_millis(500) };

/// A run of the schedule against a clock of its own: probes take `took` and answer at once.
struct Run {
    schedule: Schedule,
    random: u64,
    now: Moment,
    starts: Vec<(Moment, BackendIx)>,
}

impl Run {
    fn new(per_second: u32) -> Self {
        Self { schedule: Schedule::new(per_second), random: 1, now: Moment(0), starts: Vec::new() }
    }

    fn entropy(&mut self) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random
    }

    fn add(&mut self, backends: std::ops::Range<u32>, pace: Pace) {
        for ix in backends {
            let entropy = self.entropy();
            self.schedule.insert(BackendIx(ix), pace, self.now, entropy);
        }
    }

    /// Runs until `until`; the timer fires up to `tick` late, as a real one does.
    fn until(&mut self, until: Moment, tick: u64) {
        loop {
            match self.schedule.next(self.now) {
                Next::Start(ticket) => {
                    self.starts.push((self.now, ticket.backend));
                    let entropy = self.entropy();
                    self.schedule.finish(ticket, self.now, entropy);
                }
                Next::At(at) if at <= until => self.now = Moment(at.0.next_multiple_of(tick)),
                Next::At(_) | Next::Idle => break,
            }
        }
        self.now = self.now.max(until);
    }

    fn most_in_a_second(&self) -> usize {
        let mut first = 0;
        let mut most = 0;
        for (n, &(at, _)) in self.starts.iter().enumerate() {
            while self.starts[first].0.0 + SECOND < at.0 {
                first += 1;
            }
            most = most.max(n + 1 - first);
        }
        most
    }

    fn gaps(&self, backend: BackendIx) -> Vec<Duration> {
        let own: Vec<_> =
            self.starts.iter().filter(|start| start.1 == backend).map(|start| start.0).collect();
        own.windows(2).map(|pair| pair[1].since(pair[0])).collect()
    }
}

#[test]
fn intervals_are_kept_within_a_tenth() {
    let mut run = Run::new(1000);
    run.add(0..100, PACE);
    run.until(Moment(20 * SECOND), 1);
    for ix in 0..100 {
        for gap in run.gaps(BackendIx(ix)) {
            assert!((1.79..2.25).contains(&gap.as_secs_f64()), "{gap:?}");
        }
    }
    assert_eq!(run.schedule.stretch_changed(), None);
}

#[test]
fn first_probes_are_spread() {
    let mut run = Run::new(1000);
    run.add(0..200, PACE);
    run.until(Moment(2 * SECOND), 1);
    let early = run.starts.iter().filter(|(at, _)| at.0 < SECOND).count();
    assert!((60..140).contains(&early), "{early} of 200 in the first half of the interval");
}

#[test]
fn a_small_budget_stretches_every_interval_alike_and_says_so_once() {
    let mut run = Run::new(50);
    run.add(0..1000, PACE);
    let Some(Stretch::Begins(factor)) = run.schedule.stretch_changed() else { panic!("not told") };
    assert!((10.0..10.3).contains(&factor), "{factor}");
    assert_eq!(run.schedule.stretch_changed(), None);
    run.until(Moment(200 * SECOND), 1000);
    for ix in 0..1000 {
        let gaps = run.gaps(BackendIx(ix));
        // The first cycle still settles; later gaps are the stretched interval, within jitter and queueing.
        for gap in &gaps[2..] {
            assert!((15.0..30.0).contains(&gap.as_secs_f64()), "{ix}: {gaps:?}");
        }
    }
    for ix in 80..1000 {
        run.schedule.remove(BackendIx(ix));
    }
    assert_eq!(run.schedule.stretch_changed(), Some(Stretch::Ends));
    assert_eq!(run.schedule.stretch_changed(), None);
}

#[test]
fn unsure_brings_the_next_probe_forward() {
    let mut run = Run::new(100);
    run.add(0..1, PACE);
    run.until(Moment(10 * SECOND), 1);
    run.schedule.mood(BackendIx(0), true, run.now, u64::MAX);
    let Next::At(at) = run.schedule.next(run.now) else { panic!("is waiting") };
    assert!(at.since(run.now) <= Duration::from_millis(551));
}

#[test]
fn adding_backends_leaves_the_others_timing_alone() {
    let mut run = Run::new(1000);
    run.add(0..50, PACE);
    let before = run.schedule.due.clone();
    run.add(0..50, PACE);
    run.add(50..51, PACE);
    assert!(run.schedule.due.is_superset(&before));
    run.schedule.remove(BackendIx(50));
    assert_eq!(run.schedule.due, before);
}

#[test]
fn a_new_interval_is_taken_on_without_waiting_for_the_old_one() {
    let mut run = Run::new(1000);
    let hour = Duration::from_secs(3600);
    run.add(0..1, Pace { interval: hour, fast: hour });
    run.add(0..1, PACE);
    let Next::At(at) = run.schedule.next(Moment(0)) else { panic!("is waiting") };
    assert!(at.0 <= 22 * SECOND / 10);
}

#[test]
fn a_probe_of_a_removed_backend_is_void() {
    let mut schedule = Schedule::new(10);
    schedule.insert(BackendIx(1), PACE, Moment(0), 0);
    let Next::Start(old) = schedule.next(Moment(0)) else { panic!("is due") };
    schedule.remove(BackendIx(1));
    assert!(!schedule.holds(old));
    schedule.insert(BackendIx(1), PACE, Moment(2), 0);
    let Next::Start(new) = schedule.next(Moment(SECOND)) else { panic!("is due") };
    schedule.finish(old, Moment(SECOND), 0);
    assert_eq!(schedule.next(Moment(SECOND)), Next::Idle);
    assert!(schedule.holds(new));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// In no second more probes start than the budget and one, however many backends come, go and turn unsure.
    #[test]
    fn never_bursts(
        per_second in 1..400u32,
        backends in 1..3000u32,
        tick in 1..5_000u64,
        moods in prop::collection::vec((0..3000u32, any::<bool>()), 0..500),
    ) {
        let mut run = Run::new(per_second);
        run.add(0..backends / 2, PACE);
        run.until(Moment(3 * SECOND), tick);
        run.add(backends / 2..backends, Pace { interval: Duration::from_millis(100), ..PACE });
        for (ix, unsure) in moods {
            let entropy = run.entropy();
            run.schedule.mood(BackendIx(ix), unsure, run.now, entropy);
        }
        run.until(Moment(6 * SECOND), tick);
        prop_assert!(run.most_in_a_second() <= per_second as usize + 1);
    }

    /// Nobody starves: each backend is probed again within its stretched interval and a little.
    #[test]
    fn nobody_starves(per_second in 5..50u32, backends in 1..200u32) {
        let mut run = Run::new(per_second);
        run.add(0..backends, PACE);
        let stretched = run.schedule.stretch() * 2.0;
        run.until(Moment((stretched * 5e6) as u64), 100);
        for ix in 0..backends {
            let gaps = run.gaps(BackendIx(ix));
            prop_assert!(gaps.len() >= 2, "{ix}: {gaps:?}");
            prop_assert!(gaps.iter().all(|gap| gap.as_secs_f64() < stretched * 2.0 + 0.5), "{gaps:?} {stretched}");
        }
    }
}
