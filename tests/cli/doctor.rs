//! `lemonade doctor`: as whom it runs decides what it sees, never whether it answers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use lemonade::doctor::report::{Line, Report, Verdict};
use lemonade_tests::lemonade::{binary, run};
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::skip;
use lemonade_tests::socket;
use tempfile::TempDir;

/// A configuration with `further` lines in `[runtime]`, readable by everybody.
fn configuration(further: &[&str]) -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our folder");
    let file = folder.path().join("some.toml");
    let setup = Setup::single(&[socket::refusing_address()]).runtime(further);
    fs::write(&file, setup.text(folder.path())).expect("a folder");
    let file = file.to_str().expect("UTF-8").to_owned();
    (folder, file)
}

fn said(output: &Output, code: i32) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(code), "{errors}{text}");
    text
}

fn report(output: &Output, code: i32) -> Report {
    serde_json::from_str(&said(output, code)).expect("JSON of a report")
}

fn section<'a>(report: &'a Report, name: &str) -> &'a [Line] {
    let found = report.sections.iter().find(|section| section.name == name);
    &found.unwrap_or_else(|| panic!("no section {name} in {report:?}")).lines
}

fn passes(lines: &[Line], name: &str) -> bool {
    let line = lines.iter().find(|line| line.name == name);
    line.is_some_and(|line| line.verdict == Verdict::Pass)
}

/// What may be said of the kernel follows from the build and the capabilities.
fn check_kernel(report: &Report) {
    let host = section(report, "host");
    let built = passes(section(report, "build"), "feature ebpf");
    let may = passes(host, "CAP_BPF") && passes(host, "CAP_NET_ADMIN");
    for name in ["program types", "map types", "programs"] {
        let lines = section(report, name);
        assert!(!lines.is_empty(), "{name}");
        for line in lines {
            if !built {
                assert_eq!(line.verdict, Verdict::NotPossible, "{line:?}");
                assert!(line.detail.contains("this build has no kernel programs"), "{line:?}");
            } else if may {
                assert_ne!(line.verdict, Verdict::NotPossible, "{line:?}");
            } else if name == "programs" {
                assert_eq!(line.verdict, Verdict::NotPossible, "{line:?}");
            }
            assert_eq!(line.cure.is_empty(), line.verdict == Verdict::Pass, "{line:?}");
        }
    }
    for relay in ["sockmap", "sk_msg"] {
        let lines = section(report, &format!("self-tests of relay {relay}"));
        let possible = lines.iter().all(|line| line.verdict != Verdict::NotPossible);
        let tests = if possible { 9 } else { 1 };
        assert!(lines.len() >= tests, "{lines:?}");
        assert!(possible == (built && may), "{lines:?}");
    }
    let counted = |line: &Line| line.detail.contains("instructions");
    if built && may && section(report, "programs").iter().all(|line| line.verdict == Verdict::Pass) {
        assert!(section(report, "programs").iter().all(counted), "{report:?}");
    }
}

#[test]
fn the_table_and_json_tell_the_same() {
    let (folder, file) = configuration(&[]);
    let table = said(&run(&["doctor", "--config", &file]), 0);
    let report = report(&run(&["doctor", "--config", &file, "--json"]), 0);
    check_kernel(&report);
    let own = report.configuration.as_ref().expect("a configuration was given");
    assert!(own.runs_as_asked);
    // A self-test says how long it took, and the two reports are two runs.
    let untimed = |text: &str| text.replace(|letter: char| letter.is_ascii_digit(), "");
    for line in report.sections.iter().flat_map(|section| &section.lines).chain(&own.lines) {
        let verdict = line.verdict.as_str();
        let shown = table.lines().any(|row| {
            row.trim_start().starts_with(verdict)
                && row.contains(&line.name)
                && untimed(row).ends_with(&untimed(&line.detail))
        });
        assert!(shown, "{line:?} is missing in\n{table}");
    }
    let [route] = &own.frontends[..] else { panic!("one frontend: {own:?}") };
    assert_eq!((&*route.data_plane, &*route.relay), ("proxy", "copy"));
    for words in ["FRONTEND web: plane proxy, relay copy", &route.why, &route.change] {
        assert!(table.contains(words), "{words} is missing in\n{table}");
    }
    assert!(!folder.path().join("state").exists(), "looking makes no state folder");
}

#[test]
fn without_a_configuration_only_the_host_is_looked_at() {
    let report = report(&run(&["doctor", "--json"]), 0);
    assert_eq!(report.configuration, None);
    assert!(passes(section(&report, "host"), "kernel"));
}

#[test]
fn an_ordinary_user_gets_an_answer_that_says_what_was_not_seen() {
    let (folder, file) = configuration(&[]);
    let root = rustix::process::geteuid().is_root();
    let output = if root {
        // Where the binary lies, an ordinary user may not go.
        let copy = folder.path().join("lemonade");
        fs::copy(binary(), &copy).expect("the binary is readable");
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.arg(copy).args(["doctor", "--config", &file, "--json"]);
        match command.output() {
            Ok(output) => output,
            Err(error) => {
                return skip(
                    "an_ordinary_user_gets_an_answer_that_says_what_was_not_seen",
                    &format!("setpriv (util-linux) cannot be started: {error}"),
                );
            }
        }
    } else {
        run(&["doctor", "--config", &file, "--json"])
    };
    let report = report(&output, 0);
    check_kernel(&report);
    if root {
        let host = section(&report, "host");
        assert!(!passes(host, "CAP_BPF"), "{host:?}");
        let programs = section(&report, "programs");
        assert!(programs.iter().all(|line| line.verdict == Verdict::NotPossible), "{programs:?}");
    }
}

#[test]
fn more_connections_than_descriptors_is_impossible() {
    let (_folder, file) = configuration(&["max_connections = 5000"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""]).arg(binary());
    let output = shell.args(["doctor", "--config", &file]).output().expect("sh starts");
    let table = said(&output, 1);
    for words in ["fail", "max_connections", "5000 asked for", "would NOT run as asked"] {
        assert!(table.contains(words), "{words} is missing in\n{table}");
    }
}

#[test]
fn a_bad_configuration_is_refused_with_line_and_column() {
    let (_folder, file) = configuration(&["drain_timeout = \"soon\""]);
    let text = fs::read_to_string(&file).expect("our file");
    let line = 1 + text[..text.find("\"soon\"").expect("just written")].matches('\n').count();
    let output = run(&["doctor", "--config", &file]);
    said(&output, 2);
    let errors = String::from_utf8_lossy(&output.stderr);
    let place = format!("{}:{line}:", Path::new(&file).display());
    let column = errors.split(&place).nth(1).and_then(|rest| rest.chars().next());
    assert!(column.is_some_and(|letter| letter.is_ascii_digit()), "{place} is missing in {errors}");
}
