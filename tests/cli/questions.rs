//! The five questions of whoever runs a balancer, each answered from a fresh start with Lemonade's own commands: which
//! backend is slow, why a connection went where it went, why one was refused, what changed at a time, what an edit would do.

use std::io::{Read, Write};
use std::net::SocketAddr;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{call, calls};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket::connect;
use lemonade_tests::wait;
use serde_json::Value;

use crate::operate::{hold, ids, refused_by, told, two};

/// `status` and `explain` show the slow one among backends that all answer.
#[test]
fn question_1_which_backend_is_slow() {
    let slow = Slow::start();
    let quick = Backend::start("a");
    let setup = Setup::single(&[quick.address, slow.0]).pool(&["strategy = \"fastest_response_time\""]);
    let lemonade = Lemonade::start(&setup);
    for _ in 0..10 {
        // The slow one answers something else than was asked for.
        let _ = call(lemonade.address("web"));
    }
    let text = told(&lemonade, &["explain", "192.0.2.7"]);
    let cost = |name: &str| -> f64 {
        let line =
            text.lines().find(|line| line.trim_start().starts_with(&format!("{name} "))).expect("a row");
        line.split_whitespace().nth(4).and_then(|cell| cell.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    };
    assert!(cost("b") > 10.0 * cost("a"), "{text}");
    let status = told(&lemonade, &["status", "--json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let ms = |at: usize| status["pools"][0]["backends"][at]["first_byte_ms"].as_f64().expect("measured");
    assert!(ms(1) > 90.0 && ms(1) > 10.0 * ms(0), "a {} ms, b {} ms", ms(0), ms(1));
}

/// A backend that answers each connection's first byte 100 ms late.
struct Slow(SocketAddr);

impl Slow {
    fn start() -> Self {
        let listener = lemonade_tests::socket::listener();
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    if stream.read(&mut [0; 64]).is_ok_and(|read| read > 0) {
                        std::thread::sleep(std::time::Duration::from_millis(100));
                        let _ = stream.write_all(b"late");
                    }
                });
            }
        });
        Self(address)
    }
}

/// `connections` finds it, `why` tells the strategy, what it went by, and who lost.
#[test]
fn question_2_why_a_connection_went_to_its_backend() {
    let backends = Backend::several(2);
    let addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    let setup = Setup::single(&addresses).pool(&["strategy = \"least_connections\""]);
    let lemonade = Lemonade::start(&setup);
    let first = hold(&lemonade);
    let second = hold(&lemonade);
    let why = |client: SocketAddr| told(&lemonade, &["why", &client.to_string()]);
    let (one, other) =
        (why(first.local_addr().expect("an address")), why(second.local_addr().expect("an address")));
    let went =
        |text: &str| ["web/a", "web/b"].into_iter().find(|name| text.contains(&format!("backend {name}")));
    assert!(went(&one).is_some() && went(&one) != went(&other), "{one}\n{other}");
    for text in [&one, &other] {
        assert!(text.contains("least_connections among 2 candidates: lowest load"), "{text}");
    }
    let listed = told(&lemonade, &["connections"]);
    for id in ids(&lemonade) {
        assert!(listed.contains(&id.to_string()), "{listed}");
        assert!(told(&lemonade, &["why", &id.to_string()]).contains("lowest load"));
    }
}

/// `/metrics` counts refusals by reason, `connections --ended` names the client, `why` says which key to raise.
#[test]
fn question_3_why_a_client_was_refused() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]).frontend(&["max_connections = 1"]));
    let mut held = connect(lemonade.address("web")).expect("it accepts");
    held.write_all(&[1]).expect("it is served");
    wait::until("it is established", wait::SOON, || {
        told(&lemonade, &["connections", "--json"]).contains("\"established\"")
    });
    let client = refused_by(lemonade.address("web"));
    let counted =
        || lemonade.metrics().sum("lemonade_frontend_refused_total", &[("reason", "frontend_limit")]);
    wait::until("it is counted", wait::SOON, || counted() == 1);
    let ended = told(&lemonade, &["connections", "--ended"]);
    let line = ended.lines().find(|line| line.contains(&client.to_string()));
    assert!(line.is_some_and(|line| line.contains("frontend_limit")), "{ended}");
    // Asked by its address alone, a client's newest connection is meant, though another of its still lives.
    let newest = told(&lemonade, &["why", &client.ip().to_string()]);
    let why = told(&lemonade, &["why", &client.to_string()]);
    assert_eq!(newest, why);
    for words in ["got no backend", "the frontend is at its max_connections", "(frontend_limit)"] {
        assert!(why.contains(words), "{words} is missing in\n{why}");
    }
}

/// `history` tells what changed in the minute, who did it, and nothing of another time.
#[test]
fn question_4_what_changed_at_a_time() {
    let (_backends, lemonade) = two();
    told(&lemonade, &["backend", "weight", "b", "5"]);
    let text = std::fs::read_to_string(lemonade.config()).expect("the file");
    lemonade.write(&text.replace("name = \"a\"", "name = \"a\"\nmax_connections = 9"));
    told(&lemonade, &["reload"]);
    let lines = told(&lemonade, &["history", "--json"]);
    let page: Value = serde_json::from_str(&lines).expect("JSON");
    let entries = page["entries"].as_array().expect("a list");
    let by_admin = entries.iter().find(|entry| entry["who"] == "admin").expect("the change of the weight");
    let time = by_admin["time"].as_str().expect("a time");
    // 14:02 of 2026-11-25T14:02:31.123Z
    let minute = &time[11..16];
    let at = told(&lemonade, &["history", "--since", minute]);
    let uid = rustix::process::geteuid().as_raw();
    for words in
        ["backend web/b: weight 1 -> 5", &format!("by admin (uid {uid})"), "web/a: max_connections 0 -> 9"]
    {
        assert!(at.contains(words), "{words} is missing in\n{at}");
    }
    let before = told(&lemonade, &["history", "--until", &time[..19]]);
    assert!(!before.contains("max_connections 0 -> 9"), "it came later:\n{before}");
    let only = told(&lemonade, &["history", "--since", minute, "--what", "admin"]);
    assert!(only.contains("weight 1 -> 5") && !only.contains("max_connections"), "{only}");
}

/// `plan` tells listeners, backends, shares and live connections that an edit would touch; afterwards it is so.
#[test]
fn question_5_what_an_edit_would_do() {
    let (backends, lemonade) = two();
    let _held = hold(&lemonade);
    let third = Backend::start("c");
    let addresses = [backends[0].address, backends[1].address, third.address];
    let edited = lemonade.folder().join("edited.toml");
    let edit =
        Setup::single(&addresses).pool(&["strategy = \"weighted_round_robin\""]).backend(2, &["weight = 2"]);
    std::fs::write(&edited, edit.text(lemonade.folder())).expect("writable");
    let plan = told(&lemonade, &["plan", edited.to_str().expect("UTF-8")]);
    for words in [
        "backend c",
        "round_robin -> weighted_round_robin",
        "web/c: - -> 50%",
        "web/a: 50% -> 25%",
        "1 go on",
    ] {
        assert!(plan.contains(words), "{words} is missing in\n{plan}");
    }
    lemonade.reload(&edit);
    let names = calls(lemonade.address("web"), 40);
    assert_eq!(names.iter().filter(|name| *name == "c").count(), 20, "{names:?}");
}
