//! What changed, and what a change leaves behind, over edits, a stop and a start.

use std::fs;
use std::net::SocketAddr;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

use crate::operate::{hold, refused, told, two};

/// Each thing that moves connections stands in the journal: a drain as such, what it hides, what waits, a stop, and what
/// ended with it; and versions go on, so that one noted before a restart is no other's after it.
#[test]
fn history_has_no_gap_over_edits_a_stop_and_a_start() {
    let (_backends, mut lemonade) = two();
    told(&lemonade, &["backend", "drain", "a"]);
    let text = fs::read_to_string(lemonade.config()).expect("the file");
    let edited = text
        .replace("name = \"a\"", "name = \"a\"\nweight = 2")
        .replace("[runtime]", "[runtime]\nrelay_buffer = \"64KiB\"");
    assert!(edited.contains("weight = 2") && edited.contains("relay_buffer"), "{edited}");
    let plan = lemonade.folder().join("edited.toml");
    fs::write(&plan, &edited).expect("writable");
    let planned = told(&lemonade, &["plan", plan.to_str().expect("UTF-8")]);
    assert!(planned.contains("web/a: the file says weight 1 -> 2"), "{planned}");
    lemonade.write(&edited);
    told(&lemonade, &["reload"]);
    let version = lemonade.status().config_version();
    let before = told(&lemonade, &["history"]);
    for words in [
        "backend web/a: drain (weight 1 -> 0)",
        "web/a: the file says weight 1 -> 2",
        "waits for the next start: runtime.relay_buffer",
    ] {
        assert!(before.contains(words), "{words} is missing in\n{before}");
    }
    assert_eq!(before.matches("waits for the next start").count(), 1, "{before}");
    lemonade.signal(Signal::TERM);
    assert!(lemonade.wait(wait::SOON * 3).success());
    lemonade.restart();
    let after = told(&lemonade, &["history"]);
    let since = after.strip_prefix(&before).expect("what was before is still there");
    for words in [
        "by stop",
        "Lemonade stops: asked by a signal; 0 live connections",
        "Lemonade stopped: every connection ended by itself",
        "backend web/a: drained at run time: ended with the process before this one",
    ] {
        assert!(since.contains(words), "{words} is missing in\n{since}");
    }
    assert!(lemonade.status().config_version() > version, "versions go on");
    refused(&lemonade, 3, &["backend", "drain", "a", "--if-version", &version.to_string()]);
    refused(&lemonade, 3, &["backend", "drain", "a", "--if-version", "1"]);
}

/// Connections of a backend that left the file are still told, and no later plan is said to cause their end.
#[test]
fn connections_of_a_removed_backend_are_told_until_they_end() {
    let backends = Backend::several(2);
    let setup = |count: usize| {
        let addresses: Vec<SocketAddr> = backends[..count].iter().map(|backend| backend.address).collect();
        Setup::single(&addresses)
    };
    let lemonade = Lemonade::start(&setup(2));
    let held = [hold(&lemonade), hold(&lemonade)];
    lemonade.reload(&setup(1));
    let status: Value = serde_json::from_str(&told(&lemonade, &["status", "--json"])).expect("JSON");
    let removed = &status["removed"][0];
    assert_eq!((&removed["what"], &removed["live"]), (&"backend web/b".into(), &1.into()), "{status}");
    assert_eq!(removed["address"], backends[1].address.to_string());
    let kept: u64 = status["pools"][0]["backends"].as_array().expect("a list").len() as u64;
    assert_eq!((kept, &status["frontends"][0]["live"]), (1, &2.into()));
    let text = told(&lemonade, &["status"]);
    assert!(text.contains("backend web/b") && text.contains("removed, draining: 1 live, reset at"), "{text}");
    let plan = told(&lemonade, &["plan", lemonade.config().to_str().expect("UTF-8")]);
    for words in
        ["nothing would change", "1 go on, 0 would be drained", "1 of backend web/b: removed before this"]
    {
        assert!(plan.contains(words), "{words} is missing in\n{plan}");
    }
    drop(held);
    wait::until("they have ended", wait::SOON, || {
        told(&lemonade, &["status", "--json"]).contains("\"removed\":[]")
    });
}
