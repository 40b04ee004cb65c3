use std::time::Duration;

use proptest::prelude::*;

use super::*;

const PROBED: Policy = Policy { probed: true, rise: 2, fall: 3 };
const OFF: Policy = Policy { probed: false, rise: 2, fall: 3 };
const REFUSED: Input<'_> = Input::Probe(Err("connection refused"), Duration::ZERO);
const GOOD: Input<'_> = Input::Probe(Ok("HTTP 200"), Duration::ZERO);

fn seconds(s: u64) -> Moment {
    Moment(s * 1_000_000)
}

fn up(policy: Policy) -> Machine {
    Machine::new(Status::Up, policy, Moment(0))
}

fn feed(machine: &mut Machine, policy: Policy, inputs: &[Input<'_>]) -> Vec<Change> {
    inputs.iter().filter_map(|&input| machine.step(policy, Moment(1), input)).collect()
}

#[test]
fn falls_and_rises_at_its_thresholds_and_says_why() {
    let mut machine = up(PROBED);
    assert_eq!(feed(&mut machine, PROBED, &[REFUSED, REFUSED]), []);
    assert!(machine.unsure());
    let down = feed(&mut machine, PROBED, &[REFUSED]);
    assert_eq!(down[0].cause, "3 failed probes in a row: connection refused");
    assert!(!machine.unsure());
    assert_eq!(machine.streak(), -3);
    assert_eq!(feed(&mut machine, PROBED, &[GOOD, REFUSED, GOOD]), []);
    let back = feed(&mut machine, PROBED, &[GOOD]);
    assert_eq!((back[0].status, back[0].cause.as_str()), (Status::Up, "2 good probes in a row: HTTP 200"));
}

#[test]
fn a_backend_awaited_from_the_start_is_up_at_its_first_success_and_then_rises_by_the_rule() {
    let mut machine = Machine::new(Status::Down, PROBED, Moment(0));
    assert_eq!(feed(&mut machine, PROBED, &[REFUSED]), []);
    assert_eq!(feed(&mut machine, PROBED, &[GOOD])[0].status, Status::Up);
    assert_eq!(feed(&mut machine, PROBED, &[REFUSED, REFUSED, REFUSED])[0].status, Status::Down);
    assert_eq!(feed(&mut machine, PROBED, &[GOOD]), []);
}

#[test]
fn one_failure_does_not_flip() {
    let mut machine = up(PROBED);
    for _ in 0..50 {
        assert_eq!(feed(&mut machine, PROBED, &[REFUSED, REFUSED, GOOD]), []);
    }
}

#[test]
fn passive_failures_count_with_probes() {
    let mut machine = up(PROBED);
    let failed = Input::Passive(SignalKind::ConnectFailed);
    let down = feed(&mut machine, PROBED, &[REFUSED, failed, Input::Passive(SignalKind::ConnectTimedOut)]);
    assert_eq!(down[0].cause, "1 failed probe, 2 failed connects in a row: timed out");
}

#[test]
fn connects_that_succeed_do_not_hold_up_a_backend_whose_probes_fail() {
    let connected = Input::Passive(SignalKind::Connected);
    let mut machine = up(PROBED);
    assert_eq!(
        feed(&mut machine, PROBED, &[REFUSED, connected, REFUSED, connected, REFUSED])[0].status,
        Status::Down
    );
    assert_eq!(feed(&mut machine, PROBED, &[connected; 20]), []);
    assert_eq!(machine.status(), Status::Down);
}

#[test]
fn rare_failed_connects_of_a_busy_backend_do_not_add_up() {
    let mut machine = up(PROBED);
    let pair = [Input::Passive(SignalKind::ConnectFailed), Input::Passive(SignalKind::Connected)];
    assert_eq!(feed(&mut machine, PROBED, &pair.repeat(20)), []);
}

#[test]
fn resets_alone_only_make_it_unsure() {
    for policy in [PROBED, OFF] {
        let mut machine = up(policy);
        assert_eq!(feed(&mut machine, policy, &[Input::Passive(SignalKind::Reset); 20]), []);
        assert!(machine.unsure());
        let down = feed(&mut machine, policy, &[Input::Passive(SignalKind::ConnectFailed)]);
        assert_eq!(down[0].cause, "1 failed connect, 20 resets in a row: refused or unreachable");
    }
}

#[test]
fn unprobed_backend_returns_after_a_growing_back_off() {
    let mut machine = up(OFF);
    let failed = Input::Passive(SignalKind::ConnectFailed);
    let mut now = seconds(100);
    for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
        for _ in 0..3 {
            machine.step(OFF, now, failed);
        }
        assert_eq!(machine.status(), Status::Down);
        let back = machine.returns_at().expect("is down and unprobed");
        assert_eq!(back.since(now), Duration::from_secs(expected));
        assert_eq!(machine.tick(Moment(back.0 - 1)), None);
        assert_eq!(machine.tick(back).map(|change| change.status), Some(Status::Up));
        now = back;
    }
    // It held out for longer than its last back-off, so it starts over.
    now = now.plus(Duration::from_secs(61));
    for _ in 0..3 {
        machine.step(OFF, now, failed);
    }
    assert_eq!(machine.returns_at(), Some(now.plus(FIRST_BACK_OFF)));
}

