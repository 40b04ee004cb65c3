//! Programs of others that tests and packaging call, installed below `target/tools`; what cannot be had is said, and its
//! tests are counted as skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::workspace;

/// Version of the packager.
const CARGO_DEB: &str = "3.8.0";

/// Version of the builder of the book.
const MDBOOK: &str = "0.5.4";

/// Version of the tester of the admin API.
const SCHEMATHESIS: &str = "4.32.5";

/// Path of `program` on PATH or below `target/tools`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = bin().join(program);
    std::env::split_paths(&path).map(|folder| folder.join(program)).chain([own]).find(|path| path.is_file())
}

type Install = fn() -> anyhow::Result<()>;

/// Installs what is missing.
pub fn install() {
    let each: [(&str, Install); 4] = [
        ("promtool", promtool),
        ("schemathesis", schemathesis),
        ("cargo-deb", cargo_deb),
        ("mdbook", || from_crates("mdbook", MDBOOK)),
    ];
    for (program, install) in each {
        if find(program).is_some() {
            continue;
        }
        let began = Instant::now();
        match install() {
            Ok(()) => println!("set-up: {program}: installed in {:.0} s", began.elapsed().as_secs_f64()),
            Err(error) => println!("set-up: {program} is missing: {error:#}"),
        }
    }
}

/// Debian's package unpacked, not installed: that would start a server.
fn promtool() -> anyhow::Result<()> {
    let folder = tools().join("prometheus");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if download(&folder, "prometheus").is_err() {
        // Lists that are missing or stale.
        quiet(Command::new("apt-get").arg("update"))?;
        download(&folder, "prometheus")?;
    }
    let package = fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.context("apt-get download brought no package")?;
    quiet(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&folder))?;
    link(&folder.join("usr/bin/promtool"))
}

fn download(folder: &Path, package: &str) -> anyhow::Result<()> {
    quiet(Command::new("apt-get").args(["download", package]).current_dir(folder))
}

fn schemathesis() -> anyhow::Result<()> {
    let folder = tools().join("schemathesis");
    quiet(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let version = format!("schemathesis=={SCHEMATHESIS}");
    quiet(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "--no-input", &version]))?;
    link(&folder.join("bin/schemathesis"))
}

/// Installs the packager if it is missing.
///
/// # Errors
/// It cannot be built.
pub fn install_packager() -> anyhow::Result<()> {
    if find("cargo-deb").is_some() { Ok(()) } else { cargo_deb() }
}

fn cargo_deb() -> anyhow::Result<()> {
    from_crates("cargo-deb", CARGO_DEB)
}

fn from_crates(package: &str, version: &str) -> anyhow::Result<()> {
    let mut cargo = workspace::cargo(&["install", package, "--version", version, "--locked", "--quiet"]);
    cargo.arg("--no-default-features").arg("--root").arg(tools());
    // Its build must not land among the workspace's own.
    cargo.env("CARGO_TARGET_DIR", tools().join("build"));
    quiet(&mut cargo)
}

fn tools() -> PathBuf {
    workspace::target().join("tools")
}

fn bin() -> PathBuf {
    tools().join("bin")
}

/// Makes a program reachable in the one folder that tests look into.
fn link(program: &Path) -> anyhow::Result<()> {
    ensure!(program.is_file(), "{} is not there", program.display());
    let name = program.file_name().context("a program has a name")?;
    fs::create_dir_all(bin())?;
    let link = bin().join(name);
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(program, &link).with_context(|| format!("cannot make {}", link.display()))
}

/// Runs a command whose words are shown only when it fails.
fn quiet(command: &mut Command) -> anyhow::Result<()> {
    let shown = workspace::shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{shown}`: {}", said.trim().lines().last().unwrap_or("failed"));
    Ok(())
}
