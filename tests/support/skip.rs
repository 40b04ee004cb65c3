//! Skipping is never silent: each skip is a line that the test runner counts and prints.

use std::io::Write;

/// Says that `test` did not run and why: on standard error, and in the file that `LEMONADE_SKIPS` names.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped {test}: {reason}");
    let Some(path) = std::env::var_os("LEMONADE_SKIPS") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| writeln!(file, "{test}: {reason}"));
    written.unwrap_or_else(|error| panic!("cannot note a skip in {}: {error}", path.display()));
}

/// Whether the long run was asked for (`LEMONADE_FULL=1`).
pub fn full() -> bool {
    std::env::var("LEMONADE_FULL").is_ok_and(|value| value == "1")
}

/// Keeps the tests apart that take most of the host's TCP memory in their large sizes, until what it returns is dropped.
///
/// Side by side they reach the kernel's limit, where segments are dropped and connections stall, direct ones too.
pub fn alone() -> Option<std::sync::MutexGuard<'static, ()>> {
    static LARGE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    full().then(|| LARGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}