#[test]
fn unprobed_backend_is_not_left_down_for_ever() {
    let waiting = Machine::new(Status::Down, OFF, seconds(5));
    assert_eq!(waiting.returns_at(), Some(seconds(6)));
    let mut probed = Machine::new(Status::Down, PROBED, seconds(5));
    assert_eq!(probed.returns_at(), None);
    probed.adopt(OFF, seconds(9));
    assert_eq!(probed.returns_at(), Some(seconds(10)));
    probed.adopt(PROBED, seconds(9));
    assert_eq!(probed.tick(seconds(99)), None);
}

#[test]
fn new_thresholds_keep_the_status() {
    let mut machine = up(PROBED);
    feed(&mut machine, PROBED, &[REFUSED; 3]);
    let strict = Policy { rise: 5, ..PROBED };
    machine.adopt(strict, Moment(2));
    assert_eq!(machine.status(), Status::Down);
    assert_eq!(feed(&mut machine, strict, &[GOOD; 4]), []);
    assert_eq!(feed(&mut machine, strict, &[GOOD]).len(), 1);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Good,
    Bad,
    Signal(SignalKind),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            3 => Just(Step::Good),
            3 => Just(Step::Bad),
            1 => Just(Step::Signal(SignalKind::Connected)),
            1 => Just(Step::Signal(SignalKind::ConnectFailed)),
            1 => Just(Step::Signal(SignalKind::ConnectTimedOut)),
            1 => Just(Step::Signal(SignalKind::Reset)),
        ],
        0..200,
    )
}

fn input(step: Step) -> Input<'static> {
    match step {
        Step::Good => GOOD,
        Step::Bad => REFUSED,
        Step::Signal(kind) => Input::Passive(kind),
    }
}

fn is_failure(step: Step) -> bool {
    !matches!(step, Step::Good | Step::Signal(SignalKind::Connected))
}

fn policies() -> impl Strategy<Value = Policy> {
    (any::<bool>(), 1..6u32, 1..6u32).prop_map(|(probed, rise, fall)| Policy { probed, rise, fall })
}

proptest! {
    /// P8: the status never flips below its threshold, whatever is mixed in.
    #[test]
    fn never_flips_below_its_threshold(policy in policies(), steps in steps(), initial in any::<bool>()) {
        let initial = if initial { Status::Up } else { Status::Down };
        let mut machine = Machine::new(initial, policy, Moment(0));
        let is_success = |step: Step| step == Step::Good
            || (!policy.probed && step == Step::Signal(SignalKind::Connected));
        let mut awaited = initial == Status::Down;
        for (n, &step) in steps.iter().enumerate() {
            let Some(change) = machine.step(policy, Moment(n as u64), input(step)) else { continue };
            let rise = if std::mem::take(&mut awaited) { 1 } else { policy.rise };
            let before = &steps[..=n];
            match change.status {
                Status::Down => {
                    let row = before.iter().rev().take_while(|&&s| !is_success(s));
                    let failures: Vec<_> = row.filter(|&&s| is_failure(s)).collect();
                    prop_assert!(failures.len() >= policy.fall as usize);
                    prop_assert!(failures.iter().any(|&&s| s != Step::Signal(SignalKind::Reset)));
                }
                Status::Up => {
                    let row = before.iter().rev().take_while(|&&s| !is_failure(s));
                    prop_assert!(row.filter(|&&s| is_success(s)).count() >= rise as usize);
                }
            }
        }
        prop_assert!(machine.outcomes().count() <= REMEMBERED);
    }

    /// P8, the other way: with probes alone it flips exactly when a threshold is reached.
    #[test]
    fn flips_exactly_at_its_threshold(rise in 1..6u32, fall in 1..6u32, oks in prop::collection::vec(any::<bool>(), 0..200)) {
        let policy = Policy { probed: true, rise, fall };
        let mut machine = Machine::new(Status::Up, policy, Moment(0));
        let mut expected = Status::Up;
        for (n, &ok) in oks.iter().enumerate() {
            machine.step(policy, Moment(n as u64), if ok { GOOD } else { REFUSED });
            let row = oks[..=n].iter().rev().take_while(|&&other| other == ok).count() as u32;
            if ok && row >= rise {
                expected = Status::Up;
            } else if !ok && row >= fall {
                expected = Status::Down;
            }
            prop_assert_eq!(machine.status(), expected);
            prop_assert_eq!(machine.unsure(), ok != (expected == Status::Up));
        }
    }
}
