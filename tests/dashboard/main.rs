//! How the page of the admin interface is served: its headers, its bounds, and who is refused.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::http;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::{Load, call};
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;
use serde_json::Value;

fn start() -> (Vec<Backend>, Lemonade) {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    (backends, Lemonade::start(&Setup::single(&addresses)))
}

/// Head and body of the answer to `GET path` with `headers`.
fn get(address: SocketAddr, path: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("the admin address accepts");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").expect("a request is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_ascii_lowercase(), body.to_owned())
}

/// A stream of decisions that has begun.
fn listen(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the admin address accepts");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    write!(stream, "GET /api/v1/events HTTP/1.1\r\n{}\r\n", own(address)).expect("a request is taken");
    let mut head = [0; 15];
    stream.read_exact(&mut head).expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    stream
}

fn own(address: SocketAddr) -> String {
    format!("Host: {address}\r\n")
}

#[test]
fn every_answer_keeps_other_pages_out() {
    let (_backends, lemonade) = start();
    let address = lemonade.admin_address();
    for path in
        ["/", "/dashboard.js", "/dashboard.css", "/icon.svg", "/api/v1/status", "/metrics", "/nowhere"]
    {
        let (head, body) = get(address, path, &own(address));
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "cross-origin-resource-policy: same-origin",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.contains(header), "{path} without {header}:\n{head}");
        }
        assert!(!head.contains("unsafe-inline") && !head.contains("access-control-allow"), "{head}");
        let stored = !path.starts_with("/api") && path != "/metrics" && path != "/nowhere";
        let cache = if stored { "cache-control: no-cache" } else { "cache-control: no-store" };
        assert!(head.contains(cache), "{path} without {cache}:\n{head}");
        assert!(!body.is_empty());
    }
}

#[test]
fn a_file_that_is_known_is_not_sent_again() {
    let (_backends, lemonade) = start();
    let address = lemonade.admin_address();
    let (head, body) = get(address, "/dashboard.js", &own(address));
    assert!(body.len() > 10_000);
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag").to_owned();
    let (head, body) = get(address, "/dashboard.js", &format!("{}If-None-Match: {tag}\r\n", own(address)));
    assert!(head.starts_with("http/1.1 304") && body.is_empty(), "{head}");
}

#[test]
fn a_foreign_name_gets_nothing() {
    let (_backends, lemonade) = start();
    let address = lemonade.admin_address();
    for path in ["/", "/dashboard.js", "/api/v1/config", "/api/v1/doctor"] {
        let (head, body) = get(address, path, "Host: evil.example\r\n");
        assert!(head.starts_with("http/1.1 403"), "{head}");
        assert!(body.contains("Host header"), "{body}");
        let (head, _) = get(address, path, &format!("Host: localhost:{}\r\n", address.port()));
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
}

#[test]
fn what_the_page_reads_holds_no_secret() {
    let backends = Backend::several(1);
    let setup = Setup::single(&[backends[0].address]).runtime(&["hash_seed = \"a secret seed\""]);
    let lemonade = Lemonade::start(&setup);
    let address = lemonade.admin_address();
    let (_, text) = get(address, "/api/v1/config", &own(address));
    assert!(!text.contains("a secret seed"), "{text}");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["version"], 1);
    assert_eq!(config["config"]["runtime"]["hash_seed"], "(left out)");
    assert_eq!(config["config"]["pool"]["web"]["backend"][0]["address"], backends[0].address.to_string());

    let (_, text) = get(address, "/api/v1/doctor", &own(address));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["configuration"]["frontends"][0]["frontend"], "web");
    assert_eq!(report["sections"][0]["name"], "host");
}

#[test]
fn viewers_share_a_status_and_the_command_line_has_its_own() {
    let (_backends, lemonade) = start();
    let address = lemonade.admin_address();
    let opened = |text: &str| serde_json::from_str::<Value>(text).expect("JSON")["process"]["opened"].clone();
    let shared = || get(address, "/api/v1/status", &own(address)).1;
    let before = shared();
    assert_eq!(opened(&before), 0);
    call(lemonade.address("web")).expect("a backend answers");
    let fresh = http::get_unix(&lemonade.socket(), "/api/v1/status").expect("the admin socket answers");
    assert_eq!(opened(&fresh.body), 1);
    wait::until("the viewers see it too", wait::SOON, || opened(&shared()) == 1);
}

/// Viewers that ask as the page does, each on a connection of its own, for as long as the load runs.
#[test]
fn fifty_viewers_stay_bounded_and_harm_nobody() {
    const VIEWERS: usize = 50;
    const ROUNDS: usize = 5;
    let (_backends, lemonade) = start();
    let address = lemonade.admin_address();
    get(address, "/", &own(address));
    let before = lemonade.resident();
    let load = Load::start(lemonade.address("web"), 100);
    // Each listens to decisions too, and never reads them.
    let listeners: Vec<_> = (0..VIEWERS).map(|_| listen(address)).collect();
    let viewer = |_| {
        std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                for path in
                    ["/", "/dashboard.js", "/api/v1/status", "/api/v1/config", "/api/v1/series?last=600"]
                {
                    let (head, body) = get(address, path, &own(address));
                    assert!(head.starts_with("http/1.1 200") && !body.is_empty(), "{path}: {head}");
                }
            }
        })
    };
    let viewers: Vec<_> = (0..VIEWERS).map(viewer).collect();
    viewers.into_iter().for_each(|viewer| viewer.join().expect("a viewer is answered"));
    drop(listeners);
    let outcome = load.stop();
    assert!(outcome.failed.is_empty(), "{outcome:?}");
    assert!(outcome.total() > 0);
    let grown = lemonade.resident().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes more than before");
    assert_eq!(http::get(address, "/healthz").expect("it answers").status, 200);
}
