//! `lemonade top` on a terminal of 80 columns and 24 lines.

use std::process::Command;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, binary, run};
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;
use lemonade_tests::terminal::Screen;
use lemonade_tests::wait;

#[test]
fn top_shows_backends_drains_one_and_leaves_the_terminal_as_it_was() {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let lemonade = Lemonade::start(&Setup::single(&addresses));
    calls(lemonade.address("web"), 4);
    let mut screen = Screen::start(Command::new(binary()).arg("top").arg("--admin").arg(lemonade.socket()));
    screen.shows("web/a");
    screen.shows("web/b");
    screen.press("d");
    screen.shows("web/a,");
    screen.press("y");
    wait::until("web/a is drained", wait::SOON, || lemonade.status().backend("web", "a")["weight"] == 0);
    screen.shows("web/a:");
    screen.press("2");
    screen.shows("-bytes");
    screen.press("q");
    let mut ended = None;
    wait::until("top has ended", Duration::from_secs(10), || {
        ended = screen.ended();
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    screen.shows("\u{1b}[?1049l");
}

#[test]
fn top_without_a_terminal_says_what_to_use() {
    let output = run(&["top"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("status --watch"), "{text}");
}
