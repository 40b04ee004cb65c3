//! Sequences of configurations through the pure core: parse, compile, plan, apply, with the promises checked after
//! each step. The fuzz target `reload` and the replay of its corpus share this.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use lemonade::config::{Accepted, parse_after, parse_text};
use lemonade::control::compile::compile;
use lemonade::control::plan::plan;
use lemonade::control::table::DispatchTable;
use lemonade::health::port::HealthView;
use lemonade::model::config::Status;
use lemonade::model::{Config, Resolution};
use lemonade::proxy::adapters::model::Image;

/// Begins the line between two configurations; the rest of it names backends that are down after the next one.
const SEPARATOR: &str = "===";

/// Flows whose answers are compared.
const FLOWS: usize = 48;

/// What became of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Configurations accepted.
    pub accepted: u64,
    /// Configurations refused.
    pub refused: u64,
}

/// Replays `sequence`.
///
/// # Panics
/// When a promise is broken: a refused text changes nothing; a live index keeps its meaning and none is used twice;
/// each prefix of a plan answers each flow as one of the two tables does; the whole plan leads to the new table; a plan
/// to the same table is empty; the last valid configuration is in force; a text read as a change of the last valid one is
/// what it is when read as a whole.
pub fn replay(sequence: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let mut table = DispatchTable::default();
    let mut image = Image::default();
    let mut last: Option<Arc<Config>> = None;
    let mut right: Option<Accepted> = None;
    for (down, text) in steps(sequence) {
        let file = Path::new("sequence.toml");
        let read = parse_text(file, &text, &[]);
        let shorter_way = parse_after(right.as_ref(), file, &text, &[]);
        match (&read, &shorter_way) {
            (Ok(read), Ok(shorter)) => assert_eq!(read, shorter, "read as a change"),
            (Err(read), Err(shorter)) => {
                assert_eq!(read.to_string(), shorter.to_string(), "read as a change")
            }
            (read, shorter) => panic!("whole: {read:?}\nas a change: {shorter:?}"),
        }
        match read {
            Err(error) => {
                assert!(!error.diagnostics.is_empty(), "refused without a reason");
                outcome.refused += 1;
            }
            Ok(config) => {
                outcome.accepted += 1;
                last = Some(Arc::new(config));
                right = last.clone().map(|config| Accepted { text, config });
                // The first table of a configuration knows no probe yet; then health speaks.
                table = follow(&mut image, table, last.as_ref(), outcome.accepted, &HealthView::default());
                let health = health(&table, &down);
                table = follow(&mut image, table, last.as_ref(), outcome.accepted, &health);
            }
        }
        assert_eq!(table.config, last, "the last valid configuration is in force");
    }
    outcome
}

/// Configurations with the backends that are down after each.
fn steps(sequence: &str) -> Vec<(BTreeSet<String>, String)> {
    let mut steps = vec![(BTreeSet::new(), String::new())];
    for line in sequence.lines() {
        if let Some(down) = line.strip_prefix(SEPARATOR) {
            steps.push((down.split_whitespace().map(str::to_owned).collect(), String::new()));
        } else if let Some((_, text)) = steps.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    steps
}

fn health(table: &DispatchTable, down: &BTreeSet<String>) -> HealthView {
    let backends = table.pools.values().flat_map(|pool| &pool.backends);
    let status = |name: &str| if down.contains(name) { Status::Down } else { Status::Up };
    HealthView { statuses: backends.map(|entry| (entry.ix, status(entry.backend.name.as_str()))).collect() }
}

/// Compiles the table after `previous`, checks it, and takes `image` to it step by step.
fn follow(
    image: &mut Image,
    previous: DispatchTable,
    config: Option<&Arc<Config>>,
    version: u64,
    health: &HealthView,
) -> DispatchTable {
    let config = config.expect("a configuration was accepted");
    let next = compile(config, version, health, &Resolution::default(), &previous);
    assert_eq!(next.version, previous.version + 1);
    identities_are_kept(&previous, &next);

    let flows = flows(&previous, &next);
    let answers =
        |image: &Image| -> Vec<_> { flows.iter().map(|&(from, to)| image.answer(from, to)).collect() };
    let target = {
        let mut fresh = Image::default();
        plan(&DispatchTable::default(), &next).into_iter().for_each(|op| fresh.apply(op));
        answers(&fresh)
    };
    let before = answers(image);
    for op in plan(&previous, &next) {
        let step = op.to_string();
        image.apply(op);
        for ((now, flow), (old, new)) in answers(image).iter().zip(&flows).zip(before.iter().zip(&target)) {
            assert!(
                now == old || now == new,
                "after {step:?} flow {flow:?} got {now:?}, not {old:?} or {new:?}"
            );
        }
    }
    assert_eq!(answers(image), target, "the plan leads to the new table");
    assert!(plan(&next, &next).is_empty(), "a plan to the same table is empty");
    next
}

fn identities_are_kept(previous: &DispatchTable, next: &DispatchTable) {
    let backends = |table: &DispatchTable| -> Vec<_> {
        table.pools.values().flat_map(|pool| pool.backends.clone()).collect()
    };
    let old = backends(previous);
    let mut used = BTreeSet::new();
    for entry in backends(next) {
        assert!(used.insert(entry.ix.0), "index {:?} is used twice", entry.ix);
        match old.iter().find(|before| before.id == entry.id) {
            Some(before) => {
                assert_eq!(before.ix, entry.ix, "{} keeps its index", entry.id);
                assert!(Arc::ptr_eq(&before.cell, &entry.cell), "{} keeps its counters", entry.id);
            }
            None => assert!(entry.ix.0 >= previous.next_ix, "the index of {} was used before", entry.id),
        }
    }
    for entry in next.frontends.values() {
        assert!(used.insert(entry.ix.0), "index {:?} is used twice", entry.ix);
        let name = &entry.frontend.name;
        match previous.frontends.values().find(|before| before.frontend.name == *name) {
            Some(before) => {
                assert_eq!(before.ix, entry.ix, "{name} keeps its index");
                assert!(Arc::ptr_eq(&before.cell, &entry.cell), "{name} keeps its counters");
            }
            None => assert!(entry.ix.0 >= previous.next_ix, "the index of {name} was used before"),
        }
    }
}

/// Flows to addresses of both tables, from several clients each.
fn flows(previous: &DispatchTable, next: &DispatchTable) -> Vec<(SocketAddr, SocketAddr)> {
    let listened = |table: &DispatchTable| -> BTreeSet<SocketAddr> {
        table.frontends.values().flat_map(|entry| entry.frontend.listen.clone()).collect()
    };
    let addresses = &listened(previous) | &listened(next);
    let clients = (1..=3).map(|n| SocketAddr::from(([192, 0, 2, n], 40_000 + u16::from(n))));
    clients.flat_map(|client| addresses.iter().map(move |&address| (client, address))).take(FLOWS).collect()
}
