//! Each view, as somebody sees it who opens it.

use std::fs;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, run};
use lemonade_tests::load::{Flows, Load, calls};
use lemonade_tests::setup::{Frontend, Pool, Setup};
use lemonade_tests::skip::skip;
use lemonade_tests::wait;

use crate::browser::Browser;

/// Views, each with an element that only it has and a text that stands in it.
pub(crate) const VIEWS: [(&str, &str, &str); 9] = [
    ("overview", "figure", "Live connections"),
    ("frontends", "tbody", "web"),
    ("pools", "tbody", "round_robin"),
    ("backends", "tbody", "up"),
    ("connections", ".view", "are live"),
    ("decisions", ".view", "Listening"),
    ("journal", ".view", "Version after it"),
    ("config", "details", "drain_timeout"),
    ("doctor", ".view", "This configuration"),
];

/// A balancer with two backends and a browser that has its page open.
pub(crate) struct Page {
    pub(crate) browser: Browser,
    pub(crate) lemonade: Lemonade,
    pub(crate) setup: Setup,
    pub(crate) backends: Vec<Backend>,
}

impl Page {
    pub(crate) fn open() -> Self {
        let backends = Backend::several(2);
        let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
        let setup = Setup::single(&addresses);
        let lemonade = Lemonade::start(&setup);
        let browser = Browser::start(1440, 900);
        let page = Self { browser, lemonade, setup, backends };
        page.go("overview");
        page
    }

    /// Shows a view.
    pub(crate) fn go(&self, view: &str) {
        self.browser.open(&format!("http://{}/#/{view}", self.lemonade.admin_address()));
    }

