//! Files that `lemonade` itself generates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::{bpf, workspace};

/// Shells with completions.
pub const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// Writes `config/schema.json`.
pub fn write_schema() -> anyhow::Result<()> {
    let path = schema_path();
    fs::write(&path, schema(&build()?)?).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

/// Writes completions and the man page below `target/assets`.
pub fn write_completions() -> anyhow::Result<()> {
    let folder = workspace::target().join("assets");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in assets(&build()?)? {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// Builds `lemonade` for development and returns its path.
pub fn build() -> anyhow::Result<PathBuf> {
    build_with(None)
}

/// As [`build`], with kernel programs if there are any.
pub fn build_with(objects: Option<&bpf::Objects>) -> anyhow::Result<PathBuf> {
    // Everything that tests build is selected, so that features unify as they do for them: fewer builds of dependencies.
    let mut cargo = workspace::cargo(&["build", "--quiet", "--bin", "lemonade"]);
    bpf::equip(&mut cargo, objects);
    workspace::run(&mut cargo)?;
    Ok(workspace::lemonade("debug"))
}

/// Where the schema is kept.
pub fn schema_path() -> PathBuf {
    workspace::root().join("config/schema.json")
}

/// The schema that this binary prints.
pub fn schema(lemonade: &Path) -> anyhow::Result<String> {
    let schema = workspace::output(Command::new(lemonade).arg("schema"))?;
    serde_json::from_str::<serde_json::Value>(&schema).context("lemonade schema does not print JSON")?;
    Ok(schema)
}

/// Names and texts of the completions and the man page.
pub fn assets(lemonade: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut assets = Vec::new();
    for shell in SHELLS {
        let text = workspace::output(Command::new(lemonade).args(["completions", shell]))?;
        ensure!(text.contains("lemonade"), "lemonade completions {shell} does not name lemonade");
        assets.push((format!("lemonade.{shell}"), text));
    }
    let page = workspace::output(Command::new(lemonade).arg("man"))?;
    ensure!(page.contains(".TH lemonade"), "lemonade man does not print a man page");
    assets.push(("lemonade.1".to_owned(), page));
    Ok(assets)
}
