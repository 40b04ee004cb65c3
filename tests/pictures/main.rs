//! The pictures of the guides: drawn by `cargo xtask pictures`, and compared here with what would be drawn now.

mod draw;
mod simulate;
mod top;

use std::fs;
use std::path::PathBuf;

use lemonade::model::StrategyKind;
use lemonade_tests::tools::root;

/// Where pictures are kept.
fn folder() -> PathBuf {
    root().join("docs/pictures")
}

/// Whether pictures are to be written, not compared.
fn writes() -> bool {
    std::env::var_os("LEMONADE_PICTURES").is_some()
}

#[test]
fn strategies_are_drawn_as_they_behave() {
    for kind in StrategyKind::ALL {
        let told = simulate::run(kind);
        let picture = draw::picture(kind, &told);
        let path = folder().join(format!("{}.svg", kind.as_str()));
        if writes() {
            fs::create_dir_all(folder()).expect("a writable folder");
            fs::write(&path, &picture).expect("a writable folder");
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == picture, "{} is out of date; run `cargo xtask pictures`", path.display());
    }
}

/// What the pictures show is what the guide says: those that measure leave the slow one, the others do not.
#[test]
fn strategies_that_measure_leave_the_slow_backend() {
    let share = |kind| simulate::run(kind).share(2, simulate::SLOW);
    assert!((0.32..0.35).contains(&share(StrategyKind::RoundRobin)));
    assert!((0.31..0.36).contains(&share(StrategyKind::SourceHash)));
    assert!((0.15..0.18).contains(&share(StrategyKind::WeightedRoundRobin)));
    for kind in [StrategyKind::LeastConnections, StrategyKind::FastestResponseTime, StrategyKind::Adaptive] {
        assert!(share(kind) < 0.2, "{}: {}", kind.as_str(), share(kind));
    }
}