    fn no_errors(&self) {
        let errors = self.browser.errors();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[test]
fn each_view_loads_without_an_error() {
    let page = Page::open();
    for (view, selector, text) in VIEWS {
        page.go(view);
        page.browser.shows(selector, text);
        page.browser.shows("header .phase", "running");
        page.no_errors();
    }
    // The first address shows the overview, and so does one that there is no view for.
    page.go("nothing");
    page.browser.shows("h1", "Overview");
    page.no_errors();
}

#[test]
fn the_console_of_the_browser_is_heard() {
    let page = Page::open();
    page.browser.run("console.error('heard')", &[]);
    wait::until("the console is read", wait::SOON, || {
        page.browser.errors().iter().any(|message| message.contains("heard"))
    });
    // A script in the page is what the policy forbids.
    page.browser.run(
        "const s = document.createElement('style'); s.textContent = 'a{}'; document.body.append(s)",
        &[],
    );
    wait::until("the policy is enforced", wait::SOON, || {
        page.browser.errors().iter().any(|message| message.contains("Content Security Policy"))
    });
}

#[test]
fn values_move_under_traffic() {
    let page = Page::open();
    let address = page.lemonade.address("web");
    page.browser.shows(".tiles", "0 since the start");
    calls(address, 7);
    page.browser.shows(".tiles", "7 since the start");
    let flows = Flows::start(address, 3, Duration::from_millis(50));
    page.browser.shows(".tiles strong", "3");
    page.go("backends");
    page.browser.shows("tbody", "up");
    let drawn =
        || page.browser.run("return document.querySelector('.spark polyline').getAttribute('points')", &[]);
    let before = drawn();
    wait::until("the line moves", wait::SOON, || drawn() != before);
    drop(flows.stop());
    page.no_errors();
}

#[test]
fn a_pause_stops_what_moves() {
    let page = Page::open();
    page.browser.shows(".tiles", "0 since the start");
    page.browser
        .run("[...document.querySelectorAll('button')].find((b) => b.textContent === 'Pause').click()", &[]);
    // What was asked for before the pause is still drawn.
    std::thread::sleep(Duration::from_millis(1500));
    calls(page.lemonade.address("web"), 3);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(page.browser.text(".tiles").contains("0 since the start"));
    page.browser
        .run("[...document.querySelectorAll('button')].find((b) => b.textContent === 'Pause').click()", &[]);
    page.browser.shows(".tiles", "3 since the start");
}

#[test]
fn connections_and_decisions_show_with_their_reasons() {
    let page = Page::open();
    let address = page.lemonade.address("web");
    let flows = Flows::start(address, 3, Duration::from_millis(50));
    page.go("connections");
    page.browser.shows(".view", "3 are live");
    page.browser.shows("tbody", "established");
    page.browser.run("document.querySelector('.opener').click()", &[]);
    page.browser.shows("tr.detail", "round_robin picked web/");
    page.browser.shows("tr.detail", "lemonade why");

    page.go("decisions");
    page.browser.shows(".view", "Listening");
    calls(address, 1);
    page.browser.shows("tbody", "round_robin picked web/");
    page.browser.shows("tbody", "end");
    // What a stream tells while the page is paused is not shown.
    page.browser
        .run("[...document.querySelectorAll('button')].find((b) => b.textContent === 'Pause').click()", &[]);
    page.browser.shows(".view", "Paused");
    drop(flows.stop());
    page.no_errors();
}

#[test]
fn a_drain_by_command_line_shows() {
    let page = Page::open();
    page.go("backends");
    page.browser.shows("tbody tr:nth-child(1)", "up");
    page.browser.run("document.querySelector('.opener').click()", &[]);
    page.browser.shows("tr.detail", "lemonade backend drain web/a");
    // The line that the page shows is the line that does it.
    let line = page.browser.run("return document.querySelector('tr.detail code').textContent", &[]);
    let words: Vec<&str> = line.as_str().expect("a command line").split(' ').skip(1).collect();
    let drained = run(&words);
    assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    page.browser.shows("tbody tr:nth-child(1)", "draining");
    page.browser.shows("tr.detail", "lemonade backend enable web/a");
    page.browser.shows("tr.detail", "from the command line");
    page.go("journal");
    page.browser.shows("tbody tr:nth-child(1)", "web/a");
    page.no_errors();
}

#[test]
fn a_change_of_the_file_shows() {
    let page = Page::open();
    page.go("backends");
    page.browser.shows("tbody tr:nth-child(1)", "up");
    page.lemonade.reload(&page.setup.clone().backend(0, &["weight = 0"]).backend(1, &["enabled = false"]));
    page.browser.shows("tbody tr:nth-child(1)", "draining");
    page.browser.shows("tbody tr:nth-child(2)", "disabled");
    page.lemonade.reload_bad("nonsense = 1\n");
    page.go("overview");
    page.browser.shows("main", "refused configuration of file changed");
    page.browser.shows("main pre", "nonsense");
    page.no_errors();
}

#[test]
fn a_lemonade_that_is_gone_is_told() {
    let mut page = Page::open();
    page.browser.shows("header .phase", "running");
    page.lemonade.signal(rustix::process::Signal::TERM);
    page.lemonade.wait(wait::SOON);
    page.browser.shows(".trouble", "No answer from Lemonade");
}

#[test]
fn a_narrow_window_shows_everything_without_scrolling_sideways() {
    let page = Page::open();
    for width in [360, 1440] {
        page.browser.narrow(width);
        for (view, selector, text) in VIEWS {
            page.go(view);
            page.browser.shows(selector, text);
            page.browser.run("document.querySelector('.opener')?.click()", &[]);
            let needed = page.browser.run("return document.documentElement.scrollWidth", &[]);
            assert_eq!(needed, width, "{view} in {width} pixels");
        }
    }
}

#[test]
fn each_line_with_nothing_to_fill_in_is_a_command() {
    let page = Page::open();
    for (view, selector, text) in VIEWS {
        page.go(view);
        page.browser.shows(selector, text);
        page.browser.run("document.querySelector('.opener')?.click()", &[]);
        let lines = page
            .browser
            .run("return [...document.querySelectorAll('.command code')].map((c) => c.textContent)", &[]);
        for line in lines.as_array().expect("a list").iter().filter_map(|line| line.as_str()) {
            let Some(words) = line.strip_prefix("lemonade ") else { continue };
            let mut words: Vec<&str> = words.split(' ').collect();
            // Asks the parser alone: nothing is done.
            words.push("--help");
            let parsed = run(&words);
            assert!(parsed.status.success(), "{view}: {line}: {}", String::from_utf8_lossy(&parsed.stderr));
        }
    }
}

/// Writes the picture of the README, when `LEMONADE_SCREENSHOT` says where.
#[test]
fn screenshot() {
    let Some(path) = std::env::var_os("LEMONADE_SCREENSHOT") else {
        skip("page::views::screenshot", "nobody asked for a picture (cargo xtask dashboard --screenshot)");
        return;
    };
    let backends = Backend::several(4);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let mut setup = Setup::single(&addresses[..3]).pool(&["strategy = \"least_connections\""]);
    setup.frontends.push(Frontend::new("api", "api"));
    setup.pools.push(Pool::new("api", &addresses[3..]));
    let setup = setup.backend(2, &["weight = 0"]);
    let lemonade = Lemonade::start(&setup);
    let browser = Browser::start(1280, 760);
    browser.open(&format!("http://{}/#/overview", lemonade.admin_address()));
    let loads =
        [("web", 90), ("api", 40)].map(|(frontend, rate)| Load::start(lemonade.address(frontend), rate));
    let flows = Flows::start(lemonade.address("web"), 40, Duration::from_millis(20));
    std::thread::sleep(Duration::from_secs(45));
    fs::write(&path, browser.screenshot()).expect("the picture is written");
    drop(flows.stop());
    loads.into_iter().for_each(|load| drop(load.stop()));
}
