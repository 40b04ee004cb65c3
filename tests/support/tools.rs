//! Programs of others that tests call: `cargo xtask test` installs them, and a test whose program is missing is skipped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::skip::skip;

/// Root of the workspace.
///
/// # Panics
/// Never: the package lies in the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// Path of `program`: on PATH, or where `cargo xtask test` puts what it installs; `None` is noted as a skip of `test`.
pub fn program(test: &str, program: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let own = target.join("tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain([own]).map(|folder| folder.join(program));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        skip(test, &format!("needs `{program}`; `cargo xtask test` installs it as root on Debian"));
    }
    found
}

/// Runs `command` to its end with `input` on its standard input.
///
/// # Panics
/// When it cannot be started or does not take the input.
pub fn feed(command: &mut Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()).expect("the program reads its input"));
        child.wait_with_output().expect("the program ends")
    })
}

/// Everything that a program said, to show when it failed.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
