//! Counts of tests, read from what libtest prints.

use std::fmt::Write;

/// What passed, failed and was skipped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    /// Names of what failed.
    pub failures: Vec<String>,
    /// Names of what failed beside other tests and passed when it ran once more alone; counted as passed.
    pub flaky: Vec<String>,
    /// `test: reason` of what was skipped.
    pub skips: Vec<String>,
    /// Known faults that the kernel showed; no test failed of them.
    pub known: Vec<String>,
}

impl Tally {
    /// One check that passed.
    pub fn pass() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    /// One check that failed.
    pub fn failure(what: String) -> Self {
        eprintln!("{what}");
        let first = what.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Self { failed: 1, failures: vec![first.to_owned()], ..Self::default() }
    }

    /// One test, or group of tests, that was not run.
    pub fn skip(what: &str, reason: &str) -> Self {
        Self { skipped: 1, skips: vec![format!("{what}: {reason}")], ..Self::default() }
    }

    /// Takes in one line of a test run.
    pub fn read_line(&mut self, line: &str) {
        // A program that a test started may have written to the same line before it.
        let result = line.split_once("test result: ").and_then(|(_, result)| result.split_once(". "));
        if let Some((_, counts)) = result {
            for count in counts.split("; ") {
                match count.split_once(' ') {
                    Some((n, "passed")) => self.passed += n.parse().unwrap_or(0),
                    Some((n, "failed")) => self.failed += n.parse().unwrap_or(0),
                    Some((n, "ignored")) => self.skipped += n.parse().unwrap_or(0),
                    Some(_) | None => {}
                }
            }
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|t| t.rsplit_once(" ... "))
        {
            if outcome == "FAILED" {
                self.failures.push(name.to_owned());
            } else if let Some(reason) = outcome.strip_prefix("ignored") {
                let reason = reason.trim_start_matches(", ");
                let reason = if reason.is_empty() { "no reason given" } else { reason };
                self.skips.push(format!("{name}: {reason}"));
            }
        }
    }

    /// Turns tests that passed by skipping themselves into skipped ones; a line is `test: reason`.
    pub fn read_skips(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            self.passed = self.passed.saturating_sub(1);
            self.skipped += 1;
            self.skips.push(line.to_owned());
        }
    }

    /// Takes in what a second run, of the failures alone, came to.
    ///
    /// Unless each of them ran and passed or failed there, the first run stands.
    pub fn look_again(&mut self, alone: Self) {
        self.known.extend(alone.known);
        if alone.skipped > 0 || alone.passed + alone.failed != self.failed {
            return;
        }
        self.passed += alone.passed;
        self.failed = alone.failed;
        let (failures, flaky) = self.failures.drain(..).partition(|name| alone.failures.contains(name));
        self.failures = failures;
        self.flaky = flaky;
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.flaky.extend(other.flaky);
        self.skips.extend(other.skips);
        self.known.extend(other.known);
    }

    /// The line that a run ends with.
    pub fn counts(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }

    /// Each skip, known fault, flaky test and failure on a line, then the counts on the last.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for skip in &self.skips {
            let _ = writeln!(text, "SKIP {skip}");
        }
        for known in &self.known {
            let _ = writeln!(text, "KNOWN {known}");
        }
        for flaky in &self.flaky {
            let _ =
                writeln!(text, "FLAKY {flaky}: failed beside other tests, passed alone; why stands above");
        }
        for failure in &self.failures {
            let _ = writeln!(text, "FAIL {failure}");
        }
        let _ = writeln!(text, "{}", self.counts());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
running 4 tests
test control::keeps_ids ... ok
test reload::hours - should panic ... ignored, runs for hours
test drain::waits ... FAILED
test odd ... ignored
test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s
stray words test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.20s
";

    fn tally() -> Tally {
        let mut tally = Tally::default();
        RUN.lines().for_each(|line| tally.read_line(line));
        tally
    }

    #[test]
    fn counts_of_several_test_binaries_add_up() {
        assert_eq!(tally().counts(), "13 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn who_fails_alone_too_has_failed_and_who_passes_is_flaky() {
        let mut first = tally();
        first.add(Tally { failed: 1, failures: vec!["limits::of_time".to_owned()], ..Tally::default() });
        let alone =
            Tally { passed: 1, failed: 1, failures: vec!["drain::waits".to_owned()], ..Tally::default() };
        first.look_again(alone);
        assert_eq!(first.failures, ["drain::waits"]);
        assert_eq!(first.flaky, ["limits::of_time"]);
        assert_eq!(first.counts(), "14 passed, 1 failed, 2 skipped");
        assert!(first.summary().contains("FLAKY limits::of_time: "), "{}", first.summary());
    }

    #[test]
    fn a_second_run_that_did_not_run_them_all_changes_nothing() {
        for alone in [Tally::default(), Tally { skipped: 1, ..Tally::default() }] {
            let mut first = tally();
            first.look_again(alone);
            assert_eq!(first, tally());
        }
    }

    #[test]
    fn each_skip_fault_and_failure_is_named_before_the_counts() {
        let mut tally = tally();
        tally.read_skips("netns::nat: needs root\n\n");
        tally.add(Tally { known: vec!["a fault of the kernel".to_owned()], ..Tally::default() });
        tally.add(Tally::failure("format: cargo fmt: exit status: 1\nmore".to_owned()));
        assert_eq!(
            tally.summary(),
            "SKIP reload::hours - should panic: runs for hours\n\
             SKIP odd: no reason given\n\
             SKIP netns::nat: needs root\n\
             KNOWN a fault of the kernel\n\
             FAIL drain::waits\n\
             FAIL format: cargo fmt: exit status: 1\n\
             12 passed, 2 failed, 3 skipped\n"
        );
    }
}
