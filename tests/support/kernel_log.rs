//! The kernel's log: it must stay clean while programs of ours run.

use std::process::Command;

/// What the kernel says when its own accounts do not add up.
const ALARMS: [&str; 5] = ["WARNING:", "BUG:", "refcount_t", "Call Trace", "inet_sock_destruct"];

/// Lines of the log that are an alarm.
fn alarms() -> Vec<String> {
    let log = Command::new("dmesg").output().expect("dmesg of util-linux");
    assert!(log.status.success(), "{}", String::from_utf8_lossy(&log.stderr));
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    let alarm = |line: &&str| ALARMS.iter().any(|word| line.contains(word));
    log.lines().filter(alarm).map(str::to_owned).collect()
}

/// Runs a case; the kernel must have nothing to complain of.
///
/// # Panics
/// When it has, or its log may not be read.
pub fn quietly<T>(case: impl FnOnce() -> T) -> T {
    let before = alarms();
    let outcome = case();
    let new: Vec<_> = alarms().into_iter().filter(|line| !before.contains(line)).collect();
    assert!(new.is_empty(), "the kernel complains: {new:#?}");
    outcome
}
