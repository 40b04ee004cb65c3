//! The end of the process: drain, deadline, force, and what systemd is told.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Flows, Load, call};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::{self, SILENCE, accept, await_abort, connect, refuses};
use lemonade_tests::trace::{Event, Length, finish, read_to_end, read_up_to, write_exactly};
use lemonade_tests::wait;
use rustix::process::Signal;

const SEED: u64 = 9;

struct Pair {
    lemonade: Lemonade,
    client: TcpStream,
    backend: TcpStream,
    listener: TcpListener,
}

fn pair(runtime: &[&str]) -> Pair {
    let listener = socket::listener();
    let setup = Setup::single(&[listener.local_addr().expect("a bound socket")]).runtime(runtime);
    let lemonade = Lemonade::start(&setup);
    let client = connect(lemonade.address("web")).expect("it serves");
    Pair { client, backend: accept(&listener), lemonade, listener }
}

fn a_long_download_finishes_after(signal: Signal) {
    const BYTES: u64 = 48 << 20;
    let Pair { mut lemonade, mut client, mut backend, listener: _listener } =
        pair(&["drain_timeout = \"5m\""]);
    let web = lemonade.address("web");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            write_exactly(&mut backend, SEED, BYTES).expect("the client reads to the end");
            finish(&backend);
            assert_eq!(read_to_end(&mut backend, 0, Length::Exact), [Event::Bytes(0), Event::Fin]);
        });
        assert_eq!(read_up_to(&mut client, SEED, 100_000), (100_000, None));
        lemonade.signal(signal);
        wait::until("new connections are refused", wait::SOON, || refuses(web));
        std::thread::sleep(Duration::from_millis(300));
        assert!(lemonade.exited().is_none(), "it waits for the download:\n{}", lemonade.output());
        let mut rest = 100_000;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = std::io::Read::read(&mut client, &mut buffer).expect("the download goes on");
            if n == 0 {
                break;
            }
            lemonade_tests::stream::check(SEED, rest, &buffer[..n]).expect("every byte");
            rest += n as u64;
        }
        assert_eq!(rest, BYTES, "the download is whole");
        finish(&client);
    });
    assert_eq!(lemonade.wait(wait::SOON).code(), Some(0), "{}", lemonade.output());
}

#[test]
fn a_long_download_finishes_after_sigterm() {
    a_long_download_finishes_after(Signal::TERM);
}

#[test]
fn a_long_download_finishes_after_sigint() {
    a_long_download_finishes_after(Signal::INT);
}

#[test]
fn a_lame_duck_is_not_ready_and_still_serves() {
    let backend = Backend::start("a");
    let setup = Setup::single(&[backend.address]).runtime(&["lame_duck = \"4s\""]);
    let mut lemonade = Lemonade::start(&setup);
    let web = lemonade.address("web");
    let load = Load::start(web, 50);
    let begun = Instant::now();
    lemonade.signal(Signal::TERM);
    let readiness = || http::get_unix(&lemonade.socket(), "/readyz").map(|answer| answer.status);
    wait::until("it is no longer ready", wait::SOON, || readiness().is_ok_and(|status| status == 503));
    assert_eq!(http::get_unix(&lemonade.socket(), "/healthz").expect("it lives").status, 200);
    let served = load.answered();
    wait::until("it still serves", wait::SOON, || load.answered() > served + 10);
    let outcome = load.stop();
    if begun.elapsed() < Duration::from_secs(4) {
        assert_eq!(outcome.failed, [""; 0], "a lame duck refuses nobody");
    }
    wait::until("then it refuses", wait::SOON, || call(web).is_err());
    assert_eq!(lemonade.wait(wait::SOON).code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(4), "the pause is as long as configured");
}

/// At the deadline both ends are reset.
fn both_ends_are_reset(mut pair: Pair, what: &str) {
    assert_eq!(await_abort(&pair.client, SILENCE), Event::Reset, "the client, {what}");
    assert_eq!(await_abort(&pair.backend, SILENCE), Event::Reset, "the backend, {what}");
    let status = pair.lemonade.wait(wait::SOON);
    assert!(status.code().is_some(), "it ends by itself, {what}: {status}");
}

#[test]
fn the_drain_deadline_resets_both_ends_of_what_is_left() {
    let pair = pair(&["drain_timeout = \"500ms\""]);
    pair.lemonade.signal(Signal::TERM);
    both_ends_are_reset(pair, "at the deadline");
}

