//! `cargo xtask package`: what people install.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::{bpf, generate, set_up, tools, workspace};

/// What to make.
#[derive(clap::Args)]
pub struct Args {
    /// Put this binary into the .deb instead of a release build, and make nothing else
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Profile of cargo to build with
    #[arg(long, value_name = "PROFILE", default_value = "release")]
    profile: String,
    /// Version of the .deb, instead of the workspace's with the revision 1
    #[arg(long, value_name = "VERSION")]
    deb_version: Option<String>,
}

/// Builds, gathers and packs; prints what it made.
pub fn main(args: &Args) -> anyhow::Result<()> {
    let output = workspace::target().join("package");
    let dynamic = match &args.binary {
        Some(binary) => binary.clone(),
        None => build(&args.profile)?,
    };
    let files = output.join("files");
    gather(&files, &dynamic)?;
    println!("{}", deb(&output, args)?.display());
    if args.binary.is_none() {
        let binary = static_binary(&output, &args.profile)?;
        println!("{}", binary.display());
        println!("{}", container(&output, &binary)?.display());
    }
    Ok(())
}

fn build(profile: &str) -> anyhow::Result<PathBuf> {
    set_up::install_for_build();
    let mut build = workspace::cargo(&["build", "--profile", profile, "--package", "lemonade"]);
    bpf::equip(&mut build, bpf::set_up().as_ref());
    workspace::run(&mut build)?;
    Ok(workspace::lemonade(folder(profile)))
}

/// Where cargo puts what a profile builds.
fn folder(profile: &str) -> &str {
    if profile == "dev" { "debug" } else { profile }
}

/// Makes the folder that the assets of `lemonade/Cargo.toml` come from.
fn gather(files: &Path, lemonade: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(files).with_context(|| format!("cannot make {}", files.display()))?;
    copy(lemonade, &files.join("lemonade"))?;
    // The unit's place among the fragments that cargo-deb makes of it is fixed by its name.
    copy(&workspace::root().join("deploy/systemd/lemonade.service"), &files.join("lemonade.service"))?;
    write(&files.join("lemonade.toml"), &configuration("/usr/share/lemonade/schema.json")?)?;
    for (name, text) in generate::assets(lemonade)? {
        write(&files.join(name), &text)?;
    }
    Ok(())
}

/// The annotated default, whose schema lies elsewhere once it is installed.
fn configuration(schema: &str) -> anyhow::Result<String> {
    let path = workspace::root().join("config/lemonade.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (first, rest) = text.split_once('\n').context("the configuration has lines")?;
    ensure!(first == "#:schema ./schema.json", "config/lemonade.toml does not begin with its schema");
    Ok(format!("#:schema {schema}\n{rest}"))
}

fn deb(output: &Path, args: &Args) -> anyhow::Result<PathBuf> {
    tools::install_packager()?;
    let cargo_deb = tools::find("cargo-deb").context("cargo-deb is not there")?;
    let mut command = Command::new(cargo_deb);
    command.args(["--package", "lemonade", "--no-build", "--quiet", "--output"]).arg(output);
    if let Some(version) = &args.deb_version {
        command.args(["--deb-version", version]);
    }
    if args.binary.is_some() {
        // Not to be kept: made quickly rather than small.
        command.arg("--fast");
    }
    let made = workspace::output(command.current_dir(workspace::root()))?;
    Ok(PathBuf::from(made.trim()))
}

/// A binary that needs no library of the host: musl where the toolchain has it, else glibc.
fn static_binary(output: &Path, profile: &str) -> anyhow::Result<PathBuf> {
    let arch = std::env::consts::ARCH;
    let musl = format!("{arch}-unknown-linux-musl");
    let library =
        workspace::output(Command::new("rustc").args(["--print", "target-libdir", "--target", &musl]));
    let has_musl =
        library.is_ok_and(|library| Path::new(library.trim()).is_dir()) && set_up::on_path("musl-gcc");
    let target = if has_musl { musl } else { format!("{arch}-unknown-linux-gnu") };
    let mut build =
        workspace::cargo(&["build", "--profile", profile, "--package", "lemonade", "--target", &target]);
    bpf::equip(&mut build, bpf::set_up().as_ref());
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    workspace::run(&mut build)?;
    let built = workspace::target().join(&target).join(folder(profile)).join("lemonade");
    let binary = output.join(format!("lemonade-{target}"));
    copy(&built, &binary)?;
    workspace::run(Command::new("strip").arg("--strip-debug").arg(&binary))?;
    ensure_static(&binary)?;
    Ok(binary)
}

/// Fails on a binary that asks for a loader.
fn ensure_static(binary: &Path) -> anyhow::Result<()> {
    let headers = workspace::output(Command::new("readelf").arg("--program-headers").arg(binary))?;
    ensure!(!headers.contains("INTERP"), "{} is not static: it asks for a loader", binary.display());
    Ok(())
}

/// Makes the folder that the Containerfile copies from.
fn container(output: &Path, binary: &Path) -> anyhow::Result<PathBuf> {
    let folder = output.join("container");
    // What an image gets as an empty folder of its user.
    fs::create_dir_all(folder.join("empty")).with_context(|| format!("cannot make {}", folder.display()))?;
    copy(binary, &folder.join("lemonade"))?;
    copy(&workspace::root().join("deploy/container/Containerfile"), &folder.join("Containerfile"))?;
    copy(&workspace::root().join("config/schema.json"), &folder.join("schema.json"))?;
    write(&folder.join("lemonade.toml"), &configuration("./schema.json")?)?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
