//! Property P9: any sequence of reloads ends on the last valid one.

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::call;
use lemonade_tests::setup::{Backend as Entry, Setup, letter};
use lemonade_tests::wait;
use proptest::prelude::*;
use rustix::process::Signal;

/// One step of a sequence.
#[derive(Clone, Debug)]
enum Step {
    /// A valid configuration: which of four backends are in it, and its strategy.
    Good { backends: u8, adaptive: bool },
    /// A text that is refused.
    Bad(&'static str),
    /// Ask again for what is there.
    Hangup,
    /// Let the process see what is there.
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..16u8, any::<bool>()).prop_map(|(backends, adaptive)| Step::Good { backends, adaptive }),
        2 => prop_oneof![
            Just(""), Just("[frontend.web]"), Just("nonsense = 1"), Just("[[["), Just("\u{0}"),
        ].prop_map(Step::Bad),
        1 => Just(Step::Hangup),
        1 => Just(Step::Pause),
    ]
}

fn good(servers: &[Backend], members: u8, adaptive: bool) -> Setup {
    let mut setup = Setup::single(&[]);
    let members = servers.iter().enumerate().filter(|(n, _)| members >> n & 1 == 1);
    setup.pools[0].backends = members.map(|(n, server)| Entry::new(&letter(n), server.address)).collect();
    let strategy = if adaptive { "adaptive" } else { "round_robin" };
    setup.pool(&[&format!("strategy = \"{strategy}\"")])
}

#[test]
fn any_sequence_of_reloads_ends_on_the_last_valid_one() {
    let servers = Backend::several(4);
    let lemonade = Lemonade::start(&good(&servers, 0b1111, false));
    let web = lemonade.address("web");
    let mut config = ProptestConfig::with_cases(12);
    config.failure_persistence = None;
    config.max_shrink_iters = 20;
    proptest!(config, |(steps in prop::collection::vec(step(), 1..12))| {
        let mut last = (0b1111, false);
        lemonade.write(&good(&servers, last.0, last.1).text(lemonade.folder()));
        lemonade.signal(Signal::HUP);
        let mut valid_at_the_end = true;
        // A version that was never seen, because another one took its place at once, cannot be the last good one.
        for step in &steps {
            match step {
                Step::Good { backends, adaptive } => {
                    lemonade.write(&good(&servers, *backends, *adaptive).text(lemonade.folder()));
                    last = (*backends, *adaptive);
                    valid_at_the_end = true;
                }
                Step::Bad(text) => {
                    settle(&lemonade, last, valid_at_the_end);
                    lemonade.write(text);
                    valid_at_the_end = false;
                }
                Step::Hangup => lemonade.signal(Signal::HUP),
                Step::Pause => settle(&lemonade, last, valid_at_the_end),
            }
        }
        settle(&lemonade, last, valid_at_the_end);
        let name = call(web).expect("a call is answered");
        prop_assert!((0..4).any(|n| last.0 >> n & 1 == 1 && letter(n) == name), "{} answered", name);
    });
}

/// Waits until the status shows the last valid configuration, and the refusal of a later bad one.
fn settle(lemonade: &Lemonade, (members, adaptive): (u8, bool), valid: bool) {
    let mut expected: Vec<String> = (0..4).filter(|n| members >> n & 1 == 1).map(letter).collect();
    expected.sort();
    let strategy = if adaptive { "adaptive" } else { "round_robin" };
    wait::until(&format!("{strategy} over {expected:?}, valid: {valid}"), wait::SOON, || {
        let status = lemonade.status();
        let mut backends = status.backends("web");
        backends.sort();
        backends == expected
            && status.pool("web")["strategy"] == strategy
            && status.reload_error().is_none() == valid
    });
}
