//! Files that `lemonade` itself generates.

mod reference;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::{bpf, workspace};

/// Shells with completions.
pub const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// Documents that `lemonade schema` prints, with the files that keep them.
pub const SCHEMAS: [(&str, &str); 3] = [
    ("config", "config/schema.json"),
    ("access", "config/access.schema.json"),
    ("admin", "docs/openapi.json"),
];

/// Where the configuration reference of the guides is kept.
pub const REFERENCE: &str = "docs/guide/reference.md";

/// The configuration reference, made from the schema that this binary prints.
pub fn reference(lemonade: &Path) -> anyhow::Result<String> {
    let schema = serde_json::from_str(&schema(lemonade, "config")?)?;
    let missing = reference::missing(&schema);
    ensure!(missing.is_empty(), "{missing:?} have no section: add them to SECTIONS in generate/reference.rs");
    Ok(reference::page(&schema))
}

/// Writes the files of [`SCHEMAS`] and the [`REFERENCE`].
pub fn write_schemas() -> anyhow::Result<()> {
    let lemonade = build()?;
    for (document, file) in SCHEMAS {
        let path = workspace::root().join(file);
        fs::write(&path, schema(&lemonade, document)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    let path = workspace::root().join(REFERENCE);
    fs::write(&path, reference(&lemonade)?).with_context(|| format!("cannot write {}", path.display()))?;
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

/// Draws docs/pictures: the test that compares them knows how, and writes where it is told to.
pub fn draw_pictures() -> anyhow::Result<()> {
    let lemonade = build()?;
    let mut cargo = workspace::cargo(&["test", "--quiet", "-p", "lemonade-tests", "--test", "pictures"]);
    workspace::run(cargo.env("LEMONADE_PICTURES", "1").env("LEMONADE_BIN", lemonade))
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

/// The schema of a document that this binary prints.
pub fn schema(lemonade: &Path, document: &str) -> anyhow::Result<String> {
    let schema = workspace::output(Command::new(lemonade).args(["schema", document]))?;
    serde_json::from_str::<serde_json::Value>(&schema)
        .with_context(|| format!("lemonade schema {document} does not print JSON"))?;
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
