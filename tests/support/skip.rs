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
