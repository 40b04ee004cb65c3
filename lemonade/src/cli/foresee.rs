//! What would happen: `explain` and `plan`.

use std::fmt::Write as _;
use std::path::Path;

use crate::admin::client::TIMEOUT;
use crate::admin::foresee::{Explained, ExplainedFrontend, Planned, PlannedShare};
use crate::admin::table::{Column, Row, count, table};
use crate::admin::words::clean;

use super::ask::{Answer, Instance, Trouble, print_json, query, read};
use super::{print, screen};

pub(super) fn explain(client: String, frontend: Option<String>, json: bool, instance: &Instance) -> Answer {
    let pairs = [("client", Some(client.clone())), ("frontend", frontend)];
    let found: Explained = instance.read(&query("/api/v1/explain", &pairs))?;
    if json {
        return print_json(&found);
    }
    let mut text =
        format!("table version {}, configuration version {}\n", found.table_version, found.config_version);
    for own in &found.frontends {
        text.push('\n');
        text.push_str(&explained(&client, own));
    }
    Ok(print(text.as_bytes())?)
}

const STANDING: [Column; 7] = [
    Column::text("  BACKEND"),
    Column::address("ADDRESS"),
    Column::number("WEIGHT"),
    Column::number("LIVE"),
    Column::number("COST"),
    Column::number("SHARE"),
    Column::text("IN"),
];

fn explained(client: &str, own: &ExplainedFrontend) -> String {
    let ExplainedFrontend { frontend, pool, strategy, next, why, needs_port, backends } = own;
    let mut text = format!("frontend {frontend}, pool {pool}, {strategy}\n");
    let client = clean(client);
    text.push_str(&match next {
        Some(backend) => format!("the next connection of {client} goes to {pool}/{backend}: {why}\n"),
        None if *needs_port => format!("the next connection of {client}: {why}\n"),
        None => format!("the next connection of {client} gets no backend now: {why}\n"),
    });
    if backends.iter().any(|backend| backend.cost.is_some()) {
        text.push_str(&format!("COST is by the formula of {strategy}; lower is better\n"));
    }
    let rows = backends.iter().map(|backend| Row {
        cells: vec![
            format!("  {}", backend.name),
            backend.address.clone(),
            backend.weight.to_string(),
            count(backend.live),
            backend.cost.map_or_else(|| "-".to_owned(), |cost| format!("{cost:.1}")),
            format!("{:.0}%", backend.share * 100.0),
            if backend.eligible { "yes" } else { "no" }.to_owned(),
        ],
        bad: false,
        note: Some(format!("    {}; {}", backend.why, backend.health)),
    });
    table(&STANDING, rows.collect(), screen::look(), &mut text);
    text
}

pub(super) fn plan(file: &Path, json: bool, instance: &Instance) -> Answer {
    let text = std::fs::read(file)
        .map_err(|error| Trouble::BadInput(format!("cannot read {}: {error}", file.display())))?;
    let path = query("/api/v1/plan", &[("file", Some(file.display().to_string()))]);
    let plan: Planned = read(&instance.send("POST", &path, text, TIMEOUT)?)?;
    if json { print_json(&plan) } else { Ok(print(planned(&plan).as_bytes())?) }
}

fn planned(plan: &Planned) -> String {
    let mut text = String::new();
    write_plan(plan, &mut text).expect("writing to a string does not fail");
    text
}

fn write_plan(plan: &Planned, out: &mut String) -> std::fmt::Result {
    writeln!(out, "against version {}:", plan.version)?;
    if plan.changes.is_empty() && plan.pending_restart.is_empty() {
        writeln!(out, "  nothing would change")?;
    }
    for change in &plan.changes {
        writeln!(out, "  {}", clean(change))?;
    }
    for note in &plan.notes {
        writeln!(out, "  note: {}", clean(note))?;
    }
    for key in &plan.pending_restart {
        writeln!(out, "  {key}: takes effect only at the next start")?;
    }
    if !plan.shares.is_empty() {
        writeln!(out, "share of new connections:")?;
    }
    let percent =
        |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0));
    for PlannedShare { backend, before, after } in &plan.shares {
        writeln!(out, "  {}: {} -> {}", clean(backend), percent(*before), percent(*after))?;
    }
    for (pool, moved) in &plan.slots_moved {
        writeln!(
            out,
            "ring of pool {}: {:.1}% of the slots go to another backend",
            clean(pool),
            moved * 100.0
        )?;
    }
    let drained: usize = plan.drained.values().sum();
    writeln!(out, "live connections: {} go on, {drained} would be drained", plan.untouched)?;
    for (what, connections) in &plan.drained {
        let seconds = plan.drain_timeout_seconds;
        writeln!(out, "  {connections} of {}: reset after {seconds:.0} s if they still live", clean(what))?;
    }
    for (what, connections) in &plan.draining {
        writeln!(out, "  {connections} of {}: removed before this, draining already", clean(what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_plan_tells_changes_shares_and_connections() {
        let mut plan = Planned {
            version: 3,
            changes: vec!["pool web: backend b removed".to_owned()],
            notes: vec!["pool web: a note".to_owned()],
            pending_restart: vec!["admin.listen".to_owned()],
            drained: BTreeMap::from([("backend web/b".to_owned(), 4)]),
            draining: BTreeMap::from([("backend web/c".to_owned(), 1)]),
            drain_timeout_seconds: 30.0,
            untouched: 9,
            shares: vec![PlannedShare { backend: "web/b".to_owned(), before: Some(0.5), after: None }],
            slots_moved: BTreeMap::from([("web".to_owned(), 0.3412)]),
        };
        assert_eq!(
            planned(&plan),
            "against version 3:\n  pool web: backend b removed\n  note: pool web: a note\n  admin.listen: takes effect only at the next start\n\
             share of new connections:\n  web/b: 50% -> -\nring of pool web: 34.1% of the slots go to another backend\nlive connections: 9 go on, 4 would be drained\n  \
             4 of backend web/b: reset after 30 s if they still live\n  \
             1 of backend web/c: removed before this, draining already\n"
        );
        (plan.changes, plan.pending_restart, plan.shares) = Default::default();
        plan.drained.clear();
        plan.slots_moved.clear();
        assert!(planned(&plan).contains("nothing would change"));
    }
}
