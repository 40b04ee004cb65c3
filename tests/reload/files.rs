//! How a configuration reaches the process: rename, write in place, symlink swap, signal; and what a bad one does.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{self, Lemonade};
use lemonade_tests::load::Load;
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;
use rustix::process::Signal;

fn strategy(lemonade: &Lemonade) -> String {
    lemonade.status().pool("web")["strategy"].as_str().expect("a name").to_owned()
}

fn becomes(lemonade: &Lemonade, name: &str) {
    wait::until(&format!("the strategy is {name}"), wait::SOON, || strategy(lemonade) == name);
}

fn with(backend: &Backend, strategy: &str) -> Setup {
    Setup::single(&[backend.address]).pool(&[&format!("strategy = \"{strategy}\"")])
}

#[test]
fn a_rename_a_write_in_place_and_a_torn_write_are_seen_without_a_signal() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&with(&backend, "round_robin"));
    lemonade.write(&with(&backend, "adaptive").text(lemonade.folder()));
    becomes(&lemonade, "adaptive");

    fs::write(lemonade.config(), with(&backend, "least_connections").text(lemonade.folder()))
        .expect("a folder");
    becomes(&lemonade, "least_connections");

    // An editor that writes in two steps with a moment between them.
    let text = with(&backend, "fastest_response_time").text(lemonade.folder());
    let (half, rest) = text.split_at(text.len() / 2);
    let mut file = fs::File::create(lemonade.config()).expect("a folder");
    std::io::Write::write_all(&mut file, half.as_bytes()).expect("a file");
    std::thread::sleep(std::time::Duration::from_millis(5));
    std::io::Write::write_all(&mut file, rest.as_bytes()).expect("a file");
    becomes(&lemonade, "fastest_response_time");
    assert_eq!(lemonade.status().reload_error(), None);
}

#[test]
fn a_symlink_swap_as_of_a_mounted_config_map_is_seen() {
    let backend = Backend::start("a");
    let first = with(&backend, "round_robin");
    let mount = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| mount.path().join(name);
    // ..data points to a dated folder; the file is a link through ..data; an update swaps ..data.
    fs::create_dir(at("..1")).expect("a folder");
    fs::create_dir(at("..2")).expect("a folder");
    symlink("..1", at("..data")).expect("a link");
    symlink("..data/lemonade.toml", at("lemonade.toml")).expect("a link");
    fs::write(at("..1/lemonade.toml"), first.text(mount.path())).expect("a file");

    let mut command = Command::new(lemonade::binary());
    command.arg("run").arg("--config").arg(at("lemonade.toml"));
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().expect("lemonade starts");
    let socket = mount.path().join("admin.sock");
    let is = |name: &str| {
        let answer = lemonade_tests::http::get_unix(&socket, "/api/v1/status");
        answer.is_ok_and(|answer| answer.status == 200 && answer.body.contains(&format!("\"{name}\"")))
    };
    wait::until("it serves", wait::SOON, || is("round_robin"));
    fs::write(at("..2/lemonade.toml"), with(&backend, "adaptive").text(mount.path())).expect("a file");
    symlink("..2", at("..data_tmp")).expect("a link");
    fs::rename(at("..data_tmp"), at("..data")).expect("a link");
    let seen = std::panic::catch_unwind(|| wait::until("the swap is seen", wait::SOON, || is("adaptive")));
    child.kill().expect("ours");
    child.wait().expect("ours");
    seen.expect("the swap is seen");
}

#[test]
fn sighup_reloads() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&with(&backend, "round_robin"));
    let version = lemonade.status().config_version();
    lemonade.write(&with(&backend, "adaptive").text(lemonade.folder()));
    lemonade.signal(Signal::HUP);
    becomes(&lemonade, "adaptive");
    assert!(lemonade.status().config_version() > version);
}

#[test]
fn a_bad_file_is_refused_with_line_and_column_while_traffic_goes_on() {
    let backend = Backend::start("a");
    let good = with(&backend, "round_robin");
    let lemonade = Lemonade::start(&good);
    let load = Load::start(lemonade.address("web"), 200);
    let refused = lemonade.metrics().sum("lemonade_reloads_refused_total", &[]);

    let text = good.text(lemonade.folder()).replace("\"round_robin\"", "\"rund_robin\"");
    let line = 1 + text.lines().position(|line| line.contains("rund_robin")).expect("the bad line");
    let error = lemonade.reload_bad(&text);
    assert!(error.contains(&format!(":{line}:")), "line {line} in: {error}");
    assert!(error.contains("rund_robin"), "what was wrong, in: {error}");
    let metrics = lemonade.metrics();
    assert!(metrics.sum("lemonade_reloads_refused_total", &[]) > refused);
    assert_eq!(metrics.sum("lemonade_last_reload_failed", &[]), 1);
    wait::until("the log says so", wait::SOON, || lemonade.output().contains("rund_robin"));
    assert_eq!(strategy(&lemonade), "round_robin");

    let config = lemonade.config();
    let checked = lemonade::run(&["check", config.to_str().expect("UTF-8")]);
    assert_eq!(checked.status.code(), Some(2));
    let said =
        String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert!(said.contains(&format!("lemonade.toml:{line}:")), "file, line and column in: {said}");

    lemonade.reload(&with(&backend, "adaptive"));
    assert_eq!(lemonade.status().reload_error(), None, "a good file clears the error");
    assert_eq!(lemonade.metrics().sum("lemonade_last_reload_failed", &[]), 0);
    assert_eq!(load.stop().failed, [""; 0]);
}

#[test]
fn a_file_that_vanishes_or_becomes_unreadable_keeps_the_last_good_version() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&with(&backend, "round_robin"));
    fs::remove_file(lemonade.config()).expect("a file");
    lemonade.signal(Signal::HUP);
    wait::until("the loss is said", wait::SOON, || lemonade.status().reload_error().is_some());
    fs::create_dir(lemonade.config()).expect("a folder");
    lemonade.signal(Signal::HUP);
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(lemonade_tests::load::calls(lemonade.address("web"), 3), ["a"; 3]);
    fs::remove_dir(lemonade.config()).expect("a folder");
    lemonade.reload(&with(&backend, "adaptive"));
}

#[test]
fn what_cannot_be_reloaded_says_so() {
    let backend = Backend::start("a");
    let setup = with(&backend, "round_robin");
    let lemonade = Lemonade::start(&setup);
    lemonade.write(&setup.clone().runtime(&["workers = 1"]).text(lemonade.folder()));
    wait::until("the status names the key", wait::SOON, || {
        lemonade.status().pending_restart().contains("workers")
    });
    wait::until("the log names the key", wait::SOON, || lemonade.output().contains("workers"));
    lemonade.reload(&setup.clone().pool(&["strategy = \"adaptive\""]));
    assert_eq!(lemonade.status().pending_restart(), "[]", "the change was taken back");
}
