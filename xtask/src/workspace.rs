//! Where the workspace is and how its programs are started.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// Root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Folder that cargo builds into.
pub fn target() -> PathBuf {
    // A relative CARGO_TARGET_DIR means the folder that cargo was called in, which xtask inherits.
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || root().join("target"),
        |dir| env::current_dir().map_or_else(|_| PathBuf::from(&dir), |here| here.join(&dir)),
    )
}

/// Path of the built `lemonade` in a profile's folder.
pub fn lemonade(profile: &str) -> PathBuf {
    target().join(profile).join(format!("lemonade{}", env::consts::EXE_SUFFIX))
}

/// A cargo command in the root of the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    // Inherited from the cargo that started xtask; they would make a build under it look changed.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started, or it fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(status.success(), "`{}`: {status}", shown(command));
    Ok(())
}

/// Standard output of a command that must succeed.
///
/// # Errors
/// It cannot be started, fails, or writes something else than UTF-8.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(
        output.status.success(),
        "`{}`: {}\n{}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    String::from_utf8(output.stdout).with_context(|| format!("`{}`: not UTF-8", shown(command)))
}

/// A command as it would be typed.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_else(|| command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
