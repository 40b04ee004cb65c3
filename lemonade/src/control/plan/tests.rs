use super::*;
use crate::control::compile::tests::{backend, config, frontend, next, pool};
use crate::health::port::HealthView;
use crate::model::config::Status;
use crate::model::{Backend, Config, Frontend, Pool, StrategyKind};

fn news(previous: &DispatchTable, next: &DispatchTable) -> Vec<String> {
    plan(previous, next).iter().filter(|op| op.is_news()).map(ToString::to_string).collect()
}

fn after(config: &Arc<Config>, previous: &DispatchTable) -> DispatchTable {
    next(config, &HealthView::default(), previous)
}

#[test]
fn the_journal_says_what_changed_and_nothing_else() {
    let start = config([pool("web", [backend("a", 1), backend("b", 2)])], [frontend("web", 8080, "web")]);
    let first = after(&start, &DispatchTable::default());
    assert_eq!(
        news(&DispatchTable::default(), &first),
        [
            "pool web: backend a added (10.0.0.1:80)",
            "pool web: backend b added (10.0.0.2:80)",
            "pool web added: strategy round_robin",
            "frontend web added: pool web",
            "frontend web: listens on 127.0.0.1:8080",
        ]
    );
    let a = Backend { weight: 3, ..backend("a", 1) };
    let changed = config(
        [Pool { strategy: StrategyKind::Adaptive, ..pool("web", [a]) }],
        [Frontend { idle_timeout: std::time::Duration::from_secs(90), ..frontend("web", 8081, "web") }],
    );
    let second = after(&changed, &first);
    assert_eq!(
        news(&first, &second),
        [
            "backend web/a: weight 1 -> 3",
            "pool web: strategy round_robin -> adaptive",
            "frontend web: idle_timeout 1m -> 1m 30s",
            "frontend web: listens on 127.0.0.1:8081",
            "frontend web: listens no more on 127.0.0.1:8080",
            "pool web: backend b removed",
        ]
    );
    let ix = second.pools["web"].backends[0].ix;
    let ill = next(&changed, &HealthView { statuses: [(ix, Status::Down)].into() }, &second);
    assert_eq!(news(&second, &ill), ["backend web/a up -> down"]);
}

#[test]
fn a_port_that_changes_hands_is_never_without_an_owner() {
    let pools = || [pool("x", [backend("a", 1)]), pool("y", [backend("b", 2)])];
    let before =
        after(&config(pools(), [frontend("f", 80, "x"), frontend("g", 81, "y")]), &DispatchTable::default());
    let swapped = after(&config(pools(), [frontend("f", 81, "x"), frontend("g", 80, "y")]), &before);
    assert_eq!(
        news(&before, &swapped),
        ["frontend g: takes 127.0.0.1:80 from f", "frontend f: takes 127.0.0.1:81 from g"]
    );
}
