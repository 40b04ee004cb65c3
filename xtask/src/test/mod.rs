//! `cargo xtask test`: every check and every test, with its own set-up, in one go.
//!
//! A step that fails does not stop the next: the last line counts everything, and only then does the command fail.

mod product;
mod suite;
mod tally;

use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::bpf::{self, Objects};
use crate::{dashboard, set_up, tidy, tools, workspace};
use suite::Suite;
pub use tally::Tally;

/// How much to test.
#[derive(clap::Args)]
pub struct Args {
    /// Run the sizes that take hours too (sets LEMONADE_FULL=1 for the tests)
    #[arg(long)]
    full: bool,
}

type Step<'a> = (&'a str, Box<dyn FnOnce() -> anyhow::Result<Tally> + 'a>);

/// Runs every step; ends with the line `N passed, F failed, S skipped`.
pub fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    println!("==> set-up");
    let set_up = set_up::install()?;
    let objects = bpf::set_up();
    let suite = Suite::new(args.full, objects.clone())?;
    let objects = objects.as_ref();
    let steps: Vec<Step<'_>> = vec![
        ("format", Box::new(|| check(&mut workspace::cargo(&["fmt", "--all", "--", "--check"])))),
        ("clippy, warnings denied", Box::new(|| clippy(objects))),
        ("tidy", Box::new(tidy)),
        ("unit, property and corpus tests", Box::new(|| suite.unit())),
        ("process-level tests", Box::new(|| suite.process())),
        ("namespace tests", Box::new(|| suite.namespace())),
        ("kernel tests", Box::new(|| suite.kernel())),
        ("page, rebuilt and compared", Box::new(dashboard::check)),
        ("page tests", Box::new(|| suite.page())),
        ("documentation, warnings denied", Box::new(|| docs(objects))),
        ("configuration, schema, completions, man page", Box::new(|| product::check(objects))),
        ("book", Box::new(book)),
        ("dependencies", Box::new(deny)),
    ];

    let mut total = set_up;
    for (name, step) in steps {
        println!("==> {name}");
        let at = Instant::now();
        let tally = step().unwrap_or_else(|error| Tally::failure(format!("{name}: {error:#}")));
        println!("<== {name}: {} in {:.1} s", tally.counts(), at.elapsed().as_secs_f64());
        total.add(tally);
    }
    println!("\nall steps took {:.0} s", began.elapsed().as_secs_f64());
    print!("{}", total.summary());
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One check: it passes if the command does.
fn check(command: &mut Command) -> anyhow::Result<Tally> {
    workspace::run(command)?;
    Ok(Tally::pass())
}

/// The kernel programs are linted where they are compiled: their build denies warnings.
fn clippy(objects: Option<&Objects>) -> anyhow::Result<Tally> {
    let mut cargo = workspace::cargo(&["clippy", "--all-targets"]);
    cargo.args(["--features", "lemonade-tests/netns,lemonade-tests/bpf,lemonade-tests/page"]);
    bpf::equip(&mut cargo, objects);
    check(cargo.args(["--", "-D", "warnings"]))
}

fn tidy() -> anyhow::Result<Tally> {
    let violations = tidy::check()?;
    violations.iter().for_each(|violation| println!("{violation}"));
    anyhow::ensure!(violations.is_empty(), "{} violations, named above", violations.len());
    Ok(Tally::pass())
}

fn docs(objects: Option<&Objects>) -> anyhow::Result<Tally> {
    let mut cargo = workspace::cargo(&["doc", "--no-deps"]);
    bpf::equip(&mut cargo, objects);
    check(cargo.env("RUSTDOCFLAGS", "-D warnings"))
}

/// The guides as a book, where its builder is installed.
fn book() -> anyhow::Result<Tally> {
    let Some(mdbook) = tools::find("mdbook") else {
        return Ok(Tally::skip("book", "needs mdbook (`cargo install mdbook`)"));
    };
    let into = workspace::target().join("book");
    check(
        Command::new(mdbook).arg("build").arg(workspace::root().join("docs")).arg("--dest-dir").arg(&into),
    )?;
    anyhow::ensure!(into.join("guide/metrics.html").is_file(), "the book has no page of metrics");
    Ok(Tally::pass())
}

/// `deny.toml`, where its tool is installed.
fn deny() -> anyhow::Result<Tally> {
    if !set_up::on_path("cargo-deny") {
        println!("deny.toml is not checked: cargo-deny is not installed");
        return Ok(Tally::default());
    }
    check(&mut workspace::cargo(&["deny", "check", "bans", "licenses", "sources"]))
}
