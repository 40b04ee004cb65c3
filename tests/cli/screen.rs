//! How wide and high what commands say is: whole in a pipe, as wide and high as a terminal is.

use std::process::Command;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, binary};
use lemonade_tests::setup::{self, Frontend, Pool, Setup};
use lemonade_tests::socket::refusing_address;
use lemonade_tests::terminal::{COLUMNS, LINES, Screen};
use lemonade_tests::wait;

use super::operate::{told, two};

const LONG: [&str; 2] = [
    "a-backend-with-a-name-that-goes-on-for-sixty-characters-zone-1-a",
    "a-backend-with-a-name-that-goes-on-for-sixty-characters-zone-1-b",
];

/// `lemonade` with `arguments` on a terminal.
fn watched(lemonade: &Lemonade, arguments: &[&str]) -> Screen {
    Screen::start(Command::new(binary()).args(arguments).arg("--admin").arg(lemonade.socket()))
}

/// What is on the screen, line by line.
fn lines(screen: &Screen) -> Vec<String> {
    screen.now().screen().rows(0, COLUMNS).map(|line| line.trim_end().to_owned()).collect()
}

/// One pool of two backends with long names, one of them down, behind a frontend with two addresses.
fn long() -> (Backend, Lemonade) {
    let backend = Backend::start("a");
    let mut setup = Setup::single(&[backend.address, refusing_address()])
        .health(&["kind = \"tcp\"", "interval = \"1s\""]);
    for (own, name) in setup.pools[0].backends.iter_mut().zip(LONG) {
        name.clone_into(&mut own.name);
    }
    setup.frontends[0].listen = setup::lines(&["127.0.0.1:0", "[::1]:0"]);
    let lemonade = Lemonade::start(&setup);
    wait::until("the dead backend is down", wait::SOON, || !lemonade.status().is_up("web", LONG[1]));
    (backend, lemonade)
}

#[test]
fn a_pipe_gets_every_address_name_and_reason_whole() {
    let (_backend, lemonade) = long();
    let json = told(&lemonade, &["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let why = json["pools"][0]["backends"][1]["why"].as_str().expect("a reason").to_owned();
    let status = told(&lemonade, &["status"]);
    let listening = json["frontends"][0]["listening"].as_array().expect("addresses");
    assert_eq!(listening.len(), 2);
    let addresses: Vec<&str> = listening.iter().map(|address| address.as_str().expect("text")).collect();
    for words in addresses.iter().chain(&LONG).chain(&["DOWN", "since 20"]) {
        assert!(status.contains(words), "{words} is missing in\n{status}");
    }
    let (reason, _) = why.split_once(": ").expect("how often, and what");
    assert!(status.contains(reason) && !status.contains('…'), "{why} in\n{status}");
    let explained = told(&lemonade, &["explain", "192.0.2.7"]);
    for words in LONG {
        assert!(explained.contains(words) && !explained.contains('…'), "{words} is missing in\n{explained}");
    }
}

#[test]
fn a_terminal_gets_lines_that_fit_and_loses_no_port() {
    let (_backend, lemonade) = long();
    let mut screen = watched(&lemonade, &["status"]);
    wait::until("status has ended", wait::SOON, || screen.ended().is_some());
    screen.shows("1ST BYTE");
    screen.shows("refused");
    // A line that is too wide would go on in the next one of the terminal, and so be longer here.
    for line in screen.text().lines() {
        let plain = line.trim_end().replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
        assert!(plain.chars().count() <= COLUMNS.into(), "{plain}");
    }
    let shown = lines(&screen);
    for address in [lemonade.address("web").port(), refused_port(&lemonade)] {
        let port = format!(":{address} ");
        assert!(shown.iter().any(|line| format!("{line} ").contains(&port)), "{port} in {shown:#?}");
    }
    for end in ["zone-1-a", "zone-1-b"] {
        assert!(shown.iter().any(|line| line.contains('…') && line.contains(end)), "{end} in {shown:#?}");
    }
    assert!(shown[0].starts_with("Lemonade"), "it fits one screen: {shown:#?}");
}

fn refused_port(lemonade: &Lemonade) -> u16 {
    let status = lemonade.status();
    let address = status.backend("web", LONG[1])["address"].as_str().expect("text").to_owned();
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port")
}

#[test]
fn a_watched_status_fits_the_screen_and_says_what_is_left_out() {
    let (_backends, lemonade) = two();
    let screen = watched(&lemonade, &["status", "--watch"]);
    screen.shows("1ST BYTE");
    let shown = lines(&screen);
    assert!(shown[0].starts_with("Lemonade "), "the first line is there: {shown:#?}");
    assert!(!shown.iter().any(|line| line.contains("lines more")), "all of it fits: {shown:#?}");
    drop(screen);

    let backends = Backend::several(30);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let mut setup = Setup::single(&addresses[..20]);
    setup.pools.push(Pool::new("other", &addresses[20..]));
    setup.frontends.push(Frontend::new("other", "other"));
    let lemonade = Lemonade::start(&setup);
    let screen = watched(&lemonade, &["status", "--watch"]);
    screen.shows("lines more");
    let shown = lines(&screen);
    assert!(shown[0].starts_with("Lemonade "), "the first line is there: {shown:#?}");
    let last = &shown[usize::from(LINES) - 1];
    let left: usize =
        last.trim_start_matches('(').split(' ').next().and_then(|n| n.parse().ok()).expect(last);
    let all = told(&lemonade, &["status"]).lines().count();
    assert!(left + usize::from(LINES) > all, "{left} are left out of at least {all}: {shown:#?}");
    assert!(last.contains("`lemonade status` or `top` shows all"), "{last}");
}

#[test]
fn status_top_and_the_page_call_a_drained_backend_draining() {
    let (_backends, lemonade) = two();
    told(&lemonade, &["backend", "drain", "a"]);
    let status = told(&lemonade, &["status"]);
    let row = status.lines().find(|line| line.starts_with("  a ")).expect("a row");
    assert!(row.contains(" draining "), "{status}");
    assert!(status.contains("POOL web: round_robin, 1 of 2 backends up"), "{status}");
    watched(&lemonade, &["top"]).shows("draining");
}

#[test]
fn one_of_a_kind_is_no_plural() {
    let (_backends, lemonade) = two();
    let file = lemonade.config();
    let output = lemonade_tests::lemonade::run(&["check", file.to_str().expect("UTF-8")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.ends_with(": ok: 1 frontend, 1 pool, 2 backends\n"), "{text}");
}