#[test]
fn a_reloaded_drain_timeout_is_the_one_in_force() {
    let pair = pair(&["drain_timeout = \"10m\""]);
    let target = pair.listener.local_addr().expect("a bound socket");
    pair.lemonade.reload(&Setup::single(&[target]).runtime(&["drain_timeout = \"500ms\""]));
    pair.lemonade.signal(Signal::TERM);
    both_ends_are_reset(pair, "at the deadline of the newest configuration");
}

#[test]
fn a_second_signal_forces() {
    for signals in [[Signal::TERM, Signal::TERM], [Signal::INT, Signal::TERM]] {
        let pair = pair(&["drain_timeout = \"10m\""]);
        let web = pair.lemonade.address("web");
        pair.lemonade.signal(signals[0]);
        wait::until("it drains", wait::SOON, || refuses(web));
        pair.lemonade.signal(signals[1]);
        both_ends_are_reset(pair, "after the second signal");
    }
}

#[test]
fn a_second_signal_forces_during_the_lame_duck_pause() {
    let pair = pair(&["lame_duck = \"10m\"", "drain_timeout = \"10m\""]);
    pair.lemonade.signal(Signal::TERM);
    wait::until("the pause has begun", wait::SOON, || {
        http::get_unix(&pair.lemonade.socket(), "/readyz").is_ok_and(|answer| answer.status == 503)
    });
    pair.lemonade.signal(Signal::TERM);
    both_ends_are_reset(pair, "in the pause");
}

#[test]
fn live_flows_are_served_while_it_drains() {
    let backend = Backend::start("a");
    let mut lemonade =
        Lemonade::start(&Setup::single(&[backend.address]).runtime(&["drain_timeout = \"5m\""]));
    let web = lemonade.address("web");
    let flows = Flows::start(web, 10, Duration::from_millis(5));
    lemonade.signal(Signal::TERM);
    wait::until("it drains", wait::SOON, || refuses(web));
    let rounds = flows.rounds();
    wait::until("flows go on", wait::SOON, || flows.rounds() > rounds + 100);
    for flow in flows.stop() {
        flow.expect("a flow ends in order");
    }
    assert_eq!(lemonade.wait(wait::SOON).code(), Some(0));
}

#[test]
fn it_leaves_neither_socket_nor_lock_behind() {
    let backend = Backend::start("a");
    let mut lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    lemonade.signal(Signal::TERM);
    assert_eq!(lemonade.wait(wait::SOON).code(), Some(0));
    // A second life in the same folder.
    let config = lemonade.config();
    let mut child = std::process::Command::new(lemonade_tests::lemonade::binary())
        .arg("run")
        .arg("--config")
        .arg(&config)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let socket = lemonade.socket();
    let ready = std::panic::catch_unwind(|| {
        wait::until("the next process serves", wait::SOON, || {
            http::get_unix(&socket, "/readyz").is_ok_and(|answer| answer.status == 200)
        });
    });
    child.kill().expect("ours");
    child.wait().expect("ours");
    ready.expect("the next process serves");
}

#[test]
fn systemd_is_told_of_start_reload_life_and_end() {
    let backend = Backend::start("a");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("notify.sock");
    let told = UnixDatagram::bind(&path).expect("a unix socket");
    told.set_read_timeout(Some(wait::SOON)).expect("a live socket");
    let wait_for = |what: &str| {
        let end = Instant::now() + wait::SOON;
        let mut seen = Vec::new();
        while Instant::now() < end {
            let mut buffer = [0; 4096];
            let Ok(n) = told.recv(&mut buffer) else { break };
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if text.lines().any(|line| line == what) {
                return text;
            }
            seen.push(text);
        }
        panic!("{what} was not told; told: {seen:?}");
    };

    let setup = Setup::single(&[backend.address]);
    let mut lemonade = Lemonade::start_in(&setup, |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    });
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    lemonade.write(&setup.clone().pool(&["strategy = \"adaptive\""]).text(lemonade.folder()));
    lemonade.signal(Signal::HUP);
    let reloading = wait_for("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "Type=notify-reload needs the moment: {reloading:?}");
    wait_for("READY=1");
    lemonade.signal(Signal::TERM);
    wait_for("STOPPING=1");
    assert_eq!(lemonade.wait(wait::SOON).code(), Some(0));
}
