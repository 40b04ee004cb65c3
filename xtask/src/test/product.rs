//! Checks of what the built `lemonade` says and of the files beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::tally::Tally;
use crate::bpf::Objects;
use crate::{generate, workspace};

/// Fewest examples that make a useful set.
const EXAMPLES: usize = 6;

/// The configurations are accepted, the schema is up to date, completions and man page can be made.
pub fn check(objects: Option<&Objects>) -> anyhow::Result<Tally> {
    let lemonade = generate::build_with(objects)?;
    let mut total = Tally::default();
    for config in configs()? {
        total.add(counted("configuration", accepted(&lemonade, &config)));
    }
    for (document, file) in generate::SCHEMAS {
        total.add(counted("schema", schema_is_current(&lemonade, document, file)));
    }
    total.add(counted("reference", reference_is_current(&lemonade)));
    total.add(counted("completions and man page", generate::assets(&lemonade).map(drop)));
    Ok(total)
}

fn counted(what: &str, done: anyhow::Result<()>) -> Tally {
    match done {
        Ok(()) => Tally::pass(),
        Err(error) => Tally::failure(format!("{what}: {error:#}")),
    }
}

fn configs() -> anyhow::Result<Vec<PathBuf>> {
    let folder = workspace::root().join("config");
    let entries = fs::read_dir(folder.join("examples")).context("config/examples cannot be read")?;
    let mut examples: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    examples.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    examples.sort();
    ensure!(examples.len() >= EXAMPLES, "config/examples holds {} files, not {EXAMPLES}", examples.len());
    examples.insert(0, folder.join("lemonade.toml"));
    Ok(examples)
}

fn accepted(lemonade: &Path, config: &Path) -> anyhow::Result<()> {
    workspace::output(Command::new(lemonade).arg("check").arg(config)).map(drop)
}

fn reference_is_current(lemonade: &Path) -> anyhow::Result<()> {
    let file = generate::REFERENCE;
    let kept =
        fs::read_to_string(workspace::root().join(file)).with_context(|| format!("cannot read {file}"))?;
    ensure!(
        kept == generate::reference(lemonade)?,
        "{file} is not what the schema says; run `cargo xtask schema` and commit it"
    );
    Ok(())
}

fn schema_is_current(lemonade: &Path, document: &str, file: &str) -> anyhow::Result<()> {
    let kept =
        fs::read_to_string(workspace::root().join(file)).with_context(|| format!("cannot read {file}"))?;
    ensure!(
        kept == generate::schema(lemonade, document)?,
        "{file} is not what `lemonade schema {document}` prints; run `cargo xtask schema` and commit it"
    );
    Ok(())
}
