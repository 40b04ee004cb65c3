//! The filter of the unit, against what Lemonade really calls.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::{Lemonade, binary, run};
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;
use lemonade_tests::tools::{program, root, said};
use lemonade_tests::wait;

/// Calls that the unit allows, groups written out as systemd does.
fn allowed(analyze: &Path) -> BTreeSet<String> {
    let unit = fs::read_to_string(root().join("deploy/systemd/lemonade.service")).expect("the unit");
    let filter = unit.lines().find_map(|line| line.strip_prefix("SystemCallFilter=")).expect("a filter");
    let mut left: Vec<String> = filter.split_whitespace().map(str::to_owned).collect();
    let mut calls = BTreeSet::new();
    while let Some(name) = left.pop() {
        if !name.starts_with('@') {
            calls.insert(name);
            continue;
        }
        let output = Command::new(analyze).args(["syscall-filter", &name]).output().expect("systemd-analyze");
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().skip(1).map(str::trim);
        left.extend(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
    }
    calls
}

/// Names of the calls in what strace wrote.
fn called(trace: &str) -> BTreeSet<String> {
    let names = trace.lines().filter_map(|line| {
        let call = line.trim_start_matches(|letter: char| letter.is_ascii_digit()).trim_start();
        let call = call.strip_prefix("<... ").unwrap_or(call);
        let end = call.find(|letter: char| {
            !(letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
        })?;
        let goes_on = call[end..].starts_with('(') || call[end..].starts_with(" resumed");
        (goes_on && end > 0).then(|| call[..end].to_owned())
    });
    names.collect()
}

/// A call that the filter lacks would fail under systemd only, and perhaps only in the one branch that makes it.
#[test]
fn the_unit_allows_each_system_call_from_start_to_stop() {
    let test = "the_unit_allows_each_system_call_from_start_to_stop";
    let (Some(strace), Some(analyze)) = (program(test, "strace"), program(test, "systemd-analyze")) else {
        return;
    };
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let setup = Setup::single(&addresses).health(&["kind = \"tcp\""]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("trace");
    let mut command = Command::new(strace);
    command.args(["-f", "-qq", "-o"]).arg(&trace).arg(binary());
    let mut lemonade = Lemonade::start_through(command, &setup, |_| {});
    calls(lemonade.address("web"), 20);
    lemonade.reload(&setup.clone().pool(&["strategy = \"adaptive\""]));
    let socket = lemonade.socket();
    for command in ["status", "dump", "doctor"] {
        run(&[command, "--admin", socket.to_str().expect("UTF-8")]);
    }
    assert_eq!(http::get_unix(&socket, "/metrics").expect("it answers").status, 200);
    // strace passes no signal on; the process it watches is its only child.
    let status = lemonade.status();
    let pid = i32::try_from(status.0["pid"].as_i64().expect("a process id")).expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the process is ours");
    assert!(lemonade.wait(Duration::from_secs(60)).success());
    wait::until("the trace is whole", wait::SOON, || {
        fs::read_to_string(&trace).is_ok_and(|text| text.contains("exit_group"))
    });

    let called = called(&fs::read_to_string(&trace).expect("a trace"));
    assert!(called.len() > 30 && called.contains("accept4") && called.contains("epoll_wait"), "{called:?}");
    let allowed = allowed(&analyze);
    assert!(allowed.len() > 200 && allowed.contains("bpf") && !allowed.contains("reboot"), "{allowed:?}");
    let refused: Vec<_> = called.difference(&allowed).collect();
    assert!(refused.is_empty(), "SystemCallFilter= lacks {refused:?}");
}
