//! `cargo xtask dashboard`: the page of the admin interface, built from its TypeScript into the folder that is checked in.
//!
//! Building Lemonade needs that folder only. Rebuilding it needs node and npm, and gives the same bytes everywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::test::Tally;
use crate::{set_up, workspace};

/// Most bytes of all files together: they are part of the binary.
const MOST: usize = 160 * 1024;

/// What to do with the page.
#[derive(clap::Args)]
pub struct Args {
    /// Compare a fresh build with what is checked in, and change nothing
    #[arg(long)]
    check: bool,
    /// Write docs/dashboard.png too, from a Lemonade under load in a headless Chromium
    #[arg(long)]
    screenshot: bool,
}

/// Builds, compares or photographs.
///
/// # Errors
/// node, npm or Chromium is missing, the sources are wrong, or what is checked in is not what they build.
pub fn main(args: &Args) -> anyhow::Result<()> {
    set_up::install_for_dashboard();
    if args.check {
        return compare(&packages()?);
    }
    let dist = packages()?.join("dist");
    build(&dist)?;
    println!("wrote {}: {} bytes", dist.display(), size(&files(&dist)?));
    if args.screenshot {
        set_up::install_for_page();
        set_up::probe_browser().map_err(anyhow::Error::msg)?;
        screenshot()?;
    }
    Ok(())
}

/// The check of `cargo xtask test`; without node, npm or the packages it is skipped.
pub fn check() -> anyhow::Result<Tally> {
    match packages() {
        Err(error) => Ok(Tally::skip("dashboard", &format!("it was not rebuilt: {error:#}"))),
        Ok(folder) => compare(&folder).map(|()| Tally::pass()),
    }
}

/// Path of the accessibility checker that the tests of the page load, if the packages are installed.
pub fn checker() -> Option<PathBuf> {
    let path = folder().join("node_modules/axe-core/axe.min.js");
    path.is_file().then_some(path)
}

fn folder() -> PathBuf {
    workspace::root().join("lemonade/dashboard")
}

/// Installs the packages of the lock file, unless they are there, and returns the folder of the sources.
fn packages() -> anyhow::Result<PathBuf> {
    let folder = folder();
    for program in ["node", "npm"] {
        ensure!(set_up::on_path(program), "`{program}` is not installed (Debian packages nodejs and npm)");
    }
    // npm writes it when it has installed everything.
    let installed =
        fs::metadata(folder.join("node_modules/.package-lock.json")).and_then(|file| file.modified());
    let wanted = fs::metadata(folder.join("package-lock.json")).and_then(|file| file.modified())?;
    if installed.is_ok_and(|installed| installed >= wanted) {
        return Ok(folder);
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
    workspace::run(npm.stdin(Stdio::null()).stdout(Stdio::null()))?;
    Ok(folder)
}

fn build(out: &Path) -> anyhow::Result<()> {
    let node = |args: &[&str]| {
        let mut node = Command::new("node");
        node.args(args).current_dir(folder()).stdin(Stdio::null());
        node
    };
    workspace::run(&mut node(&["node_modules/typescript/bin/tsc", "--noEmit"]))?;
    workspace::run(node(&["build.mjs"]).arg(out))
}

/// A rebuild gives the bytes that are checked in, and they are few.
fn compare(folder: &Path) -> anyhow::Result<()> {
    let fresh = workspace::target().join("xtask/dashboard");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    build(&fresh)?;
    let (kept, built) = (files(&folder.join("dist"))?, files(&fresh)?);
    let differing: Vec<_> =
        kept.keys().chain(built.keys()).filter(|name| kept.get(*name) != built.get(*name)).collect();
    ensure!(
        differing.is_empty(),
        "lemonade/dashboard/dist is not what its sources build ({differing:?}); run `cargo xtask dashboard` and commit it"
    );
    let bytes = size(&kept);
    ensure!(bytes <= MOST, "the files of the page have {bytes} bytes, more than {MOST}");
    println!("lemonade/dashboard/dist: {bytes} bytes, as its sources build it");
    Ok(())
}

fn files(folder: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?))
        })
        .collect()
}

fn size(files: &BTreeMap<String, Vec<u8>>) -> usize {
    files.values().map(Vec::len).sum()
}

/// One test of the page tier knows how to start everything, and writes what it sees where it is told.
fn screenshot() -> anyhow::Result<()> {
    let path = workspace::root().join("docs/dashboard.png");
    let mut cargo = workspace::cargo(&["test", "--quiet", "-p", "lemonade-tests", "--features", "page"]);
    cargo.args(["--test", "page", "screenshot"]).env("LEMONADE_SCREENSHOT", &path);
    workspace::run(&mut cargo)?;
    println!("wrote {}: {} bytes", path.display(), fs::metadata(&path)?.len());
    Ok(())
}
