//! The page without a mouse, and for those who hear it.

use std::fs;

use lemonade_tests::skip::skip;
use serde_json::Value;

use crate::browser::{RETURN, TAB};
use crate::views::{Page, VIEWS};

/// Text of what has the focus.
fn focused(page: &Page) -> String {
    let text = page.browser.run("return document.activeElement.innerText ?? ''", &[]);
    text.as_str().unwrap_or_default().to_owned()
}

/// Presses the tabulator until `text` has the focus.
fn tab_to(page: &Page, text: &str) {
    let mut passed = Vec::new();
    for _ in 0..60 {
        page.browser.press(TAB);
        let now = focused(page);
        if now == text {
            let outline =
                page.browser.run("return getComputedStyle(document.activeElement).outlineStyle", &[]);
            assert_ne!(outline, "none", "{text} does not show that it has the focus");
            return;
        }
        passed.push(now);
    }
    panic!("{text} cannot be reached; passed {passed:?}");
}

#[test]
fn everything_can_be_done_by_keyboard() {
    let page = Page::open();
    page.browser.shows(".tiles", "since the start");
    tab_to(&page, "Skip to the content");
    page.browser.press(RETURN);
    assert_eq!(focused(&page), "Overview", "the first stop leads past the navigation");

    page.go("overview");
    page.browser.run("location.reload()", &[]);
    page.browser.shows(".tiles", "since the start");
    tab_to(&page, "Backends");
    page.browser.press(RETURN);
    page.browser.shows("h1", "Backends");
    assert_eq!(focused(&page), "Backends", "whoever follows a link goes on from the new heading");
    assert_eq!(page.browser.text("nav a[aria-current=page]"), "Backends");

    page.browser.shows("tbody tr:nth-child(2)", "up");
    page.browser.press(TAB);
    page.browser.write(&page.backends[1].address.port().to_string());
    page.browser.shows("tbody tr", "b");
    let rows = page.browser.run("return document.querySelectorAll('tbody tr').length", &[]);
    assert_eq!(rows, 1, "the filter leaves one backend");

    tab_to(&page, "Live");
    page.browser.press(RETURN);
    page.browser.shows("th[aria-sort=descending]", "Live");
    // Past the other headers is the button that opens the only row.
    for _ in 0..20 {
        page.browser.press(TAB);
        let opener = page.browser.run("return document.activeElement.className", &[]);
        if opener == "opener" {
            break;
        }
    }
    page.browser.press(RETURN);
    page.browser.shows("tr.detail", "lemonade");
    // Two readings of the status later the focus is where it was.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(page.browser.run("return document.activeElement.className", &[]), "opener");
}

#[test]
fn the_checker_finds_nothing_in_either_theme() {
    let Some(path) = std::env::var_os("LEMONADE_AXE") else {
        skip(
            "page::access::the_checker_finds_nothing_in_either_theme",
            "LEMONADE_AXE names no axe.min.js (cargo xtask dashboard installs it)",
        );
        return;
    };
    let checker = fs::read_to_string(&path).expect("the checker can be read");
    let page = Page::open();
    for theme in ["light", "dark"] {
        page.browser.run("localStorage.setItem('lemonade-theme', arguments[0])", &[theme.into()]);
        for (view, selector, text) in VIEWS {
            page.go(view);
            page.browser.run("location.reload()", &[]);
            page.browser.shows(selector, text);
            page.browser.shows("header .phase", "running");
            page.browser.run("document.querySelector('.opener')?.click()", &[]);
            page.browser.run(&checker, &[]);
            let found = page.browser.run_async(
                "const done = arguments[0]; axe.run(document).then((r) => done({ passes: r.passes.length, \
                 violations: r.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html + ' ' + n.failureSummary).join(' | ')) }), (e) => done({ violations: [String(e)] }))",
            );
            assert_eq!(found["violations"], Value::Array(Vec::new()), "{view}, {theme}");
            assert!(found["passes"].as_u64().is_some_and(|passes| passes > 10), "{found}");
        }
    }
    // A checker that finds nothing anywhere is none.
    page.browser.run("document.querySelector('nav').append(document.createElement('img'))", &[]);
    let found =
        page.browser.run_async("axe.run(document).then((r) => arguments[0](r.violations.map((v) => v.id)))");
    assert!(found.to_string().contains("image-alt"), "{found}");
}
